"""Norm, neuron, surrogate over all steps as one differentiable operation (arithmetic in :mod:`.kernels`).

It keeps the convolution's output (and a residual) for backward, and nothing per time step. Memory layout is
the input's: channels last stays channels last, everything else is taken as channels first.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..numerics import at_least_float32
from . import inference
from .compilation import Mode, mode, use
from .dynamics import Constants, Number
from .kernels import DECAY, GAIN, Plan, into, kernels, statistics, through, totals
from .sync import summed


@dataclass(frozen=True)
class Batch:
    """Batch statistics, functions of x: mean, 1 / deviation, values per channel; shared between processes?"""

    mean: Tensor
    rstd: Tensor
    n: int | Tensor
    shared: bool = False


def usable(x: Tensor) -> bool:
    """Whether neurons with this input run fused now."""
    return mode() != "eager" and x.device.type in ("cpu", "cuda") and x.is_floating_point() and x.numel() > 0


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """``x`` (M, C, ...) without gaps, and whether its channels are last (they are without places)."""
    if x.dim() <= 2 or x.shape[2:].numel() == 1:
        return x.contiguous(), True
    last = x.movedim(1, -1)
    if x.is_contiguous():
        return x, False
    if last.is_contiguous():
        return x, True
    prefers_last = x.stride(1) == 1
    return (last.contiguous().movedim(-1, 1), True) if prefers_last else (x.contiguous(), False)


def _like(g: Tensor, channels_last: bool) -> Tensor:
    if not channels_last or g.dim() <= 2:
        return g.contiguous()
    return g.movedim(1, -1).contiguous().movedim(-1, 1)


class _View:
    """Between (T*N, C, ...) and the kernels' shapes; no copy."""

    def __init__(self, x: Tensor, plan: Plan, last: bool) -> None:
        self.T, self.last, self.places = plan.T, last, x.shape[2:]
        self.C = x.shape[1] if x.dim() > 1 else 1
        n, L = x.shape[0] // (1 if plan.encode else plan.T), self.places.numel()
        if last and n == 1 and len(self.places) == 2:
            n, L = self.places  # which places are samples makes no difference
        self.shape = (n * L * self.C,) if not plan.norm else (n, L, self.C) if last else (n, self.C, L)

    @property
    def mode(self) -> Mode:
        """Sizes of 1 would be compiled anew; what has them is small, and runs uncompiled."""
        return "uncompiled" if 1 in self.shape else mode()

    def inward(self, x: Tensor, timed: bool = True) -> Tensor:
        if self.last and x.dim() > 2:
            x = x.movedim(1, -1)
        # .data: a view's base would bring its shape into what compiled code checks.
        return x.reshape(self.T, *self.shape).data if timed else x.reshape(self.shape).data

    def outward(self, y: Tensor, shape: torch.Size) -> Tensor:
        """To ``shape`` = (..., C, places); .data: no view for autograd, so it may be changed in place."""
        if not self.last or not self.places:
            return y.view(shape).data
        lead = shape[: len(shape) - 1 - len(self.places)]
        return y.view(*lead, *self.places, self.C).movedim(-1, len(lead)).data


