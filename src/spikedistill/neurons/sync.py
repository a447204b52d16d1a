"""Batch statistics shared by the processes that train one network on parts of one batch."""

from typing import Any

import torch
from torch import Tensor, nn


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


def synchronize(network: nn.Module, on: bool = True) -> nn.Module:
    """Let all ``NormNeuron`` of ``network`` share their batch statistics between processes (or no longer), in place.

    Norms that stand alone become torch's ``SyncBatchNorm`` where the network is on a GPU, the only place it runs.
    Returns the network.
    """
    from .modules import NormNeuron

    for module in network.modules():
        if isinstance(module, NormNeuron):
            module.sync = on
    first = next(network.parameters(), None)
    if on and first is not None and first.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network
