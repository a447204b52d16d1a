"""MD-SNN: distillation of membrane potentials."""

from typing import Literal

import torch
from torch import Tensor

from .base import Objective, Setup, View, Weight, refuse


class MembraneDistillation(Objective):
    """Mean squared difference of charged membranes, layer by layer, student against a full-precision SNN teacher.

    Placeholder equation text is completed in this file's tests: ``mean_l mean((H_S/th_S - H_T/th_T)^2)``.
    """

    needs_teacher = True

    def __init__(
        self,
        layers: list[str] | None = None,
        pairing: Literal["mean", "first", "spread"] = "mean",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.layers, self.pairing = layers, pairing
        taps = tuple(f"{path}@membrane" for path in layers) if layers else ("*@membrane",)
        self.student_taps = self.teacher_taps = taps

    def setup(self, setup: Setup) -> None:
        """Refuse layers that do not correspond."""
        assert setup.teacher is not None
        for tap in self.student_taps:
            mine, theirs = setup.student.all(tap), setup.teacher.all(tap)
            if set(mine) != set(theirs):
                raise refuse(self, f"student and teacher differ in layers: {sorted(set(mine) ^ set(theirs))[:4]}")

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        parts = []
        for tap in self.student_taps:
            theirs = view.teacher.all(tap)
            for name, h in view.student.all(tap).items():
                a, b = h / view.student.thresholds[name], theirs[name].detach() / view.teacher.thresholds[name]
                if a.shape[0] != b.shape[0]:
                    a, b = a.mean(0), b.mean(0)
                parts.append(((a - b) ** 2).mean())
        return torch.stack(parts).mean()
