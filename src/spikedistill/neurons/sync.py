"""Batch statistics shared by the processes that train one network on parts of one batch."""

from typing import Any

import torch
from torch import Tensor

from .. import simulation


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


def is_distributed() -> bool:
    """Whether this process is one of several."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    import torch.distributed as dist

    dist.all_reduce(values)
    return values


def shared_moments(mean: Tensor, var: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count (a float) over all processes, from each one's own; differentiable.

    Shape: mean and variance (C,). Processes may have read different numbers of values.
    """
    C = len(mean)
    parts = _Gather.apply(torch.cat([mean, var, mean.new_full((1,), n)]))
    means, variances, counts = parts[:, :C], parts[:, C : 2 * C], parts[:, 2 * C :].detach()
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    # Within the parts plus between them: the mean of squares less the square of the mean would cancel.
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / total, total


def update_running(norm: Any, mean: Tensor, var: Tensor, n: int | Tensor) -> None:
    """Count a batch; move a norm's running statistics to its mean and biased variance.

    ``n``: values per channel. ``norm``: with a batch norm's buffers and ``momentum`` (None: the average of
    all batches). Nothing moves where backward computes a block a second time, or where the norm tracks
    nothing.
    """
    sim = simulation.current()
    if norm.num_batches_tracked is None or (sim is not None and sim.recomputing):
        return
    # Batch norms normalise by the biased variance and keep the unbiased one, as torch's do.
    unbiased = n / (n - 1) if isinstance(n, Tensor) else n / max(n - 1, 1)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_((var * unbiased).to(norm.running_var.dtype), momentum)


class BatchStatistics:
    """What norms have in common that compute with their batch's statistics themselves, one by one."""

    sync = False  # share batch statistics between processes (shared_norms.synchronize)

    def _read(self, mean: Tensor, var: Tensor, n: int) -> tuple[Tensor, Tensor, int | Tensor]:
        """A batch's statistics were read: share them between processes if asked, track and count them."""
        count: int | Tensor = n
        if self.sync and is_distributed():
            mean, var, count = shared_moments(mean, var, n)
        self.track(mean.detach(), var.detach(), count)
        return mean, var, count

    def track(self, mean: Tensor, var: Tensor, n: int | Tensor) -> None:
        """Move the running statistics towards a batch's; ``n`` values per channel were read."""
        update_running(self, mean, var, n)
