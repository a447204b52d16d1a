"""No update from a gradient that is not finite: a flag on the device, which the optimizer's kernels read.

The flag goes up with a step whose batch, loss or gradient holds NaN or infinity, and stays up: nothing is
applied from that step on, so the weights stand where they stood before it until the host reads the flag and
can say what was wrong.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Guard:
    """``look`` at each step, then ``update``; ``first_bad_step`` reads the device."""

    def __init__(self, device: torch.device, world: int = 1) -> None:
        self.world = world
        self.found = torch.zeros((), device=device)  # float32, as torch's fused optimizers take ``found_inf``
        self.step = torch.full((), -1, dtype=torch.long, device=device)

    @torch.no_grad()
    def look(self, step: int, seen: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> None:
        """``seen``: inputs and losses of the step; the gradients are those of ``parameters``.

        Reads nothing to the host.
        """
        good = [torch.isfinite(value).all() for value in seen if value.is_floating_point()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            # The largest magnitude: exact where a sum of squares would overflow, and NaN where one value is.
            good.append(torch.isfinite(nn.utils.get_total_norm(gradients, float("inf"))))
        if not good:
            return
        bad = (~torch.stack(good).all()).to(self.found)
        if self.world > 1:
            # One process alone holding back would leave the copies of the weights apart.
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        self.step = torch.where((self.step < 0) & (bad > 0), step, self.step)
        self.found = torch.maximum(self.found, bad)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, unless the flag is up."""
        if all(group.get("fused") for group in optimizer.param_groups):
            # Where torch's GradScaler leaves its flag: the fused kernels skip the update where it is not 0,
            # and the host need not wait to know.
            optimizer.grad_scale, optimizer.found_inf = None, self.found  # type: ignore[attr-defined]
        elif bool(self.found):  # no kernel that looks by itself: the host does
            return
        optimizer.step()

    def first_bad_step(self) -> int | None:
        """The first step (from 0) whose update was refused, or None."""
        step = int(self.step)
        return None if step < 0 else step
