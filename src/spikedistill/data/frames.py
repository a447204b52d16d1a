"""Events to frames, binned once and kept on the disk.

The cache holds whole official parts; validation is cut when a set is opened, so it is never baked in.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import SpikedistillError
from ..files import cache_folder
from . import cache
from .config import FramesConfig
from .event_files import Events
from .stores import Mapped, Memory, Store

VERSION = 2
DAY = 86_400_000_000  # us; what lasts longer is not in microseconds
IN_MEMORY = 1 << 29  # bytes of counts up to which frames are held in memory, so that a device can keep them


class EventSet(Protocol):
    """Recordings by index, with what identifies their content."""

    sensor_size: tuple[int, int]

    def __len__(self) -> int: ...

    def events(self, index: int) -> Events:
        """The events of one sample."""

    def where(self, index: int) -> str:
        """Words that find a sample: its file."""

    def fingerprint(self) -> str:
        """sha256 of the content of all samples."""


def frame_shape(number: int, sensor: tuple[int, int], config: FramesConfig) -> tuple[int, int, int, int]:
    """(F, C, H, W) for a sensor of (width, height)."""
    height, width = config.size or (sensor[1], sensor[0])
    return number, 2 if config.polarity == "two" else 1, height, width


def bin_events(
    events: Events, number: int, sensor: tuple[int, int], config: FramesConfig, where: str = "a sample"
) -> NDArray[np.int64]:
    """Counts of events in ``number`` frames; ``where``: the sample's name if events do not fit the sensor.

    Event i of n at time t_i stands in frame ``floor(F (t_i - t_first) / (t_last - t_first + 1))`` (by time),
    ``floor(F i / n)`` (by number), or ``floor((t_i - t_first) / duration)``. So summing groups of F/T frames
    gives exactly the frames that binning at T gives (with ``limit``: sums of frames that are cut each).

    Shape: n events -> (F, C, H, W).
    """
    frames, channels, height, width = frame_shape(number, sensor, config)
    n = len(events)
    if n == 0:
        return np.zeros((frames, channels, height, width), np.int64)
    if min(events.x.min(), events.y.min()) < 0 or events.x.max() >= sensor[0] or events.y.max() >= sensor[1]:
        raise SpikedistillError(
            f"{where}: events at x {events.x.min()}..{events.x.max()}, y {events.y.min()}..{events.y.max()} "
            f"do not fit a sensor of {sensor[0]} x {sensor[1]} pixels"
        )
    if events.p.min() < 0 or events.p.max() > 1:
        raise SpikedistillError(
            f"{where}: polarities from {events.p.min()} to {events.p.max()}; 1 is ON and 0 is OFF: give p > 0"
        )
    # In Python's integers: the difference of two of 64 bits may need 65.
    span = int(events.t.max()) - int(events.t.min())
    # It also keeps the product of time and frames below far within int64.
    if span >= DAY:
        raise SpikedistillError(
            f"{where}: its times span {span / DAY:.3g} days if they are microseconds; give t in microseconds"
        )
    # From the earliest, which need not come first: a step below 0 would have no frame.
    since = events.t - events.t.min()
    if config.duration is not None:
        step = since // config.duration
    elif config.split_by == "number":
        step = np.arange(n) * frames // n
    else:
        # In integers, and + 1: the last event falls into the last frame, not behind it.
        step = since * frames // (span + 1)
    x, y = _place(events.x, sensor[0], width, config), _place(events.y, sensor[1], height, config)
    p = np.minimum(events.p, channels - 1)
    keep = (step < frames) & (x >= 0) & (y >= 0)
    flat = (((step * channels + p) * height + y) * width + x)[keep]
    counts = np.bincount(flat, minlength=frames * channels * height * width)
    if config.limit is not None:
        counts = np.minimum(counts, config.limit)
    return counts.reshape(frames, channels, height, width)


def _place(position: NDArray[np.int64], old: int, new: int, config: FramesConfig) -> NDArray[np.int64]:
    if old == new:
        return position
    if config.resize == "sum":
        return position * new // old
    table = np.full(old, -1)  # nearest: only the pixels that interpolation would take
    if new > old:
        raise SpikedistillError(
            f"data.frames: cannot enlarge {old} pixels to {new} by 'nearest'; use resize: sum"
        )
    table[np.arange(new) * old // new] = np.arange(new)
    return table[position]


def framed(recordings: EventSet, number: int, config: FramesConfig) -> Store:
    """The frames of all samples (N, F, C, H, W), from the cache or binned now."""
    content = recordings.fingerprint()
    # Where the cache lies says nothing of frames; `number` is the one in force, given or not.
    settings = config.model_dump(mode="json", exclude={"cache", "number"})
    words = json.dumps([VERSION, content, number, list(recordings.sensor_size), settings], sort_keys=True)
    key = hashlib.sha256(words.encode()).hexdigest()
    path = cache_folder(config.cache) / "frames" / f"{key}.npy"
    shape = (len(recordings), *frame_shape(number, recordings.sensor_size, config))
    array = cache.array(path, shape)
    if array is None:
        _write(recordings, number, config, path)
        array = np.load(path, mmap_mode="r")
    # Bytes alone: batches widen them; of wider counts it is Mapped that makes floats.
    if array.dtype == np.uint8 and array.nbytes <= IN_MEMORY:
        # Copied: torch wants memory that it may write, the map is read-only. The digest is the recordings',
        # so that a data set has one hash however its events are binned.
        return Memory(torch.from_numpy(np.array(array)), content)
    return Mapped(array, content)


def _write(recordings: EventSet, number: int, config: FramesConfig, path: Path) -> None:
    """Bin with the smallest integers that hold every count."""
    shape = (len(recordings), *frame_shape(number, recordings.sensor_size, config))
    with cache.written(path) as part:
        # The smallest first: where a busy pixel needs more, all are binned again.
        for kind in (np.uint8, np.uint16, np.uint32):
            out = np.lib.format.open_memmap(part, mode="w+", dtype=kind, shape=shape)
            _reserve(part)
            if _fill(out, recordings, number, config):
                break
        # Before the file gets its name: what stands in the cache is whole.
        out.flush()


def _reserve(file: Path) -> None:
    """Take the file's whole space now: what a mapped page finds no room for kills the process by a signal."""
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        try:
            os.posix_fallocate(opened.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return  # a file system that cannot reserve
            raise SpikedistillError(
                f"no room for {size / 1e6:,.0f} MB of frames in {file.parent} ({error.strerror}); free some, "
                "or set data.frames.cache or the environment variable SPIKEDISTILL_CACHE"
            ) from None


def _fill(out: NDArray[np.unsignedinteger], recordings: EventSet, number: int, config: FramesConfig) -> bool:
    limit = np.iinfo(out.dtype).max
    for i in range(len(recordings)):
        events = recordings.events(i)
        if len(events) == 0:
            raise SpikedistillError(f"{recordings.where(i)}: no events in it; leave the sample out")
        counts = bin_events(events, number, recordings.sensor_size, config, recordings.where(i))
        if counts.max(initial=0) > limit:
            return False
        out[i] = counts
    return True
