"""Fused arithmetic of norm, neuron and surrogate over all time steps: pure functions, backward by hand.

    I_t = a * x_t + b (+ residual_t)            a, b per channel; absent where the neuron stands alone; on a
                                                grid floor(a * x_t + 1/2) + b, straight-through
    H_t, S_t, V_t as in ``dynamics``

and backward in time, with gS, gH the gradients that arrive at spikes and charged membranes, sg the surrogate:

    gR_t = gV_t * [Q did not saturate]                          R: the membrane after the reset, before Q
    gS_t += -gR_t * H_t (hard) | -subtracted * gR_t (soft)      unless the reset is detached
    gH_t += gR_t * (1 - S_t) (hard) | gR_t (soft, none);  gH_t += gS_t * sg(H_t - threshold)
    gI_t = gain * gH_t;  gV_{t-1} = decay * gH_t

The batch's statistics are part of the derivative: with s = sum gI, q = sum gI * (x - mean) per channel,
``gx = a * gI - a/n * s - a * rstd^2/n * q * (x - mean)``, weight gets ``q * rstd``, bias ``s``.

Nothing but x (and a residual) is kept for backward: the states are computed a second time, which costs less
than reading them. Backward is three kernels: gI, with s and q before they are summed over places; these sums;
gx from gI. A kernel that also reduced would keep gI of every step in float32, because the compiler does not
fuse across a change of loops. Shape: x (T, N, L, C) with channels last, (T, N, C, L) with channels first, L
the number of places; (N, ...) for a constant current; (T, M) or (M,) for a neuron alone.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ..numerics import at_least_float32
from .compilation import Kernel
from .dynamics import Constants, Reset
from .surrogate import Surrogate

# Places of a neuron's numbers in their tensor.
DECAY, GAIN, THRESHOLD, INITIAL, UNIT, LOW, HIGH, STEP, SUBTRACTED = range(9)


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
    at_threshold: bool = True  # a soft reset subtracts just the threshold
    scaled: bool = False  # the surrogate reads H in units of its own

    @classmethod
    def of(
        cls, c: Constants, T: int, encode: bool, *, norm: bool = False, channels_last: bool = True,
        residual: bool = False, membrane: bool = False, learned: bool = False,
    ) -> "Plan":  # fmt: skip
        """The plan for a neuron with these constants."""
        kind: Literal["plain", "bits"] | None = (
            None if c.grid is None else "plain" if c.grid.bits is None else "bits"
        )
        leak_first = c.grid is not None and c.grid.leak_first
        threshold = c.threshold if c.grid is None else c.grid.threshold
        return cls(
            T, encode, c.reset, c.surrogate, c.detach_reset, c.smooth, kind, leak_first,
            norm, channels_last, residual, membrane, learned, c.reset != "soft" or c.subtracted == threshold,
            c.grid is not None or c.scale != 1,
        )  # fmt: skip


_Optional = Tensor | None
# gI of all steps; then, summed over time but not over places: s, q, gradients of decay and of gain. With a
# constant current gI is summed over time too, and s, the same, is None.
Gradients = tuple[Tensor, _Optional, _Optional, _Optional, _Optional]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but the last dimension of (M, L, C).

    One read; the sums are shifted by the first value.
    """
    pivot = at_least_float32(x[0, 0])
    return _moments(at_least_float32(x) - pivot, pivot, 1, x.shape[0] * x.shape[1])


