"""Cross-entropy, and the plain forms of logit distillation."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .divergence import soft_divergence


def logits_of(view: View, tap: str) -> Tensor:
    """Student logits (T, N, K): the network's own, or those of one head of several."""
    return view.logits if tap == "logits" else view.student[tap]


def checked_temperature(objective: Objective, temperature: float) -> float:
    """The temperature; raises unless it is more than 0."""
    if not temperature > 0:
        raise refuse(objective, f"temperature must be more than 0, found {temperature}")
    return temperature


def check_tap(objective: Objective, setup: Setup, tap: str) -> None:
    """Refuse a tap that gives no logits: maps and features would be compared with them by broadcasting."""
    if tap != "logits" and (z := setup.student[tap]).shape != setup.logits.shape:
        raise refuse(
            objective,
            f"tap {tap!r} gives {tuple(z.shape)}, where logits are {tuple(setup.logits.shape)} (T, N, "
            "classes); name a classifier",
        )


def check_logits(objective: Objective, setup: Setup) -> None:
    """Refuse a teacher with another number of classes."""
    assert setup.teacher_logits is not None
    mine, theirs = setup.logits.shape[-1], setup.teacher_logits.shape[-1]
    if mine != theirs:
        raise refuse(
            objective, f"the student has {mine} classes and the teacher {theirs}; logits cannot be compared"
        )


def check_classes(objective: Objective, setup: Setup) -> None:
    """Refuse a student of one class, whose logits have no spread."""
    if setup.logits.shape[-1] < 2:
        raise refuse(objective, "the student has 1 class, and it compares classes; give it at least 2")


class CrossEntropy(Objective):
    """Cross-entropy of the time-averaged logits: ``CE(mean_t z_t, y)``.

    ``tap``: one head of a network with several (``head`` of the HDKD student); default: the network's logits.
    ``label_smoothing`` as torch's: ``(1 - e) y + e/K``, of class numbers and of mixed-up targets alike.

    Shape: logits (T, N, K), target (N,) or (N, K).

    YAML: ``{type: cross_entropy, label_smoothing: 0.1}``
    """

    of_rates = True

    def __init__(
        self, label_smoothing: float = 0.0, tap: str = "logits", weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if not 0 <= label_smoothing < 1:
            raise refuse(self, f"label_smoothing must be in [0, 1), found {label_smoothing}")
        self.label_smoothing, self.tap = label_smoothing, tap
        self.student_taps = () if tap == "logits" else (tap,)

    def setup(self, setup: Setup) -> None:
        """Check that the tap gives logits."""
        check_tap(self, setup, self.tap)

    def forward(self, view: View) -> Tensor:
        z = logits_of(view, self.tap).mean(0)
        return F.cross_entropy(z, view.target, label_smoothing=self.label_smoothing)


class LogitDistillation(Objective):
    """The teacher's soft labels: ``tau^2 KL(softmax(z_teacher/tau) || softmax(z/tau))``; ``hard``: decisions.

    G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015. The (1 - alpha) CE +
    alpha KD of the literature is written with the weights of the two objectives. ``over``: "mean"
    (time-averaged student logits), "step" (each step against the teacher's mean, averaged over T), "both"
    (the average of the two). The teacher's logits are always averaged over its own T. Temperature 4 is our
    default: common in the SNN literature, Hinton names no single value.

    At temperature 4 and weight 1 this term starts at several times the cross-entropy and decides a short
    training: see docs/methods.md for milder settings.

    ``hard``: ``CE(z, argmax z_teacher)``, and ``reduction: elements``: the divergence summed and divided by
    N*K instead of N, on a head of its own (``tap``), are the forms of H. Touvron et al., "Training
    data-efficient image transformers & distillation through attention", ICML 2021, used by HDKD.

    Shape: logits (T, N, K), teacher (T', N, K).

    Raises: SpikedistillError when the numbers of classes differ, and for a temperature or reduction of
    ``hard`` labels.

    YAML: ``{type: logit_distillation, temperature: 4.0, over: mean, weight: 1.0}``
    """

    cites: tuple[str, ...] = ("hinton2015distilling",)
    needs_teacher = True

    def __init__(
        self,
        temperature: float = 4.0,
        over: Literal["mean", "step", "both"] = "mean",
        hard: bool = False,
        reduction: Literal["batch", "elements"] = "batch",
        tap: str = "logits",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.temperature = checked_temperature(self, temperature)
        if hard and (reduction == "elements" or temperature != 4.0):
            raise refuse(
                self, "hard labels know neither temperature nor reduction; leave these out, or hard: true"
            )
        self.over, self.hard, self.reduction, self.tap = over, hard, reduction, tap
        self.of_rates = over == "mean"
        self.student_taps = () if tap == "logits" else (tap,)
        if hard or reduction == "elements" or tap != "logits":
            self.cites = ("hinton2015distilling", "touvron2021deit")

    def setup(self, setup: Setup) -> None:
        """Check that both have the same classes."""
        check_logits(self, setup)
        check_tap(self, setup, self.tap)

    def forward(self, view: View) -> Tensor:
        z, teacher = logits_of(view, self.tap), view.teacher_mean_logits
        parts = []
        if self.over != "step":
            parts.append(self.loss(z.mean(0), teacher))
        if self.over != "mean":
            parts.append(self.loss(z, teacher.expand_as(z)))
        return torch.stack(parts).mean()

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance of logits (..., K) from a teacher's of the same shape."""
        if self.hard:
            # Steps beside samples: cross_entropy looks for classes in the second dimension.
            return F.cross_entropy(student.flatten(0, -2), teacher.flatten(0, -2).argmax(-1))
        loss = soft_divergence(student, teacher, self.temperature)
        return loss / student.shape[-1] if self.reduction == "elements" else loss
