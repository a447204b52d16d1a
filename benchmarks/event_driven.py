"""A convolution by events against the dense one, by firing rate: both passes of conv6's five behind neurons.

    python benchmarks/event_driven.py [--batch 128] [--runs 9] [--rates 0.02 0.05 ...] [--json FILE]
    python benchmarks/event_driven.py --shapes --json FILE  # other layers, one by one

Batch is T*N. The gradient of the input, which no event saves, is part of both. From ``--shapes`` come the
limits of ``neurons/event_driven.py``.
"""

from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import nn

from spikedistill.neurons import compilation, event_driven
from spikedistill.precision import cpu_bf16_units

Layer = tuple[int, int, int, int, int]  # C, K, size, kernel, stride
LAYERS: list[Layer] = [
    (32, 32, 32, 3, 1), (32, 64, 32, 3, 2), (64, 64, 16, 3, 1), (64, 128, 16, 3, 2), (128, 128, 8, 3, 1),
]  # fmt: skip
SHAPES: list[Layer] = [
    (8, 16, 32, 3, 1), (16, 16, 32, 3, 1), (16, 32, 32, 3, 2), (24, 32, 16, 3, 1), (64, 16, 16, 3, 1),
    (32, 32, 32, 3, 1), (32, 32, 16, 3, 1), (32, 64, 32, 3, 2), (64, 32, 16, 3, 1), (64, 64, 32, 3, 1),
    (64, 64, 16, 3, 1), (64, 64, 8, 3, 1), (64, 128, 16, 3, 2), (128, 128, 16, 3, 1), (128, 128, 8, 3, 1),
    (256, 256, 8, 3, 1), (256, 256, 4, 3, 1), (96, 96, 8, 1, 1), (96, 384, 8, 1, 1), (384, 384, 8, 1, 1),
]  # fmt: skip


def steps(rate: float, dtype: torch.dtype, batch: int, shapes: list[Layer]) -> dict[str, Callable[[], None]]:
    """Forward and backward of all layers, both ways."""
    torch.manual_seed(0)
    layers = []
    for C, K, size, kernel, stride in shapes:
        conv = nn.Conv2d(C, K, kernel, stride, kernel // 2, bias=False)
        conv = event_driven.equip(nn.Sequential(conv))[0]
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
    p.add_argument("--shapes", action="store_true")
    a = p.parse_args()
    event_driven.limit = lambda dtype, weights: 1.0  # to see where it stops to pay
    wholes = {"": LAYERS}
    if a.shapes:
        wholes = {f" {C}x{K}x{size}x{size}/{kernel}/{stride}": [(C, K, size, kernel, stride)]
                  for C, K, size, kernel, stride in SHAPES}  # fmt: skip
    rows: dict[str, Any] = {}
    for dtype in [torch.float32, torch.bfloat16][: 2 if cpu_bf16_units() else 1]:
        for what, shapes in wholes.items():
            for rate in a.rates:
                found = timing.interleaved(steps(rate, dtype, a.batch, shapes), a.runs)
                kind = f"{str(dtype).removeprefix('torch.')} {rate:g}{what}"
                rows |= {f"{name} {kind}": row for name, row in found.items()}
                ratio = found["events"]["median_ms"] / found["dense"]["median_ms"]
                print(f"{kind}: dense {found['dense']['median_ms']:.1f} ms, events x {ratio:.2f}", flush=True)
    timing.write(a.json, batch=a.batch, runs=a.runs, rows=rows)


if __name__ == "__main__":
    main()
