"""One process at a time in a run's folder: a lock of the system's, which a dead process does not hold."""

import errno
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SpikedistillError

FILE = ".lock"
# by this process, which the system's lock does not keep apart from itself
_held: set[tuple[int, Path]] = set()


@contextmanager
def locked(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold ``folder``; raises where another process does, with its number and machine.

    POSIX record locks: they go with the process, children do not inherit them, and network file systems carry
    them from machine to machine. Where a file system has none, ``note`` is told.
    """
    # With the number of the process: a forked child inherits the set, but not the lock.
    place = (os.getpid(), folder.resolve())
    if place in _held:
        raise SpikedistillError(f"{folder} is being trained by this process already; choose another --out")
    # Opened without O_TRUNC: that would wipe out the holder's name before the lock is refused.
    file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file, folder, note)
        _held.add(place)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        _held.discard(place)
        # Closed, not removed: a process that has the old file open would lock a name that is gone, the next
        # one a new file, and both would train.
        os.close(file)


def held(folder: Path) -> bool:
    """Whether a process trains in ``folder`` now; False where that cannot be told."""
    if any(place == folder.resolve() for _, place in _held):
        return True  # this process; to open the file and close it again would end its lock
    try:
        import fcntl

        # A shared lock is enough to meet an exclusive one, and asks no right to write, which a reader may
        # lack.
        with open(folder / FILE, "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _lock(file: int, folder: Path, note: Callable[[str], None]) -> None:
    try:
        import fcntl
    except ImportError:
        note(f"{folder}: this system has no file locks; see that no other process trains there")
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            raise SpikedistillError(
                f"{folder} is being trained by {holder}; wait for it, stop it, or choose another --out"
            ) from None
        note(
            f"{folder}: the file system has no locks ({error.strerror}); see that no other process trains "
            "there"
        )
