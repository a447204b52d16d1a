"""Event sets: our .npz, the folders of the official sets, and Python objects that yield (events, label)."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpikedistillError
from ..reading import read_text
from . import arrays, splits
from .config import DataConfig, FramesConfig
from .event_files import Events, read_aedat2, read_bin, read_gesture_labels
from .frames import EventSet, framed
from .recordings import LARGEST_SENSOR, EventFiles, GestureTrials, ObjectEvents, PackedEvents
from .stores import Labels, Part, Source


def frames_config(config: DataConfig) -> FramesConfig:
    """The recipe's ``frames``; ``data.size`` holds where it gives no size."""
    found = config.frames or FramesConfig()
    return found if found.size or not config.size else found.model_copy(update={"size": config.size})


def _part(recordings: EventSet, labels: Labels, number: int, config: DataConfig, groups: Any = None) -> Part:
    return Part(framed(recordings, number, frames_config(config)), labels, groups)


def _column(values: NDArray[Any], where: str) -> NDArray[Any]:
    """One column of events as it is, after a look: small integers stay small, so that large sets fit."""
    if values.dtype.kind in "bui" and values.dtype != np.uint64:
        return values
    return arrays.whole(values, where, -(1 << 62))


def packed(path: Path, group: str | None = None) -> tuple[PackedEvents, Labels, Any, tuple[int, int], Any]:
    """(events, labels, class names, sensor size, groups or None) of an ``events`` .npz."""
    z = arrays.read_npz(path)
    missing = [key for key in ("t", "x", "y", "p", "off", "label", "sensor_size") if key not in z]
    if missing:
        raise SpikedistillError(f"{path}: no {', '.join(missing)} in it; found {sorted(z)}")
    sensor = arrays.whole(z["sensor_size"], f"{path}, sensor_size", 1, LARGEST_SENSOR)
    if len(sensor) not in (2, 3):  # tonic's third is the number of polarities
        raise SpikedistillError(f"{path}: sensor_size is (width, height), found {sensor.tolist()}")
    width, height = int(sensor[0]), int(sensor[1])
    if any(z[key].ndim != 1 for key in "txyp"):
        raise SpikedistillError(f"{path}: t, x, y, p have one axis; found {[z[key].shape for key in 'txyp']}")
    columns = {key: _column(z[key], f"{path}, {key}") for key in "txyp"}
    off, n = arrays.whole(z["off"], f"{path}, off"), len(z["t"])
    if (
        len(off) < 2
        or off[0] != 0
        or off[-1] != n
        or (np.diff(off) < 0).any()
        or any(len(z[k]) != n for k in "xyp")
    ):
        raise SpikedistillError(
            f"{path}: off must rise from 0 to the number of events, equal in t, x, y and p ({n})"
        )
    labels = arrays.labels(z["label"], len(off) - 1, f"{path}, label")
    groups = None
    # Recordings are kept whole unasked: windows of one resemble each other.
    name = group or ("rec" if "rec" in z else None)
    if name is not None:
        if name not in z or z[name].shape != labels.shape:
            allowed = sorted(key for key, value in z.items() if value.shape == labels.shape)
            raise SpikedistillError(
                f"data.group: no {name!r} with one entry a sample in {path}; there are {allowed}"
            )
        groups = arrays.grouped(z[name], f"{path}, {name}")
    return (
        PackedEvents(columns["t"], columns["x"], columns["y"], columns["p"], off, (width, height), str(path)),
        labels,
        z.get("names"),
        (width, height),
        groups,
    )


def npz_events(config: DataConfig, number: int) -> Source:
    """``train`` and ``test`` .npz, or ``NAME_train.npz`` and ``NAME_test.npz`` in ``root``."""
    train, test = config.train, config.test
    if config.root is not None and train is None:
        train, test = (config.root / f"{config.name}_{role}.npz" for role in ("train", "test"))
    if train is None or test is None:
        raise SpikedistillError("data set 'events' needs data.train and data.test, two .npz files")
    events, labels, words, sensor, groups = packed(train, config.group)
    # Without the group: it serves cuts of the training part, and the test file need not have it.
    test_events, test_labels, _, test_sensor, _ = packed(test)
    if sensor != test_sensor:
        raise SpikedistillError(f"sensors differ: {train} has {sensor}, {test} has {test_sensor}")
    class_names = arrays.names(words, [labels, test_labels], str(train))
    return Source(
        config.name,
        _part(events, labels, number, config, groups),
        _part(test_events, test_labels, number, config),
        class_names,
        "frames",
    )


def _natural(path: Path) -> list[Any]:
    # The split begins with a word, an empty one if need be, then alternates: numbers meet only numbers.
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", path.name)]


def _folder(config: DataConfig, *candidates: str) -> Path:
    if config.root is None:
        raise SpikedistillError(f"data set {config.name!r} needs data.root, the folder of the official files")
    for name in candidates:
        if (config.root / name).is_dir():
            return config.root / name
    return config.root


def _classes(folder: Path, suffix: str) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise SpikedistillError(f"{folder}: no folder; it needs one folder of *{suffix} files per class")
    found = {
        # By number, not by letters (10 after 9): a class that no list splits tests its last tenth.
        sub.name: sorted(sub.glob(f"*{suffix}"), key=_natural)
        for sub in sorted(folder.iterdir())
        if sub.is_dir()
    }
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise SpikedistillError(f"{folder}: no folders of *{suffix} files, one a class")
    return found


def _listed(classes: dict[str, list[Path]]) -> tuple[list[Path], Labels]:
    paths = [path for group in classes.values() for path in group]
    return paths, np.concatenate([np.full(len(group), i) for i, group in enumerate(classes.values())]).astype(
        np.int64
    )


