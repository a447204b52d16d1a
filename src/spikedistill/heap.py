"""What becomes of freed memory on the CPU: kept for the next step, or given back to the system.

A training step allocates and frees the same large tensors over and over. glibc returns most of them to the
system, which clears every page anew when the next step asks: a tenth to a third of a step's time. Kept, they
are used again. Where memory is what matters the opposite holds: freed tensors should leave no holes behind.

Only glibc's ``malloc`` can be told; elsewhere, and where the environment sets it already (``MALLOC_*``,
``GLIBC_TUNABLES``), these functions do nothing.
"""

import ctypes
import os
from functools import cache
from typing import Any

# mallopt's parameters, from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MMAP_MAX_DEFAULT = 65536
LARGE = 1 << 20  # bytes; smaller blocks are not worth a system call each


@cache
def _glibc() -> Any:
    """The C library, if it is a glibc whose allocator nobody has set up by hand."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    if any(name in os.environ for name in names) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (absent in other C libraries)
    except (AttributeError, OSError, TypeError):
        return None
    return library


def keep() -> bool:
    """Keep freed memory for the next allocation: fastest. Returns whether the allocator could be told."""
    library = _glibc()
    # Large blocks from the heap, not from mappings that free() undoes; -1: its top is never trimmed.
    return library is not None and bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, -1))


def give_back() -> bool:
    """Give freed tensors back to the system at once: least memory. Returns whether that works here."""
    library = _glibc()
    if library is None:
        return False
    # A threshold that is set also stays: left alone, glibc raises it to the size of what was freed.
    settings = {MMAP_MAX: MMAP_MAX_DEFAULT, MMAP_THRESHOLD: LARGE, TRIM_THRESHOLD: LARGE}
    told = all(library.mallopt(parameter, value) for parameter, value in settings.items())
    # Thresholds hold for what is freed from now on; this is for what is free already.
    library.malloc_trim(0)
    return told


def suit(memory: str) -> bool:
    """What a recipe's ``memory`` wants: ``default`` keeps, ``packed`` and ``lean`` give back."""
    return keep() if memory == "default" else give_back()


def trim() -> None:
    """Give back now what is free at the moment."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
