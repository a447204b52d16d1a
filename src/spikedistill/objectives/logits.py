"""Objectives on logits: cross-entropy and the plain forms of logit distillation."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Objective, View, Weight, refuse


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``tau^2 KL(softmax(teacher/tau) || softmax(student/tau))``, mean over all but the last dimension (K)."""
    log_p = F.log_softmax(teacher / temperature, -1)
    log_q = F.log_softmax(student / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


class CrossEntropy(Objective):
    """Cross-entropy of the time-averaged logits: ``CE(mean_t z_t, y)``.

    Shape: logits (T, N, K), target (N,) or (N, K). ``label_smoothing`` as torch's.

    YAML: ``{type: cross_entropy, label_smoothing: 0.1}``
    """

    def __init__(self, label_smoothing: float = 0.0, weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if not 0 <= label_smoothing < 1:
            raise refuse(self, f"label_smoothing must be in [0, 1), found {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, view: View) -> Tensor:
        return F.cross_entropy(view.mean_logits, view.target, label_smoothing=self.label_smoothing)


class TemporalEfficientTraining(Objective):
    """``(1 - lamb) mean_t CE(z_t, y) + lamb MSE(z, phi)``: the cross-entropy at each time step.

    Deng et al., "Temporal efficient training of spiking neural network via gradient re-weighting", ICLR 2022; lamb is the
    paper's lambda, phi the constant of its regulariser (the official code's ``means``, 1.0). The default lamb = 0 leaves the
    regulariser out; the paper's lambda differs by data set.
    Shape: logits (T, N, K), target (N,) or (N, K).

    YAML: ``{type: temporal_efficient_training, lamb: 0.05}``
    """

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
        self.lamb, self.phi, self.label_smoothing = lamb, phi, label_smoothing

    def forward(self, view: View) -> Tensor:
        loss = torch.stack(
            [F.cross_entropy(z, view.target, label_smoothing=self.label_smoothing) for z in view.logits]
        ).mean()
        if not self.lamb:
            return loss
        return (1 - self.lamb) * loss + self.lamb * ((view.logits - self.phi) ** 2).mean()


class LogitDistillation(Objective):
    """``tau^2 KL(softmax(z_teacher/tau) || softmax(z/tau))``: the teacher's soft labels.

    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015. The (1 - alpha) CE + alpha KD of the
    literature is written with the weights of the two objectives. ``over``: "mean" (time-averaged student logits), "step"
    (each step's logits against the teacher's mean, averaged over T), "both" (their average). The teacher's logits are always
    averaged over its own T. Default temperature 4 (common in the SNN literature; Hinton names no single value).
    Shape: logits (T, N, K), teacher (T', N, K).

    YAML: ``{type: logit_distillation, temperature: 4.0, over: mean, weight: 1.0}``
    """

    needs_teacher = True

    def __init__(
        self,
        temperature: float = 4.0,
        over: Literal["mean", "step", "both"] = "mean",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not temperature > 0:
            raise refuse(self, f"temperature must be more than 0, found {temperature}")
        if over not in ("mean", "step", "both"):
            raise refuse(self, f"over must be 'mean', 'step' or 'both', found {over!r}")
        self.temperature, self.over = temperature, over

    def forward(self, view: View) -> Tensor:
        teacher = view.teacher_mean_logits
        mean = soft_divergence(view.mean_logits, teacher, self.temperature) if self.over != "step" else None
        step = (
            soft_divergence(view.logits, teacher.expand_as(view.logits), self.temperature)
            if self.over != "mean"
            else None
        )
        if mean is not None and step is not None:
            return (mean + step) / 2
        return mean if mean is not None else step  # type: ignore[return-value]
