"""Randomness is a function of the position: a seed for any place in a run."""

import hashlib

import torch


def seed_of(*position: int | str) -> int:
    """A 63-bit seed from a position, such as ``seed_of(seed, step, rank)``; the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*position: int | str) -> None:
    """Seed torch's generators (all devices) for a position."""
    torch.manual_seed(seed_of(*position))
