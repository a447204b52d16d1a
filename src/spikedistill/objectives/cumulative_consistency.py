"""MEOM's progressive part: what the first t steps predict agrees with what the first t + 1 predict."""

import torch
from torch import Tensor

from .base import Objective, View, Weight
from .divergence import soft_cross_entropy
from .logits import checked_temperature


def cumulative_means(logits: Tensor) -> Tensor:
    """``z_<=t = mean_{s <= t} z_s``: what a network predicts after step t. (T, N, K) to the same."""
    count = torch.arange(1, len(logits) + 1, device=logits.device, dtype=logits.dtype)
    return logits.cumsum(0) / count.view(-1, 1, 1)


class CumulativeConsistency(Objective):
    """``1/(T-1) sum_t CE(softmax(z_<=t+1 / tau), softmax(z_<=t / tau))``: a longer run teaches a shorter.

    ``z_<=t`` is the mean logit of the first t steps, exactly what ``accuracy_at`` and early exit use; the
    longer side has no gradient (our reading). A cross-entropy: where both agree its gradient is zero, its
    value the entropy.

    After K. Sun, P. Duan, Y. Huang, N. Gong, L. Kuhlmann, "Many eyes, one mind: temporal multi-perspective
    and progressive distillation for spiking neural networks" (MEOM), ICLR 2026, its progressive part (TPD),
    known second hand: weight 0.3 beside cross-entropy; temperature 1 and the average of logits (not of
    probabilities) are our reading. Its other part, teacher features masked anew at each step, is not here:
    the mask's form is not public.

    Shape: logits (T, N, K), T at least 2.

    Raises: SpikedistillError at T = 1.

    YAML: ``{type: cumulative_consistency, temperature: 1.0, weight: 0.3}``
    """

    cites = ("sun2026many",)
    least_steps = 2

    def __init__(self, temperature: float = 1.0, weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.temperature = checked_temperature(self, temperature)

    def forward(self, view: View) -> Tensor:
        z = cumulative_means(view.logits)
        return soft_cross_entropy(z[:-1], z[1:].detach(), self.temperature).mean()
