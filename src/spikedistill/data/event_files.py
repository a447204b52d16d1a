"""Readers of the official event formats: the 40-bit .bin of N-MNIST and N-Caltech101, AEDAT 2.0, AEDAT 3.1.

A file that ends inside an event or a packet is refused by name.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedistill.errors import SpikedistillError


@dataclass(frozen=True)
class Events:
    """Events of one sample: time in microseconds, column, row (0 on top), polarity (1 = ON), each (n,) int64."""

    t: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    p: NDArray[np.int64]

    @classmethod
    def of(cls, found: Any, where: str) -> "Events":
        """From a mapping or a structured array with the fields t, x, y, p (as tonic's data sets give)."""
        fields = found if isinstance(found, Mapping) else getattr(found, "dtype", np.dtype(int)).names or ()
        missing = [key for key in "txyp" if key not in fields]
        if missing:
            raise SpikedistillError(f"{where}: events need the fields t, x, y, p; missing: {', '.join(missing)}")
        columns = [np.asarray(found[key]).reshape(-1).astype(np.int64) for key in "txyp"]
        if len({len(column) for column in columns}) > 1:
            raise SpikedistillError(f"{where}: t, x, y, p differ in length: {[len(c) for c in columns]}")
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.t)


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise SpikedistillError(f"no file {path}")
    return path.read_bytes()


def read_bin(path: Path) -> Events:
    """The .bin files of N-MNIST and N-Caltech101 (Orchard et al., Frontiers in Neuroscience 2015).

    Five bytes an event: x, y, then one bit polarity and 23 bits of time. Row 240 stands for an overflow of the sensor's
    counter: later events are 2**13 us later, as in the authors' reader.
    """
    raw = np.frombuffer(_bytes(path), dtype=np.uint8)
    if len(raw) == 0 or len(raw) % 5:
        raise SpikedistillError(f"{path}: {len(raw)} bytes is no whole number of 5-byte events: empty or cut short")
    x, y, high, middle, low = raw.reshape(-1, 5).T.astype(np.int64)
    t = ((high & 127) << 16) | (middle << 8) | low
    marks = y == 240
    t = t + np.cumsum(marks) * 8192
    return Events(t[~marks], x[~marks], y[~marks], (high >> 7)[~marks])


def read_aedat2(path: Path) -> Events:
    """An AEDAT 2.0 file of a DVS128, as CIFAR10-DVS's: big-endian pairs of address and time after lines with '#'.

    Address: bit 0 is 1 for OFF, bits 1-7 and 8-14 the two axes from the far corner; anything with a higher bit is no
    pixel. Rows count from the top. Li, Liu, Ji, Li, Shi, "CIFAR10-DVS", Frontiers in Neuroscience 2017.
    """
    body = _bytes(path)
    file = io.BytesIO(body)
    start = 0
    while file.readline().startswith(b"#"):
        start = file.tell()
    if start == 0 or len(body) == start or (len(body) - start) % 8:
        raise SpikedistillError(
            f"{path}: no AEDAT 2.0 header"
            if start == 0
            else f"{path}: {len(body) - start} bytes is no whole number of 8-byte events: empty or cut short"
        )
    address, t = np.frombuffer(body, dtype=">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    pixel = address < 1 << 15
    address, t = address[pixel], t[pixel]
    return Events(t, 127 - ((address >> 8) & 127), 127 - ((address >> 1) & 127), 1 - (address & 1))


def read_aedat3(path: Path) -> Events:
    """The polarity events of an AEDAT 3.1 file, as DVS Gesture's: little-endian packets of 28 bytes of header, events.

    Event: bit 0 valid, bit 1 polarity, bits 2-16 y, bits 17-31 x, then the time in microseconds, 31 bits and the
    packet's overflow counter.
    """
    body = _bytes(path)
    end = body.find(b"#!END-HEADER\r\n")
    if not body.startswith(b"#!AER-DAT3.") or end < 0:
        raise SpikedistillError(f"{path}: no AEDAT 3 header: cut short or another format")
    position = end + len(b"#!END-HEADER\r\n")
    data, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while position < len(body):
        if len(body) - position < 28:
            raise SpikedistillError(f"{path}: cut short in the header of a packet at byte {position}")
        kind = int.from_bytes(body[position : position + 2], "little")
        size, _, overflow, capacity, number, _ = np.frombuffer(body, "<u4", 6, position + 4).tolist()
        position += 28
        if len(body) - position < size * capacity:
            raise SpikedistillError(f"{path}: cut short in a packet at byte {position}")
        if kind == 1:
            words = np.frombuffer(body, "<u4", number * 2, position).reshape(-1, 2).astype(np.int64)
            words = words[words[:, 0] & 1 == 1]
            data.append(words[:, 0])
            times.append(words[:, 1] | overflow << 31)
        position += size * capacity
    word, t = np.concatenate(data), np.concatenate(times)
    if len(t) == 0:
        raise SpikedistillError(f"{path}: no polarity events in it")
    return Events(t, word >> 17, (word >> 2) & 0x7FFF, (word >> 1) & 1)


def read_gesture_labels(path: Path) -> list[tuple[int, int, int]]:
    """Rows (class from 0, start, end in microseconds) of a label file of DVS Gesture, whose classes count from 1."""
    try:
        rows = list(csv.DictReader(io.StringIO(_bytes(path).decode())))
        return [(int(r["class"]) - 1, int(r["startTime_usec"]), int(r["endTime_usec"])) for r in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise SpikedistillError(
            f"{path}: rows must be class,startTime_usec,endTime_usec; could not read {error}"
        ) from error
