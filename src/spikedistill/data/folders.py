"""Image folders: Tiny ImageNet, ImageNet, any folder of images per class."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SpikedistillError
from ..files import cache_folder
from ..reading import read_text
from . import arrays, cache, splits
from .config import DataConfig, augmentation
from .images import from_arrays_file, npz_in
from .stores import Labels, Memory, Part, Source

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
LARGEST = 89_478_485  # pixels of one image: beyond this Pillow speaks of a decompression bomb
IN_MEMORY = 2 << 30  # bytes of decoded images up to which a folder is held in memory
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def decode(path: Path) -> Any:
    """An RGB Pillow image of at most ``LARGEST`` pixels, read to its end; a damaged file is named.

    Only the formats of ``SUFFIXES`` are tried, whatever the name says: Pillow's others start programs.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise SpikedistillError(
                    f"cannot read {path}: {image.width} x {image.height} pixels; at most {LARGEST:,} are read"
                )
            return image.convert("RGB")
    except SpikedistillError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise SpikedistillError(
            f"cannot read {path}: cut short, damaged or no image ({arrays.short(error)})"
        ) from error


@dataclass
class Files:
    """Images read from files when they are asked for, one size for all.

    Training: a random part of the image (``area``, sides 3:4 to 4:3) is stretched to the size, as every
    ImageNet paper does; else the image is resized so that the middle ``centre`` part of its shorter side
    fills the size.
    """

    paths: Sequence[Path]
    size: tuple[int, int]
    area: tuple[float, float] | None = None
    centre: float = 1.0
    streams: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return (3, *self.size)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, path: Path, train: bool = False) -> Tensor:
        """One image, uint8 (3, H, W)."""
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms import functional as T

        image = decode(path)
        height, width = self.size
        if (image.height, image.width) == self.size and not (train and self.area):
            return T.pil_to_tensor(image)
        if train and self.area:
            return T.pil_to_tensor(RandomResizedCrop(self.size, scale=self.area)(image))
        enlarge = max(height / image.height, width / image.width) / self.centre
        # max: rounding must not leave a side a pixel short of the crop.
        target = [max(round(image.height * enlarge), height), max(round(image.width * enlarge), width)]
        if target[0] * target[1] > LARGEST:
            raise SpikedistillError(
                f"{path}: {image.width} x {image.height} pixels cannot be brought to {self.size}"
            )
        return T.pil_to_tensor(T.center_crop(T.resize(image, target), [height, width]))

    def take(self, index: Tensor, device: torch.device, train: bool = False) -> Tensor:
        """The images of these files."""
        return torch.stack([self.image(self.paths[i], train) for i in index.tolist()]).to(device)

    def digest(self) -> str:
        """sha256 of names and sizes: reading every image of a large set would take hours."""
        words = [(path.name, path.stat().st_size) for path in self.paths]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def loaded(files: Files) -> Memory:
    """All images decoded into one array, cached under the files' names, sizes and times of change."""
    listing = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files.paths]
    key = hashlib.sha256(json.dumps([listing, files.size, files.centre]).encode()).hexdigest()
    path = cache_folder() / "images" / f"{key}.npy"
    if cache.array(path, (len(files), *files.shape)) is None:
        # Threads do: Pillow decodes without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = np.stack([image.numpy() for image in pool.map(files.image, files.paths)])
        with cache.written(path) as part, part.open("wb") as file:
            # To an open file: to a path np.save adds .npy, and the empty temporary file would be kept.
            np.save(file, decoded)
    return Memory(torch.from_numpy(np.load(path)))


