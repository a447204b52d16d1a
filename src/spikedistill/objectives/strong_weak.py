"""Strong and weak: each time step is a model; the confident teach the others, or the reverse."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .base import Objective, View, Weight
from .divergence import divergence
from .logits import checked_temperature


def confidence(logits: Tensor) -> Tensor:
    """``mean over the batch of max_k softmax(z_t)_k``: (T, N, K) to (T,)."""
    return logits.softmax(-1).amax(-1).mean(-1)


def lessons(order: list[int], form: str) -> list[tuple[list[int], int]]:
    """Who teaches whom: (teaching steps, learning step). ``order``: steps, teachers first."""
    if form == "pair":
        return [([order[0]], order[-1])]
    if form == "cascade":
        return [([a], b) for a, b in pairwise(order)]
    if form == "ensemble":
        return [(order[:-1], order[-1])]
    return [([order[0]], b) for b in order[1:]]


class StrongWeakDistillation(Objective):
    """``KL(softmax(z_teacher/tau) || softmax(z_student/tau))`` among the network's own time steps.

    A step's confidence is the batch's mean of its largest probability. ``direction``: "strong_to_weak" (the
    most confident step teaches) or "weak_to_strong" (the reverse). ``form``: "pair" (the most confident and
    the least), "cascade" (in order of confidence, each the next), "ensemble" (the mean logits of all but the
    last in that order teach the last), "simultaneous" (the first teaches all others); several lessons are
    averaged. The teaching side has no gradient. At T = 2 all forms are one.

    Y. Ding, L. Zuo, M. Jing, K. Yang, P. He, T. Xie, "Synergy between the strong and the weak: spiking neural
    networks are inherently self-distillers", NeurIPS 2025: the pair, temperature 2, weight 1, no factor
    tau^2. The paper names the other three forms; how they pair steps is our reading.

    Shape: logits (T, N, K), T at least 2.

    Raises: SpikedistillError at T = 1.

    YAML: ``{type: strong_weak_distillation, direction: strong_to_weak, form: cascade}``
    """

    cites = ("ding2025synergy",)
    least_steps = 2

    def __init__(
        self,
        direction: Literal["strong_to_weak", "weak_to_strong"] = "strong_to_weak",
        form: Literal["pair", "cascade", "ensemble", "simultaneous"] = "pair",
        temperature: float = 2.0,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.direction, self.form = direction, form
        self.temperature = checked_temperature(self, temperature)

    def forward(self, view: View) -> Tensor:
        z = view.logits
        strongest_first = self.direction == "strong_to_weak"
        # stable: an order of equally confident steps is left to chance otherwise.
        order = confidence(z.detach()).argsort(descending=strongest_first, stable=True).tolist()
        parts = [
            divergence(z[learner], z[teachers].mean(0).detach(), self.temperature)
            for teachers, learner in lessons(order, self.form)
        ]
        return torch.stack(parts).mean()
