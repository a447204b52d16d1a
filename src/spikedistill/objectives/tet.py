"""TET: the cross-entropy at each time step."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Objective, View, Weight, refuse


def per_step_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``mean_t CE(z_t, y)``. Shape: logits (T, N, K), target (N,) or (N, K)."""
    return torch.stack([F.cross_entropy(z, target, label_smoothing=label_smoothing) for z in logits]).mean()


class TemporalEfficientTraining(Objective):
    """``(1 - lamb) mean_t CE(z_t, y) + lamb mean (z - phi)^2``.

    S. Deng, Y. Li, S. Zhang, S. Gu, "Temporal efficient training of spiking neural network via gradient
    re-weighting", ICLR 2022. ``lamb`` is the paper's lambda, ``phi`` the constant of its regulariser (the
    official code's ``means``, 1.0). The default ``lamb = 0`` leaves the regulariser out: the paper's lambda
    differs by data set.

    Shape: logits (T, N, K), target (N,) or (N, K).

    YAML: ``{type: temporal_efficient_training, lamb: 0.05}``
    """

    cites = ("deng2022temporal",)

    def __init__(
        self,
        lamb: float = 0.0,
        phi: float = 1.0,
        label_smoothing: float = 0.0,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not 0 <= lamb <= 1:
            raise refuse(self, f"lamb must be in [0, 1], found {lamb}")
        if not 0 <= label_smoothing < 1:
            raise refuse(self, f"label_smoothing must be in [0, 1), found {label_smoothing}")
        self.lamb, self.phi, self.label_smoothing = lamb, phi, label_smoothing

    def forward(self, view: View) -> Tensor:
        loss = per_step_cross_entropy(view.logits, view.target, self.label_smoothing)
        if not self.lamb:
            return loss
        return (1 - self.lamb) * loss + self.lamb * ((view.logits - self.phi) ** 2).mean()
