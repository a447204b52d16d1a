"""Readers of image sets that fit into memory."""

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpikedistillError
from . import arrays, splits
from .config import DataConfig
from .stores import Source

DIGITS, DIGITS_TRAIN = Path(__file__).with_name("digits.npz"), 600
MEDMNIST = (
    "pathmnist",
    "dermamnist",
    "octmnist",
    "pneumoniamnist",
    "retinamnist",
    "breastmnist",
    "bloodmnist",
    "tissuemnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
)


def digits(config: DataConfig, frames: int) -> Source:
    """8x8 digits, 0..16 stretched to 0..255: 600 samples to train and validate, 1,197 to test.

    The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning
    Repository 1998, doi:10.24432/C50P49, CC BY 4.0), in the order in which scikit-learn gives it.
    """
    held = arrays.read_npz(DIGITS)
    x = np.round(held["images"] * (255 / 16)).astype(np.uint8)
    y = held["labels"].astype(np.int64)
    test, train = splits.hold_out(y, DIGITS_TRAIN, salt=2)
    found = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    return arrays.source(found, "digits", "digits")


def from_arrays_file(config: DataConfig, frames: int) -> Source:
    """An .npz of arrays: ``train`` (and ``test``) files, ``root`` itself, or ``NAME.npz`` in ``root``."""
    if config.train is not None:
        return arrays.from_files(config.train, config.test, config.name)
    path = npz_in(config)
    if path is None:
        given = "; a run on arrays that Python gave takes them from a command's --data FILE.npz"
        raise SpikedistillError(
            f"data set {config.name!r} needs data.root (a folder with {config.name}.npz, "
            f"or the file) or data.train{given if config.name == 'arrays' else ''}"
        )
    return arrays.from_files(path, None, config.name)


def npz_in(config: DataConfig) -> Path | None:
    """``root`` if it is a file, else ``NAME.npz`` in it if there is one."""
    if config.root is None:
        return None
    if config.root.is_file():
        return config.root
    path = config.root / f"{config.name}.npz"
    return path if path.exists() else None


TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def torchvision_set(config: DataConfig, frames: int) -> Source:
    """MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100: .npz, torchvision's folder, the official CIFAR batches."""
    if config.train is not None or npz_in(config) is not None:
        return from_arrays_file(config, frames)
    if config.root is None:
        raise SpikedistillError(
            f"data set {config.name!r} needs data.root: torchvision's folder (data.download: true fetches "
            f"it), or a folder with {config.name}.npz"
        )
    if config.name.startswith("cifar"):
        folder = _cifar_folder(config.root, config.name)
        if folder is not None:
            return cifar_batches(folder, config.name)
    import torchvision

    kind = getattr(torchvision.datasets, TORCHVISION[config.name])
    found: dict[str, Any] = {}
    for role in ("train", "test"):
        try:
            part = kind(str(config.root), train=role == "train", download=config.download)
        except Exception as error:  # torchvision asserts, unpacks and indexes what it finds
            raise SpikedistillError(
                f"data.root: no {config.name} in {config.root} ({arrays.short(error)}); "
                f"give torchvision's folder, a folder with {config.name}.npz, or data.download: true"
            ) from error
        found[f"x_{role}"], found[f"y_{role}"] = np.asarray(part.data), np.asarray(part.targets)
    return arrays.source({**found, "class_names": part.classes}, str(config.root), config.name)


_CIFAR = {
    "cifar10": (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        ["test_batch"],
        "batches.meta",
    ),
    "cifar100": ("cifar-100-python", ["train"], ["test"], "meta"),
}


def _cifar_folder(root: Path, name: str) -> Path | None:
    sub, train, _, _ = _CIFAR[name]
    return next((folder for folder in (root, root / sub) if (folder / train[0]).exists()), None)


class _PlainPickle(pickle.Unpickler):
    """Reads the official batches, numpy arrays in lists and dicts, and refuses to run anything else."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        # Python 3 writes bytes so, in protocol 2.
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # The official files name a module that numpy 2 has moved.
        if module == "numpy.core.multiarray":
            module = "numpy._core.multiarray" if int(np.__version__.split(".")[0]) >= 2 else module
        return super().find_class(module, name)


def read_batch(path: Path, *keys: str) -> dict[str, Any]:
    """One official batch file, in which all ``keys`` must stand; an error names a cut or foreign file."""
    if not path.exists():
        raise SpikedistillError(f"no file {path}; the official folder holds it")
    try:
        with path.open("rb") as file:
            # places in a table that unpickling makes that long
            for opcode, number, _ in pickletools.genops(file):
                if "PUT" in opcode.name and isinstance(number, int) and number > 1 << 20:
                    raise pickle.UnpicklingError(f"it remembers {number} values")
                if isinstance(number, int) and abs(number) > 1 << 32:
                    raise pickle.UnpicklingError(f"it holds the number {number}")
            file.seek(0)
            found = _PlainPickle(file, encoding="latin1").load()
    except Exception as error:  # unpickling raises whatever damaged bytes lead it to
        raise SpikedistillError(
            f"cannot read {path}: cut short or no official batch ({arrays.short(error)})"
        ) from error
    # Python 2 wrote the official files, so their words come as text; repacked by Python 3 they may be bytes
    found = {_text(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    missing = [key for key in keys if key not in found]
    if missing:
        raise SpikedistillError(
            f"{path}: no {', '.join(missing)} in it; found {sorted(found)}: no official batch"
        )
    return found


def _text(word: Any) -> str:
    return word.decode("latin1") if isinstance(word, bytes) else str(word)


def cifar_batches(folder: Path, name: str) -> Source:
    """The official Python batches of CIFAR-10 and CIFAR-100 (rows of 3,072 bytes, planes R, G, B)."""
    _, train, test, meta = _CIFAR[name]
    key, label_names = ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    words = read_batch(folder / meta, label_names)[label_names]
    if not isinstance(words, list):
        raise SpikedistillError(f"{folder / meta}: {label_names} is {type(words).__name__}, no list of names")
    found: dict[str, Any] = {"class_names": [_text(word) for word in words]}
    for role, files in (("train", train), ("test", test)):
        batches = [read_batch(folder / file, "data", key) for file in files]
        for batch, file in zip(batches, files):
            images, labels = batch["data"], arrays.plain(batch[key], f"{folder / file}, {key}")
            if (
                not isinstance(images, np.ndarray)
                or images.dtype != np.uint8
                or images.shape != (*labels.shape, 3072)
            ):
                found_shape = getattr(images, "shape", type(images).__name__)
                raise SpikedistillError(
                    f"{folder / file}: images {found_shape}, {labels.size} labels: no official batch"
                )
        found[f"x_{role}"] = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        found[f"y_{role}"] = np.concatenate([arrays.plain(batch[key], key) for batch in batches])
    return arrays.source(found, str(folder), name)


READERS = {
    "digits": digits,
    "arrays": from_arrays_file,
    **dict.fromkeys(TORCHVISION, torchvision_set),
    **dict.fromkeys([*MEDMNIST, "tinyimagenet10"], from_arrays_file),
}
