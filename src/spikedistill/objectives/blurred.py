"""BKDSNN: blurred knowledge distillation of the feature before the head."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .base import Objective, Setup, View, Weight, refuse
from .pairs import as_map


def blur_mask(x: Tensor, ratio: float, form: str = "channel") -> Tensor:
    """0 with probability ``ratio``, else 1: per sample and channel (N, C, 1, 1), or position (N, 1, H, W).

    Drawn from torch's generator of the device, not rescaled.
    """
    N, C, H, W = x.shape
    shape = (N, C, 1, 1) if form == "channel" else (N, 1, H, W)
    # float32 always: with another default type the same seed would blur other channels.
    return (torch.rand(shape, device=x.device, dtype=torch.float32) >= ratio).to(x.dtype)


def restoration(channels: int) -> nn.Sequential:
    """The restoration block: 3x3 convolution, ReLU, 3x3 convolution, all with bias."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def blurred_feature_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, restore: Callable[[Tensor], Tensor], clip: bool = False
) -> Tensor:
    """``||G(M * F_S) - F_T||^2`` summed over a sample's elements, averaged over the batch.

    ``student`` is aligned already. A vector teacher is compared with the restored map's spatial mean.
    ``clip``: the teacher is first scaled to the student's range, ``F_T / max(F_T) * max(F_S)`` over the
    batch.

    Shape: student (N, C, H, W), teacher (N, C, H, W) or (N, C), mask broadcast to the student.
    """
    if clip:
        teacher = teacher / teacher.max() * student.max()
    restored = restore(mask * student)
    if teacher.dim() == 2:
        restored = restored.mean((2, 3))
    return ((restored - teacher) ** 2).sum() / student.shape[0]


class BlurredFeature(Objective):
    """``||G(M * align(F_S)) - F_T||^2 / N``: the student's blurred feature, restored, against the teacher's.

    F_S is the time average (``over: mean``) of the feature before the head, or each step's (``over: step``:
    loss and blur per step, averaged over T); align a 1x1 convolution where channels differ; M blurs (zeroes)
    channels, or positions (``blur: spatial``), with probability ``blur_ratio``, drawn anew at each step; G a
    3x3 convolution, ReLU, 3x3 convolution. Align and G train with the student and are gone at inference.
    ``tap: before_head`` (the map, the paper's mixed mode) or ``pooled`` (its feature-only mode). A teacher
    that gives a vector, such as a ViT, is compared with G's spatial mean; its tokens are a map. ``clip``
    scales the teacher to the student's range.

    Z. Xu, K. You, Q. Guo, X. Wang, Z. He, "BKDSNN: enhancing the performance of learning-based spiking neural
    networks training with blurred knowledge distillation", ECCV 2024. blur_ratio 0.15, no clip: the published
    configurations (the weights there: 7e-5 for ResNets on ImageNet, 2e-3 for most others). The spatial mask
    is a variant left out in the official code; ``over: step`` is ours.

    Shape: student capture (T, N, C, H, W) or tokens (T, N, L, D); teacher (T', N, C, H, W), tokens or vectors
    (T', N, C), averaged over T' unless ``over: step`` and T' = T.

    Raises: SpikedistillError when the maps differ in height or width.

    YAML: ``{type: blurred_feature, tap: before_head, blur_ratio: 0.15, weight: 0.002}``
    """

    cites = ("xu2024bkdsnn", "yang2022masked")
    needs_teacher = True

    def __init__(
        self,
        blur_ratio: float = 0.15,
        tap: str = "before_head",
        teacher_tap: str | None = None,
        blur: Literal["channel", "spatial"] = "channel",
        clip: bool = False,
        over: Literal["mean", "step"] = "mean",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not 0 <= blur_ratio < 1:
            raise refuse(self, f"blur_ratio must be in [0, 1), found {blur_ratio}")
        self.blur_ratio, self.blur, self.clip, self.over = blur_ratio, blur, clip, over
        self.of_rates = over == "mean"
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.student_taps, self.teacher_taps = (self.tap,), (self.teacher_tap,)
        self.align: nn.Module = nn.Identity()
        self.restore: nn.Module = nn.Identity()

    def setup(self, setup: Setup) -> None:
        """Build aligner and restoration block."""
        assert setup.teacher is not None
        student = as_map(self, setup.student[self.tap][0])
        teacher = self._target(setup.teacher[self.teacher_tap][0])
        c, d = student.shape[1], teacher.shape[1]
        if teacher.dim() == 4 and student.shape[-2:] != teacher.shape[-2:]:
            raise refuse(
                self,
                f"the student's map is {tuple(student.shape[1:])} and the teacher's "
                f"{tuple(teacher.shape[1:])} (C, H, W); name taps of equal height and width (tap, "
                "teacher_tap), or one where the teacher gives a vector",
            )
        self.align = nn.Conv2d(c, d, 1) if c != d else nn.Identity()
        self.restore = restoration(d)

    def _target(self, x: Tensor) -> Tensor:
        return x if x.dim() == 2 else as_map(self, x)

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        if self.over == "mean":
            student, teacher = view.student.mean(self.tap), view.teacher.mean(self.teacher_tap)
        else:
            student, teacher = view.student[self.tap], view.teacher[self.teacher_tap]
            if teacher.shape[0] != student.shape[0]:
                teacher = teacher.mean(0, keepdim=True).expand(student.shape[0], *teacher.shape[1:])
            # Steps become samples: each has a blur of its own, and the mean over samples is one over T too.
            student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
        aligned = view.adapted(self.align, as_map(self, student))
        mask = blur_mask(aligned, self.blur_ratio, self.blur)

        # A function, so that the equation needs to know nothing of precision.
        def restore(x: Tensor) -> Tensor:
            return view.adapted(self.restore, x)

        return blurred_feature_loss(aligned, self._target(teacher), mask, restore, self.clip)
