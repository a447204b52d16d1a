"""Arrays and notes worth computing once; what stands in the cache is whole or not there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpikedistillError
from ..files import written_whole


def array(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The array of ``shape`` in a .npy file, mapped; None where there is none, or it was damaged."""
    try:
        found = np.load(path, mmap_mode="r")
    # ValueError: also of a file that is shorter than its header says.
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape else None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary file to write, renamed to ``path`` when all went well and removed when not."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(written_whole(path))
        except OSError as error:
            raise SpikedistillError(
                f"cannot write to the cache {path.parent} ({error}); set the environment variable "
                "SPIKEDISTILL_CACHE"
            ) from error
        # Outside of the try: what the caller raises on the way is not blamed on the cache.
        yield temporary
