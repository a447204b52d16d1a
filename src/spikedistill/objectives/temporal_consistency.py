"""ETC: the predictions of different time steps agree."""

from itertools import permutations

import torch
from torch import Tensor

from .base import Objective, View, Weight
from .divergence import soft_divergence
from .logits import checked_temperature


def consistency_loss(logits: Tensor, temperature: float) -> Tensor:
    """``sum_{i != j} tau^2 KL(softmax(z_j/tau) || softmax(z_i/tau)) / (T (T - 1))``, z_j without gradient."""
    T = logits.shape[0]
    pairs = [
        soft_divergence(logits[i], logits[j].detach(), temperature) for i, j in permutations(range(T), 2)
    ]
    return torch.stack(pairs).mean()


class TemporalConsistency(Objective):
    """Steps learn from each other: ``mean_{i != j} tau^2 KL(softmax(z_j/tau) || softmax(z_i/tau))``.

    z_j is detached. D. Zhao et al., "Improving stability and performance of spiking neural networks through
    enhancing temporal consistency" (ETC), Pattern Recognition, 2024; temperature 4 is the official code's.
    The official training weighs it beside ``temporal_efficient_training`` or ``cross_entropy``.

    Shape: logits (T, N, K), T at least 2.

    Raises: SpikedistillError at T = 1.

    YAML: ``{type: temporal_consistency, temperature: 4.0}``
    """

    cites = ("zhao2024improving",)
    least_steps = 2

    def __init__(self, temperature: float = 4.0, weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.temperature = checked_temperature(self, temperature)

    def forward(self, view: View) -> Tensor:
        return consistency_loss(view.logits, self.temperature)
