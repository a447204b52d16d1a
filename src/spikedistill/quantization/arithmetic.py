"""Arithmetic on integers held in floats: which float holds them, settings that keep torch exact."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .. import simulation
from ..errors import SpikedistillError
from ..neurons import Neuron

FLOAT32, FLOAT64 = 1 << 24, 1 << 53


def exact_dtype(bound: float, where: str = "") -> torch.dtype:
    """float32 for integers under 2^24, else float64; from 2^53 on an error that names the place."""
    # As narrow as the proof allows: every pass pays for a wider type.
    if bound < FLOAT32:
        return torch.float32
    if bound < FLOAT64:
        return torch.float64
    raise SpikedistillError(
        f"{where or 'a sum'}: codes may reach {bound:.3g} and exact arithmetic ends at 2^53; use fewer bits "
        "(weight_bits, residual_bits, norm_bits) or fewer time steps"
    )


@contextmanager
def exact(x: Tensor) -> Iterator[None]:
    """No autocast and no reduced precision in products: integers in floats stay integers."""
    if hasattr(torch.backends.mkldnn, "conv"):
        with _whole(), torch.autocast(x.device.type, enabled=False):
            yield
        return
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
        if x.is_cuda and tf32:
            torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)
        if x.is_cuda and tf32:
            torch.backends.cudnn.allow_tf32 = True


@contextmanager
def _whole() -> Iterator[None]:
    """Products of float32 in float32, by torch's settings of each operation (not mixed with older ones)."""
    backends: Any = torch.backends
    places = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.conv, backends.mkldnn.matmul
    before = [(place, place.fp32_precision) for place in places]
    reduced = [(place, value) for place, value in before if value not in ("none", "ieee")]
    try:
        for place, _ in reduced:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in reduced:
            place.fp32_precision = value


def scalar(module: nn.Module, name: str) -> float:
    """A module's 0-dimensional buffer or parameter as a Python number, as it is now.

    Nothing is kept from one pass to the next: fused optimizers change parameters without raising their
    version, so no cache could know. On an accelerator, where each read waits for all work queued, one pass
    reads all its numbers at once.
    """
    tensor: Any = getattr(module, name)
    sim = simulation.current()
    if sim is None or not getattr(tensor, "is_cuda", False):
        return float(tensor.item())
    # On the simulation, which ends with the pass: what an optimizer then moves is read anew.
    known = sim.__dict__.setdefault("scalars", {})
    if not known:
        known.update(scalars(sim.network))
    return known[id(tensor)] if id(tensor) in known else float(tensor.item())


def scalars(network: nn.Module) -> dict[int, float]:
    """All 0-dimensional parameters and buffers of a network by ``id``, in one transfer from the device."""
    found = [t for t in chain(network.parameters(), network.buffers()) if t.dim() == 0]
    # float64 holds float32 and int32 exactly, so that one stack serves steps and shifts.
    values = torch.stack([t.detach().double() for t in found]).tolist() if found else []
    return {id(t): value for t, value in zip(found, values)}


def current_steps(neuron: nn.Module) -> int:
    """T of the running simulation, or the neuron's own."""
    sim = simulation.current()
    if sim is not None and sim.time_steps is not None:
        return sim.time_steps
    assert isinstance(neuron, Neuron)
    return neuron.time_steps
