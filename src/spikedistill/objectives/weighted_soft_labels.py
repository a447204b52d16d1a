"""Weighted soft labels: the logit part of BKDSNN."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .divergence import soft_cross_entropy
from .logits import check_logits, checked_temperature


def sample_weights(student: Tensor, teacher: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``1 - exp(-max(0, CE(z, y) / (CE(z_teacher, y) + 1e-7)))`` at temperature 1, without gradient; (N,)."""
    with torch.no_grad():
        mine = F.cross_entropy(student, target, reduction="none", label_smoothing=label_smoothing)
        theirs = F.cross_entropy(teacher, target, reduction="none", label_smoothing=label_smoothing)
        return 1 - torch.exp(-(mine / (theirs + 1e-7)).clamp_min(0))


def weighted_soft_label_loss(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """``tau^2 mean_b w_b CE(softmax(teacher/tau), softmax(student/tau))``.

    Shape: logits (N, K), target (N,) or (N, K).
    """
    weights = sample_weights(student, teacher, target, label_smoothing)
    return temperature**2 * (weights * soft_cross_entropy(student, teacher, temperature)).mean()


class WeightedSoftLabels(Objective):
    """Soft labels, each sample weighted by how much worse than the teacher the student is on it.

    ``tau^2 mean_b w_b CE(softmax(z_teacher/tau), softmax(z/tau))`` with ``w_b = 1 - exp(-max(0, CE(z_b, y_b)
    / (CE(z_teacher_b, y_b) + 1e-7)))`` on time-averaged logits; w has no gradient. ``label_smoothing`` (as
    torch's) is of the targets in w alone: give what ``cross_entropy`` has. Without it a good teacher's error
    is near 0 and nearly every weight 1.

    H. Zhou et al., "Rethinking soft labels for knowledge distillation: a bias-variance tradeoff perspective",
    ICLR 2021, as the logit part of Z. Xu et al., "BKDSNN", ECCV 2024; temperature 2 and weight 1 are the
    official code's (weight 0.1 for Spikingformer on CIFAR10-DVS), where the transformers' targets are
    smoothed by 0.1 before they are weighed. A cross-entropy, not a divergence: where the student equals the
    teacher the gradient is zero, the value is not.

    Shape: logits (T, N, K), teacher (T', N, K), target (N,) or (N, K).

    Raises: SpikedistillError when the numbers of classes differ.

    YAML: ``{type: weighted_soft_labels, temperature: 2.0, label_smoothing: 0.1}``
    """

    cites = ("zhou2021rethinking", "xu2024bkdsnn")
    needs_teacher = True
    of_rates = True

    def __init__(
        self,
        temperature: float = 2.0,
        label_smoothing: float = 0.0,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not 0 <= label_smoothing < 1:
            raise refuse(self, f"label_smoothing must be in [0, 1), found {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.temperature = checked_temperature(self, temperature)

    def setup(self, setup: Setup) -> None:
        """Check that both have the same classes."""
        check_logits(self, setup)

    def forward(self, view: View) -> Tensor:
        return weighted_soft_label_loss(
            view.mean_logits, view.teacher_mean_logits, view.target, self.temperature, self.label_smoothing
        )
