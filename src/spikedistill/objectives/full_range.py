"""Full-range distillation: one student that is good at every number of time steps up to its own."""

from typing import Literal

from torch import Tensor

from .base import View, Weight
from .divergence import soft_divergence
from .step_targets import StepTargets


def ensemble(logits: Tensor, target: Tensor, of: str = "all") -> Tensor:
    """The mean of all steps' logits, or ("correct") of the steps that classify a sample correctly; (N, K).

    A sample that no step classifies correctly has the logits 0, that is the uniform distribution, as in the
    official code.
    """
    if of == "all":
        return logits.mean(0)
    hard = target if target.dim() == 1 else target.argmax(-1)
    right = (logits.argmax(-1) == hard).to(logits.dtype).unsqueeze(-1)
    return (right * logits).sum(0) / (right.sum(0) + 1e-8)


class FullRangeDistillation(StepTargets):
    """``alpha mean_t KD(z_t, z_teacher) + beta mean_t KD(z_t, ensemble)``, KD softened, times tau^2.

    C. Yu et al., "Efficient logit-based knowledge distillation of deep spiking neural networks for full-range
    timestep deployment", ICML 2025: each step is taught separately, by the teacher and by the ensemble of the
    student's own steps (without gradient). Its cross-entropy term is ``temporal_efficient_training``. alpha =
    0.2, beta = 0.5, tau = 3 are the official code's. The two readings of "ensemble": "all" is the paper's,
    the mean over all steps; "correct" is the code's, the mean over the steps that classify the sample
    correctly. With ``alpha: 0`` no teacher is needed.

    Shape: logits (T, N, K), teacher (T', N, K), target (N,) or (N, K).

    Raises: SpikedistillError when the numbers of classes differ.

    YAML: ``{type: full_range_distillation, alpha: 0.2, beta: 0.5, temperature: 3.0, ensemble: all}``
    """

    cites = ("yu2025efficient",)

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.5,
        temperature: float = 3.0,
        ensemble: Literal["all", "correct"] = "all",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(alpha, beta, temperature, weight, name)
        self.ensemble = ensemble

    def forward(self, view: View) -> Tensor:
        z = view.logits
        own = ensemble(z.detach(), view.target, self.ensemble)
        loss = self.beta * soft_divergence(z, own.expand_as(z), self.temperature)
        if self.alpha > 0:
            loss = loss + self.alpha * soft_divergence(
                z, view.teacher_mean_logits.expand_as(z), self.temperature
            )
        return loss
