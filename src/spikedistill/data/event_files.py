"""Readers of the official event formats: the 40-bit .bin of N-MNIST and N-Caltech101, AEDAT 2.0, AEDAT 3.1.

A file that ends inside an event or a packet is refused by name.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpikedistillError
from .arrays import whole

GESTURES = 11


@dataclass(frozen=True)
class Events:
    """Events of one sample: time in microseconds, column, row (0: top), polarity (1: ON), each (n,) int64."""

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
            raise SpikedistillError(
                f"{where}: events need the fields t, x, y, p; missing: {', '.join(missing)}"
            )
        columns = [whole(np.asarray(found[key]).reshape(-1), f"{where}, {key}", -(1 << 62)) for key in "txyp"]
        if len({len(column) for column in columns}) > 1:
            raise SpikedistillError(f"{where}: t, x, y, p differ in length: {[len(c) for c in columns]}")
        return cls(*columns)

    def __len__(self) -> int:
        return len(self.t)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SpikedistillError(f"no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise SpikedistillError(f"cannot read {path} ({error})") from None


def read_bin(path: Path) -> Events:
    """The .bin files of N-MNIST and N-Caltech101 (Orchard et al., Frontiers in Neuroscience 2015).

    Five bytes an event: x, y, then one bit polarity and 23 bits of time. Row 240 stands for an overflow of
    the sensor's counter: later events are 2**13 us later, as in the authors' reader.
    """
    raw = np.frombuffer(_bytes(path), dtype=np.uint8)
    if len(raw) == 0 or len(raw) % 5:
        raise SpikedistillError(
            f"{path}: {len(raw)} bytes is no whole number of 5-byte events: empty or cut short"
        )
    # Widened before the shifts: bytes would lose what is shifted beyond 8 bits.
    x, y, high, middle, low = raw.reshape(-1, 5).T.astype(np.int64)
    t = ((high & 127) << 16) | (middle << 8) | low
    marks = y == 240
    if marks.all():
        raise SpikedistillError(f"{path}: no events in it, only marks of the counter's overflow")
    t = t + np.cumsum(marks) * 8192
    return Events(t[~marks], x[~marks], y[~marks], (high >> 7)[~marks])


def read_aedat2(path: Path) -> Events:
    """An AEDAT 2.0 file of a DVS128, as CIFAR10-DVS's: big-endian (address, time) after lines with '#'.

    Address: bit 0 is 1 for OFF, bits 1-7 and 8-14 the two axes from the far corner; anything with a higher
    bit is no pixel. Rows count from the top. Li, Liu, Ji, Li, Shi, "CIFAR10-DVS", Frontiers in Neuroscience
    2017.
    """
    body = _bytes(path)
    if not body.startswith(b"#!AER-DAT2."):
        raise SpikedistillError(f"{path}: no AEDAT 2.0 header: it begins with {body[:16]!r}")
    start = 0
    # An address of a DVS128 begins with a zero byte: no event is taken for a line of the header.
    while body[start : start + 1] == b"#":
        end = body.find(b"\n", start)
        start = len(body) if end < 0 else end + 1
    _of_a_dvs128(body[:start].decode("latin-1"), path)
    if len(body) == start or (len(body) - start) % 8:
        raise SpikedistillError(
            f"{path}: {len(body) - start} bytes is no whole number of 8-byte events: empty or cut short"
        )
    address, t = np.frombuffer(body, dtype=">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    pixel = address < 1 << 15
    if 2 * pixel.sum() < len(pixel):  # a DVS128 itself gives a few others, synchronisation
        raise SpikedistillError(
            f"{path}: {len(pixel) - pixel.sum()} of {len(pixel)} addresses are no pixels of a DVS128; "
            "it is of another sensor"
        )
    address, t = address[pixel], t[pixel]
    return Events(t, 127 - ((address >> 8) & 127), 127 - ((address >> 1) & 127), 1 - (address & 1))


def _of_a_dvs128(header: str, path: Path) -> None:
    """Refuse a header that names another sensor or another unit of time."""
    chip = re.search(r"AEChip: *(\S+)", header)
    if chip and "DVS128" not in chip[1].upper():
        raise SpikedistillError(f"{path}: of the sensor {chip[1]}; only recordings of a DVS128 are read")
    tick = re.search(r"Timestamps tick(?: is|:) *(\S+ *\S*)", header)
    if tick and tick[1].split() != ["1", "us"]:
        raise SpikedistillError(
            f"{path}: its times are in units of {tick[1].strip()}; only those of 1 us are read"
        )


def read_aedat3(path: Path) -> Events:
    """Polarity events of an AEDAT 3.1 file, as DVS Gesture's: little-endian packets with headers of 28 bytes.

    Event: bit 0 valid, bit 1 polarity, bits 2-16 y, bits 17-31 x, then the time in microseconds, 31 bits and
    the packet's overflow counter.
    """
    body = _bytes(path)
    end = body.find(b"#!END-HEADER\r\n")
    if not body.startswith(b"#!AER-DAT3.") or end < 0:
        raise SpikedistillError(f"{path}: no AEDAT 3 header: cut short or another format")
    position = end + len(b"#!END-HEADER\r\n")
    # Begun with nothing: concatenate wants one array, also where no packet holds polarity events.
    data, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while position < len(body):
        if len(body) - position < 28:
            raise SpikedistillError(f"{path}: cut short in the header of a packet at byte {position}")
        kind = int.from_bytes(body[position : position + 2], "little")
        size, place, overflow, capacity, number, valid = np.frombuffer(body, "<u4", 6, position + 4).tolist()
        position += 28
        # An overflow below 2^31 keeps times below 2^62, so that differences of two fit int64.
        if not valid <= number <= capacity or overflow >= 1 << 31 or (kind == 1 and (size, place) != (8, 4)):
            raise SpikedistillError(
                f"{path}: the packet at byte {position - 28} says {valid} valid of {number} events in room "
                f"for {capacity} of {size} bytes, time at byte {place}, overflow {overflow}: damaged"
            )
        if len(body) - position < size * capacity:
            raise SpikedistillError(f"{path}: cut short in a packet at byte {position}")
        if kind == 1:
            words = np.frombuffer(body, "<u4", number * 2, position).reshape(-1, 2).astype(np.int64)
            words = words[words[:, 0] & 1 == 1]
            if (words[:, 1] >= 1 << 31).any():
                raise SpikedistillError(
                    f"{path}: times beyond 31 bits in the packet at byte {position - 28}: damaged"
                )
            data.append(words[:, 0])
            times.append(words[:, 1] | overflow << 31)
        # By capacity: room that a packet did not fill is in the file too.
        position += size * capacity
    word, t = np.concatenate(data), np.concatenate(times)
    if len(t) == 0:
        raise SpikedistillError(f"{path}: no polarity events in it")
    return Events(t, word >> 17, (word >> 2) & 0x7FFF, (word >> 1) & 1)


def read_gesture_labels(path: Path) -> list[tuple[int, int, int]]:
    """Rows (class from 0, start, end in microseconds) of DVS Gesture's labels, whose classes count from 1."""
    try:
        rows = list(csv.DictReader(io.StringIO(_bytes(path).decode())))
        found = [(int(r["class"]) - 1, int(r["startTime_usec"]), int(r["endTime_usec"])) for r in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise SpikedistillError(
            f"{path}: rows must be class,startTime_usec,endTime_usec; could not read {error}"
        ) from error
    for label, start, end in found:
        if not (0 <= label < GESTURES and 0 <= start < end < 1 << 62):
            raise SpikedistillError(
                f"{path}: class {label + 1} from {start} to {end} us; there are 1 to {GESTURES}"
            )
    return found
