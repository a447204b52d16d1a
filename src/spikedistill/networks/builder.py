"""Makes the parts of a network: SNN or ANN twin from the same calls, balanced at the start or plain."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import IF, LIF, QCFS, Neuron, NormNeuron, Parallel, Repeat, Surrogate, build
from .balanced import HEAD_INPUT, Balance, attention_threshold, balance_of
from .base import Network

# A 3x3 max-pool over neighbours on a map, which are correlated, is one over about six independent values:
# mean and deviation of the largest of six standard normals.
POOLED_PLACES = 6
POOLED_MEAN, POOLED_DEVIATION = 1.27, 0.64
# What networks without a paper's neuron take: over T steps it fires as often as its current, rounded and cut
# to 0 ... T thresholds, says. Nearest to ReLU of those measured (docs/networks.md).
COUNTING = IF(reset="soft", initial=0.5)


def usual_neuron(head: str) -> Neuron:
    """Of networks without a paper's neuron: counting IF, or LIF where the classifier's spikes are the logits.

    Classifiers of counting neurons learn less well (digits, T = 8, spike counts as targets, one seed: 48 %,
    with LIF 94).
    """
    return LIF() if head == "spiking" else COUNTING


class Builder:
    """The parts of one network.

    ``norm_neuron(channels)`` is a :class:`NormNeuron`; ``activation()`` a neuron alone; the first one asked
    for with ``first=True`` is the encoding neuron where the network's stem runs once. ``neuron`` is the
    user's choice, ``default`` the family's. ``residual``: blocks add the spikes that entered them to their
    last neuron's current; ``gain``: of the gradients' variance in a layer (None: the usual); ``firing_rate``:
    the family's own aim, where the user names none (None: the usual).

    A balanced network (``network.initialisation``, see :mod:`.balanced`) starts its norms so that neurons
    fire at the network's firing rate and gradients neither vanish nor explode; where the user names no
    surrogate it gets the rectangular one of the width that follows. A plain one starts as an ANN does.
    """

    def __init__(
        self,
        network: Network,
        neuron: "nn.Module | Mapping[str, Any] | None" = None,
        default: Neuron | None = None,
        residual: bool = False,
        gain: float | None = None,
        firing_rate: float | None = None,
    ) -> None:
        self.network = network
        if network.initialisation == "balanced":
            network.firing_rate = network.firing_rate or firing_rate
        self.prototype = build(neuron, default)
        self.balance: Balance | None = None
        self.width_chosen = False  # whether the surrogate is the balance's, not the user's
        self._balance(neuron, residual, gain)
        if isinstance(self.prototype, Neuron | QCFS):
            network.neuron_spec = self.prototype.spec()

    def _balance(self, neuron: Any, residual: bool, gain: float | None) -> None:
        network = self.network
        if not isinstance(self.prototype, Neuron) or not network.time_steps:
            return
        self.prototype.time_steps = network.time_steps
        if isinstance(self.prototype, Parallel) and self.prototype.init == "uniform":
            network.balanced_by = "data"  # each layer's weights over time are draws of its own
        if network.initialisation == "balanced":
            self.balance = balance_of(self.prototype, network.firing_rate, residual, gain)
            self.width_chosen = neuron is None or not self.prototype.surrogate_chosen
            if self.width_chosen:
                # balance() would else replace it by a plain network's width; this one knows blocks and gain,
                # and is the evidence's: it stays where a threshold moves.
                self.prototype.surrogate = Surrogate("rectangle", self.balance.width)
                self.prototype.surrogate_chosen = network.widths_fit = True

    @property
    def threshold(self) -> float:
        """The neurons' threshold (1 for other activations), for norm initialisation."""
        return self.prototype.threshold if isinstance(self.prototype, Neuron) else 1.0

    def activation(self, first: bool = False, threshold: float = 1.0) -> nn.Module:
        """A neuron, or ReLU in the ANN twin; ``threshold`` is a factor on the prototype's threshold."""
        if not self.network.spiking:
            return build(self.prototype) if isinstance(self.prototype, QCFS) else nn.ReLU()
        if isinstance(self.prototype, QCFS):
            raise SpikedistillError(
                "qcfs is an activation of ANNs (time_steps=None, ann: true); an SNN takes if, lif or plif"
            )
        neuron = build(self.prototype)
        if isinstance(neuron, Neuron):
            neuron.move_threshold(threshold * neuron.threshold)
        if isinstance(neuron, Parallel):
            neuron.reset_parameters()  # each layer draws its own
        if first and self.network.once:
            if not isinstance(neuron, Neuron):
                raise SpikedistillError(
                    f"{type(neuron).__name__} cannot be the encoding neuron; use a subclass of "
                    "spikedistill's Neuron (if, lif, plif, ...)"
                )
            neuron.encode = True
        return neuron

    def attention_neuron(self, tokens: int, channels: int, scale: float) -> nn.Module:
        """The neuron behind ``scale * sum_j (q_i . k_j) v_j`` of spikes: ``tokens`` j, ``channels`` a head.

        See :meth:`summing_neuron`.
        """
        return self.summing_neuron(scale * tokens * channels * self.rate**3)

    def summing_neuron(self, mean: float) -> nn.Module:
        """Neuron behind a sum of spikes or their products, of that size on average in a balanced network.

        Plain: half the others' threshold (Spikformer's official code). Balanced: one that suits ``mean``.
        """
        neuron = self.activation(threshold=0.5)
        if self.balance is not None and isinstance(neuron, Neuron):
            neuron.move_threshold(attention_threshold(neuron, self.balance.rate, mean))
        if self.balance is not None and isinstance(neuron, Parallel):
            # its currents are never negative: with weights that are it could not fire
            neuron.weight.data.abs_()
        return neuron

    def _weight(self, scale: float | None, first: bool = False) -> float:
        """A norm's initial weight; ``scale`` is what the family asks for in units that charge a neuron."""
        if not self.network.spiking:
            return 1.0 if scale is None else scale
        if self.balance is not None:
            unit = self.balance.first_scale if first and self.network.once else self.balance.scale
            return unit * (1.0 if scale is None else scale)
        return 1.0 if scale is None else scale * self.threshold

    def norm_neuron(
        self,
        channels: int,
        first: bool = False,
        scale: float | None = None,
        residual: bool = False,
        pooled: bool = False,
    ) -> NormNeuron:
        """Norm, neuron; ``scale``: the norm's initial weight (plain: times threshold; None: 1, no threshold).

        ``residual``: the block's spikes are added behind the norm; ``pooled``: behind a 3x3 max-pool, so that
        they are more.
        """
        out = NormNeuron(channels, self.activation(first))
        nn.init.constant_(out.weight, self._weight(scale, first))
        if residual and self.balance is not None:
            rate = self.balance.rate
            # What a max over several places fires beyond the single rate, which ``shift`` takes back.
            more = 1 - (1 - rate) ** POOLED_PLACES - rate if pooled else 0.0
            nn.init.constant_(out.bias, self.balance.shift - more)
        return out

    def norm(self, channels: int, scale: float | None = None, pooled: bool = False) -> nn.BatchNorm2d:
        """A norm alone; ``scale`` as in :meth:`norm_neuron`; ``pooled``: 3x3 max-pool and neuron follow."""
        out = nn.BatchNorm2d(channels)
        weight = self._weight(scale)
        if pooled and self.balance is not None:
            # The largest of nine neighbours is not centred, and varies less: back to what a norm gives.
            weight /= POOLED_DEVIATION
            nn.init.constant_(out.bias, -weight * POOLED_MEAN)
        nn.init.constant_(out.weight, weight)
        return out

    def repeat(self) -> nn.Module:
        """Gives each step the stem's result if the stem runs once and no neuron dominates; else nothing."""
        return Repeat(self.network.time_steps or 1) if self.network.once else nn.Identity()

    @property
    def rate(self) -> float:
        """The firing rate that the network starts at (plain: unknown, 0)."""
        return 0.0 if self.balance is None else self.balance.rate

    def start_without_norm(self, layer: nn.Conv2d | nn.Linear, mean_square: float) -> None:
        """Balance a layer's weights before a bare neuron: what it gives charges the neuron as a norm would.

        ``mean_square``: of its inputs.
        """
        if self.balance is not None:
            deviation = self.balance.scale / math.sqrt(layer.weight[0].numel() * mean_square)
            nn.init.normal_(layer.weight, std=deviation)

    def linear(self, c_in: int, c_out: int) -> nn.Linear:
        """A hidden linear layer with a bare neuron behind it; reads pooled rates.

        What a global pool gives are rates of a few percent, on which torch's initial weights leave that
        neuron silent; in a plain SNN they start 16 thresholds as large (ours: on digits svgg11 hardly learns
        without). In a balanced one its bias takes back what equal rates would add, it learns as if its inputs
        were that much larger, and recipes balance it by measurement.
        """
        out = nn.Linear(c_in, c_out)
        if self.balance is None:
            if self.network.spiking:
                with torch.no_grad():
                    out.weight.mul_(16 * self.threshold)
            return out
        # How much is pooled depends on the images' size, and max-pools before it fire more: only data tell.
        self.network.balanced_by = "data"
        # Rates of a pooled map differ by about half of their mean from channel to channel and image to image.
        rate, scale = self.balance.rate, self.balance.scale
        with torch.no_grad():
            nn.init.normal_(out.weight, std=scale / (rate / 2 * math.sqrt(c_in)))
            nn.init.zeros_(out.bias).sub_(rate * out.weight.sum(1))
        out.input_factor = HEAD_INPUT / rate  # type: ignore[assignment]
        return out

    def head(
        self, features: int, kind: str = "linear", bias: bool = True, spikes: float = 1.0, pooled: bool = True
    ) -> nn.Module:
        """The classifier: linear, or linear and a neuron whose spikes are the logits.

        ``spikes``: how many neurons' spikes are summed in one feature; ``pooled``: and averaged over space.
        In a balanced SNN a linear classifier starts, and learns, as if its inputs were as large as an ANN's
        (:func:`spikedistill.parameter_groups`). A spiking one keeps torch's small weights and gets the
        threshold at which its neurons fire, under a surrogate that is wide beside it. With currents as large
        as other layers' it falls silent at usual learning rates (N-MNIST, 700 samples, 5 epochs, AdamW: 9 to
        12 % right, so 57 to 75 %, after a plain start 45 to 85 %).
        """
        linear = nn.Linear(features, self.network.num_classes, bias)
        if self.balance is not None and kind == "linear":
            # A sum of n spikes deviates by sqrt(n); of features as large as an ANN's (inf) the factor is 1.
            factor = max(1.0, HEAD_INPUT / (spikes**0.5 * self.balance.rate))
            linear.input_factor = factor
            with torch.no_grad():
                linear.weight.mul_(factor)
        if kind == "linear":
            return linear
        if kind != "spiking":
            raise SpikedistillError(f"head must be 'linear' or 'spiking', found {kind!r}")
        # Torch's initial weights are uniform, of variance 1 / (3 * features).
        if self.balance is not None and linear.bias is not None:
            nn.init.zeros_(linear.bias)  # beside so small currents it would choose the class
        current = ((self.rate**2 if pooled else self.rate) / 3) ** 0.5
        # At deviation ``scale`` a current fires the usual threshold as wanted: a smaller one needs less.
        neuron = self.activation(threshold=1.0 if self.balance is None else current / self.balance.scale)
        if self.width_chosen and isinstance(neuron, Neuron):
            neuron.surrogate = Surrogate("atan")
        return SpikingHead(linear, neuron)


class SpikingHead(nn.Module):
    """A linear layer and a neuron: the logits are its output spikes."""

    def __init__(self, linear: nn.Linear, neuron: nn.Module) -> None:
        super().__init__()
        self.linear, self.neuron = linear, neuron

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, features) to spikes (T*N, K)."""
        return self.neuron(self.linear(x))


def initialise(network: nn.Module) -> None:
    """Initial weights: Kaiming normal over fan-out for convolutions, torch's default for linear layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def scaled(channels: int, width: float) -> int:
    """Channels at a width factor, at least 1."""
    # Halves go up; round() would take them to the even neighbour.
    return max(1, math.floor(channels * width + 0.5))


__all__ = ["Builder", "SpikingHead", "initialise", "scaled", "usual_neuron"]
