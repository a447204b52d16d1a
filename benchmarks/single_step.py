"""Norm and neuron at T = 1, forward and backward, by the size of the map: three ways, and the ANN's layer.

    python benchmarks/single_step.py [--runs 15] [--json FILE]

``single step``: torch's norm and one comparison; ``one operation``: norm and neuron compiled together, which
runs above ``MOST_VALUES`` values; ``plain``: the equations under autograd; ``ANN``: norm and ReLU. float32,
channels last; what a call costs beside its arithmetic is the whole of it on the smallest map.
"""

from collections.abc import Callable
from contextlib import nullcontext

import timing
import torch
from torch import nn

import spikedistill as sd
from spikedistill.neurons import LIF, NormNeuron, single_step

SHAPES = [(8, 16, 8), (32, 32, 8), (32, 32, 16), (32, 64, 16), (32, 64, 32)]  # N, C, side
CALLS = 200  # of the smallest map, in one measurement


def variants(N: int, C: int, side: int, calls: int) -> dict[str, Callable[[], None]]:
    """``calls`` of each, so that the clock's own cost is none."""
    like = torch.empty(N, C, side, side, memory_format=torch.channels_last)
    x, g = torch.randn_like(like).requires_grad_(), torch.randn_like(like)

    def repeated(module: nn.Module, most: int, eager: bool = False) -> Callable[[], None]:
        def run() -> None:
            single_step.MOST_VALUES = most
            with sd.eager() if eager else nullcontext():
                for _ in range(calls):
                    module(x).backward(g)

        return run

    def layer() -> NormNeuron:
        return NormNeuron(C, LIF(time_steps=1, surrogate="rectangle"))

    return {
        "ANN": repeated(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()), 0),
        "single step": repeated(layer(), like.numel()),
        "one operation": repeated(layer(), 0),
        "plain": repeated(layer(), 0, eager=True),
    }


def main() -> None:
    p = timing.parser(__doc__, runs=15)
    a = p.parse_args()
    rows = {}
    for N, C, side in SHAPES:
        calls = max(1, CALLS * 8192 // (N * C * side * side))
        found = timing.interleaved(variants(N, C, side, calls), a.runs)
        for name, row in found.items():
            rows[f"{name} {N}x{C}x{side}x{side}"] = {key: value / calls for key, value in row.items()}
        print(f"{N}x{C}x{side}x{side}:", *(f"{n} {r['median_ms'] / calls:.3f} ms" for n, r in found.items()))
    timing.write(a.json, rows=rows)


if __name__ == "__main__":
    main()
