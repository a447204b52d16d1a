"""What a machine does for a stage: memory of a step, bfloat16 autocast, compiled neurons where that pays."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distiller import Distiller
from ..neurons import Neuron, compilation
from ..neurons.packing import Packer, packed_spikes
from ..neurons.recompute import lean
from ..randomness import apart

# A cold compiler cache costs up to this long on two cores; the fused form saves this part of an eager step.
COMPILE_SECONDS = 45.0
SAVED = 0.5


@dataclass(frozen=True)
class Fit:
    """Memory of a training step, MB, and the largest batch that would fit.

    ``step_mb``: tensors kept for backward at the batch size asked; ``fixed_mb``: parameters, gradients,
    optimizer state; ``available_mb``: free memory of the device (None: unknown); ``largest_batch``: what
    would fit.
    """

    step_mb: float
    fixed_mb: float
    available_mb: float | None
    largest_batch: int | None

    @property
    def fits(self) -> bool:
        """Whether the batch asked is expected to fit."""
        return self.available_mb is None or self.step_mb + self.fixed_mb < self.available_mb


def estimate(
    distiller: Distiller, x: Tensor, y: Tensor, batch_size: int, states: int = 1, memory: str = "default"
) -> Fit:
    """From one forward pass on two samples: what backward keeps grows with the batch.

    Weights, gradients and ``states`` optimizer tensors a parameter do not. An estimate: work buffers of
    convolutions and the allocator's slack are not in it. ``memory``: how it is kept (:func:`saving`).

    Norm statistics and random state stay as they are.
    """
    x, y = x[:2].clone(), y[:2]  # a view would count the storage of the whole batch
    saved: dict[int, int] = {}
    # By storage: views of a tensor, or a tensor kept by several functions, take their memory once.
    own = {p.untyped_storage().data_ptr() for p in distiller.parameters()}

    def keep(t: Tensor) -> Tensor:
        # Of nested hooks torch calls the innermost alone: the packer's place is taken, so it is asked here.
        storage = (t if packer is None else packer.pack(t)[0]).untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    buffers = {k: v.clone() for k, v in distiller.named_buffers()}
    with (
        apart(),
        saving(memory, distiller.student) as packer,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        losses = distiller(x, y)  # held until all is counted, so that no address is used twice
    with torch.no_grad():
        for name, value in distiller.named_buffers():
            value.copy_(buffers[name])
    per_sample = sum(saved.values()) / len(x)
    del losses
    fixed = sum(p.numel() * p.element_size() for p in distiller.parameters() if p.requires_grad) * (
        2 + states
    )
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
    # Not MemFree: what the system holds as file cache can be had too.
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far, in MB: allocated on the GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    # Of 1024 bytes on Linux; macOS counts single ones.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextmanager
def saving(memory: str, network: nn.Module) -> Iterator[Packer | None]:
    """How the forward pass keeps what backward needs.

    As it is, spikes as bits, or blocks recomputed with spikes as bits. Yields what packs the spikes, if any.
    """
    with ExitStack() as stack:
        packer = None if memory == "default" else stack.enter_context(packed_spikes())
        if memory == "lean" and any(isinstance(m, Neuron) for m in network.modules()):
            stack.enter_context(lean(network))
        yield packer


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 autocast where the precision is that, else nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def channels_last(compiled: bool, precision: str) -> bool:
    """Whether a stage's images and weights lie channels last: where its kernels are faster so."""
    return compiled or precision == "bfloat16"


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Run with or without compiling; where compiling is forbidden altogether, by the plain equations."""
    # By what the process allows: a run's own context says compile or not, the user's switch says never.
    allowed = compilation.allowed()
    with compilation.use("compiled" if on and allowed else "uncompiled" if allowed else "eager"):
        yield


def _worked(device: torch.device) -> float:
    """Seconds that a step's end can be compared by: of work, not of waiting for a processor others keep busy.

    Else two runs of one seed might differ in rounding by what else the machine did at their start.
    """
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    # Kernels are only queued by then; without waiting, the time would be that of the queueing.
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def worth_compiling(distiller: Distiller, x: Tensor, y: Tensor, steps: int, memory: str = "default") -> bool:
    """Whether ``steps`` training steps like this one outlast the compiling; times two, leaves no trace.

    On a CPU a step counts by the processor's time, whatever else the machine does.
    """
    if (
        not compilation.allowed()
        or steps < 20
        or not any(isinstance(m, Neuron) for m in distiller.student.modules())
    ):
        return False
    state = {k: v.clone() for k, v in distiller.state_dict().items()}
    with apart(), compilation.uncompiled():
        distiller.train()
        seconds = []
        for _ in range(2):
            start = _worked(x.device)
            # A step kept in the way of the training: one that fits no other way must fit here too.
            with saving(memory, distiller.student):
                total = distiller(x, y).total
            total.backward()
            seconds.append(_worked(x.device) - start)
    distiller.zero_grad(set_to_none=True)
    # Two steps in training mode have moved the statistics of the norms.
    distiller.load_state_dict(state)
    # The faster of the two: the first also pays for allocations that later steps find made.
    return min(seconds) * steps * SAVED > COMPILE_SECONDS
