"""Several processes of one training: how many were started together, and which of them this is.

Read from the environment, as accelerate reads it; torchrun, ``accelerate launch`` and MPI set it.
"""

import os

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def started() -> int:
    """Number of processes that were started together (1: this one alone)."""
    return _first(_SIZES, 1)


def leads() -> bool:
    """Whether this is the one that shows progress and writes the report."""
    return _first(_RANKS, 0) == 0


def _first(names: tuple[str, ...], otherwise: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), otherwise)
