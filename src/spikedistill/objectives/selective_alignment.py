"""SeAl-KD: each step learns from the teacher and from the other steps, but not what it got wrong."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Setup, View, Weight
from .divergence import soft_divergence
from .logits import check_classes
from .step_targets import StepTargets


def aligned(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Error-aware alignment of logits (..., K) with classes (...).

    Where the student is wrong, its wrong class and the true one become equal on both sides.

    Student: the logit of the class it chose becomes that of the true class. Teacher: both become the smaller
    of the two.
    """
    chosen = student.argmax(-1)
    wrong = (chosen != target).unsqueeze(-1)
    K = student.shape[-1]
    at_chosen, at_true = F.one_hot(chosen, K).bool(), F.one_hot(target, K).bool()
    student = torch.where(wrong & at_chosen, student.gather(-1, target.unsqueeze(-1)), student)
    least = torch.minimum(teacher.gather(-1, chosen.unsqueeze(-1)), teacher.gather(-1, target.unsqueeze(-1)))
    return student, torch.where(wrong & (at_chosen | at_true), least, teacher)


def other_steps(logits: Tensor) -> Tensor:
    """``sum_{s != t} w_ts z_s`` with ``w_t: = softmax_s(conf_s cos(z_t, z_s))``; (T, N, K) to the same.

    ``conf_s = 1 - H(softmax z_s) / ln K``; 1e-8 inside the entropy's logarithm is the official code's.
    """
    p = logits.softmax(-1)
    entropy = -(p * (p + 1e-8).log()).sum(-1)
    confidence = 1 - entropy / math.log(logits.shape[-1])  # (T, N)
    unit = F.normalize(logits, dim=-1)
    score = confidence * torch.einsum("tnk,snk->tsn", unit, unit)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device).unsqueeze(-1)
    # -inf before the softmax, so that the weights of the other steps sum to one.
    weights = score.masked_fill(own, -math.inf).softmax(1)
    return torch.einsum("tsn,snk->tnk", weights, logits)


class SelectiveAlignment(StepTargets):
    """``alpha mean_t KD(ELA(z_t), ELA(z_teacher)) + beta mean_t KD(z_t, sum_{s != t} w_ts z_s)``.

    KD is the softened divergence times tau^2. ELA, error-aware: where step t is wrong about a sample, the
    student's logit of the class it chose becomes that of the true class, and both of the teacher's the
    smaller of the two, so that nothing is taught about this pair. STA, among steps: ``w_t: = softmax_s(conf_s
    cos(z_t, z_s))``, ``conf = 1 - H/ln K``, without gradient; 0 at T = 1. Its cross-entropy is
    ``temporal_efficient_training``. With ``alpha: 0`` no teacher is needed.

    K. Sun, P. Duan, Y. Huang, G. Zhang, B. Smith, N. Gong, L. Kuhlmann, "Not all timesteps matter equally:
    selective alignment knowledge distillation for spiking neural networks" (SeAl-KD), 2026; tau = 3, alpha =
    0.6, beta = 0.15 are the paper's (the official code's defaults of alpha and beta are 0). Soft targets
    count as their largest class (ours).

    Shape: logits (T, N, K), teacher (T', N, K), target (N,) or (N, K).

    Raises: SpikedistillError when the numbers of classes differ.

    YAML: ``{type: selective_alignment, alpha: 0.6, beta: 0.15, temperature: 3.0}``
    """

    cites = ("sun2026not",)

    def __init__(
        self,
        alpha: float = 0.6,
        beta: float = 0.15,
        temperature: float = 3.0,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(alpha, beta, temperature, weight, name)
        if not self.alpha:
            self.least_steps = 2  # the other steps are all there is to learn from

    def setup(self, setup: Setup) -> None:
        """Check that both have the same classes, and more than one."""
        super().setup(setup)
        check_classes(self, setup)

    def forward(self, view: View) -> Tensor:
        z = view.logits
        loss = z.new_zeros(())
        if self.alpha > 0:
            hard = view.target if view.target.dim() == 1 else view.target.argmax(-1)
            student, teacher = aligned(z, view.teacher_mean_logits.expand_as(z), hard.expand(z.shape[:2]))
            loss = loss + self.alpha * soft_divergence(student, teacher, self.temperature)
        # At T = 1 a softmax over no other step would be NaN.
        if self.beta > 0 and len(z) > 1:
            loss = loss + self.beta * soft_divergence(z, other_steps(z.detach()), self.temperature)
        return loss
