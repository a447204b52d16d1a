"""Files and folders that appear whole or not at all: written beside their place, then renamed to it.

A crash, a full disk or a kill leaves what stood there before. Nothing else in the package writes what is to
be kept.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import SpikedistillError

# .old-* is not among them: it is a whole folder, which `recover` may have to put back.
LEFTOVERS = (".*.part", ".*.tmp", ".*.new-*")  # what a process that died left aside (.tmp: of older versions)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """An empty temporary file beside ``path``, renamed to it when the block ends well, else removed."""
    # A name of its own for each writer: several processes, also of several machines, may fill one cache.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.touch(exist_ok=False)  # a folder that cannot be written shows before the work
        yield temporary
        os.replace(temporary, path)
    finally:
        # Missing when all went well: it has the file's own name by now.
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file that a power cut leaves old or new, never half: content and name are on disk on return."""
    with written_whole(path) as temporary:
        _write(temporary, text.encode())
    sync_folder(path.parent)


def destination(path: str | os.PathLike[str]) -> Path:
    """The file a user wants written, after a look at its folder; raises where it cannot be written."""
    target = Path(path)
    if not target.parent.is_dir():
        raise SpikedistillError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    if target.is_dir():
        raise SpikedistillError(f"cannot write {target}: it is a folder; give a file's name")
    if target.exists() and not target.is_file():
        raise SpikedistillError(f"cannot write {target}: it is no regular file; give another name")
    return target


@contextmanager
def exported(target: Path) -> Iterator[Path]:
    """:func:`written_whole` for a user's file: a full disk or closed folder is a SpikedistillError."""
    try:
        with written_whole(target) as temporary:
            yield temporary
    except OSError as why:  # the file formats' libraries do not always say which
        reason = why.strerror or str(why).splitlines()[0]
        raise SpikedistillError(f"cannot write {target}: {reason}; nothing was changed") from why


def make_folder(folder: Path) -> None:
    """The folder and its parents, each told to the disk by its parent."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # From the top: a name is safe once the folder that it stands in is on the disk.
    for made in reversed(missing):
        sync_folder(made.parent)


def replace_folder(folder: Path, contents: Mapping[str, bytes], before: Path | None = None) -> None:
    """A folder with these files, in place of any old one, at once; a full disk or kill leaves the old whole.

    ``before``: where the old one is kept; None: nowhere. After a kill :func:`recover` finishes or undoes the
    exchange.
    """
    # Beside the folder: only within one file system a rename is done at once.
    aside = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        make_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)  # of a dead process that had our number
        aside.mkdir()
        for name, data in contents.items():
            _write(aside / name, data)
        sync_folder(aside)
        # A folder cannot be renamed over one that is full: the old one steps aside first.
        if folder.exists():
            if before is not None and before.exists():
                os.rename(before, old)
            os.rename(folder, before or old)
        os.rename(aside, folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        # It broke off between two renames: what stepped aside goes back, then what had made room for it.
        if not folder.exists() and (
            kept := next((p for p in (before, old) if p is not None and p.exists()), None)
        ):
            os.rename(kept, folder)
        if before is not None and old.exists() and not before.exists():
            os.rename(old, before)
        raise SpikedistillError(
            f"cannot write {folder}: {error.strerror or error}; what was there before is unchanged. Free "
            "space or choose another --out, then resume"
        ) from None
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path, before: Path) -> None:
    """Put back a folder that a kill left renamed, and remove halves that a kill left aside."""
    if not folder.parent.is_dir():
        return
    for old in sorted(folder.parent.glob(f".{folder.name}.old-*")):
        # What is newer is there: the folder itself, or what `before` keeps of it.
        if folder.exists() or before.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, folder)
    if not folder.exists() and before.exists():
        os.rename(before, folder)
    for aside in folder.parent.glob(f".{folder.name}.new-*"):
        shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Names in a folder, on the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        # On the disk before any rename: else a power cut may leave the new name with no content.
        file.flush()
        os.fsync(file.fileno())


def cache_folder(chosen: Path | None = None) -> Path:
    """Folder for things worth computing once: ``chosen``, SPIKEDISTILL_CACHE or ~/.cache/spikedistill."""
    return chosen or Path(os.environ.get("SPIKEDISTILL_CACHE") or Path.home() / ".cache" / "spikedistill")
