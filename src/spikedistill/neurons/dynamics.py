"""The neuron's equations, as pure functions of current, membrane and constants; eager mode is the truth.

    H_t = decay * V_{t-1} + gain * I_t          charged membrane
    S_t = [H_t >= threshold]                    spike
    V_t = H_t * (1 - S_t)                       hard reset
        | H_t - reset_by * threshold * S_t      soft reset (reset_by = 1 unless said)
        | H_t                                   no reset
    V_t <- Q(V_t)                               if the membrane lies on a grid

On a grid (:class:`Grid`) all of these are integer codes and the leak is ``floor(V * l / 2^L)``.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .surrogate import Surrogate, fire

Reset = Literal["hard", "soft"] | None
Number = float | Tensor


class _FloorSTE(torch.autograd.Function):
    """floor with the identity as gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


def floor_ste(x: Tensor) -> Tensor:
    """``floor(x)`` whose gradient is that of ``x``."""
    return _FloorSTE.apply(x)


def round_ste(x: Tensor) -> Tensor:
    """``floor(x + 1/2)`` (halves go up, as by add and shift in integers) whose gradient is that of ``x``."""
    return floor_ste(x + 0.5)


class _Saturate(torch.autograd.Function):
    """clamp whose gradient is 1 on the bounds too, where codes often lie.

    On the bounds torch's own gradient depends on its version.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None


def saturate_ste(x: Tensor, low: float, high: float) -> Tensor:
    """``min(max(x, low), high)`` whose gradient is that of ``x`` where ``low <= x <= high``, else 0."""
    return _Saturate.apply(x, low, high)


@dataclass(frozen=True)
class Grid:
    """The integer grid on which a quantized neuron computes; all numbers are codes, ``unit`` is worth one.

    ``threshold``: integer code at which it fires. ``leak``: ``(l, L)``, the decay is ``l / 2^L``. ``bits``:
    of the stored membrane, in steps of ``2^shift`` codes, saturating (None: stored as it is). ``leak_first``:
    the leak is applied to what is stored, before Q (MINT), instead of to what is read. ``reset_by``: codes
    that a soft reset subtracts (None: the threshold).
    """

    unit: float
    threshold: int
    leak: tuple[int, int]
    bits: int | None = None
    shift: int = 0
    leak_first: bool = False
    reset_by: int | None = None

    fusable = True  # the fused arithmetic knows its gradients

    @property
    def decay(self) -> float:
        """``l / 2^L``, which every float holds exactly."""
        return self.leak[0] / (1 << self.leak[1])

    @property
    def subtracted(self) -> int:
        """Codes that a soft reset subtracts."""
        return self.threshold if self.reset_by is None else self.reset_by

    def decayed(self, v: Tensor) -> Tensor:
        """``floor(V * l / 2^L)``."""
        # V * l / 2^L is exact in floats, so that this floor is the integers' arithmetic shift.
        return v if self.decay == 1 else floor_ste(v * self.decay)

    def charge(self, v: Tensor, current: Tensor) -> Tensor:
        """H from the stored membrane and the current, both codes."""
        return (v if self.leak_first else self.decayed(v)) + current

    def store(self, v: Tensor) -> Tensor:
        """Q: half-up to a multiple of ``2^shift``, saturating at ``bits``."""
        if self.leak_first:
            v = v * self.decay
        if self.bits is None:
            return floor_ste(v) if self.leak_first else v
        # A power of two: dividing by it and multiplying again round nothing.
        step = float(1 << self.shift)
        return saturate_ste(round_ste(v / step), -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) * step


@dataclass(frozen=True)
class Constants:
    """All of a neuron but its decay, gain and initial value; hashable: compiled code is kept by it."""

    threshold: float = 1.0
    reset: Reset = "hard"
    surrogate: Surrogate = Surrogate()
    detach_reset: bool = True
    smooth: bool = False
    grid: Grid | None = None
    reset_by: float = 1.0
    stretch: float = 1.0  # of the surrogate; beside it, so that layers of many widths share compiled code

    @property
    def scale(self) -> float:
        """What one unit of ``H - threshold`` is to the surrogate."""
        return (1.0 if self.grid is None else self.grid.unit) / self.stretch

    @property
    def subtracted(self) -> float:
        """What a soft reset takes from the membrane."""
        return self.threshold * self.reset_by if self.grid is None else float(self.grid.subtracted)


def step(
    current: Tensor, v: Tensor, decay: Number, gain: Number, c: Constants
) -> tuple[Tensor, Tensor, Tensor]:
    """One time step.

    Shape: ``current`` and ``v`` (N, ...); returns spike, charged membrane H, stored membrane V, each (N,
    ...).
    """
    if c.grid is not None:
        h = c.grid.charge(v, current)
        threshold: float = c.grid.threshold
    else:
        h = decay * v + gain * current
        threshold = c.threshold
    spike = fire(h - threshold, c.surrogate, c.smooth, c.scale)
    s = spike.detach() if c.detach_reset else spike
    if c.reset == "hard":
        # A product, not a choice by S >= 1: S may be smooth, or carry a gradient of its own (detach_reset).
        v = h * (1 - s)
    elif c.reset == "soft":
        v = h - c.subtracted * s
    else:
        v = h
    if c.grid is not None:
        v = c.grid.store(v)
    return spike, h, v


def scan(
    current: Tensor,
    v: Tensor,
    decay: Number,
    gain: Number,
    c: Constants,
    membrane: bool = False,
    steps: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """All time steps.

    Shape: ``current`` (T, N, ...), or (N, ...) with ``steps`` given: a constant current; ``v`` (N, ...).
    Returns spikes (T, N, ...), charged membranes (T, N, ...) or None unless ``membrane``, and the last V (N,
    ...).
    """
    constant = steps is not None
    spikes, charged = [], []
    for t in range(steps if steps is not None else current.shape[0]):
        s, h, v = step(current if constant else current[t], v, decay, gain, c)
        spikes.append(s)
        if membrane:
            charged.append(h)
    return torch.stack(spikes), torch.stack(charged) if membrane else None, v
