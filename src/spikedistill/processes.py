"""Several processes of one training: how many were started together, and which of them this is.

As torchrun and ``accelerate launch`` say it in the environment. What MPI and SLURM set alone is not asked:
they also start trainings that have nothing to do with each other.
"""

import os


def started() -> int:
    """Number of processes that were started together (1: this one alone)."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def leads() -> bool:
    """Whether this is the one that shows progress and writes the report."""
    return int(os.environ.get("RANK") or 0) == 0
