"""Arrays given by the user, in memory or in .npz files, turned into parts of a data set."""

import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SpikedistillError, nearest
from .stores import Labels, Memory, Part, Source

# Spellings found in the wild: ours, MedMNIST's.
SPELLINGS = {
    "x_train": ("x_train", "train_images"),
    "y_train": ("y_train", "train_labels"),
    "x_validation": ("x_validation", "x_val", "val_images"),
    "y_validation": ("y_validation", "y_val", "val_labels"),
    "x_test": ("x_test", "test_images"),
    "y_test": ("y_test", "test_labels"),
    "class_names": ("class_names", "names"),
}
EXTRA = ("name", "group_train")
LARGEST_LABEL = 999_999


NPZ_FREE, NPZ_RATIO, NPZ_BYTES = 1 << 30, 500, 32 << 30


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file; a missing, cut or foreign file is named in the error.

    Every array's size is known before it is read: refused are more than 32 GiB, and more than 1 GiB that is
    more than 500 times the file; arrays whose header says another size than the archive; objects.
    """
    if not path.exists():
        raise SpikedistillError(f"no file {path}")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            total, own = sum(member.file_size for member in members), path.stat().st_size
            if total > NPZ_BYTES or total > max(NPZ_FREE, NPZ_RATIO * own):
                raise SpikedistillError(
                    f"cannot read {path}: its {own:,} bytes unpack to {total:,}; at most 32 GiB are read, "
                    f"and above 1 GiB at most {NPZ_RATIO} times the file"
                )
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except SpikedistillError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever a forged header leads them to
        raise SpikedistillError(
            f"cannot read {path}: cut short, damaged, or no .npz of plain arrays ({short(error)})"
        ) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, after a look at what its header promises."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{member.filename}: format {version} of structured arrays")
        shape, _, dtype = readers[version](file)
        size = math.prod(shape) * dtype.itemsize
        # numpy makes room for whatever shape the header promises before it reads a value.
        if min(shape, default=0) < 0 or size != member.file_size - file.tell():
            raise ValueError(f"{member.filename}: {member.file_size} bytes for the shape {shape} of {dtype}")
    with archive.open(member) as file:
        # From the start again: read_array wants the header too.
        return np.asarray(np.lib.format.read_array(_Sips(file), allow_pickle=False))


class _Sips:
    """Reads little at once: zipfile unpacks LZMA and bzip2 without a bound, all that it was asked to read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = 1 << 12, /) -> bytes:
        """At most ``size`` bytes."""
        return self.file.read(min(size, 1 << 12))


def short(error: BaseException) -> str:
    """An error's words in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def plain(values: Any, where: str) -> NDArray[Any]:
    """An array of a tensor, an array or lists; rows that differ in length are refused."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise SpikedistillError(f"{where}: no array ({short(error)}); give one of numpy's") from None


def whole(values: Any, where: str, low: int = 0, high: int = 1 << 62, dims: int = 1) -> NDArray[np.int64]:
    """Whole numbers from ``low`` to ``high`` as int64, of ``dims`` axes; all else is refused."""
    array = plain(values, where)
    if array.dtype.kind not in "uifb" or array.ndim != dims:
        raise SpikedistillError(
            f"{where}: found {array.dtype} of shape {array.shape}; give whole numbers"
            + (f" of {dims} axis" if dims == 1 else ", one value" if dims == 0 else "")
        )
    if array.size == 0:
        return array.astype(np.int64)
    # Before the cast: to int64 a fraction would be cut, NaN and infinity become some number.
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise SpikedistillError(
            f"{where}: found numbers that are not whole, such as {_odd(array)}; give integers"
        )
    # Compared in the type that was given: uint64 beyond int64 would be negative after the cast.
    if array.min() < low or array.max() > high:
        raise SpikedistillError(f"{where}: found {array.min()} to {array.max()}; allowed are {low} to {high}")
    return array.astype(np.int64)


def _odd(array: NDArray[Any]) -> Any:
    """The first number that is not whole."""
    return array[~(np.isfinite(array) & (array == np.floor(array)))].flat[0]


