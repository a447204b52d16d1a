"""Norm and neuron at T = 1 on small maps: torch's own norm and one comparison.

Calls of compiled code cost more there than they save, and at T = 1 there are no steps to keep together: five
calls of 0.1 ms each and what stands around them, against a comparison.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import simulation
from ..numerics import at_least_float32
from .compilation import mode
from .dynamics import Constants, Number
from .sync import is_distributed

MOST_VALUES = 1 << 17  # with more, the compiled operation's fewer passes over memory win


def applies(x: Tensor, norm: Any, decay: Number, gain: Number, constants: Constants) -> bool:
    """Whether :func:`run` can be asked, for a neuron that may run fused: training with gradients on a CPU."""
    return (
        x.numel() <= MOST_VALUES
        and x.device.type == "cpu"
        and x.is_floating_point()
        and torch.is_grad_enabled()
        and mode() == "compiled"
        and constants.grid is None
        and not constants.smooth
        and not isinstance(decay, Tensor)
        and not isinstance(gain, Tensor)
        and (norm is None or _plain(norm, x))
    )


def _plain(norm: Any, x: Tensor) -> bool:
    """Whether torch's norm does the same: of a channel's single value it has no variance to track."""
    return (
        norm.training
        and norm.momentum is not None
        and norm.num_batches_tracked is not None
        and x.numel() > x.shape[1]
        and not is_distributed()
    )


class _Fires(torch.autograd.Function):
    """``[u >= 0]`` for ``u = gain * x + start - threshold``, with the surrogate's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float, start: float, c: Constants, dtype: torch.dtype) -> Tensor:
        h = x if gain == 1 else x * gain
        u = (h if start == 0 else h + start) - c.threshold
        ctx.save_for_backward(u)
        ctx.gain, ctx.surrogate, ctx.scale = gain, c.surrogate, c.scale
        return (u >= 0).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        g = ctx.surrogate.derivative(u if ctx.scale == 1 else u * ctx.scale).mul_(grads[0])
        factor = ctx.gain * ctx.scale
        return g if factor == 1 else g.mul_(factor), None, None, None, None


def run(
    x: Tensor, norm: Any, residual: Tensor | None, decay: Number, gain: Number, initial: float, c: Constants
) -> Tensor:
    """Spikes (N, ...) of the current (N, ...), behind ``norm`` where there is one, whose statistics move."""
    dtype, x = x.dtype, at_least_float32(x)
    if norm is not None:
        sim = simulation.current()
        # Where backward computes a block a second time, its batch has been counted. Copies move then: both
        # passes have to save as many tensors.
        again = sim is not None and sim.recomputing
        mean, var = (v.clone() if again else v for v in (norm.running_mean, norm.running_var))
        x = torch.native_batch_norm(x, norm.weight, norm.bias, mean, var, True, norm.momentum, norm.eps)[0]
        if not again:
            norm.num_batches_tracked += 1
    if residual is not None:
        x = x + residual
    spikes: Tensor = _Fires.apply(x, gain, decay * initial, c, dtype)
    return spikes
