"""Independent simulation of a neuron layer: plain autograd, step by step, nothing shared with the package."""

import math

import torch
from torch import Tensor

PRIMITIVES = {
    "atan": lambda u: torch.atan(math.pi * u) / math.pi,
    "sigmoid": lambda u: 1 / (1 + torch.exp(-4 * u)),
    "triangle": lambda u: torch.where(u.abs() < 1, u - u * u.abs() / 2, torch.sign(u) / 2),
    "rectangle": lambda u: torch.where(u.abs() < 0.5, u, torch.sign(u) / 2),
    "fast_sigmoid": lambda u: u / (1 + 25 * u.abs()),
}
NAMES = tuple(PRIMITIVES)
RESETS = ("hard", "soft", None)


def through(value: Tensor, like: Tensor) -> Tensor:
    """``value`` forward, the gradient of ``like`` backward."""
    return value.detach() + (like - like.detach())


def floor(x: Tensor) -> Tensor:
    return through(torch.floor(x), x)


def loop(x, decay, gain, threshold, reset, surrogate, detach_reset, v=0.0, grid=None):
    """Current (T, N, ...) to spikes and charged membranes (T, N, ...)."""
    v = torch.zeros_like(x[0]) + v
    spikes, charged = [], []
    unit = 1.0 if grid is None else grid.unit
    if grid is not None:
        threshold = grid.threshold
    for t in range(x.shape[0]):
        if grid is None:
            h = v * decay + x[t] * gain
        elif grid.leak_first:
            h = v + x[t]
        else:
            h = floor(v * grid.leak[0] / 2 ** grid.leak[1]) + x[t]
        s = through((h >= threshold).to(h.dtype), PRIMITIVES[surrogate]((h - threshold) * unit))
        spikes.append(s)
        charged.append(h)
        cut = s.detach() if detach_reset else s
        v = {"hard": h - h * cut, "soft": h - cut * threshold, None: h}[reset]
        if grid is not None and grid.leak_first:
            v = v * (grid.leak[0] / 2 ** grid.leak[1])
        if grid is not None and grid.bits is not None:
            q = floor(v / 2**grid.shift + 0.5)
            low, high = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
            # where it saturates, no gradient
            saturated = torch.where(q > high, float(high), float(low)).to(q.dtype)
            v = torch.where((q >= low) & (q <= high), q, saturated) * 2**grid.shift
        elif grid is not None and grid.leak_first:
            v = floor(v)
    return torch.stack(spikes), torch.stack(charged)
