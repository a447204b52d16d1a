"""A convolution by events against the dense one, by firing rate: both passes of conv6's five behind neurons.

    python benchmarks/event_driven.py [--batch 128] [--runs 9] [--rates 0.02 0.05 ...] [--json FILE]

Batch is T*N. The gradient of the input, which no event saves, is part of both.
"""

from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import nn

from spikedistill.neurons import compilation, event_driven
from spikedistill.precision import cpu_bf16_units

# C, K, size, stride
LAYERS = [(32, 32, 32, 1), (32, 64, 32, 2), (64, 64, 16, 1), (64, 128, 16, 2), (128, 128, 8, 1)]


def steps(rate: float, dtype: torch.dtype, batch: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of all layers, both ways."""
    torch.manual_seed(0)
    layers = []
    for C, K, size, stride in LAYERS:
        conv = event_driven.equip(nn.Sequential(nn.Conv2d(C, K, 3, stride, 1, bias=False)))[0]
        conv.to(memory_format=torch.channels_last)
        x = (torch.rand(batch, C, size, size) < rate).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        layers.append((conv, x))

    def run(mode: Any) -> Callable[[], None]:
        def both() -> None:
            for conv, x in layers:
                with (
                    compilation.use(mode),
                    torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
                ):
                    y = conv(x)
                torch.autograd.grad(y, [x, conv.weight], y.detach())

        return both

    return {"dense": run("eager"), "events": run("compiled")}


def main() -> None:
    p = timing.parser(__doc__, batch=128, runs=9)
    p.add_argument("--rates", type=float, nargs="*", default=[0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
    a = p.parse_args()
    event_driven.limit = lambda dtype: 1.0  # to see where it stops to pay
    rows: dict[str, Any] = {}
    for dtype in [torch.float32, torch.bfloat16][: 2 if cpu_bf16_units() else 1]:
        for rate in a.rates:
            found = timing.interleaved(steps(rate, dtype, a.batch), a.runs)
            rows |= {
                f"{name} {str(dtype).removeprefix('torch.')} {rate:g}": row for name, row in found.items()
            }
            ratio = found["events"]["median_ms"] / found["dense"]["median_ms"]
            print(
                f"{dtype}, rate {rate:g}: dense {found['dense']['median_ms']:.1f} ms, events x {ratio:.2f}",
                flush=True,
            )
    timing.write(a.json, batch=a.batch, runs=a.runs, rows=rows)


if __name__ == "__main__":
    main()
