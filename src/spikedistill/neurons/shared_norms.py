"""Batch norms whose training statistics are those of all processes, and the switch for a whole network."""

import torch
from torch import Tensor, nn

from ..numerics import at_least_float32
from .sync import is_distributed, shared_moments, update_running


class _Shared(nn.modules.batchnorm._BatchNorm):
    """A batch norm whose training statistics are those of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, ...), kept."""
        if not (self.training and is_distributed()):
            return super().forward(x)
        var, mean = torch.var_mean(at_least_float32(x), [d for d in range(x.dim()) if d != 1], unbiased=False)
        mean, var, n = shared_moments(mean, var, x.numel() // x.shape[1])
        update_running(self, mean, var, n)
        a = torch.rsqrt(var + self.eps) * (1 if self.weight is None else self.weight)
        b = -mean * a if self.bias is None else self.bias - mean * a
        channel = (-1, *[1] * (x.dim() - 2))
        return (a.view(channel) * x + b.view(channel)).to(x.dtype)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with statistics shared between processes."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with statistics shared between processes."""


class SharedBatchNorm3d(_Shared, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` with statistics shared between processes."""


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SharedBatchNorm1d, nn.BatchNorm2d: SharedBatchNorm2d, nn.BatchNorm3d: SharedBatchNorm3d
}  # fmt: skip
_OWN = {shared: own for own, shared in _SHARED.items()}


def shares(norm: nn.Module) -> bool:
    """Whether the norm's statistics are now those of several processes."""
    return is_distributed() and (bool(getattr(norm, "sync", False)) or isinstance(norm, _Shared))


def synchronize(network: nn.Module, on: bool = True) -> nn.Module:
    """Let all norms of ``network`` share their batch statistics between processes (or no longer), in place.

    ``NormNeuron``, batch norms that stand alone, and quantized ones, on every device. Returns the network.
    """
    for module in network.modules():
        if isinstance(getattr(module, "sync", None), bool):  # norm and neuron, and norms on codes
            module.sync = on  # type: ignore[assignment]
        else:
            # The class alone changes: parameters, hooks and what others hold of the module stay.
            module.__class__ = (_SHARED if on else _OWN).get(type(module), type(module))
    return network
