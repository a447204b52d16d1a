"""Does distillation help a 4/4/8-bit student? Paired seeds, equal epochs, one full-precision SNN teacher.

    python benchmarks/quantization_study.py digits
    python benchmarks/quantization_study.py cifar10 --root FOLDER  # 5,000 training, 2,000 test images

Four students start from the same trained network and differ only in their objectives: cross-entropy; + the
teacher's logits; + its membranes; + both. Prints mean accuracies and mean paired differences with 95 %
intervals, writes them as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import spikedistill as sd
from spikedistill.training.summary import MultiSummary, paired_interval

LOGITS = {"type": "logit_distillation", "temperature": 4.0}
MEMBRANES = {"type": "membrane_distillation", "weight": 1.0}
STUDENTS = {"plain": [], "logits": [LOGITS], "membranes": [MEMBRANES], "both": [LOGITS, MEMBRANES]}
NETWORKS = {
    "digits": {"name": "vgg9", "width": 0.25, "pools": 2},
    "cifar10": {"name": "conv6", "width": 0.5},
}


def recipe(name: str, epochs: int, time_steps: int) -> dict[str, Any]:
    """ANN -> full-precision SNN -> four quantized students."""
    stages: list[dict[str, Any]] = [
        {"name": "ann", "network": {**NETWORKS[name], "ann": True}, "epochs": epochs},
        {
            "name": "teacher",
            "network": NETWORKS[name],
            "init": {"from": "ann"},
            "teacher": "ann",
            "epochs": 2 * epochs,
            "objectives": [{"type": "cross_entropy"}, {"type": "logit_distillation", "temperature": 2.0}],
        },
    ]
    stages += [
        {
            "name": student,
            "from": "teacher",
            "teacher": "teacher",
            "quantize": {"weight_bits": 4, "membrane_bits": 4, "norm_bits": 8},
            "epochs": epochs,
            "optimizer": {"lr": 0.02},
            "objectives": [{"type": "cross_entropy"}, *objectives],
        }
        for student, objectives in STUDENTS.items()
    ]
    return {
        "title": f"4/4/8-bit students on {name}",
        "data": {"name": "digits" if name == "digits" else "arrays", "batch_size": 64, "validation": 0.1},
        "time_steps": time_steps,
        "precision": "float32",
        "optimizer": {"lr": 0.05, "warm_up": 1},
        "stages": stages,
    }


def subset(root: Path) -> dict[str, np.ndarray]:
    """The first 5,000 training and 2,000 test images of CIFAR-10."""
    with np.load(root / "cifar10.npz", allow_pickle=False) as z:
        return {
            "x_train": z["x_train"][:5000],
            "y_train": z["y_train"][:5000],
            "x_test": z["x_test"][:2000],
            "y_test": z["y_test"][:2000],
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=sorted(NETWORKS))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--time-steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    data = subset(args.root) if args.data == "cifar10" else None
    steps = recipe(args.data, args.epochs, args.time_steps)
    run = sd.train(steps, data=data, seeds=args.seeds, out=args.out / f"quantization-{args.data}")
    assert isinstance(run.summary, MultiSummary)
    accuracy = {s.name: s.figures["accuracy"] for s in run.summary.stages}
    rows = {}
    for name, found in accuracy.items():
        difference = [a - b for a, b in zip(found.values, accuracy["plain"].values)]
        low, high = paired_interval(difference) or (float("nan"), float("nan"))
        rows[name] = {
            "accuracy": found.mean, "std": found.std, "values": found.values,
            "minus_plain": float(np.mean(difference)), "low": low, "high": high,
        }  # fmt: skip
        print(
            f"{name:10} {100 * found.mean:6.2f} ± {100 * (found.std or 0):.2f} %   "
            f"minus plain {100 * rows[name]['minus_plain']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
        )
    out = Path(__file__).parents[1] / "results" / f"quantization-{args.data}.json"
    out.parent.mkdir(exist_ok=True)
    said = {"data": args.data, "seeds": args.seeds, "epochs": args.epochs, "time_steps": args.time_steps}
    out.write_text(json.dumps({**said, "stages": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
