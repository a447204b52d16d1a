"""Attention maps of spiking transformers, against a teacher's."""

from math import isqrt
from typing import Any

from torch import Tensor, nn

from ..taps import attention_paths
from .attention import LEAST
from .base import Objective, Setup, View, Weight, refuse
from .pairs import PREFIX


def queries_and_keys(captured: list[Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (T, N, heads, d, L) of one attention, from its ``q`` and ``k`` or its joint ``qkv``.

    Shape: ``q``, ``k`` (T, N, C, H, W) or (T, N, C, L); ``qkv`` (T, N, L, 3 C).
    """
    if len(captured) == 2:
        q, k = (x.flatten(3).unflatten(2, (heads, -1)) for x in captured)
        return q, k
    q, k, _ = captured[0].unflatten(3, (3, heads, -1)).unbind(3)
    return q.movedim(2, -1), k.movedim(2, -1)


def attention_matrix(q: Tensor, k: Tensor) -> Tensor:
    """``A_ij = mean_t q_i . k_j / d`` of each head, divided by its Frobenius norm.

    (T, N, heads, d, L) to (N, heads, L, L). The norm counts as at least that of a map whose queries and keys
    have rates of 1/256, so that a nearly silent head has no large gradient.
    """
    d, L = q.shape[-2:]
    # Multiplied step by step, as the network does, then averaged: not the product of averages.
    A = (q.transpose(-2, -1) @ k).mean(0) / d
    return A / A.flatten(-2).norm(dim=-1).clamp_min(LEAST**2 * L)[..., None, None]


class AttentionMapDistillation(Objective):
    """``mean_l mean_n,h ||A_S / ||A_S|| - A_T / ||A_T|| ||^2``: a transformer's attention and a teacher's.

    ``A = mean_t q^T k / d`` of one head over all pairs of tokens, Frobenius norms; queries and keys are
    spikes in the student, whatever enters the product in the teacher (in the ANN twin behind ReLU; of a joint
    ``qkv`` its output, before any softmax). Blocks pair in order, with unequal depth block i of L with the
    teacher's ``ceil((i + 1) L_T / L) - 1``. Where heads differ in number, both sides' maps are averaged over
    theirs.

    After X. Qiu et al., "Quantized spike-driven transformer" (QSD-Transformer), ICLR 2025, which aligns the
    distribution in the quantized self-attention with that in the ANN by a "fine-grained distillation"; its
    official code has no distillation. Maps, normalisation, distance, pairing and weight are ours.

    Shape: queries and keys of every attention of both, of equal numbers of tokens L.

    Raises: SpikedistillError for a network without attention, or maps of different sizes.

    YAML: ``{type: attention_map_distillation, weight: 1.0}``
    """

    cites = ("qiu2025quantized",)
    needs_teacher = True
    student_taps = ("attention",)
    teacher_taps = ("attention",)

    def __init__(self, weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self._heads: tuple[list[int], list[int]] = ([], [])

    def setup(self, setup: Setup) -> None:
        """Note each side's heads; check that maps correspond."""
        assert setup.teacher is not None
        assert setup.teacher_network is not None
        self._heads = heads_of(setup.student_network), heads_of(setup.teacher_network)
        student = self.maps(list(setup.student.all("attention").values()), self._heads[0])
        teacher = self.maps(list(setup.teacher.all("attention").values()), self._heads[1])
        for i, j in pairs(len(student), len(teacher)):
            matched(self, student[i], teacher[j])

    @staticmethod
    def maps(captured: list[Tensor], heads: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys of each attention."""
        each = len(captured) // len(heads)
        return [queries_and_keys(captured[i * each : (i + 1) * each], h) for i, h in enumerate(heads)]

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        student = self.maps(list(view.student.all("attention").values()), self._heads[0])
        teacher = self.maps(list(view.teacher.all("attention").values()), self._heads[1])
        total = view.logits.new_zeros(())
        for i, j in pairs(len(student), len(teacher)):
            mine, theirs = matched(self, student[i], teacher[j])
            total = total + ((mine - theirs) ** 2).sum((-2, -1)).mean()
        return total / len(student)


def heads_of(network: nn.Module) -> list[int]:
    """Heads of every attention, in the order of the tap ``attention``."""
    modules: list[Any] = [network.get_submodule(path) for path in attention_paths(network)]
    # heads: our networks'; num_heads: timm's.
    return [m.heads if hasattr(m, "heads") else m.num_heads for m in modules]


def pairs(mine: int, theirs: int) -> list[tuple[int, int]]:
    """Block i with the teacher's block at the same depth, the last with the last."""
    return [(i, -(-(i + 1) * theirs // mine) - 1) for i in range(mine)]


def patches(x: Tensor) -> Tensor:
    """Without the tokens that stand before the largest square map: (..., L) to (..., H*W)."""
    extra = x.shape[-1] - isqrt(x.shape[-1]) ** 2
    return x[..., extra:] if extra <= PREFIX else x


def matched(
    objective: Objective, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Both sides' maps (N, heads, L, L) at equal L and heads."""
    # Maps of equal size are compared whole, class tokens too; of others the patches alone can correspond.
    if student[0].shape[-1] != teacher[0].shape[-1]:
        student = patches(student[0]), patches(student[1])
        teacher = patches(teacher[0]), patches(teacher[1])
    mine, theirs = attention_matrix(*student), attention_matrix(*teacher)
    if mine.shape[-1] != theirs.shape[-1]:
        raise refuse(
            objective,
            f"the student attends to {mine.shape[-1]} tokens and the teacher to {theirs.shape[-1]}; "
            "give networks with equal maps (a Spikformer's `pools`, an HDKD network's `image_size`)",
        )
    if mine.shape[1] != theirs.shape[1]:
        mine, theirs = mine.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    return mine, theirs
