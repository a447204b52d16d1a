"""LaSNN: layer-wise attention transfer from an ANN."""

from torch import Tensor
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .pairs import Layers, as_map, paired, taps_of

LEAST = 1 / 256  # a map counts as at least as strong as one whose every value has this rate


def attention_map(
    x: Tensor, p: float = 2.0, size: tuple[int, int] | None = None, eps: float | None = None
) -> Tensor:
    """``A / max(||A||_2, eps)`` with ``A = mean_c |F_c|^p``, pooled (mean) to ``size``; a dead map gives 0.

    ``eps`` None: the norm of a map whose every value is 1/256. Shape: (N, C, H, W) to (N, H*W).
    """
    a = x.abs().pow(p).mean(1, keepdim=True)
    if size is not None and size != tuple(a.shape[-2:]):
        a = F.adaptive_avg_pool2d(a, size)
    a = a.flatten(1)
    return F.normalize(a, dim=1, eps=LEAST**p * a.shape[1] ** 0.5 if eps is None else eps)


def attention_loss(student: Tensor, teacher: Tensor, p: float = 2.0, eps: float | None = None) -> Tensor:
    """Mean over batch and positions of the squared difference of attention maps; the larger map is pooled."""
    size = (min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1]))
    return ((attention_map(student, p, size, eps) - attention_map(teacher, p, size, eps)) ** 2).mean()


class AttentionTransfer(Objective):
    """Layer-wise attention transfer after LaSNN: ``sum_j w_j mean (A_j(student) - A_j(teacher))^2``.

    ``A_j = mean_c |F_jc|^p`` over the map's positions, divided by its L2 norm, or by ``epsilon`` where that
    is more: a dead map gives 0. ``epsilon`` None (default): the norm of a map whose every value is 1/256.
    Without it the gradient grows as 1 / rate while a map dies (10^4 times as large at a rate of 1e-5 as at
    0.1); with it, it is at most that at a rate of 1/256, and stronger maps are untouched. F is the time
    average: of spikes in the student, before the power; of MS networks the residual stream, on both sides,
    when stages are paired. ``layers``: "stages" (stage i with stage i), "names" (neuron layers of equal
    path), a list of taps, or a mapping of student tap to teacher tap; the larger of two maps is
    average-pooled.

    D. Hong, J. Shen, Y. Qi, Y. Wang, "LaSNN: layer-wise ANN-to-SNN distillation for effective and efficient
    training in deep spiking neural networks", 2023, distils with "an attention scheme"; its exact form, p,
    layers and weights are not public, so this is attention transfer after LaSNN, not LaSNN itself. The
    formula and p = 2 are those of S. Zagoruyko, N. Komodakis, "Paying more attention to attention", ICLR
    2017, whose official weight is 1000 and epsilon 1e-12.

    Shape: captures (T, N, C, H, W) or tokens (T, N, L, D), teacher likewise.

    Raises: SpikedistillError when stages or names do not correspond, or weights and pairs differ in number.

    YAML: ``{type: attention_transfer, layers: stages, p: 2, weight: 1000}``
    """

    cites = ("hong2023lasnn", "zagoruyko2017paying")
    needs_teacher = True
    of_rates = True

    def __init__(
        self,
        layers: Layers = "stages",
        p: float = 2.0,
        epsilon: float | None = None,
        layer_weights: list[float] | None = None,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not p >= 1:
            raise refuse(
                self, f"p must be at least 1 (below, the gradient at a silent neuron is infinite), found {p}"
            )
        if epsilon is not None and not epsilon > 0:
            raise refuse(self, f"epsilon must be more than 0, found {epsilon}")
        self.layers, self.p, self.epsilon, self.layer_weights = layers, p, epsilon, layer_weights
        self.student_taps, self.teacher_taps = taps_of(layers)

    def setup(self, setup: Setup) -> None:
        """Check that layers correspond."""
        assert setup.teacher is not None
        pairs = paired(self, self.layers, setup.student, setup.teacher)
        if self.layer_weights is not None and len(self.layer_weights) != len(pairs):
            raise refuse(
                self,
                f"{len(self.layer_weights)} layer_weights for {len(pairs)} pairs of layers; give one each",
            )
        for pair in pairs:
            # Only for what it refuses, before training.
            as_map(self, pair.student), as_map(self, pair.teacher)

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        pairs = paired(self, self.layers, view.student, view.teacher)
        total = view.logits.new_zeros(())
        for w, pair in zip(self.layer_weights or [1.0] * len(pairs), pairs):
            loss = attention_loss(
                as_map(self, pair.student), as_map(self, pair.teacher), self.p, self.epsilon
            )
            total = total + w * loss
        return total
