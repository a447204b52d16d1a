"""Data loading against the training step: CIFAR-10-sized images, crop and flip in batches.

    python benchmarks/loader.py [--batch 128] [--runs 15] [--json FILE]

Generated images of CIFAR-10's form (50,000 x 32x32x3, uint8 in memory); torchvision's per-image transforms
for comparison.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import timing
import torch

import spikedistill as sd
from spikedistill.data.config import DataConfig
from spikedistill.neurons import compilation
from spikedistill.precision import resolve_precision


def main() -> None:
    p = timing.parser(__doc__, batch=128, runs=15)
    a = p.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(50_000) % 10
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:100], "y_test": labels[:100]}
    config = DataConfig(name="arrays", validation=0, augment={"crop": 4, "flip": True})  # type: ignore[arg-type]
    data = sd.data.from_arrays(arrays, config)

    def forever() -> Iterator[Any]:
        epoch = 0
        while True:
            yield from data.batches("train", a.batch, epoch=epoch, train=True)
            epoch += 1

    batches = forever()
    from torchvision.transforms import v2

    each = v2.Compose(
        [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    )
    raw = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def one_by_one() -> torch.Tensor:
        return torch.stack([each(raw[i]) for i in torch.randint(len(raw), (a.batch,))])

    network = sd.networks.create("conv6", time_steps=4)
    distiller = sd.Distiller(network).to(memory_format=torch.channels_last)
    x, y = next(batches)
    x = x.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=resolve_precision("auto", "cpu") == "bfloat16"):
            total = distiller(x, y).total
        total.backward()
        distiller.zero_grad(set_to_none=True)

    with compilation.compiled():
        rows = timing.interleaved(
            {
                "batch, crop and flip at once": lambda: next(batches),
                "torchvision, image by image": one_by_one,
                "training step (conv6)": step,
            },
            a.runs,
        )
    timing.show(rows, "training step (conv6)")
    timing.write(a.json, batch=a.batch, runs=a.runs, rows=rows)


if __name__ == "__main__":
    main()