def moments_first(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of (M, C, L)."""
    pivot = at_least_float32(x[0, :, 0])
    return _moments(at_least_float32(x) - pivot[:, None], pivot, 2, x.shape[0] * x.shape[2])


def _moments(d: Tensor, pivot: Tensor, places: int, n: int) -> tuple[Tensor, Tensor]:
    m = d.sum(places).sum(0) / n
    # d is shifted: of raw values the two terms would cancel where the mean is large against the deviation.
    # What is left of that rounding may lie below 0.
    return m + pivot, ((d * d).sum(places).sum(0) / n - m * m).clamp(min=0)


class _Arithmetic:
    """The pieces that the kernels of one plan share."""

    def __init__(self, plan: Plan) -> None:
        self.p = plan

    def channel(self, vector: Tensor) -> Tensor:
        return vector if self.p.channels_last else vector[:, None]

    def input(self, x: Tensor, t: int) -> Tensor:
        return at_least_float32(x if self.p.encode else x[t])

    def current(
        self, x: Tensor, a: Tensor | None, b: Tensor | None, residual: Tensor | None, t: int
    ) -> Tensor:
        i = self.input(x, t)
        if a is not None and b is not None:
            i = self.channel(a) * i
            # Codes: rounded as by add and shift; b is a whole number.
            i = (i if self.p.grid is None else (i + 0.5).floor()) + self.channel(b)
        return i if residual is None else i + at_least_float32(residual[t])

    def charge(self, v: Tensor, i: Tensor, k: Tensor) -> Tensor:
        if self.p.grid is None:
            return k[DECAY] * v + k[GAIN] * i
        # No gain: the codes of the current hold it already.
        return (v if self.p.leak_first else (v * k[DECAY]).floor()) + i

    def spike(self, u: Tensor, k: Tensor) -> Tensor:
        if self.p.smooth:
            return self.p.surrogate.primitive(u * k[UNIT] if self.p.scaled else u)
        return torch.where(u >= 0, 1.0, 0.0).to(u.dtype)

    def after(self, h: Tensor, u: Tensor, k: Tensor) -> Tensor:
        if self.p.reset is None:
            return h
        if self.p.smooth:
            s = self.spike(u, k)
            return h * (1 - s) if self.p.reset == "hard" else h - k[SUBTRACTED] * s
        if self.p.reset == "hard":
            return torch.where(u >= 0, 0.0, h)
        # Where the threshold itself is subtracted, u is the result already.
        return torch.where(u >= 0, u if self.p.at_threshold else h - k[SUBTRACTED], h)

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
            # On the bounds too, as the plain equations' saturation.
            g = torch.where((q >= k[LOW]) & (q <= k[HIGH]), g, 0.0)
        return g * k[DECAY] if self.p.grid and self.p.leak_first else g

    def surrogate(self, u: Tensor, k: Tensor) -> Tensor:
        if not self.p.scaled:
            return self.p.surrogate.derivative(u)
        return self.p.surrogate.derivative(u * k[UNIT]) * k[UNIT]

    def gradients(
        self, x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor, g_spikes: Tensor,
        g_charged: _Optional, center: _Optional, gain: _Optional,
    ) -> Gradients:  # fmt: skip
        """Of the currents; what the statistics' (with ``center``), decay's and gain's are sums of.

        ``gain`` is the neuron's for each channel, where there is a norm: all results then depend on the
        channel, and the compiler makes one loop of them; else it would merge some loops' dimensions, and keep
        gH in between.
        """
        steps, p = range(self.p.T), self.p
        factor = k[GAIN] if gain is None else self.channel(gain)
        before, currents, charged = [], [], []
        v = k[INITIAL]
        for t in steps:
            i = self.current(x, a, b, residual, t)
            h = self.charge(v, i, k)
            before.append(v)
            currents.append(i)
            charged.append(h)
            # What the last step stores is read by none, and has no gradient.
            if t + 1 < p.T:
                v = self.store(self.after(h, h - k[THRESHOLD], k), k)
        g_currents, g_charges = [], []
        gv: Tensor | None = None
        for t in reversed(steps):
            h = charged[t]
            u = h - k[THRESHOLD]
            gs, gh = (
                at_least_float32(g_spikes[t]),
                None if g_charged is None else at_least_float32(g_charged[t]),
            )
            if gv is not None:
                gr = self.through_store(gv, self.after(h, u, k), k) if p.grid else gv
                if p.reset is not None and not p.detach_reset:
                    gs = gs - gr * (h if p.reset == "hard" else k[SUBTRACTED])
                if p.reset == "hard":
                    gr = gr * (1 - self.spike(u, k)) if p.smooth else torch.where(u >= 0, 0.0, gr)
                gh = gr if gh is None else gh + gr
            fired = gs * self.surrogate(u, k)
            gh = fired if gh is None else gh + fired
            g_charges.append(gh)
            g_currents.append(gh if p.grid and gain is None else gh * factor)
            gv = gh if p.grid and p.leak_first else gh * k[DECAY]
        g_currents, g_charges = g_currents[::-1], g_charges[::-1]
        s = q = of_decay = of_gain = None
        if center is not None:
            c = self.channel(center)
            s = add(g_currents)
            q = (
                s * (self.input(x, 0) - c)
                if p.encode
                else weighted(g_currents, [self.input(x, t) - c for t in steps])
            )
        if p.learned:
            of_decay, of_gain = weighted(g_charges, before), weighted(g_charges, currents)
        if p.encode:
            g = add(g_currents)
            return g if p.norm else g.to(x.dtype), None, q, of_decay, of_gain
        # Cast each, then stack: twice as fast.
        return torch.stack([g.to(x.dtype) for g in g_currents]), s, q, of_decay, of_gain


class Kernels:
    """The kernels of one plan.

    ``forward(x, a, b, residual, k)`` -> spikes, charged membranes or None.
    ``gradients(x, a, b, residual, k, g_spikes, g_charged, center, gain)`` -> :data:`Gradients`.
    ``rates(x, a, b, residual, k)`` -> spikes, their mean over T, its derivative by a current at every step.
    Plans that differ only in what a kernel does not use share it.
    """

    def __init__(self, plan: Plan) -> None:
        # Forward asks for no derivative: surrogates share its kernel unless they are fired smoothly.
        seen = plan.surrogate if plan.smooth else Surrogate()
        scaled = plan.scaled and plan.smooth
        self.forward = _forward(
            replace(plan, learned=False, detach_reset=True, surrogate=seen, scaled=scaled)
        )
        self.gradients = _gradients(plan)
        self.rates = _rates(plan)


@cache
def _forward(p: Plan) -> Kernel:
    ops = _Arithmetic(p)

    def forward(
        x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor
    ) -> tuple[Tensor, _Optional]:
        spikes, charged = [], []
        v = k[INITIAL]
        for t in range(p.T):
            h = ops.charge(v, ops.current(x, a, b, residual, t), k)
            u = h - k[THRESHOLD]
            v = ops.store(ops.after(h, u, k), k)
            spikes.append(ops.spike(u, k).to(x.dtype))
            if p.membrane:
                charged.append(h)
        return torch.stack(spikes), torch.stack(charged) if p.membrane else None

    # The cache grows with each plan: its size tells the names of their kernels apart.
    return Kernel(forward, f"spikes_{_forward.cache_info().currsize}")


@cache
def _gradients(p: Plan) -> Kernel:
    ops = _Arithmetic(p)

    def gradients(
        x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor, g_spikes: Tensor,
        g_charged: _Optional,
        center: _Optional, gain: _Optional,
    ) -> Gradients:  # fmt: skip
        return ops.gradients(x, a, b, residual, k, g_spikes, g_charged, center, gain)

    return Kernel(gradients, f"gradients_{_gradients.cache_info().currsize}")


@cache
def _rates(p: Plan) -> Kernel:
    """Forward in time, beside each step, the derivatives eH, eV by a current that is added at every step:

        eH_t = gain + decay * eV_{t-1};  eS_t = sg(H_t - threshold) * eH_t
        eV_t = (1 - S_t) eH_t - H_t eS_t (hard) | eH_t - subtracted * eS_t (soft) | eH_t (none)

    the second terms unless the reset is detached. For neurons off the grid.
    """
    ops = _Arithmetic(p)

    def rates(
        x: Tensor, a: _Optional, b: _Optional, residual: _Optional, k: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        spikes, wide, slopes = [], [], []
        v, ev = k[INITIAL], torch.zeros_like(k[INITIAL])
        for t in range(p.T):
            h = ops.charge(v, ops.current(x, a, b, residual, t), k)
            u = h - k[THRESHOLD]
            s = ops.spike(u, k)
            eh = k[GAIN] + k[DECAY] * ev
            es = ops.surrogate(u, k) * eh
            v = ops.after(h, u, k)
            ev = eh * (1 - s) if p.reset == "hard" else eh
            if p.reset is not None and not p.detach_reset:
                ev = ev - (h if p.reset == "hard" else k[SUBTRACTED]) * es
            spikes.append(s.to(x.dtype))
            wide.append(s)
            slopes.append(es)
        return torch.stack(spikes), (add(wide) / p.T).to(x.dtype), (add(slopes) / p.T).to(x.dtype)

    return Kernel(rates, f"rates_{_rates.cache_info().currsize}")


def add(values: list[Tensor]) -> Tensor:
    """Their sum, from the first on."""
    out = values[0]
    for value in values[1:]:
        out = out + value
    return out


def weighted(values: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The sum of products."""
    return add([v * w for v, w in zip(values, weights, strict=True)])


def sums(s: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Of two (N, L, C), over all but the last dimension."""
    return s.sum(1).sum(0), q.sum(1).sum(0)


def sums_first(s: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The same of (N, C, L)."""
    return s.sum(2).sum(0), q.sum(2).sum(0)


def through_norm(g: Tensor, x: Tensor, a: Tensor, center: Tensor, k1: Tensor, k2: Tensor) -> Tensor:
    """gx from gI of a norm with the batch's statistics; (..., C) with (C,), (..., C, L) with (C, 1)."""
    return (a * at_least_float32(g) - k1 - k2 * (at_least_float32(x) - center)).to(x.dtype)


def into_norm(g: Tensor, x: Tensor, a: Tensor, center: Tensor, k1: Tensor, k2: Tensor) -> None:
    """The same, written over gI."""
    g.copy_(through_norm(g, x, a, center, k1, k2))


@cache
def kernels(plan: Plan) -> Kernels:
    """The kernels of a plan: made once, compiled when first called."""
    return Kernels(plan)


# By whether channels are last.
statistics = {True: Kernel(moments, "moments_last"), False: Kernel(moments_first, "moments_first")}
totals = {True: Kernel(sums, "sums_last"), False: Kernel(sums_first, "sums_first")}
through = {last: Kernel(through_norm, f"through_norm_{last}") for last in (True, False)}
into = {last: Kernel(into_norm, f"into_norm_{last}") for last in (True, False)}
