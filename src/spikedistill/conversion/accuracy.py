"""Accuracy against T, all from one simulation, and how many steps it takes to match another network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import simulation
from ..errors import SpikedistillError
from ..networks.base import Network

STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@torch.no_grad()
def accuracy_over_time(
    network: Network, batches: Iterable[Any], time_steps: Sequence[int] = STEPS
) -> dict[int, float]:
    """Accuracy (0..1) after the first T steps, for each T, from the logits summed so far; no recalibration.

    One simulation of the largest T, streamed step by step, so memory does not grow with T. ``batches``: pairs
    of images (N, C, H, W) and labels (N,). The network is used in eval mode and left as it was.
    """
    wanted = sorted(set(time_steps))
    if not wanted or wanted[0] < 1:
        raise SpikedistillError(f"time_steps must be whole numbers from 1, found {list(time_steps)}")
    correct, images = dict.fromkeys(wanted, 0), 0
    with simulation.eval_mode(network):
        for x, y in batches:
            images += len(y)
            correct = {t: correct[t] + n for t, n in correct_over_time(network, x, y, wanted).items()}
    if not images:
        raise SpikedistillError("accuracy_over_time was given no images")
    return {t: n / images for t, n in correct.items()}


def correct_over_time(network: Network, x: Tensor, y: Tensor, time_steps: Sequence[int]) -> dict[int, int]:
    """How many of a batch (N, C, H, W) the first T steps' logits, summed, give ``y`` (N,), for each T."""
    correct: dict[int, int] = {}
    state: dict[str, Any] | None = None
    total: Tensor | float = 0.0
    for t in range(1, max(time_steps, default=0) + 1):
        out, state = network.step(x, state)
        total = total + out
        if t in time_steps:
            correct[t] = int((total.argmax(1) == y).sum())
    return correct


def time_steps_to_match(curve: Mapping[int, float], accuracy: float) -> int | None:
    """The smallest T of an accuracy curve that reaches ``accuracy``; None if none does."""
    return min((t for t, a in curve.items() if a >= accuracy), default=None)
