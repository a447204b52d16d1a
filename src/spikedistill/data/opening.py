"""From a recipe's words to data: find the set, cut its splits, know its statistics."""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import own_code
from ..errors import SpikedistillError, nearest
from ..typed import checked
from . import arrays, audio_sets, events, folders, images, splits
from .base import Data, DataInfo
from .config import DataConfig, augmentation
from .stores import Memory, Part, Source, Split

Reader = Callable[[DataConfig, int], Source]
READERS: dict[str, Reader] = {**images.READERS, **folders.READERS, **events.READERS, **audio_sets.READERS}
# Of other packages: functions as :func:`_called` knows them.
OTHERS: dict[str, Callable[..., Any]] = own_code.installed("data")
NAMES = tuple(sorted({*READERS, *OTHERS}))
_PLACE: ContextVar[Path | None] = ContextVar("place", default=None)


def moved() -> bool:
    """Whether somebody named other data than recipes do (:func:`elsewhere`)."""
    return _PLACE.get() is not None


@contextmanager
def elsewhere(root: Path | None) -> Iterator[None]:
    """Within it data are opened from ``root``, a file or folder; None: from where recipes say."""
    token = _PLACE.set(root)
    try:
        yield
    finally:
        _PLACE.reset(token)


def read(config: DataConfig, frames: int = 1) -> Source:
    """The data set that a recipe names, as it lies on the disk; events become ``frames`` frames."""
    if config.name in OTHERS or own_code.is_address(config.name):
        found = _called(config, (frames,))
        if not isinstance(found, Mapping):
            raise SpikedistillError(
                f"data.name: {config.name!r} gives data that are open already: nothing to read anew"
            )
        return arrays.source(found, config.name)
    if config.name not in READERS:
        raise SpikedistillError(f"data.name: unknown data set {config.name!r}; {nearest(config.name, NAMES)}")
    if config.options:
        raise SpikedistillError(
            f"data.options are for data of your own, name: module:function; {config.name!r} takes none"
        )
    for field in ("root", "train", "test"):
        path = getattr(config, field)
        # A folder to download into need not be there yet.
        if path is not None and not path.exists() and not (field == "root" and config.download):
            raise SpikedistillError(f"data.{field}: {path} does not exist")
    if config.frames and config.name not in events.READERS:
        raise SpikedistillError(
            f"data.frames is for events; {config.name!r} has none ({', '.join(sorted(events.READERS))})"
        )
    if config.audio and config.name not in audio_sets.READERS:
        raise SpikedistillError(
            f"data.audio is for sound; {config.name!r} has none ({', '.join(sorted(audio_sets.READERS))})"
        )
    return READERS[config.name](config, frames)


def open(config: DataConfig | None = None, time_steps: Sequence[int] = (4,)) -> Data:
    """Open the data set that a recipe names.

    ``time_steps``: all numbers of time steps in the recipe; events are binned at their least common multiple,
    and a network sums consecutive groups of frames. Raises :class:`SpikedistillError` that names the file or
    the key.
    """
    config = config or DataConfig()
    if (root := _PLACE.get()) is not None:
        # Digits come with the package: who names a file means arrays that a caller gave in their place.
        name = "arrays" if config.name == "digits" else config.name
        config = config.model_copy(update={"name": name, "root": root, "train": None, "test": None})
    if config.test is not None and config.train is None:
        raise SpikedistillError("data.test is the test part beside data.train; give both, or data.root alone")
    frames = math.lcm(*time_steps)
    if config.frames and config.frames.number:
        if config.frames.number % frames:
            raise SpikedistillError(
                f"data.frames.number: {config.frames.number} is no multiple of {frames}, "
                f"the least common multiple of the time steps {tuple(time_steps)}"
            )
        frames = config.frames.number
    if config.name in OTHERS or own_code.is_address(config.name):
        found = _called(config, time_steps)
        return found if isinstance(found, Data) else from_arrays(found, config, [frames])
    return assemble(read(config, frames), config, frames)


