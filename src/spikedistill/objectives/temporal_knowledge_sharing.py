"""TKS: the steps that classify correctly teach all steps."""

from typing import Literal

from torch import Tensor

from .base import Objective, View, Weight
from .divergence import soft_cross_entropy
from .logits import checked_temperature


def shared_knowledge(logits: Tensor, target: Tensor, reading: str = "mean") -> Tensor:
    """Mean ("mean") or sum ("code") of the logits of the steps that are right about a sample.

    Shape: (N, K), 0 where no step is right.
    """
    hard = target if target.dim() == 1 else target.argmax(-1)
    right = (logits.argmax(-1) == hard).to(logits.dtype).unsqueeze(-1)
    total = (right * logits).sum(0)
    return total if reading == "code" else total / right.sum(0).clamp_min(1)


class TemporalKnowledgeSharing(Objective):
    """``tau^2 mean_t CE(softmax(z_tks/tau), softmax(z_t/tau))``, z_tks from steps that are right.

    Y. Dong, D. Zhao, Y. Zeng, "Temporal knowledge sharing enable spiking neural network learning from past
    and future", IEEE TAI 2024. Temperature 3 is the official run line's. ``reading: mean`` (default): the
    mean of the correct steps' logits, without gradient; "code": what the official code computes, their sum,
    with its gradient, and the student's side not divided by tau. A sample that no step gets right has the
    uniform target in both. The whole loss of the paper is ``a CE(mean_t z_t, y) + (1 - a)`` times this one, a
    falling linearly from 1 to 1 - alpha, alpha = 0.7: two schedules.

    Shape: logits (T, N, K), target (N,) or (N, K).

    YAML: ``{type: temporal_knowledge_sharing, weight: {start: 0, end: 0.7, shape: linear}}`` beside
    ``{type: cross_entropy, weight: {start: 1, end: 0.3, shape: linear}}``
    """

    cites = ("dong2024temporal",)

    def __init__(
        self,
        temperature: float = 3.0,
        reading: Literal["mean", "code"] = "mean",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.temperature = checked_temperature(self, temperature)
        self.reading = reading

    def forward(self, view: View) -> Tensor:
        z, tau = view.logits, self.temperature
        if self.reading == "mean":
            teacher = shared_knowledge(z.detach(), view.target)
            return tau**2 * soft_cross_entropy(z, teacher.expand_as(z), tau).mean()
        teacher = shared_knowledge(z, view.target, "code")
        # Times tau: undoes the division inside, which the code does on the teacher's side alone.
        return tau**2 * soft_cross_entropy(z * tau, teacher.expand_as(z), tau).mean()