def _affine(
    weight: Tensor | None, bias: Tensor | None, batch: Batch | None
) -> tuple[Tensor | None, Tensor | None]:
    """``(a, b)`` of a norm, where there is one, as kernels take them."""
    if weight is None or bias is None:
        return None, None
    a, b = at_least_float32(weight.data), at_least_float32(bias.data)
    if batch is None:
        return a, b
    a = a * batch.rstd
    return a, b - batch.mean * a


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, k: Tensor,
        plan: Plan, batch: Batch | None, last: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        view = _View(x, plan, last)
        a, b = _affine(weight, bias, batch)
        n = x.shape[0] if plan.encode else x.shape[0] // plan.T
        ctx.mode = view.mode
        with torch.autocast(x.device.type, enabled=False), use(ctx.mode):
            res = None if residual is None else view.inward(residual)
            spikes, charged = kernels(plan).forward(view.inward(x, not plan.encode), a, b, res, k.data)
        ctx.save_for_backward(x, residual, k, a, b)
        ctx.plan, ctx.batch, ctx.last = plan, batch, last
        # Spikes or membranes may be read by nothing: no zeros of all steps for them.
        ctx.set_materialize_grads(False)
        out = view.outward(spikes, torch.Size((plan.T * n, *x.shape[1:])))
        return out, None if charged is None else view.outward(charged, torch.Size((plan.T, n, *x.shape[1:])))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_spikes: Tensor | None, g_charged: Tensor | None) -> Any:
        x, residual, k, a, b = ctx.saved_tensors
        plan, batch, last = ctx.plan, ctx.batch, ctx.last
        view = _View(x, plan, last)
        n = x.shape[0] if plan.encode else x.shape[0] // plan.T
        shape = torch.Size((plan.T * n, *x.shape[1:]))
        if g_spikes is None:
            g_spikes = x.new_zeros(()).expand(shape)
        gs = view.inward(_like(g_spikes, last))
        gm = None
        if plan.membrane:
            gm = x.new_zeros(shape) if g_charged is None else g_charged.flatten(0, 1)
            gm = view.inward(_like(gm, last))
        res = None if residual is None else view.inward(residual)
        arguments = (view.inward(x, not plan.encode), a, b, res, k.data, gs, gm)
        # As forward ran: whoever calls backward may stand in another context.
        with torch.autocast(x.device.type, enabled=False), use(ctx.mode):
            gx, g_weight, g_bias, g_residual, gk = _backward(plan, arguments, ctx.needs_input_grad, batch)
        return (
            None if gx is None else view.outward(gx, x.shape), g_weight, g_bias,
            None if g_residual is None else view.outward(g_residual, shape), gk, None, None, None,
        )  # fmt: skip


def _backward(
    plan: Plan, arguments: tuple[Any, ...], needs: tuple[bool, ...], batch: Batch | None
) -> tuple[Tensor | None, ...]:
    """Gradients of x, of the norm's two vectors, of the residual, the neuron's numbers; in kernel shapes."""
    x, a, _, residual, k, *_ = arguments
    need_x, need_weight, need_bias, need_residual = needs[:4]
    last = plan.channels_last
    counted = plan.norm and (need_weight or need_bias or (batch is not None and need_x))
    g_weight = g_bias = gk = None
    k1 = k2 = zero = torch.zeros_like(k if a is None else a)
    center = zero if batch is None else batch.mean
    gains = k[GAIN].expand(len(a)).contiguous() if plan.norm else None
    g, s, q, decay, gain = kernels(plan).gradients(*arguments, center if counted else None, gains)
    if decay is not None and gain is not None:
        gk = torch.zeros_like(k)
        gk[DECAY], gk[GAIN] = decay.sum(), gain.sum()
    if counted:
        s, q = totals[last](g if plan.encode else s, q)
        g_bias, g_weight = s, q  # sums of gI and of gI * (x - mean)
        if batch is not None:
            g_weight = q * batch.rstd
            # Weight and bias keep the sums of this process; x is also in the statistics that all others use.
            if batch.shared:
                s, q = summed(torch.stack([s, q]))
            k1, k2 = a * s / batch.n, a * q * batch.rstd.square() / batch.n
    g_residual = g.to(residual.dtype) if need_residual else None
    if not need_x or not plan.norm:
        return g if need_x else None, g_weight, g_bias, g_residual, gk
    vectors = [v if last else v.unsqueeze(1).data for v in (a, center, k1, k2)]
    if plan.encode:
        return through[last](g, x, *vectors), g_weight, g_bias, g_residual, gk
    x, over = x.flatten(0, 1).data, g.flatten(0, 1).data
    # gI is the residual's gradient too, so it must not be written over.
    if need_residual:
        return through[last](over, x, *vectors), g_weight, g_bias, g_residual, gk
    into[last](over, x, *vectors)
    return g, g_weight, g_bias, g_residual, gk


