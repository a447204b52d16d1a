"""MD-SNN: distillation of membrane potentials from a full-precision SNN."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..neurons.over_time import mean_square
from .base import Objective, Setup, View, Weight, refuse
from .divergence import soft_divergence
from .logits import checked_temperature

Pairing = Literal["mean", "first", "spread"]


def pair_steps(student: Tensor, teacher: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
    """Bring membranes of different T together: (T, ...) and (T', ...) to two of equal T.

    Equal T: step by step. "mean": each averaged over its own steps; "first": the teacher's first steps;
    "spread": student step t with the teacher's step floor((t + 1/2) T'/T).
    """
    T, many = student.shape[0], teacher.shape[0]
    if many == T:
        return student, teacher
    if pairing == "mean":
        return student.mean(0, keepdim=True), teacher.mean(0, keepdim=True)
    if pairing == "first":
        return student, teacher[:T]
    # In integers: rounding of (t + 1/2) T'/T could fall short of a whole step.
    index = [((2 * t + 1) * many) // (2 * T) for t in range(T)]
    return student, teacher[index]


def membrane_distance(
    student: Tensor, teacher: Tensor, metric: str = "mse", temperature: float = 1.0
) -> Tensor:
    """Distance of membranes (T, N, C, ...) of one layer.

    "mse": mean squared difference; "cosine": 1 - cosine similarity of the channel vectors, averaged; "kl":
    divergence of the distributions softened over channels, times tau^2, averaged.
    """
    if metric == "mse":
        # One operation: ((student - teacher) ** 2).mean() would also keep the difference of all T steps.
        return mean_square(student, teacher)
    if metric == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=2)).mean()
    return soft_divergence(student.movedim(2, -1), teacher.movedim(2, -1), temperature)


def deviation(teacher: Tensor, threshold: float) -> Tensor:
    """Deviation of the teacher's membranes by channel, at least 1/100 of the threshold; (1, 1, C, 1, ...)."""
    dims = [d for d in range(teacher.dim()) if d != 2]
    # At least: a channel that never moves would divide by 0.
    return teacher.std(dims, keepdim=True, correction=0).clamp_min(0.01 * threshold)


class MembraneDistillation(Objective):
    """``mean_l mean (H_S,l / theta_S,l - H_T,l / theta_T,l)^2``: charged membranes, against a float SNN.

    H is the membrane after charging, before the spike is drawn; theta the layer's threshold. ``layers``:
    paths of neuron layers; None: all. ``normalize``: "threshold" (each side by its own), "none", "deviation"
    (both by the teacher's per-channel standard deviation). ``metric``: "mse", "cosine" or "kl" over channels
    (with ``temperature``). With equal T step by step; else ``pairing``: "mean" (each side averaged over its
    own steps), "first" (the teacher's first steps), "spread" (student step t with teacher step floor((t +
    1/2) T'/T)). A student initialised from a teacher with another T wants its norm statistics recalibrated
    first.

    After D. Lee, A. Moitra, Y. Kim, R. Yin, P. Panda, "MD-SNN: membrane potential-aware distillation on
    quantized spiking neural network", DATE 2026, which distils membrane potentials and logits of a T = 4
    teacher into quantized students at T = 1 to 4. The form of its membrane term, its normalisation, layers
    and weights are not public: every default is our reading.

    Shape: membranes (T, N, C, ...), teacher (T', N, C, ...). Units: thresholds.

    Raises: SpikedistillError for an ANN teacher, layers that do not correspond, or ``pairing: first`` with a
    teacher that has fewer steps than the student.

    YAML: ``{type: membrane_distillation, normalize: threshold, pairing: mean, weight: 1.0}``
    """

    cites = ("lee2026mdsnn",)
    needs_teacher = True

    def __init__(
        self,
        layers: list[str] | None = None,
        normalize: Literal["threshold", "none", "deviation"] = "threshold",
        metric: Literal["mse", "cosine", "kl"] = "mse",
        pairing: Pairing = "mean",
        temperature: float = 1.0,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.layers, self.normalize, self.metric, self.pairing = layers, normalize, metric, pairing
        self.temperature = checked_temperature(self, temperature)
        self.student_taps = tuple(f"{path}@membrane" for path in layers) if layers else ("*@membrane",)
        self.teacher_taps = self.student_taps

    def setup(self, setup: Setup) -> None:
        """Refuse layers that do not correspond."""
        assert setup.teacher is not None
        for tap in self.student_taps:
            mine, theirs = setup.student.all(tap), setup.teacher.all(tap)
            if set(mine) != set(theirs):
                odd = ", ".join(sorted(set(mine) ^ set(theirs))[:4])
                raise refuse(
                    self, f"student and teacher differ in neuron layers ({odd}); name common ones in `layers`"
                )
            for name, h in mine.items():
                if h.shape[1:] != theirs[name].shape[1:]:
                    raise refuse(
                        self,
                        f"{name} is {tuple(h.shape[2:])} in the student and {tuple(theirs[name].shape[2:])} "
                        "in the teacher; name layers of equal size in `layers`",
                    )
                if self.pairing == "first" and theirs[name].shape[0] < h.shape[0]:
                    raise refuse(
                        self,
                        f"the student has T = {h.shape[0]} and the teacher T = {theirs[name].shape[0]}; "
                        "use pairing: mean or spread",
                    )

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        parts = []
        for tap in self.student_taps:
            theirs = view.teacher.all(tap)
            for name, h in view.student.all(tap).items():
                scales = view.student.thresholds[name], view.teacher.thresholds[name]
                parts.append(self.layer_loss(h, theirs[name], *scales))
        return torch.stack(parts).mean()

    def layer_loss(
        self, student: Tensor, teacher: Tensor, threshold: float, teacher_threshold: float
    ) -> Tensor:
        """The distance of one layer's membranes."""
        if self.normalize == "threshold":
            # Dividing by 1 would still copy the membranes of all steps.
            student = student if threshold == 1 else student / threshold
            teacher = teacher if teacher_threshold == 1 else teacher / teacher_threshold
        elif self.normalize == "deviation":
            # Before steps are paired: of all the teacher's steps, whichever are kept.
            scale = deviation(teacher, teacher_threshold)
            student, teacher = student / scale, teacher / scale
        student, teacher = pair_steps(student, teacher, self.pairing)
        return membrane_distance(student, teacher, self.metric, self.temperature)
