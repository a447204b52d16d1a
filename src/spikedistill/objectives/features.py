"""Distillation of features: direct (HDKD), or through an aligner (KDSNN, SAKD)."""

from typing import Literal

from torch import Tensor, nn

from .base import Objective, Setup, View, Weight, refuse
from .pairs import Layers, as_map, paired, taps_of

Aligner = Literal["none", "conv1x1", "conv1x1_bn", "conv3x3_bn"]


def feature_loss(student: Tensor, teacher: Tensor, reduction: str = "mean") -> Tensor:
    """``mean (F_S - F_T)^2`` ("mean"), or its sum over a sample, averaged ("batch"). Shape: (N, C, H, W)."""
    squared = (student - teacher) ** 2
    return squared.mean() if reduction == "mean" else squared.sum() / squared.shape[0]


def aligner(kind: str, channels: int, target: int) -> nn.Module:
    """The student's trainable way to the teacher's channels."""
    if kind == "conv1x1":
        return nn.Conv2d(channels, target, 1)
    if kind in ("conv1x1_bn", "conv3x3_bn"):
        size = int(kind[4])
        return nn.Sequential(
            nn.Conv2d(channels, target, size, padding=size // 2, bias=False), nn.BatchNorm2d(target)
        )
    return nn.Identity()


class FeatureDistillation(Objective):
    """Squared difference of time-averaged features: ``sum_i i^a mean (align_i(F_S,i) - F_T,i)^2``, i from 1.

    - HDKD (O. El-Assiouti et al., EAAI 2024): stages, no aligner, a = 1 (``stage_exponent``), weight 10; the
      defaults.
    - KDSNN (Q. Xu et al., CVPR 2023): one feature, ``aligner: conv1x1``; the paper's exact projection and
      weights are not public.
    - SAKD (H. Qiu et al., Neural Networks 2024): stages, a = 0; ``aligner: conv3x3_bn`` for CIFAR's
      ResNet-18, ``conv1x1_bn`` for ResNet-19 and ImageNet, both without bias; weight 100 on CIFAR throughout;
      on ImageNet 10, then 0.01 from epoch 10 of 120 on, as in ``weight: {start: 10, end: 0.01, shape: step,
      at: 0.083}`` (the official code counts batches where epochs are meant).

    ``layers`` as in ``attention_transfer``. ``reduction``: "mean" over all elements, or "batch": summed over
    a sample's elements, averaged over the batch.

    Shape: captures (T, N, C, H, W) or tokens (T, N, L, D).

    Raises: SpikedistillError when two features differ in size (in channels only where there is no aligner).

    YAML: ``{type: feature_distillation, aligner: none, stage_exponent: 1.0, weight: 10}``
    """

    cites = ("elassiouti2024hdkd",)
    needs_teacher = True
    of_rates = True

    def __init__(
        self,
        layers: Layers = "stages",
        aligner: Aligner = "none",
        stage_exponent: float = 1.0,
        reduction: Literal["mean", "batch"] = "mean",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.layers, self.aligner, self.reduction = layers, aligner, reduction
        self.stage_exponent = stage_exponent
        self.student_taps, self.teacher_taps = taps_of(layers)
        self.aligners = nn.ModuleList()
        if aligner == "conv1x1":
            self.cites = ("xu2023constructing",)
        elif aligner != "none":
            self.cites = ("qiu2024selfarchitectural",)

    def setup(self, setup: Setup) -> None:
        """Build one aligner for each pair; refuse sizes that do not fit."""
        assert setup.teacher is not None
        self.aligners = nn.ModuleList()
        for pair in paired(self, self.layers, setup.student, setup.teacher):
            s, t = as_map(self, pair.student).shape[1:], as_map(self, pair.teacher).shape[1:]
            if s[1:] != t[1:]:
                raise refuse(
                    self,
                    f"{pair.names} are {tuple(s)} and {tuple(t)} (C, H, W); name pairs of equal height and "
                    "width",
                )
            if s[0] != t[0] and self.aligner == "none":
                raise refuse(
                    self,
                    f"{pair.names} have {s[0]} and {t[0]} channels; give aligner: conv1x1 or conv3x3_bn, "
                    "or name other pairs",
                )
            self.aligners.append(aligner(self.aligner, s[0], t[0]))

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        total = view.logits.new_zeros(())
        pairs = paired(self, self.layers, view.student, view.teacher)
        for i, (pair, align) in enumerate(zip(pairs, self.aligners), 1):
            loss = feature_loss(
                view.adapted(align, as_map(self, pair.student)), as_map(self, pair.teacher), self.reduction
            )
            total = total + i**self.stage_exponent * loss
        return total
