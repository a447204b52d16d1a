"""Randomness is a function of the position: a seed for any place in a run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*position: int | str) -> int:
    """A 63-bit seed from a position, such as ``seed_of(seed, step, rank)``; the same on every machine."""
    # Not hash(), which python salts anew in each process.
    digest = hashlib.blake2b("/".join(map(str, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*position: int | str) -> None:
    """Seed torch's generators (all devices) for a position."""
    torch.manual_seed(seed_of(*position))


@contextmanager
def apart() -> Iterator[None]:
    """What is seeded and drawn within leaves torch's generators as they were, those of all GPUs too."""
    # A seed reaches every device, also where the work is done on the CPU.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
