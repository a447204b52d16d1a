"""Entropy regularisation of each step's prediction."""

from torch import Tensor
from torch.nn import functional as F

from .base import Objective, View, Weight
from .logits import checked_temperature


def mean_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``mean over all but the last dimension of H(softmax(z/tau))``, in nats."""
    log_p = F.log_softmax(logits / temperature, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()


class EntropyRegularization(Objective):
    """``-mean_t H(softmax(z_t))``: each step stays unsure enough not to repeat what the teacher gets wrong.

    The entropy term of K. Yu et al., "Temporal separation with entropy regularization for knowledge
    distillation in spiking neural networks", CVPR 2025, whose other terms are ``temporal_efficient_training``
    and ``logit_distillation`` with ``over: step``. The weight (the paper's gamma) is not public: 1 here, as
    everywhere; our recipes use 0.01, our choice. Temperature 1 is our reading.

    Shape: logits (T, N, K). Bounds: from -log K to 0.

    YAML: ``{type: entropy_regularization, weight: 0.01}``
    """

    cites = ("yu2025temporal",)

    def __init__(self, temperature: float = 1.0, weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.temperature = checked_temperature(self, temperature)

    def forward(self, view: View) -> Tensor:
        return -mean_entropy(view.logits, self.temperature)
