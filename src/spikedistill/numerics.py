"""Precision of arithmetic that sums over time, space or batches."""

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
