"""Fixed splits: stratified, by whole groups, of the labels alone: the same on every machine and seed."""

import hashlib
from collections.abc import Mapping
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ..errors import SpikedistillError

Index = NDArray[np.int64]


def scramble(values: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
    """The output function of the SplitMix64 generator, elementwise: 64 well-mixed bits from 64.

    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. Numpy promises no
    stable streams between versions; a split has to outlive them.
    """
    # An array, also of one number: numpy warns of scalars that wrap around, which is meant here.
    z = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: int) -> int:
    """One 63-bit seed from several integers, order included: where a draw at (seed, epoch, index) starts."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        # Cut to 64 bits, which negative parts need.
        state = scramble(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return int(state[0] >> np.uint64(1))


def order(n: int, salt: int) -> Index:
    """A fixed permutation of 0..n-1 for every ``salt``."""
    positions = np.arange(n, dtype=np.uint64)
    return np.argsort(scramble(positions ^ scramble(salt)), kind="stable").astype(np.int64)


def quotas(counts: Index, total: int) -> Index:
    """``total`` shared out in proportion to ``counts`` by largest remainders (ties: the earlier class)."""
    exact = counts * (total / counts.sum())
    shares = np.floor(exact).astype(np.int64)
    first = np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]
    shares[first] += 1
    return shares


def hold_out(
    labels: Index, amount: float | int, groups: NDArray[np.int64] | None = None, salt: int = 0
) -> tuple[Index, Index]:
    """(kept, held out) indices, ascending; every class gives its share, and no group stands on both sides.

    ``amount``: part below 1, or a number of samples; ceilings and floors balance over classes. With
    ``groups`` whole groups are taken while that brings a class nearer to its share, at least one where a
    class has several, never all. Raises :class:`SpikedistillError` where nothing would remain to train on.
    """
    n = len(labels)
    total = round(amount * n) if amount < 1 else int(amount)
    if total >= n:
        raise SpikedistillError(f"cannot hold out {total} of {n} training samples; ask for fewer")
    if total == 0:
        return np.arange(n), np.zeros(0, dtype=np.int64)
    sequence = order(n, salt)
    if groups is None:
        classes, counts = np.unique(labels, return_counts=True)
        shares = quotas(counts, total)
        taken = [sequence[labels[sequence] == c][:share] for c, share in zip(classes, shares)]
    else:
        taken = _whole_groups(labels, groups, total / n, salt)
    held = np.zeros(n, dtype=bool)
    held[np.concatenate(taken)] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _whole_groups(labels: Index, groups: NDArray[np.int64], part: float, salt: int) -> list[Index]:
    names = np.unique(groups)
    if len(names) < 2:
        raise SpikedistillError("cannot hold out whole groups: all training samples are of one group")
    members = {int(g): np.flatnonzero(groups == g) for g in names[order(len(names), salt)]}
    pure = all(len(np.unique(labels[rows])) == 1 for rows in members.values())
    # groups of mixed classes (speakers) cannot be stratified by class
    strata = np.unique(labels) if pure else [None]
    taken = [np.zeros(0, dtype=np.int64)]
    for stratum in strata:
        own = [rows for rows in members.values() if stratum is None or labels[rows[0]] == stratum]
        wanted, got = part * sum(map(len, own)), 0
        # Never the last: a group of each stratum stays to train on.
        for rows in own[:-1]:
            if abs(wanted - got - len(rows)) < abs(wanted - got):
                taken.append(rows)
                got += len(rows)
        # Groups larger than twice the share would leave this class without validation.
        if got == 0 and len(own) > 1:
            taken.append(min(own, key=len))
    if len(taken) == 1:
        raise SpikedistillError(
            "cannot hold out whole groups: every class has but one; set data.validation: 0, "
            "or leave out data.group"
        )
    return taken


def split_file(name: str) -> tuple[frozenset[str], str]:
    """(test files as CLASS/FILE, sha256 of the list) of a set without an official split; we ship the list.

    The file is ``split_NAME.txt``.
    """
    content = (resources.files(__package__) / f"split_{name}.txt").read_bytes()
    lines = content.decode().splitlines()
    return frozenset(line for line in lines if not line.startswith("#")), hashlib.sha256(content).hexdigest()


def digest(parts: Mapping[str, Index], file: str | None = None) -> str:
    """sha256 over the names and indices of the parts of a split, and over which ``file`` made these parts."""
    state = hashlib.sha256((file or "").encode())
    for name in sorted(parts):
        # The length marks where a part ends: a row that moves between parts shows.
        state.update(f"{name}:{len(parts[name])}:".encode())
        state.update(np.ascontiguousarray(parts[name], dtype="<i8").tobytes())
    return state.hexdigest()