def _called(config: DataConfig, time_steps: Sequence[int]) -> "Data | Mapping[str, Any]":
    """What a function of somebody's own gives: :class:`Data`, or a mapping as :func:`from_arrays` takes it.

    It gets the recipe's ``options``, checked by its signature, and ``root`` and ``time_steps`` where that
    names them.
    """
    function: Any = OTHERS.get(config.name) or own_code.find(config.name, "data.name:")
    if not callable(function):
        raise SpikedistillError(f"data.name: {config.name!r} is no function, found {type(function).__name__}")
    known = {"root": config.root, "time_steps": tuple(time_steps)}
    filled = {key: value for key, value in known.items() if key in inspect.signature(function).parameters}
    whole = partial(function, **filled)
    found = whole(**checked(whole, config.options, "data.options"))
    if not isinstance(found, Data | Mapping):
        raise SpikedistillError(
            f"data.name: {config.name!r} gives {type(found).__name__}; a mapping with x_train, y_train, "
            "x_test and y_test is needed, or sd.data.from_arrays(...)"
        )
    return found


def from_arrays(
    data: Mapping[str, Any] | object, config: DataConfig | None = None, time_steps: Sequence[int] = (1,)
) -> Data:
    """A data set from arrays: a mapping, or an object with these attributes.

    ``x_train, y_train, x_test, y_test``, and, where wanted, ``x_validation, y_validation, class_names, name,
    group_train`` (recordings, of which validation takes whole ones). ``config`` says the rest (validation,
    augmentation, ...). Frames have to be as many as a multiple of all ``time_steps``.

    Shape: images (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float in [0, 1]; frames (N, F, C, H, W);
    labels (N,).
    """
    if not isinstance(data, Mapping):
        known = [*(s for spellings in arrays.SPELLINGS.values() for s in spellings), *arrays.EXTRA]
        data = {key: getattr(data, key) for key in known if getattr(data, key, None) is not None}
    source = arrays.source(data, "from_arrays")
    if config is None:
        config = DataConfig(name="arrays")
    if source.train.groups is not None and config.group is None:
        config = config.model_copy(update={"group": "group_train"})
    return assemble(source, config, math.lcm(*time_steps))


def from_events(
    train: Any,
    test: Any,
    sensor_size: Sequence[int],
    time_steps: Sequence[int] = (4,),
    config: DataConfig | None = None,
    class_names: Sequence[str] | None = None,
) -> Data:
    """A data set from two sequences of (events, label), such as tonic's; events have the fields t, x, y, p.

    ``sensor_size``: (width, height, ...). Frames are binned at the least common multiple of ``time_steps``.
    """
    config = config or DataConfig(name="objects")
    number = (config.frames and config.frames.number) or math.lcm(*time_steps)
    return assemble(
        events.from_objects(train, test, sensor_size, number, config, class_names), config, number
    )


def _check_augmentations(config: DataConfig, kind: str) -> None:
    """Refuse augmentations of images on event frames, and of events on images: nothing would apply them."""
    usual, given = type(config.augment)(), config.augment
    of_all = ("mixup", "cutmix", "mix_probability", "mix_until", "audio")
    keys = [key for key in type(given).model_fields if getattr(given, key) != getattr(usual, key)]
    wrong = [key for key in keys if key not in of_all and (key == "events") != (kind == "frames")]
    if wrong:
        raise SpikedistillError(
            f"data.augment.{wrong[0]} does nothing here: {config.name!r} gives "
            + ("event frames; see data.augment.events" if kind == "frames" else "images; leave it out")
        )


def assemble(source: Source, config: DataConfig, frames: int) -> Data:
    """Cut the splits (never by the run's seed), measure mean and std, hash."""
    for role in ("train", "validation", "test"):
        official: Part | None = getattr(source, role)
        if official is not None and not len(official.labels):
            raise SpikedistillError(
                f"data set {source.name!r} has no samples in its {role} part; look at its lists and folders"
            )
    _check_augmentations(config, source.kind)
    # Frames were binned at that size, or are refused below.
    if config.size and source.kind == "image":
        source = _resized(source, config.size)
    pieces = _cut(source, config)
    shape = source.train.store.shape
    if source.kind == "frames" and shape[0] % frames:
        raise SpikedistillError(
            f"data set {source.name!r} has {shape[0]} frames; the time steps need a multiple of {frames}"
        )
    if config.size and shape[-2:] != config.size:
        raise SpikedistillError(
            f"data.size: samples of {source.name!r} stay {shape[-2:]}; {config.size} cannot be had"
        )
    channels = shape[-3]
    mean, std = _statistics(source, pieces["train"], channels)
    for given, name in ((config.mean, "mean"), (config.std, "std")):
        if given is not None and len(given) != channels:
            raise SpikedistillError(f"data.{name}: {len(given)} values for {channels} channels")
    rows = {
        split: np.concatenate([np.zeros(0, np.int64), *(own for _, own in parts)])
        for split, parts in pieces.items()
    }
    # Whole official parts: the hash is the same whatever is held out.
    everything = [p for p in (source.train, source.validation, source.test) if p is not None]
    content = hashlib.sha256()
    for p in everything:
        content.update(p.store.digest().encode() + np.ascontiguousarray(p.labels, "<i8").tobytes())
    info = DataInfo(
        name=source.name,
        num_classes=len(source.class_names),
        in_channels=channels,
        size=(shape[-2], shape[-1]),
        input=source.kind,
        frames=shape[0] if source.kind == "frames" else None,
        mean=config.mean or mean,
        std=config.std or std,
        class_names=tuple(source.class_names),
        sizes={split: len(index) for split, index in rows.items()},
        hash=content.hexdigest(),
        split_hash=splits.digest(rows, source.split_file),
        split_file=source.split_file,
    )
    return Data(
        info, {name: Split(parts) for name, parts in pieces.items()}, augmentation(config), config.workers
    )


