"""Less memory for training: spikes kept for backward as bits.

The layer behind a neuron keeps its input for backward; 0 and 1 need one bit there, not 16 or 32. The
gradients stay the same bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

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
    """What one :func:`packed_spikes` context knows: the spikes emitted in it, how many bytes were kept."""

    def __init__(self) -> None:
        # By storage: a weak reference keeps the address from new use, so a hit is never another tensor.
        self._emitted: dict[int, tuple[StorageWeakRef, int]] = {}
        self._packed: dict[int, Tensor] = {}
        self.bytes = 0
        self.bytes_unpacked = 0

    def emitted(self, spikes: Tensor) -> None:
        """A neuron emitted these zeros and ones."""
        storage = spikes.untyped_storage()
        # Only where spikes fill their storage: it is packed whole, for every view of it that a layer keeps.
        if spikes.numel() >= SMALLEST and storage.nbytes() == spikes.numel() * spikes.element_size():
            self._emitted[storage._cdata] = (StorageWeakRef(storage), spikes._version)

    def pack(self, x: Tensor) -> Any:
        """What is kept for backward instead of ``x``."""
        size = x.numel() * x.element_size()
        self.bytes_unpacked += size
        storage = x.untyped_storage()
        known = self._emitted.get(storage._cdata)
        # Another version: changed in place since (`out += x`), so no longer known to be zeros and ones.
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
            # With hooks at work autograd leaves this check out.
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

    Only tensors that a neuron of the same context emitted are packed, so sums of spikes and pooled means stay
    as they are. Yields the packer, whose ``bytes`` and ``bytes_unpacked`` count what all layers keep and what
    they would have kept.
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
