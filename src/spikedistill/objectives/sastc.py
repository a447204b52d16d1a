"""SASTC: attention chooses, at each step, which teacher layers a student layer learns from."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .pairs import as_map


def gram(x: Tensor, size: int) -> Tensor:
    """Inner products of samples' features, ``(N, size)``, zeros where N < size. Shape: (N, ...)."""
    flat = x.flatten(1)
    return F.pad(flat @ flat.T, (0, size - x.shape[0]))


class Embedding(nn.Module):
    """Linear, ReLU, linear, then unit length: a sample's row of similarities as a query or key."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(size, 2 * out), nn.Linear(2 * out, out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, size) to (N, out)."""
        return F.normalize(self.linear2(F.relu(self.linear1(x))), dim=1)


def regressor(channels: int, target: int) -> nn.Sequential:
    """3x3 convolution, norm, ReLU, 1x1 convolution: a student's map in a teacher's channels."""
    wide = 2 * target
    return nn.Sequential(
        nn.Conv2d(channels, wide, 3, padding=1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(),
        nn.Conv2d(wide, target, 1, bias=False),
    )


def resized(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller size: a larger student is max-pooled, a larger teacher average-pooled."""
    if student.shape[-1] > teacher.shape[-1]:
        return F.adaptive_max_pool2d(student, (teacher.shape[-2], teacher.shape[-1])), teacher
    return student, F.adaptive_avg_pool2d(teacher, (student.shape[-2], student.shape[-1]))


class SpatioTemporalCalibration(Objective):
    """``sum_{t,b,i,j} a_t,b,i,j mse(r_ij(F_S,t,i), F_T,j) / (N T L_S)``: all student and teacher layers.

    Every student layer learns from every teacher layer. ``a_t,b,i,: = softmax_j(q_t,i . k_j)``; queries and
    keys are unit-length embeddings of the rows of the batch's Gram matrices of student feature i at step t
    and teacher feature j; r_ij brings the student's map to the teacher's channels; the larger of two maps is
    pooled (student: maximum, teacher: mean). Embeddings and regressors train with the student.

    D. Hong, Y. Wang, "Self-attentive spatio-temporal calibration for precise intermediate layer matching in
    ANN-to-SNN distillation" (SASTC), AAAI 2025, as in the official code, whose weight is 800 beside
    cross-entropy and ``logit_distillation`` at temperature 4. The embeddings' width is a quarter of
    ``batch_size`` (None: that of the first batch), as there; rows of a smaller batch are filled with zeros
    (ours: the code drops such batches). As an embedding reads its row column by column, the value depends on
    the order of the batch.

    Shape: student stages (T, N, C, H, W); teacher (T', N, C, H, W), averaged over T'.

    Raises: SpikedistillError for a batch larger than ``batch_size``.

    YAML: ``{type: spatio_temporal_calibration, weight: 800}``
    """

    cites = ("hong2025selfattentive",)
    needs_teacher = True

    def __init__(
        self,
        layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
        batch_size: int | None = None,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.student_taps = tuple(layers or ["stages"])
        self.teacher_taps = tuple(teacher_layers or layers or ["stages"])
        self.batch_size = batch_size
        self.queries, self.keys, self.regressors = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def setup(self, setup: Setup) -> None:
        """Build embeddings and regressors."""
        assert setup.teacher is not None
        size = self.batch_size = self.batch_size or setup.batch_size
        if size < 4:
            raise refuse(
                self, f"batch_size must be at least 4 (embeddings are a quarter of it), found {size}"
            )
        mine = [as_map(self, x[0]).shape[1] for x in self._all(setup.student, self.student_taps)]
        theirs = [as_map(self, x[0]).shape[1] for x in self._all(setup.teacher, self.teacher_taps)]
        self.queries = nn.ModuleList(Embedding(size, size // 4) for _ in mine)
        self.keys = nn.ModuleList(Embedding(size, size // 4) for _ in theirs)
        self.regressors = nn.ModuleList(nn.ModuleList(regressor(c, d) for d in theirs) for c in mine)

    @staticmethod
    def _all(captures: "object", taps: tuple[str, ...]) -> list[Tensor]:
        return [x for tap in taps for x in captures.all(tap).values()]  # type: ignore[attr-defined]

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        mine = self._all(view.student, self.student_taps)
        theirs = [as_map(self, x) for tap in self.teacher_taps for x in view.teacher.means(tap).values()]
        N, size = mine[0].shape[1], self.batch_size or 0
        # An embedding has `size` inputs: rows of a smaller batch can be filled up, longer ones not cut.
        if size < N:
            raise refuse(self, f"was set up for batches of {size} and got {N}; give batch_size: {N}")
        # Once: the teacher is averaged over time, its keys are those of every step.
        keys = torch.stack([key(gram(x, size)) for key, x in zip(self.keys, theirs)], 2)
        total = view.logits.new_zeros(())
        for t in range(mine[0].shape[0]):
            maps = [as_map(self, x[t]) for x in mine]
            queries = torch.stack([query(gram(x, size)) for query, x in zip(self.queries, maps)], 1)
            attention = (queries @ keys).softmax(-1)  # (N, L_S, L_T)
            for i, student in enumerate(maps):
                for j, teacher in enumerate(theirs):
                    s, target = resized(student, teacher)
                    errors = ((view.adapted(self.regressors[i][j], s) - target) ** 2).flatten(1).mean(1)  # type: ignore[index]
                    total = total + (attention[:, i, j] * errors).sum()
        return total / (N * mine[0].shape[0] * len(mine))
