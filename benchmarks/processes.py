"""Images per second of one training with one process and with several, each on one thread.

    python benchmarks/processes.py [--batch 64] [--runs 5] [--processes 2] [--json FILE]

conv6 at T = 4 and half width on images of CIFAR-10's form, cropped and flipped; ``--batch`` images a process
and step. Each run is a training of two epochs in processes of its own, started in turn; the second epoch
counts, as the run itself records it: reading, augmenting, forward, backward, the exchange of gradients and
norm statistics, and the update.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timing

from spikedistill.training import metrics

PROGRAM = """
import sys
import numpy as np
from spikedistill.training.run import train
batch, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
images = np.random.default_rng(0).integers(0, 256, (batch * processes * 16, 32, 32, 3), dtype=np.uint8)
labels = np.arange(len(images)) % 10
arrays = {"x_train": images, "y_train": labels, "x_test": images[:100], "y_test": labels[:100]}
recipe = {
    "title": "processes", "time_steps": 4, "precision": "float32", "compile": True,
    "data": {"name": "arrays", "batch_size": batch, "validation": 0, "augment": {"crop": 4, "flip": True}},
    "stages": [{"name": "student", "network": {"name": "conv6", "width": 0.5}, "epochs": 2}],
}
train(recipe, data=arrays, out=folder, device="cpu", quiet=True)
"""


def images_per_second(processes: int, batch: int) -> float:
    """Of the second epoch of one training."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(PROGRAM)
        command = [sys.executable, *(launcher if processes > 1 else []), str(program)]
        command += [str(batch), str(processes), f"{folder}/run"]
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run(command, env=os.environ | quiet, check=True)
        return float(metrics.read(Path(folder) / "run").epochs("student")[-1]["images_per_second"])


def main() -> None:
    p = timing.parser(__doc__, batch=64, runs=5, processes=2)
    a = p.parse_args()
    counts = (1, a.processes)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(a.runs):
        for count in counts:
            rates[count].append(images_per_second(count, a.batch))
    found = {count: statistics.median(rates[count]) for count in counts}
    ratio = found[a.processes] / found[1]
    print("| processes, one thread each | images per second | least to most | ratio |")
    print("| --- | --- | --- | --- |")
    for count in counts:
        least, most = min(rates[count]), max(rates[count])
        print(f"| {count} | {found[count]:.1f} | {least:.1f} to {most:.1f} | {found[count] / found[1]:.2f} |")
    timing.write(a.json, batch=a.batch, images_per_second={str(c): rates[c] for c in counts}, ratio=ratio)


if __name__ == "__main__":
    main()
