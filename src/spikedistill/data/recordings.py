"""Recordings of events, one sample at a time: packed arrays, files, trials in long files, Python objects."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpikedistillError
from ..files import cache_folder
from . import cache
from .config import FramesConfig
from .event_files import Events, read_aedat3
from .stores import sha256

LARGEST_SENSOR = 1 << 14


@dataclass
class PackedEvents:
    """The ``events`` .npz: all samples one after the other, sample i at ``off[i]:off[i+1]``."""

    t: NDArray[Any]
    x: NDArray[Any]
    y: NDArray[Any]
    p: NDArray[Any]
    off: NDArray[np.int64]
    sensor_size: tuple[int, int]
    path: str = ""

    def __len__(self) -> int:
        return len(self.off) - 1

    def events(self, index: int) -> Events:
        """The events of one sample."""
        rows = slice(self.off[index], self.off[index + 1])
        # Widened a sample at a time: the whole columns keep the small types of their file.
        return Events(*(column[rows].astype(np.int64) for column in (self.t, self.x, self.y, self.p)))

    def where(self, index: int) -> str:
        """The file and the sample."""
        return f"{self.path}, sample {index}"

    def fingerprint(self) -> str:
        """sha256 of all arrays."""
        return sha256(self.t, self.x, self.y, self.p, self.off)


@dataclass
class EventFiles:
    """One file a sample; the content hash is remembered for an unchanged list of names, sizes and times."""

    paths: Sequence[Path]
    sensor_size: tuple[int, int]
    reader: Callable[[Path], Events]
    config: FramesConfig

    def __len__(self) -> int:
        return len(self.paths)

    def events(self, index: int) -> Events:
        """The events of one file."""
        try:
            return self.reader(self.paths[index])
        except OSError as error:
            raise SpikedistillError(f"cannot read {self.paths[index]} ({error})") from error

    def where(self, index: int) -> str:
        """The file."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """sha256 of all files."""
        return files_digest(self.paths, self.config)


def files_digest(paths: Sequence[Path], config: FramesConfig) -> str:
    """sha256 over the bytes of files, in order; cached under their names, sizes and times of change."""
    # Each once: the trials of one recording all name its file.
    unique = list(dict.fromkeys(paths))
    try:
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in unique]
    except (OSError, ValueError) as error:
        raise SpikedistillError(f"cannot read a recording of the set ({error})") from None
    listing = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    note = cache_folder(config.cache) / "digests" / listing
    # A damaged note is written anew.
    if note.exists() and re.fullmatch(rb"[0-9a-f]{64}", known := note.read_bytes()):
        return known.decode()
    state = hashlib.sha256()
    for path in unique:
        # The name alone: the hash does not depend on where the set lies.
        state.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    with cache.written(note) as part:
        part.write_text(state.hexdigest())
    return state.hexdigest()


@dataclass
class GestureTrials:
    """Pieces of DVS Gesture's recordings between the times of the label files."""

    trials: Sequence[tuple[Path, int, int]]
    config: FramesConfig
    sensor_size: tuple[int, int] = (128, 128)

    def __post_init__(self) -> None:
        # trials of one recording follow each other
        self._recording = functools.lru_cache(maxsize=1)(read_aedat3)

    def __len__(self) -> int:
        return len(self.trials)

    def events(self, index: int) -> Events:
        """The events of one trial, from its start time to before its end."""
        path, start, end = self.trials[index]
        whole = self._recording(path)
        inside = (whole.t >= start) & (whole.t < end)
        return Events(whole.t[inside], whole.x[inside], whole.y[inside], whole.p[inside])

    def where(self, index: int) -> str:
        """The recording and the times."""
        path, start, end = self.trials[index]
        return f"{path}, {start} to {end} us"

    def fingerprint(self) -> str:
        """sha256 of the recordings and the times."""
        times = hashlib.sha256(json.dumps([trial[1:] for trial in self.trials]).encode()).hexdigest()
        return times + files_digest([trial[0] for trial in self.trials], self.config)


@dataclass
class ObjectEvents:
    """Any sequence of (events, label), such as tonic's data sets."""

    items: Any
    sensor_size: tuple[int, int]
    role: str

    def __len__(self) -> int:
        return len(self.items)

    def events(self, index: int) -> Events:
        """The events of one item."""
        return Events.of(self.items[index][0], self.where(index))

    def where(self, index: int) -> str:
        """The part and the sample."""
        return f"{self.role}, sample {index}"

    def fingerprint(self) -> str:
        """sha256 of all events."""
        state = hashlib.sha256()
        for i in range(len(self)):
            e = self.events(i)
            state.update(sha256(e.t, e.x, e.y, e.p).encode())
        return state.hexdigest()