def _cut(source: Source, config: DataConfig) -> dict[str, list[tuple[Part, np.ndarray]]]:
    train, test = source.train, [(source.test, np.arange(len(source.test.labels)))]
    if config.group is not None and train.groups is None:
        raise SpikedistillError(f"data.group: {config.group!r} is not known of data set {source.name!r}")
    groups = train.groups  # known recordings never stand on both sides, asked for or not
    rows = np.arange(len(train.labels))
    # In this order: what is tested must not depend on validation, nor either on how few samples train.
    if config.test_from_train:
        kept, moved = splits.hold_out(train.labels, config.test_from_train, groups, salt=1)
        rows, test = rows[kept], [*test, (train, moved)]
    if source.validation is not None:
        held = [(source.validation, np.arange(len(source.validation.labels)))]
    else:
        kept, out = splits.hold_out(
            train.labels[rows], config.validation, None if groups is None else groups[rows]
        )
        rows, held = rows[kept], [(train, rows[out])]
    if config.train_samples is not None:
        rows = rows[_few(train.labels[rows], config.train_samples, None if groups is None else groups[rows])]
    return {"train": [(train, rows)], "validation": held, "test": test}


def _few(labels: splits.Index, amount: float | int, groups: np.ndarray | None) -> splits.Index:
    """Indices of ``amount`` samples (a part below 1, or a number): each class its share, whole groups."""
    if amount >= len(labels):
        raise SpikedistillError(
            f"data.train_samples: found {amount}, but there are {len(labels)} training samples"
        )
    _, chosen = splits.hold_out(labels, amount, groups, salt=5)
    if not len(chosen):
        raise SpikedistillError(f"data.train_samples: {amount} of {len(labels)} training samples is none")
    return chosen


def _statistics(
    source: Source, train: list[tuple[Part, np.ndarray]], channels: int
) -> tuple[tuple[float, ...], ...]:
    if source.kind == "frames":
        return (0.0,) * channels, (1.0,) * channels
    if source.mean is not None and source.std is not None:
        return source.mean, source.std
    (part, rows) = train[0]
    # float64: the variance is a small difference of two large sums.
    total, square, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    # In pieces: as floats the whole part would take four times its memory.
    for chunk in torch.from_numpy(rows).split(1024):
        x = part.store.take(chunk, torch.device("cpu"))
        x = (x.float().div_(255) if x.dtype == torch.uint8 else x).transpose(0, 1).flatten(1)
        total += x.sum(1, dtype=torch.float64)
        square += (x * x).sum(1, dtype=torch.float64)
        count += x.shape[1]
    mean = total / count
    # clamp: rounding can bring the variance of a constant channel below 0.
    std = (square / count - mean * mean).clamp_min(0).sqrt()
    std[std < 1e-4] = 1.0  # a channel without contrast is left as it is
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())


def _resized(source: Source, size: tuple[int, int]) -> Source:
    def resize(part: Part | None) -> Any:
        # What does not lie in memory has its size already, or is refused by `assemble`.
        if part is None or not isinstance(part.store, Memory) or part.store.shape[-2:] == size:
            return part
        return replace(part, store=Memory(_interpolate(part.store.data, size)))

    return replace(
        source, train=resize(source.train), test=resize(source.test), validation=resize(source.validation)
    )


def _interpolate(x: Tensor, size: tuple[int, int]) -> Tensor:
    chunks = []
    for chunk in x.split(1024):
        big = torch.nn.functional.interpolate(
            chunk.float(), size, mode="bilinear", antialias=True, align_corners=False
        )
        chunks.append(big.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else big)
    return torch.cat(chunks)
