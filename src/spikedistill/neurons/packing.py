"""Less memory for training: spikes kept for backward as bits, and recomputation of blocks.

The layer behind a neuron keeps its input for backward; 0 and 1 need one bit there, not 16 or 32. Both ways give the same
gradients bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import simulation
from ..errors import SpikedistillError
from . import compilation
from .compilation import Kernel

SMALLEST = 1024  # values; below this the bookkeeping costs more than the memory


def _pack(x: Tensor) -> Tensor:
    # Arithmetic, because compilers make vector code of it; shifts of bytes are several times slower.
    total = x[0].float()
    for i in range(1, 8):
        total = total + x[i].float() * float(1 << i)
    return total.to(torch.uint8)


def _unpack(packed: Tensor, like: Tensor) -> Tensor:
    value = packed.float()
    bits = []
    for _ in range(8):
        half = (value * 0.5).floor()
        bits.append((value - 2 * half).to(like.dtype))
        value = half
    return torch.stack(bits)


_pack_kernel, _unpack_kernel = Kernel(_pack, "pack_spikes"), Kernel(_unpack, "unpack_spikes")


def pack(x: Tensor) -> Tensor:
    """Bits of a flat tensor of zeros and ones: (M,) to ceil(M/8) bytes."""
    if x.numel() % 8:
        x = F.pad(x, (0, 8 - x.numel() % 8))
    with torch.autocast(x.device.type, enabled=False):
        return _pack_kernel(x.view(8, -1))


def unpack(packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """Back to zeros and ones: (ceil(M/8),) bytes to (M,)."""
    with torch.autocast(packed.device.type, enabled=False):
        return _unpack_kernel(packed, packed.new_empty(0, dtype=dtype)).view(-1)[:numel]


class Packer:
    """What one :func:`packed_spikes` context knows: the spikes emitted in it, and how many bytes were kept."""

    def __init__(self) -> None:
        # By storage: a weak reference keeps the address from being used again, so a hit is never somebody else's tensor.
        self._emitted: dict[int, tuple[StorageWeakRef, int]] = {}
        self._packed: dict[int, Tensor] = {}
        self.bytes = 0
        self.bytes_unpacked = 0

    def emitted(self, spikes: Tensor) -> None:
        """A neuron emitted these zeros and ones."""
        storage = spikes.untyped_storage()
        if spikes.numel() >= SMALLEST and storage.nbytes() == spikes.numel() * spikes.element_size():
            self._emitted[storage._cdata] = (StorageWeakRef(storage), spikes._version)

    def pack(self, x: Tensor) -> Any:
        """What is kept for backward instead of ``x``."""
        size = x.numel() * x.element_size()
        self.bytes_unpacked += size
        storage = x.untyped_storage()
        known = self._emitted.get(storage._cdata)
        if known is None or known[1] != x._version or x.numel() * x.element_size() > storage.nbytes():
            self.bytes += size
            return x, x._version
        bits = self._packed.get(storage._cdata)
        if bits is None:  # one copy, however many layers keep it
            whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(storage)
            with torch.no_grad():
                bits = self._packed[storage._cdata] = pack(whole)
            self.bytes += bits.numel()
        numel = storage.nbytes() // x.element_size()
        return bits, numel, x.dtype, x.size(), x.stride(), x.storage_offset(), compilation.mode()

    @staticmethod
    def unpack(kept: Any) -> Tensor:
        """The tensor again."""
        if len(kept) == 2:
            x, version = kept
            if x._version != version:
                raise RuntimeError("a tensor needed for backward was changed in place after the forward pass")
            return x
        bits, numel, dtype, size, stride, offset, mode = kept
        with torch.no_grad(), compilation.use(mode):
            return unpack(bits, numel, dtype).as_strided(size, stride, offset)


_packers: list[Packer] = []


def emitted(spikes: Tensor) -> None:
    """Tell the packer at work, if any, that these are zeros and ones."""
    if _packers:
        _packers[-1].emitted(spikes)


@contextmanager
def packed_spikes() -> Iterator[Packer]:
    """Keep spikes for backward as bits: forward passes within this context, backward anywhere.

    Only tensors that a neuron of the same context emitted are packed, so sums of spikes and pooled means stay as they are.
    Yields the packer, whose ``bytes`` and ``bytes_unpacked`` count what all layers keep and what they would have kept.
    """
    packer = Packer()
    _packers.append(packer)
    try:
        with torch.autograd.graph.saved_tensors_hooks(packer.pack, packer.unpack):
            yield packer
    finally:
        _packers.remove(packer)
        packer._packed.clear()
        packer._emitted.clear()


@contextmanager
def _untracked(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Norms that stand alone leave their running statistics as they are; those of ours ask the simulation."""
    norms = [m for root in modules for m in root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    held = [(m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


@contextmanager
def _again(
    sim: simulation.Simulation | None,
    snapshot: dict[int, int] | None,
    mode: compilation.Mode,
    modules: tuple[nn.Module, ...],
) -> Iterator[None]:
    inside: AbstractContextManager[Any] = nullcontext() if sim is None else sim.reenter(snapshot or {})
    with inside, compilation.use(mode), _untracked(modules):
        yield


def checkpointed(function: Callable[..., Any], *args: Any, modules: tuple[nn.Module, ...] = ()) -> Any:
    """``function(*args)`` of which only the arguments are kept; backward computes it a second time.

    The second time re-enters the simulation as it was: calls are counted, running statistics moved and captures taken once.
    ``modules`` are those that ``function`` runs. Dropout draws the same masks again.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    sim = simulation.current()
    snapshot = None if sim is None else sim.snapshot()
    mode = compilation.mode()

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _again(sim, snapshot, mode, modules)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def _segments(sequence: nn.Sequential, is_neuron: Callable[[nn.Module], bool]) -> list[list[nn.Module]]:
    """Children in runs that end with one that contains a neuron."""
    runs: list[list[nn.Module]] = [[]]
    for child in sequence:
        runs[-1].append(child)
        if any(is_neuron(m) for m in child.modules()):
            runs.append([])
    return [run for run in runs if run]


def _runner(parts: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return run


@contextmanager
def lean(network: nn.Module, blocks: list[nn.Module] | None = None) -> Iterator[None]:
    """Recompute blocks in backward: forward passes of ``network`` within this context keep the inputs of blocks only.

    ``blocks``: the modules to recompute each as a whole; default: every run of layers up to a neuron in the outermost
    ``nn.Sequential`` that contain neurons (a convolution with its neuron in VGGs, a residual block in ResNets).

    Raises:
        SpikedistillError: when there are no blocks given and no such sequences.
    """
    from .modules import Neuron

    changed: list[nn.Module] = []

    def whole(block: nn.Module) -> None:
        own = block.forward
        block.forward = lambda *args: checkpointed(own, *args, modules=(block,))
        changed.append(block)

    def in_runs(sequence: nn.Sequential) -> None:
        runs = _segments(sequence, lambda m: isinstance(m, Neuron))

        def forward(x: Tensor) -> Tensor:
            for parts in runs:
                x = checkpointed(_runner(parts), x, modules=tuple(parts))
            return x

        sequence.forward = forward  # type: ignore[method-assign]
        changed.append(sequence)

    def walk(module: nn.Module) -> None:
        if not any(isinstance(m, Neuron) for m in module.modules()):
            return
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and len(module) > 1:
            in_runs(module)
        else:
            for child in module.children():
                walk(child)

    try:
        if blocks is None:
            walk(network)
        else:
            for block in blocks:
                whole(block)
        if not changed:
            raise SpikedistillError(
                f"{type(network).__name__} has no nn.Sequential of spiking layers to recompute; name its blocks: "
                "lean(network, blocks=[...])"
            )
        yield
    finally:
        for module in changed:
            del module.forward