def nmnist(config: DataConfig, number: int) -> Source:
    """N-MNIST: Train/0..9/*.bin and Test/0..9/*.bin, 34x34 pixels (or the two .npz of :func:`npz_events`)."""
    if config.train is not None or (config.root is not None and (config.root / "nmnist_train.npz").exists()):
        return npz_events(config, number)
    parts: list[Part] = []
    words: tuple[str, ...] = ()
    for role in ("Train", "Test"):
        place = _folder(config, role)
        # The folder itself in place of a part would train and test on the same files.
        if place == config.root:
            raise SpikedistillError(f"{place}: no folder {role}; give the one that holds Train and Test")
        classes = _classes(place, ".bin")
        paths, labels = _listed(classes)
        words = tuple(classes) if role == "Train" else words
        # Labels count the folders of each part: with one missing, all later classes would slide.
        if tuple(classes) != words:
            raise SpikedistillError(
                f"{config.root}: Train has the classes {list(words)}, Test has {list(classes)}"
            )
        parts.append(
            _part(EventFiles(paths, (34, 34), read_bin, frames_config(config)), labels, number, config)
        )
    return Source(config.name, parts[0], parts[1], words, "frames")


def shipped_split(name: str, classes: dict[str, list[Path]]) -> tuple[list[dict[str, list[Path]]], str]:
    """([train, test] files by class, which list said so) of a set without an official split.

    The shipped list names the test files. A class of which none of them is there (a part of the set) tests
    its last tenth.
    """
    listed, sha = splits.split_file(name)
    train, test, without = {}, {}, []
    for word, paths in classes.items():
        test[word] = [path for path in paths if f"{word}/{path.name}" in listed]
        if not test[word]:
            test[word] = paths[len(paths) * 9 // 10 :]
            without.append(word)
        tested = set(test[word])
        train[word] = [path for path in paths if path not in tested]
    rest = f"; the last tenth of {', '.join(without)}, of which it names no file here" if without else ""
    return [train, test], f"split_{name}.txt, sha256 {sha}{rest}"


def _split_folder(
    config: DataConfig,
    number: int,
    folder: Path,
    suffix: str,
    sensor: tuple[int, int],
    reader: Callable[[Path], Events],
) -> Source:
    classes = _classes(folder, suffix)
    parts = []
    roles, split_file = shipped_split(config.name, classes)
    for role in roles:
        paths, labels = _listed(role)
        recordings = EventFiles(paths, sensor, reader, frames_config(config))
        parts.append(_part(recordings, labels, number, config))
    return Source(config.name, parts[0], parts[1], tuple(classes), "frames", split_file=split_file)


def ncaltech101(config: DataConfig, number: int) -> Source:
    """N-Caltech101: Caltech101/CLASS/image_0001.bin ..., up to 240x180; tested: ``split_ncaltech101.txt``."""
    return _split_folder(config, number, _folder(config, "Caltech101"), ".bin", (240, 180), read_bin)


def cifar10dvs(config: DataConfig, number: int) -> Source:
    """CIFAR10-DVS: CLASS/cifar10_CLASS_0.aedat ..., 128x128 pixels; tested: ``split_cifar10dvs.txt``."""
    return _split_folder(config, number, _folder(config), ".aedat", (128, 128), read_aedat2)


GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)


def dvsgesture(config: DataConfig, number: int) -> Source:
    """DVS Gesture: userNN_LIGHT.aedat, userNN_LIGHT_labels.csv, trials_to_train.txt, trials_to_test.txt."""
    folder = _folder(config, "DvsGesture")
    parts = []
    for role in ("train", "test"):
        listing = folder / f"trials_to_{role}.txt"
        if not listing.exists():
            raise SpikedistillError(
                f"no file {listing}; data.root is the folder of the official DvsGesture files"
            )
        trials, labels, groups = [], [], []
        for i, line in enumerate(filter(None, map(str.strip, read_text(listing).splitlines()))):
            path = folder / line
            for label, start, end in read_gesture_labels(path.with_name(f"{path.stem}_labels.csv")):
                trials.append((path, start, end))
                labels.append(label)
                # The recording: its trials resemble each other and are held out together.
                groups.append(i)
        recordings = GestureTrials(trials, frames_config(config))
        parts.append(
            _part(recordings, np.asarray(labels, np.int64), number, config, np.asarray(groups, np.int64))
        )
    return Source(config.name, parts[0], parts[1], GESTURES, "frames")


def from_objects(
    train: Any,
    test: Any,
    sensor_size: Sequence[int],
    number: int,
    config: DataConfig,
    class_names: Any = None,
) -> Source:
    """Two sequences (or generators) of (events, label), events with fields t, x, y, p."""
    width, height = (int(v) for v in arrays.whole(list(sensor_size[:2]), "sensor_size", 1, LARGEST_SENSOR))
    parts = []
    for given, role in ((train, "train"), (test, "test")):
        items = given if hasattr(given, "__getitem__") and hasattr(given, "__len__") else list(given)
        # By index: a plain loop over such an object ends only if it raises IndexError.
        labels = arrays.labels([items[i][1] for i in range(len(items))], len(items), f"{role}, labels")
        parts.append(_part(ObjectEvents(items, (width, height), role), labels, number, config))
    words = arrays.names(class_names, [part.labels for part in parts], "from_events")
    return Source(config.name, parts[0], parts[1], words, "frames")


READERS = {
    "events": npz_events,
    "nmnist": nmnist,
    "ncaltech101": ncaltech101,
    "cifar10dvs": cifar10dvs,
    "dvsgesture": dvsgesture,
    "dvs128_objects": npz_events,
}
