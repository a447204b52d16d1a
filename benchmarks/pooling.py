"""Max pooling in native code against torch's, both passes, at the sizes of vgg9 and of Spikformer's stem.

    python benchmarks/pooling.py [--batch 128] [--runs 15] [--json FILE]

Batch is N; maps are those of T = 4.
"""

from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import nn

from spikedistill import heap
from spikedistill.neurons import compilation
from spikedistill.neurons.pooling import MaxPool2d
from spikedistill.precision import cpu_bf16_units

# channels, size, kernel, stride, padding
MAPS = [(64, 32, 2, 2, 0), (128, 16, 2, 2, 0), (96, 32, 3, 2, 1)]


def passes(sizes: tuple[int, ...], dtype: torch.dtype, batch: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of one map of spikes, both ways."""
    C, size, *window = sizes
    x = (torch.rand(4 * batch, C, size, size) < 0.16).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def run(cls: type[nn.MaxPool2d]) -> Callable[[], None]:
        pool = cls(window[0], stride=window[1], padding=window[2])

        def both() -> None:
            with compilation.compiled():
                y = pool(x)
            torch.autograd.grad(y, x, y.detach())

        return both

    return {"torch": run(nn.MaxPool2d), "native": run(MaxPool2d)}


def main() -> None:
    p = timing.parser(__doc__, batch=128, runs=15)
    a = p.parse_args()
    heap.keep()
    rows: dict[str, Any] = {}
    for dtype in [torch.float32, torch.bfloat16][: 2 if cpu_bf16_units() else 1]:
        for sizes in MAPS:
            found = timing.interleaved(passes(sizes, dtype, a.batch), a.runs)
            name = f"{str(dtype).removeprefix('torch.')} {sizes}"
            rows |= {f"{way} {name}": row for way, row in found.items()}
            theirs, ours = (found[way]["median_ms"] for way in ("torch", "native"))
            print(f"{name}: torch {theirs:.1f} ms, native x {ours / theirs:.2f}", flush=True)
    timing.write(a.json, batch=a.batch, runs=a.runs, rows=rows)


if __name__ == "__main__":
    main()
