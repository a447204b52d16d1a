"""Output spike counts against targets."""

import torch
from torch import Tensor

from .base import Objective, Setup, View, Weight, refuse


def spike_count_loss(spikes: Tensor, target: Tensor, right: float = 1.0, wrong: float = 0.0) -> Tensor:
    """``mean (sum_t s_t - T r)^2 / T``, r the rate wanted: ``right`` for the label, ``wrong`` for the others.

    Shape: spikes (T, N, K), target (N,) or (N, K); mixed-up targets interpolate the rates.
    """
    T, _, K = spikes.shape
    if target.dim() == 1:
        target = torch.nn.functional.one_hot(target, K)
    rates = wrong + (right - wrong) * target.to(spikes.dtype)
    return ((spikes.sum(0) - T * rates) ** 2).mean() / T


class SpikeCount(Objective):
    """``mean_nk (sum_t s_t,nk - T r_nk)^2 / T``: counts of output spikes; needs ``head: spiking``.

    r is ``right`` for the label's neuron and ``wrong`` for the others. The objective of S. Arfa et al.,
    "Efficient deployment of spiking neural networks on SpiNNaker2 for DVS gesture recognition using
    neuromorphic intermediate representation", NICE 2025 (trained in snnTorch, whose ``mse_count_loss`` this
    equals); the rates are not public: 1 and 0 are our choice.

    Shape: logits (T, N, K) of spikes, target (N,) or (N, K).

    Raises: SpikedistillError when the head does not spike.

    YAML: ``{type: spike_count, right: 0.9, wrong: 0.1}``
    """

    cites = ("arfa2025efficient",)

    def __init__(
        self, right: float = 1.0, wrong: float = 0.0, weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if not 0 <= wrong < right <= 1:
            raise refuse(
                self, f"rates must be 0 <= wrong < right <= 1, found wrong {wrong} and right {right}"
            )
        self.right, self.wrong = right, wrong

    def setup(self, setup: Setup) -> None:
        """Refuse a head that does not spike."""
        if not bool(((setup.logits == 0) | (setup.logits == 1)).all()):
            raise refuse(self, "the student's outputs are not spikes; create it with head='spiking'")

    def forward(self, view: View) -> Tensor:
        return spike_count_loss(view.logits, view.target, self.right, self.wrong)
