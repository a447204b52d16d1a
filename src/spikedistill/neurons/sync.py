"""Batch statistics shared by the processes that train one network on parts of one batch."""

from typing import Any

import torch
from torch import Tensor, nn

from ..numerics import at_least_float32


class _Gather(torch.autograd.Function):
    """Every process's tensor, stacked; backward sums what all processes have to say about each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        import torch.distributed as dist

        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        import torch.distributed as dist

        g = grads[0].contiguous()
        dist.all_reduce(g)
        return g[dist.get_rank()]


def several() -> bool:
    """Whether this process is one of several."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared(mean: Tensor, var: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count (a float) over all processes, from each one's own; differentiable.

    Shape: mean and variance (C,). Processes may have read different numbers of values.
    """
    C = len(mean)
    parts = _Gather.apply(torch.cat([mean, var, mean.new_full((1,), n)]))
    means, variances, counts = parts[:, :C], parts[:, C : 2 * C], parts[:, 2 * C :].detach()
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / total, total


def move(norm: nn.Module, mean: Tensor, var: Tensor, n: int | Tensor, momentum: float) -> None:
    """Move a norm's running statistics towards a batch's mean and biased variance, of ``n`` values per channel."""
    unbiased = n / (n - 1) if isinstance(n, Tensor) else n / max(n - 1, 1)
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)  # type: ignore[operator, arg-type]
        norm.running_var.lerp_((var * unbiased).to(norm.running_var.dtype), momentum)  # type: ignore[operator, arg-type]


class _Shared(nn.modules.batchnorm._BatchNorm):
    """A batch norm whose training statistics are those of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, ...), kept."""
        if not (self.training and several()):
            return super().forward(x)
        var, mean = torch.var_mean(at_least_float32(x), [d for d in range(x.dim()) if d != 1], unbiased=False)
        mean, var, n = shared(mean, var, x.numel() // x.shape[1])
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
            move(self, mean, var, n, 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum)
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


def synchronize(network: nn.Module, on: bool = True) -> nn.Module:
    """Let all norms of ``network`` share their batch statistics between processes (or no longer), in place.

    ``NormNeuron``, batch norms that stand alone, and quantized ones, on every device. Returns the network.
    """
    for module in network.modules():
        if isinstance(getattr(module, "sync", None), bool):  # norm and neuron, and norms on codes
            module.sync = on  # type: ignore[assignment]
        else:
            module.__class__ = (_SHARED if on else _OWN).get(type(module), type(module))
    return network
