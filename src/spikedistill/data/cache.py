"""The folder of things worth computing once; what stands in it is whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedistill.errors import SpikedistillError


def folder(chosen: Path | None = None) -> Path:
    """``data.frames.cache``, else SPIKEDISTILL_CACHE, else ~/.cache/spikedistill."""
    return chosen or Path(os.environ.get("SPIKEDISTILL_CACHE", Path.home() / ".cache" / "spikedistill"))


def array(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The array of ``shape`` in a .npy file, mapped; None where there is none, or it was damaged."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape else None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary file to write, renamed to ``path`` when all went well and removed when not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError as error:
        raise SpikedistillError(
            f"cannot write to the cache {path.parent} ({error}); set the environment variable SPIKEDISTILL_CACHE"
        ) from error
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