def images(x: Any, where: str) -> Tensor:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W), or frames (N, F, C, H, W), as (N, [F,] C, H, W).

    The result is uint8 or float32. Of four axes the last is taken for channels if it has 1 to 4 entries (and
    the second does not stand before a square), else the second. Integers are 0..255, floats 0..1; frames are
    counts, not below zero.
    """
    array = plain(x, where)
    if array.dtype.kind not in "uifb":
        raise SpikedistillError(f"{where}: found numbers of type {array.dtype}; give uint8 or float32")
    if array.ndim == 3:
        array = array[:, None]
    elif (
        array.ndim == 4
        and array.shape[-1] <= 4
        and not (array.shape[1] <= 4 and array.shape[2] == array.shape[3])
    ):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim not in (4, 5):
        raise SpikedistillError(
            f"{where}: found shape {array.shape}; give images (N, H, W), (N, H, W, C) or (N, C, H, W), "
            "or frames (N, F, C, H, W)"
        )
    if 0 in array.shape:
        raise SpikedistillError(f"{where}: found shape {array.shape}: nothing in it")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise SpikedistillError(f"{where}: found NaN or infinity; give finite numbers")
    frames = array.ndim == 5
    # Frames are counts, also as floats, and never divided by 255: no upper end but that of float32.
    limit = float(np.finfo(np.float32).max) if frames else 255 if array.dtype.kind in "ui" else 1
    if low < 0 or high > limit:
        allowed = "counts, 0 and more" if frames else "0..255 as integers or 0..1 as floats (divide by 255)"
        raise SpikedistillError(f"{where}: found values from {low} to {high}; allowed are {allowed}")
    # uint8 where it holds all: a quarter of the memory, and batches are widened on the device.
    kind = np.uint8 if array.dtype.kind in "uib" and high <= 255 else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))


def labels(y: Any, count: int, where: str) -> Labels:
    """Class numbers (N,) or (N, 1), as many as samples, whole and not negative."""
    array = plain(y, where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != count:
        raise SpikedistillError(
            f"{where}: found shape {array.shape} for {count} samples; give one class number each"
        )
    if count == 0:
        raise SpikedistillError(f"{where}: no samples")
    if array.dtype.kind not in "uif" or not np.all(array == np.floor(array)):
        raise SpikedistillError(
            f"{where}: found {array.dtype} values that are no whole numbers; give class numbers"
        )
    if array.min() < 0:
        raise SpikedistillError(f"{where}: found the label {array.min()}; labels count from 0")
    if array.max() > LARGEST_LABEL:
        raise SpikedistillError(f"{where}: found the label {array.max()}; labels end at {LARGEST_LABEL}")
    return array.astype(np.int64)


def names(given: Any, parts: Iterable[Labels], where: str) -> tuple[str, ...]:
    """Class names; without names the numbers, of which none may be missing from the training labels."""
    train, *others = list(parts)
    # Of all parts: a label that only the test part has must not lie beyond the outputs.
    highest = max(int(part.max()) for part in (train, *others) if len(part))
    if given is not None and len(np.atleast_1d(given)):
        words = tuple(str(word) for word in np.atleast_1d(given))
        if highest >= len(words):
            raise SpikedistillError(f"{where}: found label {highest} but only {len(words)} class names")
        return words
    # Labels that count from 1 leave a gap too: an output that no sample would ever train.
    missing = np.setdiff1d(np.arange(highest + 1), train)
    if len(missing):
        raise SpikedistillError(
            f"{where}: labels run from 0 to {highest} but no training sample has {missing[:5].tolist()}; "
            "number the classes without gaps, or give class_names"
        )
    return tuple(str(c) for c in range(highest + 1))


def grouped(values: Any, where: str) -> NDArray[np.int64]:
    """Names or numbers of groups (N,) as numbers from 0."""
    array = plain(values, where)
    if array.ndim != 1 or array.dtype.kind not in "uifbUS":
        raise SpikedistillError(
            f"{where}: found {array.dtype} of shape {array.shape}; give one name or number a sample"
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def part(x: Any, y: Any, where: str, groups: Any = None) -> Part:
    """A part of a data set from images or frames and labels."""
    data = images(x, f"{where}, images")
    return Part(Memory(data), labels(y, len(data), f"{where}, labels"), groups)


def spelled(arrays: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same arrays under our names; unknown or missing keys are an error."""
    known = {spelling: ours for ours, spellings in SPELLINGS.items() for spelling in spellings}
    unknown = sorted(set(arrays) - set(known) - set(EXTRA))
    if unknown:
        hints = "; ".join(f"{key!r}: {nearest(key, (*known, *EXTRA))}" for key in unknown[:3])
        raise SpikedistillError(
            f"{where}: unknown keys {unknown}; allowed are {sorted((*known, *EXTRA))} ({hints})"
        )
    return {known.get(key, key): value for key, value in arrays.items()}


