"""Precision of arithmetic that sums over time, space or batches; layout of gradients."""

from typing import Any

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def floating_type(network: nn.Module, otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """The type that a network computes in: its first real parameter's; ``otherwise`` where it has none."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), otherwise)


def fitting(x: Tensor, network: nn.Module) -> Tensor:
    """A batch in the type that a network computes in; bytes stay bytes."""
    return x.to(floating_type(network)) if x.is_floating_point() else x


class _SameLayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def keep_layout(x: Tensor) -> Tensor:
    """``x`` itself; where it is a map with channels last, its gradient will be, too.

    The gradient of a mean is one number everywhere, laid out channels first, and all that comes before it in
    the backward pass would follow: a norm reads two layouts at once, at a fifth of its speed.
    """
    wanted = x.requires_grad and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    kept: Tensor = _SameLayout.apply(x) if wanted and not x.is_contiguous() else x
    return kept
