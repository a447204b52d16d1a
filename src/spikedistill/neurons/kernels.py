"""The fused arithmetic of norm, neuron and surrogate over all time steps: pure functions of tensors, backward by hand.

    I_t = a * x_t + b (+ residual_t)            a, b per channel; absent where the neuron stands alone
    H_t, S_t, V_t as in ``dynamics``

and backward in time, with gS, gH the gradients that arrive at spikes and charged membranes, sg the surrogate:

    gR_t = gV_t * [Q did not saturate]                          R: the membrane after the reset, before Q
    gS_t += -gR_t * H_t (hard) | -threshold * gR_t (soft)       unless the reset is detached
    gH_t += gR_t * (1 - S_t) (hard) | gR_t (soft, none);  gH_t += gS_t * sg(H_t - threshold)
    gI_t = gain * gH_t;  gV_{t-1} = decay * gH_t

The batch's statistics are part of the derivative: with s = sum gI, q = sum gI * (x - mean) per channel,
``gx = a * gI - a/n * s - a * rstd^2/n * q * (x - mean)``, weight gets ``q * rstd``, bias ``s``.

Nothing but x (and a residual) is kept for backward: the states are computed a second time, which costs less than reading
them. Shape: x (T, N, L, C) with channels last, (T, N, C, L) with channels first, L the number of places; (N, ...) for a
constant current; (T, M) or (M,) for a neuron alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from .compilation import Kernel, mode
from .dynamics import Constants, Reset
from .surrogate import Surrogate

DECAY, GAIN, THRESHOLD, INITIAL, UNIT, LOW, HIGH, STEP = range(8)  # places of a neuron's numbers in their tensor


@dataclass(frozen=True)
class Plan:
    """What is fixed at compile time; sizes, and a neuron's numbers, are arguments of the kernels."""

    T: int
    encode: bool
    reset: Reset
    surrogate: Surrogate
    detach_reset: bool
    smooth: bool
    grid: Literal["plain", "bits"] | None
    leak_first: bool
    norm: bool
    channels_last: bool
    residual: bool
    membrane: bool
    learned: bool  # decay and gain receive gradients

    @classmethod
    def of(
        cls, c: Constants, T: int, encode: bool, *, norm: bool = False, channels_last: bool = True,
        residual: bool = False, membrane: bool = False, learned: bool = False,
    ) -> "Plan":  # fmt: skip
        """The plan for a neuron with these constants."""
        kind: Literal["plain", "bits"] | None = None if c.grid is None else "plain" if c.grid.bits is None else "bits"
        leak_first = c.grid is not None and c.grid.leak_first
        return cls(
            T, encode, c.reset, c.surrogate, c.detach_reset, c.smooth, kind, leak_first,
            norm, channels_last, residual, membrane, learned,
        )  # fmt: skip


Gradients = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # for each step: gI, gH, V before, I
Sums = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # s, q, of decay, of gain


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but the last dimension of (M, L, C): one read, sums shifted by the first value."""
    pivot = wide(x[0, 0])
    return _moments(wide(x) - pivot, pivot, 1, x.shape[0] * x.shape[1])


def moments_first(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of (M, C, L)."""
    pivot = wide(x[0, :, 0])
    return _moments(wide(x) - pivot[:, None], pivot, 2, x.shape[0] * x.shape[2])


def _moments(d: Tensor, pivot: Tensor, places: int, n: int) -> tuple[Tensor, Tensor]:
    m = d.sum(places).sum(0) / n
    return m + pivot, ((d * d).sum(places).sum(0) / n - m * m).clamp(min=0)


