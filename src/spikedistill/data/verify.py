"""Check a data set: every file read, every sample counted, every hash printed, every bad file named."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import SpikedistillError
from ..terminal import amount
from .arrays import read_npz
from .audio_sets import read_wav
from .base import Data
from .config import DataConfig
from .event_files import read_aedat2, read_aedat3, read_bin
from .folders import SUFFIXES, decode
from .images import read_batch
from .opening import open as open_data
from .stores import Memory

# Samples of the official train and test parts, as published by their authors.
OFFICIAL = {
    "mnist": (60000, 10000),
    "fashion-mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
    "tinyimagenet": (100000, 10000),
    "imagenet": (1281167, 50000),
    "nmnist": (60000, 10000),
    "cifar10dvs": (9000, 1000),
    "dvsgesture": (1176, 288),
}


@dataclass
class Report:
    """What :func:`verify` found; ``str()`` of it is for people.

    ``counts``: samples per split and class; ``bad``: (file, reason); ``notes``: what is unusual but no error.
    """

    name: str
    files: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    hash: str = ""
    split_hash: str = ""
    split_file: str | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every file can be read and the set opens."""
        return not self.bad

    def __str__(self) -> str:
        state = "all readable" if self.ok else f"{len(self.bad)} bad"
        lines = [f"{self.name}: {state}, {amount(self.files, 'file')} read"]
        for split, classes in self.counts.items():
            few, many = (min(classes.values()), max(classes.values())) if classes else (0, 0)
            lines.append(
                f"  {split}: {amount(sum(classes.values()), 'sample')}, "
                f"{amount(len(classes), 'class', 'classes')} of {few} to {many}"
            )
        if self.hash:
            lines += [f"  content sha256 {self.hash}", f"  split   sha256 {self.split_hash}"]
        lines += [f"  split file {self.split_file}"] if self.split_file else []
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  bad: {path}: {reason}" for path, reason in self.bad]
        return "\n".join(lines)


def _reader(path: Path, name: str) -> Callable[[Path], object] | None:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return decode
    readers: dict[str, Callable[[Path], object]] = {
        ".npz": read_npz,
        ".wav": read_wav,
        ".bin": read_bin,
        ".aedat": read_aedat3 if name == "dvsgesture" else read_aedat2,
    }
    # binary files of other kinds (MNIST's, CIFAR's C version) also end in .bin
    return None if suffix == ".bin" and name not in ("nmnist", "ncaltech101") else readers.get(suffix)


def official_sums(name: str) -> dict[str, str]:
    """MD5 sums of the official CIFAR batches by file name, as torchvision has them."""
    if name not in ("cifar10", "cifar100"):
        return {}
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100
    return {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}


def files_of(config: DataConfig) -> list[Path]:
    """The files that a recipe's data part points at."""
    found: list[Path] = []
    for path in (config.root, config.train, config.test):
        if path is None:
            continue
        own = path / f"{config.name}.npz"
        if path.is_file():
            found.append(path)
        elif own.exists():
            found.append(own)
        elif any(path.glob(f"{config.name}_*.npz")):
            found.extend(sorted(path.glob(f"{config.name}_*.npz")))
        elif path.is_dir():
            found.extend(sorted(p for p in path.rglob("*") if p.is_file()))
    return found


def verify(config: DataConfig, time_steps: Sequence[int] = (4,)) -> Report:
    """Read every file of a data set, open it for networks of ``time_steps``, count it.

    Never raises for bad data: whatever is wrong stands in ``Report.bad`` with the file's name.
    """
    report, sums = Report(config.name), official_sums(config.name)
    for path in files_of(config):
        reader = read_batch if path.name in sums else _reader(path, config.name)
        if reader is None:
            continue
        report.files += 1
        try:
            reader(path)
            # MD5 is what is published. Another sum is only noted: a repacked file may be as good.
            if path.name in sums and hashlib.md5(path.read_bytes()).hexdigest() != sums[path.name]:
                report.notes.append(f"{path}: its MD5 is not that of the official file")
        except (SpikedistillError, OSError) as error:
            report.bad.append(
                (str(path), str(error).removeprefix(f"{path}: ").removeprefix(f"cannot read {path}: "))
            )
    # Opening would only fail at the first of them.
    if report.bad:
        return report
    try:
        data = open_data(config, time_steps)
    except SpikedistillError as error:
        report.bad.append((str(config.root or config.train or config.name), str(error)))
        return report
    for split in data.splits:
        numbers, counts = np.unique(data.labels(split).numpy(), return_counts=True)
        report.counts[split] = {data.info.class_names[k]: int(n) for k, n in zip(numbers, counts)}
    report.hash, report.split_hash, report.split_file = (
        data.info.hash,
        data.info.split_hash,
        data.info.split_file,
    )
    report.notes += _unusual(data, config)
    return report


def _unusual(data: Data, config: DataConfig) -> list[str]:
    notes = []
    sizes = data.info.sizes
    official = OFFICIAL.get(config.name)
    found = (sizes["train"] + sizes["validation"], sizes["test"])
    # The sums: test_from_train moves samples from one part to the other.
    if official and sum(found) != sum(official):
        notes.append(f"{found[0]} + {found[1]} samples; the official set has {official[0]} + {official[1]}")
    rows: dict[str, set[bytes]] = {}
    for split, source in data.splits.items():
        for part, index in source.pieces:
            if isinstance(part.store, Memory):
                flat = part.store.data.flatten(1).numpy()
                rows.setdefault(split, set()).update(flat[i].tobytes() for i in index)
    copies = len(rows.get("train", set()) & rows.get("test", set()))
    if copies:
        same = (
            "are exact copies of training samples" if copies > 1 else "is an exact copy of a training sample"
        )
        notes.append(f"{amount(copies, 'test sample')} {same}")
    for split, classes in ((s, np.unique(data.labels(s).numpy())) for s in data.splits):
        if 0 < len(classes) < data.info.num_classes:
            notes.append(f"{split} has samples of {len(classes)} of {data.info.num_classes} classes")
    return notes
