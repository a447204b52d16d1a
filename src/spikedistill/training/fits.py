"""What fits: the memory that one training step will take, before it takes it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..distiller import Distiller


@dataclass(frozen=True)
class Fit:
    """``step_mb``: tensors kept for backward at the batch size asked; ``fixed_mb``: parameters, gradients, optimizer state;
    ``available_mb``: free memory of the device (None: unknown); ``largest_batch``: what would fit.
    """

    step_mb: float
    fixed_mb: float
    available_mb: float | None
    largest_batch: int | None

    @property
    def fits(self) -> bool:
        """Whether the batch asked is expected to fit."""
        return self.available_mb is None or self.step_mb + self.fixed_mb < self.available_mb


def estimate(distiller: Distiller, x: Tensor, y: Tensor, batch_size: int, states: int = 1) -> Fit:
    """From one forward pass on two samples: what backward keeps grows with the batch; weights, gradients and ``states``
    optimizer tensors a parameter do not. An estimate: work buffers of convolutions and the allocator's slack are not in it.

    Norm statistics and random state stay as they are.
    """
    x, y = x[:2].clone(), y[:2]  # a view would count the storage of the whole batch
    saved: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in distiller.parameters()}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    buffers = {k: v.clone() for k, v in distiller.named_buffers()}
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses = distiller(x, y)  # held until all is counted, so that no address is used twice
    with torch.no_grad():
        for name, value in distiller.named_buffers():
            value.copy_(buffers[name])
    per_sample = sum(saved.values()) / len(x)
    del losses
    fixed = sum(p.numel() * p.element_size() for p in distiller.parameters() if p.requires_grad) * (2 + states)
    free = available(x.device)
    largest = None if free is None or not per_sample else max(0, int((free - fixed) / per_sample))
    return Fit(per_sample * batch_size / 1e6, fixed / 1e6, None if free is None else free / 1e6, largest)


def available(device: torch.device) -> float | None:
    """Free bytes of the device's memory, or None where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
