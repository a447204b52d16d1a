"""Reductions of whole simulations for objectives: each one read of memory, at least in float32.

Written out in torch they would first widen all T steps, and keep them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..numerics import at_least_float32
from .compilation import Kernel


def _mean(x: Tensor) -> Tensor:
    return at_least_float32(x).sum(0) / x.shape[0]


def _square(a: Tensor, b: Tensor) -> Tensor:
    d = at_least_float32(a) - at_least_float32(b)
    return (d * d).sum(1)


def _difference(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return ((at_least_float32(a) - at_least_float32(b)) * factor).to(a.dtype)


_mean_kernel, _square_kernel = Kernel(_mean, "time_mean"), Kernel(_square, "square_of_difference")
_difference_kernel = Kernel(_difference, "difference")


def _dense(x: Tensor) -> bool:
    """Whether (M, ...) lies in memory row after row, each without gaps, whatever its dimensions' order."""
    step = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    # More than 1: sizes of 1 would be compiled anew.
    return x.stride(0) == step > 1


def _rows(x: Tensor) -> Tensor:
    """A dense (M, ...) as (M, L); .data: a view's base would bring its shape into compiled code's checks."""
    return x.as_strided((x.shape[0], x[0].numel()), (x[0].numel(), 1)).data


def _mean_of_dense(x: Tensor) -> Tensor:
    """The mean over T of a dense (T, N, ...), as that lies in memory."""
    with torch.autocast(x.device.type, enabled=False):
        return _mean_kernel(_rows(x)).as_strided(x.shape[1:], x.stride()[1:])


class _TimeMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.stride, ctx.dtype = x.shape, x.stride(), x.dtype
        return _mean_of_dense(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        # Written out as x lies in memory: autograd would do so itself, in another order of dimensions.
        out = torch.empty_strided(ctx.shape, ctx.stride, dtype=ctx.dtype, device=g.device)
        return out.copy_((g / ctx.shape[0]).to(ctx.dtype))


def time_mean(x: Tensor) -> Tensor:
    """The mean over T of (T, N, ...), in at least float32: (N, ...)."""
    if x.shape[0] == 1:
        return at_least_float32(x[0])
    return _TimeMean.apply(x) if _dense(x) else at_least_float32(x).mean(0)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return (_places(_mean_of_dense(x), weight) * weight).sum() * x.shape[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        # Not written out: it is the same for all steps and samples, and is added to another gradient.
        return (g * weight).to(ctx.dtype).expand(ctx.shape), None


def _places(x: Tensor, weight: Tensor) -> Tensor:
    """Sums over all dimensions of ``x`` in front of those of ``weight``."""
    return x.sum(tuple(range(x.dim() - weight.dim())))


def weighted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """``sum(x * weight)`` of (T, N, ...); the weight, a constant, has the last dimensions alone."""
    if _dense(x):
        return _WeightedSum.apply(x, weight)
    return (_places(at_least_float32(x), weight) * weight).sum()


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with torch.autocast(a.device.type, enabled=False):
            return _square_kernel(_rows(a), _rows(b)).sum() / a.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        a, b = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            out = _difference_kernel(_rows(a), _rows(b), g * (2 / a.numel()))
        return out.as_strided(a.shape, a.stride()), None


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """``mean (a - b)^2`` of two (T, N, ...) in at least float32; b is a constant."""
    # Rows are (t, n): enough of them for all cores.
    a, b = a.flatten(0, 1), b.detach().flatten(0, 1)
    # Rows are read as they lie in memory, so both must lie in the same order.
    if a.stride() == b.stride() and _dense(a) and a.shape[0] > 1:
        return _MeanSquare.apply(a, b)
    return F.mse_loss(at_least_float32(a), at_least_float32(b))
