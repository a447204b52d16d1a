"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SpikedistillError


def destination(path: str | os.PathLike[str]) -> Path:
    """The file to write, after a look at its folder; raises where it cannot be written."""
    target = Path(path)
    if not target.parent.is_dir():
        raise SpikedistillError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    if target.is_dir():
        raise SpikedistillError(f"cannot write {target}: it is a folder; give a file's name")
    if target.exists() and not target.is_file():
        raise SpikedistillError(f"cannot write {target}: it is no regular file; give another name")
    return target


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary name beside ``target``, renamed to it when the block ends well, removed when it does not.

    A full disk or a folder without permission is a :class:`SpikedistillError`; ``target`` is then as it was.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as why:  # the file formats' libraries do not always say which
        reason = why.strerror or str(why).splitlines()[0]
        raise SpikedistillError(f"cannot write {target}: {reason}; nothing was changed") from why
    finally:
        temporary.unlink(missing_ok=True)