@lru_cache(maxsize=1024)
def _numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept, since each is a transfer to the device; shared by all calls, so never changed in place. Also by
    # calls that learn: a tensor of inference mode could not be saved for their backward.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def numbers(
    decay: Number, gain: Number, initial: float, c: Constants, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A neuron's numbers as one tensor, in the order of :mod:`.kernels`; differentiable in decay and gain."""
    g = c.grid
    if g is None:
        rest = (c.threshold, initial, c.scale, 0.0, 0.0, 1.0, c.subtracted)
    else:
        # Without bits no kernel reads the two limits.
        half = 2 ** ((g.bits or 1) - 1)
        start = float(math.floor(initial / g.unit + 0.5))
        rest = (
            float(g.threshold),
            start,
            c.scale,
            -float(half),
            float(half - 1),
            float(1 << g.shift),
            c.subtracted,
        )
        decay, gain = g.decay, 1.0
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        pair = [torch.as_tensor(v, dtype=dtype, device=device) for v in (decay, gain)]
        return torch.cat([torch.stack(pair), _numbers(rest, dtype, device)])
    return _numbers((decay, gain, *rest), dtype, device)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of (M, C, ...), in one read; not differentiable."""
    x, last = dense(x.detach())
    with torch.autocast(x.device.type, enabled=False), torch.no_grad():
        # Sizes of 1 would be compiled anew.
        if x.shape[0] == 1 or x.shape[1] == 1 or x.shape[2:].numel() == 1:
            var, mean = torch.var_mean(
                at_least_float32(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)), (0, 2), unbiased=False
            )
            return mean, var
        if last:
            return statistics[True](x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1]).data)
        return statistics[False](x.reshape(x.shape[0], x.shape[1], -1).data)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = moments(x)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_mean: Tensor, g_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        slope, offset = 2 / n * g_var, g_mean / n - 2 / n * g_var * mean
        return torch.addcmul(offset.view(shape), x, slope.view(shape)).to(x.dtype)


def differentiable_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`moments` of a floating (M, C, ...) under autograd."""
    found: tuple[Tensor, Tensor] = _Moments.apply(x)
    return found


def run(
    x: Tensor, T: int, encode: bool, decay: Number, gain: Number, initial: float, constants: Constants, *,
    affine: tuple[Tensor, Tensor] | None = None, batch: Batch | None = None, residual: Tensor | None = None,
    membrane: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Spikes (T*N, ...) and, if asked, charged membranes (T, N, ...) of ``neuron(a * x + b + residual)``.

    ``affine`` is ``(a, b)``; with ``batch`` it is ``(weight, bias)`` of the norm with the batch's statistics,
    and backward goes through these. Without it the neuron stands alone. Shape: x (T*N, C, ...), constant
    current (N, C, ...).
    """
    x, last = dense(x)
    if residual is not None:
        residual = _like(residual, last)
    if batch is None and not membrane and inference.applies(x, constants):
        spikes = inference.run(x, T, encode, decay, gain, initial, constants, affine, residual, last)
        return spikes, None
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    k = numbers(decay, gain, initial, constants, dtype, x.device)
    # Alone, a neuron has no channels: both layouts are one flat shape and share a kernel.
    plan = Plan.of(
        constants, T, encode, norm=affine is not None, channels_last=last or affine is None,
        residual=residual is not None, membrane=membrane, learned=k.requires_grad,
    )  # fmt: skip
    weight, bias = affine if affine is not None else (None, None)
    return _Fused.apply(x, weight, bias, residual, k, plan, batch, last)


def rates(
    x: Tensor, T: int, encode: bool, decay: Number, gain: Number, initial: float, constants: Constants, *,
    affine: tuple[Tensor, Tensor] | None = None, batch: Batch | None = None, residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Spikes as :func:`run` gives them, their mean over T, and its derivative by a current at every step.

    Without a graph, for neurons off the grid. Shape: spikes (T*N, C, ...), the others (N, C, ...).
    """
    x, last = dense(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    k = numbers(decay, gain, initial, constants, dtype, x.device)
    plan = Plan.of(
        constants, T, encode, norm=affine is not None, channels_last=last or affine is None,
        residual=residual is not None,
    )  # fmt: skip
    view = _View(x, plan, last)
    with torch.autocast(x.device.type, enabled=False), use(view.mode):
        res = None if residual is None else view.inward(_like(residual, last))
        a, b = _affine(*affine, batch) if affine is not None else (None, None)
        spikes, rate, slope = kernels(plan).rates(view.inward(x, not encode), a, b, res, k.data)
    n = len(x) if encode else len(x) // T
    one = torch.Size((n, *x.shape[1:]))
    all_steps = view.outward(spikes, torch.Size((T * n, *x.shape[1:])))
    return all_steps, view.outward(rate, one), view.outward(slope, one)
