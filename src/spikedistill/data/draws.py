"""Random draws, one per sample, for a batch that processes share: drawn for all of it, each keeps its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_held: ContextVar[tuple[Tensor, int] | None] = ContextVar("held", default=None)


@contextmanager
def share(rows: Tensor, total: int) -> Iterator[None]:
    """Samples in hand are ``rows`` (int64) of a batch of ``total``."""
    token = _held.set((rows, total))
    try:
        yield
    finally:
        _held.reset(token)


@contextmanager
def among(places: Tensor, n: int) -> Iterator[None]:
    """Samples in hand are those at ``places`` (int64) of the ``n`` that were."""
    rows, total = _held.get() or (torch.arange(n), n)
    with share(rows[places], total):
        yield


def drawn(draw: Callable[[int], Tensor], n: int, dim: int = 0) -> Tensor:
    """``draw(n)``; in a share ``draw(total)``, of which the rows in hand along ``dim``."""
    # Drawn for all, also in a share: every process leaves the generator in the same state.
    held = _held.get()
    return draw(n) if held is None else draw(held[1]).index_select(dim, held[0])
