"""Stable Spike: spikes that two neighbouring steps share are what counts; no teacher."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .divergence import soft_divergence
from .heads import check_reads, classifier
from .logits import checked_temperature
from .pairs import as_map


def skeleton(spikes: Tensor) -> Tensor:
    """Mean over neighbouring steps of ``S_t AND S_t+1``: (T, N, ...) of 0 and 1 to (N, ...)."""
    return (spikes[:-1] * spikes[1:]).mean(0)


class StableSpike(Objective):
    """``beta mean (Phi~ - Phi)^2 + gamma tau^2 KL(softmax(z/tau) || softmax(z_n/tau))``.

    Spikes and prediction are stable. S are the 0/1 spikes before the head; ``Phi = mean_t S_t``, ``Phi~ =
    mean_t (S_t AND S_t+1)``, the stable skeleton; z the time-averaged logits, ``z_n = head(Phi~ + B)`` with B
    drawn from Bernoulli(Phi~) anew at each step (torch's generator). The first term draws spikes towards
    those that repeat, and so lowers their number; the second asks for equal predictions.

    Y. Ding, K. Yang, L. Li, Y. Zhang, M. Jing, L. Zuo, "Stable spike: dual consistency optimization via
    bitwise AND operations for spiking neural networks", CVPR 2026; tau = 2 and both weights 1 are the
    paper's. The equations are known from a digest, no code is public. Our reading: AND is the product (its
    gradient is the other step's spike); gradients go through both sides of both terms, but not through the
    draw; the head is the mean over positions and the linear classifier.

    Shape: capture (T, N, C, H, W) or (T, N, C) of 0 and 1, T at least 2; logits (T, N, K).

    Raises: SpikedistillError at T = 1, for a tap that gives other values than 0 and 1, or one that the
    classifier does not read through a global average.

    YAML: ``{type: stable_spike, beta: 1.0, gamma: 1.0, temperature: 2.0, tap: before_head}``
    """

    cites = ("ding2026stable",)
    least_steps = 2

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 2.0,
        tap: str = "before_head",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if beta < 0 or gamma < 0:
            raise refuse(self, f"beta and gamma must be at least 0, found {beta} and {gamma}")
        self.beta, self.gamma, self.tap, self.student_taps = beta, gamma, tap, (tap,)
        self.temperature = checked_temperature(self, temperature)
        self._head: list[nn.Linear] = []  # in a list: the student's, not this objective's

    def setup(self, setup: Setup) -> None:
        """Find the classifier; check that the tap gives the spikes that it reads."""
        spikes = setup.student[self.tap]
        self._check_spikes(spikes)
        head = classifier(self, setup.student_network)
        if as_map(self, spikes.mean(0)).shape[1] != head.in_features:
            raise refuse(
                self,
                f"tap {self.tap!r} has {as_map(self, spikes.mean(0)).shape[1]} channels and the classifier "
                f"reads {head.in_features} features; name the neuron layer whose average it reads",
            )
        self._head, self._seen = [head], False
        made = self.head(spikes.mean(0))
        check_reads(self, setup.student_network, self.tap, made, setup.logits.mean(0).to(made.dtype))

    def _check_spikes(self, spikes: Tensor) -> None:
        if not bool(((spikes == 0) | (spikes == 1)).all()):
            raise refuse(
                self, f"tap {self.tap!r} gives other values than 0 and 1; name a neuron layer before the head"
            )

    def head(self, rates: Tensor) -> Tensor:
        """Logits (N, K) of rates (N, C, ...)."""
        head = self._head[0]
        bias = None if head.bias is None else head.bias.to(rates.dtype)
        return F.linear(as_map(self, rates).mean((2, 3)), head.weight.to(rates.dtype), bias)

    def forward(self, view: View) -> Tensor:
        spikes = view.student[self.tap]
        # Setup may have seen a network without spikes. Looking costs a CPU nothing; a GPU is asked once.
        if not self._seen or spikes.device.type == "cpu":
            self._check_spikes(spikes.detach())
            self._seen = True
        stable = skeleton(spikes)
        loss = self.beta * ((stable - spikes.mean(0)) ** 2).mean()
        # Without the term nothing is drawn: the generator stays as other objectives find it.
        if self.gamma:
            noisy = self.head(stable + torch.bernoulli(stable.detach()))
            loss = loss + self.gamma * soft_divergence(noisy, view.mean_logits, self.temperature)
        return loss