def _listed(top: Path, words: Sequence[str]) -> tuple[list[Path], Labels]:
    pairs = [
        (path, k)
        for k, word in enumerate(words)
        for path in sorted((top / word).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    return [path for path, _ in pairs], np.asarray([k for _, k in pairs], np.int64)


def _words(top: Path) -> tuple[str, ...]:
    if not top.is_dir():
        raise SpikedistillError(f"{top}: no folder; it needs one folder of images per class")
    words = tuple(sorted(sub.name for sub in top.iterdir() if sub.is_dir() and not sub.name.startswith(".")))
    if not words:
        raise SpikedistillError(f"{top}: no folders in it; it needs one folder of images per class")
    return words


def _source(
    config: DataConfig, roles: dict[str, tuple[list[Path], Labels]], words: tuple[str, ...], big: bool
) -> Source:
    for role, (paths, labels) in roles.items():
        empty = np.setdiff1d(np.arange(len(words)), labels)
        if role == "train" and len(empty):
            raise SpikedistillError(
                f"no training images of class {words[int(empty[0])]!r} ({len(empty)} such classes)"
            )
        if not paths:
            raise SpikedistillError(f"no images in the {role} part of data set {config.name!r}")
    first = decode(roles["train"][0][0])
    size = config.size or ((224, 224) if big else (first.height, first.width))
    augment = augmentation(config)
    total = 3 * size[0] * size[1] * sum(len(paths) for paths, _ in roles.values())
    # A resized crop is cut from the full image, which an array of one size no longer has.
    stream = big or total > IN_MEMORY or augment.resized_crop is not None
    parts = {}
    for role, (paths, labels) in roles.items():
        files = Files(paths, size, augment.resized_crop, augment.centre_crop if stream else 1.0)
        parts[role] = Part(files if stream else loaded(files), labels)
    # A streamed set is not read through to measure its own.
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if stream else (None, None)
    return Source(
        config.name, parts["train"], parts["test"], words, "image", parts.get("validation"), mean, std
    )


def folder(config: DataConfig, frames: int) -> Source:
    """Folders of images per class: ``root``/train and ``root``/test (or val), or ``root`` alone: 10 % test.

    All are brought to ``data.size``, by default the first image's. Folders over 2 GiB, decoded, stream.
    """
    other: Path | None
    validation: Path | None = None
    if config.train is not None and config.test is not None:
        top, other = config.train, config.test
    elif config.root is not None:
        top = config.root / "train" if (config.root / "train").is_dir() else config.root
        names = ("test", "val", "validation") if top != config.root else ()
        found = [config.root / name for name in names if (config.root / name).is_dir()]
        other = found[0] if found else None
        # Beside a test part, the folder's own validation part; alone it is the test.
        if len(found) > 1:
            validation = found[1]
    else:
        raise SpikedistillError(
            f"data set {config.name!r} needs data.root, or the folders data.train and data.test"
        )
    words = _words(top)
    paths, labels = _listed(top, words)
    if other is not None:
        roles = {"train": (paths, labels), "test": _listed(other, words)}
        if validation is not None:
            roles["validation"] = _listed(validation, words)
    else:
        kept, out = splits.hold_out(labels, 0.1, salt=5)
        roles = {
            "train": ([paths[i] for i in kept], labels[kept]),
            "test": ([paths[i] for i in out], labels[out]),
        }
    return _source(config, roles, words, config.name == "imagenet")


def tiny_imagenet(config: DataConfig, frames: int) -> Source:
    """Tiny ImageNet: train/WNID/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt; val is test."""
    if config.train is not None or npz_in(config) is not None:
        return from_arrays_file(config, frames)
    if config.root is None:
        raise SpikedistillError("data set 'tinyimagenet' needs data.root, the folder tiny-imagenet-200")
    root = config.root / "tiny-imagenet-200" if (config.root / "tiny-imagenet-200").is_dir() else config.root
    notes = root / "val" / "val_annotations.txt"
    if not notes.exists() or not (root / "train").is_dir():
        raise SpikedistillError(
            f"{root}: no train folder or no val/val_annotations.txt; give the official folder"
        )
    wnids = _words(root / "train")
    number = {wnid: k for k, wnid in enumerate(wnids)}
    paths, labels = [], []
    for i, line in enumerate(read_text(notes).splitlines(), 1):
        # Filled up: a line without tabs is refused below, not by an error of unpacking.
        name, wnid, *_ = (*line.split("\t"), "", "")
        path = root / "val" / "images" / name
        if wnid not in number or not path.exists():
            raise SpikedistillError(
                f"{notes}, line {i}: no class {wnid!r} in train" if path.exists() else f"no file {path}"
            )
        paths.append(path)
        labels.append(number[wnid])
    names = dict(zip(wnids, wnids))
    if (root / "words.txt").exists():
        pairs = (line.split("\t", 1) for line in read_text(root / "words.txt").splitlines() if "\t" in line)
        names.update({wnid: word.split(",")[0] for wnid, word in pairs if wnid in number})
    roles = {"train": _listed(root / "train", wnids), "test": (paths, np.asarray(labels, np.int64))}
    return _source(config, roles, tuple(names[wnid] for wnid in wnids), False)


READERS = {"folder": folder, "imagenet": folder, "tinyimagenet": tiny_imagenet}
