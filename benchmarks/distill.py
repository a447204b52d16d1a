"""What each objective costs over the plain student step.

    python benchmarks/distill.py [--batch 32] [--runs 9] [--precision bfloat16] [--json FILE]
    python benchmarks/distill.py --methods --batch 128 --json results/performance/methods.json

conv6 at T = 4 on 32x32 images; teacher: its ANN twin (for membranes, the same SNN). The teacher's forward
pass alone is a row, training at 4/4/8 bits another. ``--methods``: every shipped method that fits the
networks of the recipe `evidence-unit` (conv6 at half width, ResNet-20 as teacher), for docs/methods.md.
"""

from collections.abc import Callable
from typing import Any

import timing
import torch

import spikedistill as sd
from spikedistill.methods import catalogue
from spikedistill.neurons import LIF, compilation

CE = {"type": "cross_entropy"}
OBJECTIVES: dict[str, tuple[str | None, list[dict[str, Any]]]] = {
    "plain": (None, [CE]),
    "logits": ("ann", [CE, {"type": "logit_distillation"}]),
    "blurred": ("ann", [CE, {"type": "blurred_feature", "weight": 0.002}]),
    "blurred + logits": (
        "ann",
        [CE, {"type": "blurred_feature", "weight": 0.002}, {"type": "logit_distillation"}],
    ),
    "attention": ("ann", [CE, {"type": "attention_transfer"}]),
    "membranes": ("snn", [CE, {"type": "membrane_distillation"}]),
    "membranes + logits": ("snn", [CE, {"type": "membrane_distillation"}, {"type": "logit_distillation"}]),
    "activity": (None, [CE, {"type": "activity_regularization"}]),
}


def created(T: int | None) -> sd.networks.Network:
    """conv6 of LIF neurons, or its ANN twin with T None."""
    return sd.networks.create("conv6", time_steps=T, neuron=None if T is None else LIF())


def step(
    student: sd.networks.Network,
    guide: sd.networks.Network | None,
    objectives: list[dict[str, Any]],
    x: torch.Tensor,
    y: torch.Tensor,
    half: bool,
) -> Callable[[], None]:
    distiller = sd.Distiller(student, guide, objectives).setup(x).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(distiller.parameters(), 1e-3, momentum=0.9)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            total = distiller(x, y).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def methods(x: torch.Tensor, y: torch.Tensor, half: bool) -> dict[str, Callable[[], None]]:
    """The plain step and that of each shipped method which fits the networks of `evidence-unit`."""
    lif = {"type": "lif"}
    found: dict[str, Callable[[], None]] = {}
    all_terms = {"plain": [CE], **{method.name: method.at(4) for method in catalogue().values()}}
    for name, terms in all_terms.items():
        torch.manual_seed(0)
        student = sd.networks.create("conv6", width=0.5, time_steps=4, neuron=lif)
        teacher = sd.networks.create("resnet20", time_steps=None).to(memory_format=torch.channels_last)
        try:
            found[name] = step(student, teacher, terms, x, y, half)
        except sd.SpikedistillError as error:
            print(f"{name}: {error}")
    return found


def objectives(x: torch.Tensor, y: torch.Tensor, half: bool) -> dict[str, Callable[[], None]]:
    """The steps of :data:`OBJECTIVES`, one at few bits, and the teachers' forward passes."""
    found: dict[str, Callable[[], None]] = {}
    for name, (kind, terms) in OBJECTIVES.items():
        torch.manual_seed(0)
        guide = None if kind is None else created(None if kind == "ann" else 4)
        found[name] = step(created(4), guide, terms, x, y, half)
    few = sd.quantize(created(4), weight_bits=4, membrane_bits=4, norm_bits=8, calibration=x)
    found["4/4/8 bits"] = step(few, None, [CE], x, y, half)
    for kind, T in (("ANN", None), ("SNN", 4)):
        teacher = created(T).eval().to(memory_format=torch.channels_last)

        def forward(teacher: Any = teacher) -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                teacher(x)

        found[f"teacher forward alone, {kind}"] = forward
    return found


def main() -> None:
    p = timing.parser(__doc__, batch=32, runs=9, precision="float32")
    p.add_argument("--methods", action="store_true")
    a = p.parse_args()
    half = a.precision == "bfloat16"
    x = torch.rand(a.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (a.batch,))
    with compilation.compiled():
        variants = (methods if a.methods else objectives)(x, y, half)
        rows = timing.interleaved(variants, a.runs)
    timing.show(rows, "plain")
    timing.write(a.json, batch=a.batch, runs=a.runs, precision=a.precision, rows=rows)


if __name__ == "__main__":
    main()
