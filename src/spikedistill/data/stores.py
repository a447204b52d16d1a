"""Where samples come from: memory, a memory-mapped cache, or files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .draws import among

Labels = NDArray[np.int64]


class Store(Protocol):
    """Samples by index. ``streams``: reading one costs so much that loader workers should do it."""

    streams: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (F, C, H, W)."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor, device: torch.device, train: bool = False) -> Tensor:
        """The samples ``index`` (int64, on the CPU), on ``device``; uint8 images stay uint8."""

    def digest(self) -> str:
        """sha256 of the content."""


@dataclass
class Memory:
    """A tensor in memory, copied once to the device that asks for it if under a quarter of its memory."""

    data: Tensor
    content: str = ""
    streams: bool = False
    _copies: dict[torch.device, Tensor | None] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Tensor, device: torch.device, train: bool = False) -> Tensor:
        if device.type == "cpu":
            return self.data[index]
        if device not in self._copies:
            # None is remembered too: whether it fits is asked once, not at each batch.
            self._copies[device] = self.data.to(device) if _fits(self.data, device) else None
        copy = self._copies[device]
        if copy is None:
            return self.data[index].to(device, non_blocking=True)
        return copy[index.to(device, non_blocking=True)]

    def digest(self) -> str:
        return self.content or sha256(self.data.contiguous().numpy())

    def __getstate__(self) -> dict[str, Any]:
        # Copies on devices stay behind: a process that this is sent to makes its own.
        return {"data": self.data, "content": self.content, "streams": self.streams, "_copies": {}}


@dataclass
class Mapped:
    """Samples in a .npy file that is read where it is asked for (event frames)."""

    array: NDArray[Any]
    content: str
    streams: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.array)

    def take(self, index: Tensor, device: torch.device, train: bool = False) -> Tensor:
        picked = self.array[index.numpy()]
        # Widened here, of the picked samples alone; float32 holds counts below 2^24 exactly.
        return torch.from_numpy(picked.astype(np.float32)).to(device)

    def digest(self) -> str:
        return self.content


def _fits(data: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return data.numel() * data.element_size() < free // 4


def sha256(*arrays: NDArray[Any]) -> str:
    """sha256 over type, shape and bytes of arrays."""
    state = hashlib.sha256()
    for array in arrays:
        # Type and shape too: the same bytes may mean other samples.
        state.update(f"{array.dtype.str}{array.shape}".encode())
        # As a view: tobytes would copy the whole set.
        state.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return state.hexdigest()


@dataclass
class Part:
    """Samples of one official part of a data set, with labels and, where known, groups (recordings)."""

    store: Store
    labels: Labels
    groups: NDArray[np.int64] | None = None


@dataclass
class Source:
    """A data set as it lies on the disk, before validation is cut from it.

    ``split_file``: where we ship the split, the name and sha256 of the list that says what is tested.
    """

    name: str
    train: Part
    test: Part
    class_names: Sequence[str]
    kind: str = "image"
    validation: Part | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    split_file: str | None = None


@dataclass
class Split:
    """What a name such as "train" means: rows of one or several stores."""

    pieces: list[tuple[Part, Labels]]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.pieces)

    @property
    def labels(self) -> Tensor:
        """Labels in order (N,)."""
        parts = [part.labels[rows] for part, rows in self.pieces]
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))

    @property
    def streams(self) -> bool:
        """Whether reading a sample is slow."""
        return any(part.store.streams for part, _ in self.pieces)

    def take(self, positions: Tensor, device: torch.device, train: bool = False) -> Tensor:
        """The samples at ``positions`` of this split."""
        # Also where nothing is asked for: there would be nothing to put together below.
        if len(self.pieces) == 1 or not len(positions):
            part, rows = self.pieces[0]
            return part.store.take(torch.from_numpy(rows)[positions], device, train)
        start, found, places, begin = 0, [], [], torch.get_rng_state()
        for part, rows in self.pieces:
            here = torch.nonzero((positions >= start) & (positions < start + len(rows))).flatten()
            if len(here):
                index = torch.from_numpy(rows)[positions[here] - start]
                # Each store draws for the whole batch, and all draw the same: one draw a sample.
                torch.set_rng_state(begin)
                with among(here, len(positions)):
                    found.append(part.store.take(index, device, train))
                places.append(here)
            start += len(rows)
        # Read store by store, handed out in the order that was asked for.
        return torch.cat(found)[torch.argsort(torch.cat(places)).to(device)]