def source(arrays: Mapping[str, Any], where: str, name: str = "arrays") -> Source:
    """A data set from arrays x_train, y_train, x_test, y_test and, if given, x_validation, y_validation."""
    found = spelled(arrays, where)
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in found]
    if missing:
        raise SpikedistillError(f"{where}: no {', '.join(missing)}; found {sorted(arrays)}")
    groups = None
    if "group_train" in found:
        groups = grouped(found["group_train"], f"{where}, group_train")
    train = part(found["x_train"], found["y_train"], f"{where}, train", groups)
    if groups is not None and len(groups) != len(train.labels):
        raise SpikedistillError(f"{where}, group_train: {len(groups)} for {len(train.labels)} samples")
    test = part(found["x_test"], found["y_test"], f"{where}, test")
    validation = None
    if "x_validation" in found:
        if "y_validation" not in found:
            raise SpikedistillError(f"{where}: validation images without labels (y_validation)")
        validation = part(found["x_validation"], found["y_validation"], f"{where}, validation")
    parts = [train, test, *([validation] if validation else [])]
    shapes = [p.store.shape for p in parts]
    if len(set(shapes)) > 1:
        raise SpikedistillError(f"{where}: training and test samples differ in shape: {sorted(set(shapes))}")
    kind = "frames" if len(shapes[0]) == 4 else "image"
    class_names = names(found.get("class_names"), [p.labels for p in parts], where)
    if kind == "image":
        _of_one_type(parts)
    return Source(str(found.get("name", name)), train, test, class_names, kind, validation)


def _of_one_type(parts: Iterable[Part]) -> None:
    """Images given as bytes become floats in [0, 1] where other parts are floats; their digests stay."""
    # A split may take rows of two parts, and a batch has one type: bytes among floats would stay 0..255.
    held = [(p, p.store) for p in parts if isinstance(p.store, Memory)]
    if len({store.data.dtype for _, store in held}) < 2:
        return
    for p, store in held:
        if store.data.dtype == torch.uint8:
            p.store = Memory(store.data.float().div_(255), store.digest())


def from_files(train: Path, test: Path | None, name: str) -> Source:
    """A data set from one .npz, or from two of a part each (as x, y or x_train, y_train / x_test, y_test)."""
    if test is None:
        return source(read_npz(train), str(train), name)
    merged: dict[str, Any] = {}
    for path, role in ((train, "train"), (test, "test")):
        found = {("class_names" if k == "names" else k): v for k, v in read_npz(path).items()}
        for letter, plain in (("x", "images"), ("y", "labels")):
            options = (f"{letter}_{role}", f"{role}_{plain}", letter, plain)
            # A file may hold a whole set: its array of this role goes before a bare x or y.
            here = next((option for option in options if option in found), None)
            if here is None:
                raise SpikedistillError(f"{path}: none of {', '.join(options)} in it; found {sorted(found)}")
            merged[f"{letter}_{role}"] = found[here]
        if role == "train":
            own = ("class_names", *SPELLINGS["x_validation"], *SPELLINGS["y_validation"])
            merged |= {key: found[key] for key in own if key in found}
    return source(merged, f"{train} and {test}", name)