class _Arithmetic:
    """The pieces that the kernels of one plan share."""

    def __init__(self, plan: Plan) -> None:
        self.p = plan

    def channel(self, vector: Tensor) -> Tensor:
        return vector if self.p.channels_last else vector[:, None]

    def input(self, x: Tensor, t: int) -> Tensor:
        return wide(x if self.p.encode else x[t])

    def current(self, x: Tensor, a: Tensor | None, b: Tensor | None, residual: Tensor | None, t: int) -> Tensor:
        i = self.input(x, t)
        if a is not None and b is not None:
            i = self.channel(a) * i + self.channel(b)
        return i if residual is None else i + wide(residual[t])

    def charge(self, v: Tensor, i: Tensor, k: Tensor) -> Tensor:
        if self.p.grid is None:
            return k[DECAY] * v + k[GAIN] * i
        return (v if self.p.leak_first else (v * k[DECAY]).floor()) + i

    def spike(self, u: Tensor, k: Tensor) -> Tensor:
        if self.p.smooth:
            return self.p.surrogate.primitive(u if self.p.grid is None else u * k[UNIT])
        return torch.where(u >= 0, 1.0, 0.0).to(u.dtype)

    def after(self, h: Tensor, s: Tensor, k: Tensor) -> Tensor:
        if self.p.reset is None:
            return h
        if self.p.smooth:
            return h * (1 - s) if self.p.reset == "hard" else h - k[THRESHOLD] * s
        if self.p.reset == "hard":
            return torch.where(s > 0, 0.0, h)
        return torch.where(s > 0, h - k[THRESHOLD], h)

    def code(self, r: Tensor, k: Tensor) -> Tensor:
        """What is stored, in steps of Q, before it saturates."""
        return (((r * k[DECAY]) if self.p.leak_first else r) / k[STEP] + 0.5).floor()

    def store(self, r: Tensor, k: Tensor) -> Tensor:
        if self.p.grid == "bits":
            return self.code(r, k).clamp(k[LOW], k[HIGH]) * k[STEP]
        return (r * k[DECAY]).floor() if self.p.grid and self.p.leak_first else r

    def through_store(self, g: Tensor, r: Tensor, k: Tensor) -> Tensor:
        if self.p.grid == "bits":
            q = self.code(r, k)
            g = torch.where((q >= k[LOW]) & (q <= k[HIGH]), g, 0.0)
        return g * k[DECAY] if self.p.grid and self.p.leak_first else g

    def surrogate(self, u: Tensor, k: Tensor) -> Tensor:
        if self.p.grid is None:
            return self.p.surrogate.derivative(u)
        return self.p.surrogate.derivative(u * k[UNIT]) * k[UNIT]

    def gradients(
        self, x: Tensor, a: Tensor | None, b: Tensor | None, residual: Tensor | None, k: Tensor,
        g_spikes: Tensor, g_charged: Tensor | None,
    ) -> Gradients:  # fmt: skip
        """Of the currents: gI_t, and gH_t, V_{t-1}, I_t, from which those of decay and gain follow."""
        steps, p = range(self.p.T), self.p
        before, currents, charged = [], [], []
        v = k[INITIAL]
        for t in steps:
            i = self.current(x, a, b, residual, t)
            h = self.charge(v, i, k)
            before.append(v)
            currents.append(i)
            charged.append(h)
            if t + 1 < p.T:
                v = self.store(self.after(h, self.spike(h - k[THRESHOLD], k), k), k)
        g_currents, g_charges = [], []
        gv: Tensor | None = None
        for t in reversed(steps):
            h = charged[t]
            u = h - k[THRESHOLD]
            gs, gh = wide(g_spikes[t]), None if g_charged is None else wide(g_charged[t])
            if gv is not None:
                gr = self.through_store(gv, self.after(h, self.spike(u, k), k), k) if p.grid else gv
                if p.reset is not None and not p.detach_reset:
                    gs = gs - gr * (h if p.reset == "hard" else k[THRESHOLD])
                if p.reset == "hard":
                    gr = gr * (1 - self.spike(u, k)) if p.smooth else torch.where(u >= 0, 0.0, gr)
                gh = gr if gh is None else gh + gr
            fired = gs * self.surrogate(u, k)
            gh = fired if gh is None else gh + fired
            g_charges.append(gh)
            g_currents.append(gh if p.grid else gh * k[GAIN])
            gv = gh if p.grid and p.leak_first else gh * k[DECAY]
        return g_currents[::-1], g_charges[::-1], before, currents

    def total(self, values: Tensor) -> Tensor:
        if not self.p.norm:
            return values.sum()
        return values.sum(1).sum(0) if self.p.channels_last else values.sum(2).sum(0)

    def sums(self, x: Tensor, center: Tensor | None, g: Gradients) -> Sums:
        # Over time first, element by element: then one reduction serves all steps.
        g_currents, g_charges, before, currents = g
        s = q = decay = gain = None
        if center is not None:
            c = self.channel(center)
            s = self.total(add(g_currents))
            if self.p.encode:
                q = self.total(add(g_currents) * (self.input(x, 0) - c))
            else:
                q = self.total(add([g * (self.input(x, t) - c) for t, g in enumerate(g_currents)]))
        if self.p.learned:
            decay = self.total(add([g * v for g, v in zip(g_charges, before, strict=True)]))
            gain = self.total(add([g * i for g, i in zip(g_charges, currents, strict=True)]))
        return s, q, decay, gain

    def final(
        self, x: Tensor, a: Tensor | None, residual: Tensor | None, center: Tensor | None, k1: Tensor | None,
        k2: Tensor | None, g_currents: list[Tensor],
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        def of_x(g: Tensor, t: int) -> Tensor:
            if a is not None and center is not None and k1 is not None and k2 is not None:
                deviation = self.input(x, t) - self.channel(center)
                g = self.channel(a) * g - self.channel(k1) - self.channel(k2) * deviation
            return g.to(x.dtype)

        if self.p.encode:
            gx = of_x(add(g_currents), 0)
        else:
            gx = torch.stack([of_x(g, t) for t, g in enumerate(g_currents)])  # cast each, then stack: twice as fast
        return gx, torch.stack([g.to(residual.dtype) for g in g_currents]) if residual is not None else None


class Kernels:
    """The kernels of one plan: ``forward``, and backward ``sums`` then ``final``.

    ``forward(x, a, b, residual, k)`` -> spikes, charged membranes or None.
    ``sums(x, a, b, residual, k, g_spikes, g_charged, center)`` -> per channel s, q, and the gradients of decay and gain.
    ``final(x, a, b, residual, k, g_spikes, g_charged, center, k1, k2)`` -> gradient of x, of the residual or None.
    Compiled, backward is two kernels that both compute gI, because in one the compiler would keep all gI in float32; run
    operation by operation they are computed once. Plans that differ only in what a kernel does not use share it.
    """

    def __init__(self, plan: Plan) -> None:
        seen = plan.surrogate if plan.smooth else Surrogate()
        self.forward = _forward(replace(plan, learned=False, detach_reset=True, surrogate=seen))
        self._sums, self._final = _sums(plan), _final(replace(plan, learned=False))
        self._ops = _Arithmetic(plan)

    def backward(
        self, arguments: tuple[Any, ...], center: Tensor | None
    ) -> tuple[Callable[[], Sums], Callable[..., Any]]:
        """``sums()`` and ``final(k1, k2)`` for the arguments up to ``g_charged``."""
        if mode() == "compiled":
            return (lambda: self._sums(*arguments, center)), lambda k1, k2: self._final(*arguments, center, k1, k2)
        x, a, _, residual, *_ = arguments
        g = self._ops.gradients(*arguments)
        return (lambda: self._ops.sums(x, center, g)), lambda k1, k2: self._ops.final(
            x, a, residual, center, k1, k2, g[0]
        )


_Optional = Tensor | None


@cache
def _forward(p: Plan) -> Kernel:
    ops = _Arithmetic(p)

    def forward(x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor) -> tuple[Tensor, _Optional]:
        spikes, charged = [], []
        v = k[INITIAL]
        for t in range(p.T):
            h = ops.charge(v, ops.current(x, a, b, residual, t), k)
            s = ops.spike(h - k[THRESHOLD], k)
            v = ops.store(ops.after(h, s, k), k)
            spikes.append(s.to(x.dtype))
            if p.membrane:
                charged.append(h)
        return torch.stack(spikes), torch.stack(charged) if p.membrane else None

    return Kernel(forward, f"spikes_{_forward.cache_info().currsize}")


@cache
def _sums(p: Plan) -> Kernel:
    ops = _Arithmetic(p)

    def sums(
        x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor, g_spikes: Tensor, g_charged: _Optional,
        center: _Optional,
    ) -> Sums:  # fmt: skip
        return ops.sums(x, center, ops.gradients(x, a, b, residual, k, g_spikes, g_charged))

    return Kernel(sums, f"gradient_sums_{_sums.cache_info().currsize}")


@cache
def _final(p: Plan) -> Kernel:
    ops = _Arithmetic(p)

    def final(
        x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor, g_spikes: Tensor, g_charged: _Optional,
        center: _Optional, k1: _Optional, k2: _Optional,
    ) -> tuple[Tensor, _Optional]:  # fmt: skip
        g_currents = ops.gradients(x, a, b, residual, k, g_spikes, g_charged)[0]
        return ops.final(x, a, residual, center, k1, k2, g_currents)

    return Kernel(final, f"gradient_{_final.cache_info().currsize}")


def add(values: list[Tensor]) -> Tensor:
    """Their sum, from the first on."""
    out = values[0]
    for value in values[1:]:
        out = out + value
    return out


@cache
def kernels(plan: Plan) -> Kernels:
    """The kernels of a plan: made once, compiled when first called."""
    return Kernels(plan)


statistics = {True: Kernel(moments, "moments_last"), False: Kernel(moments_first, "moments_first")}
