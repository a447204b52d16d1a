"""What an ANN's activations reach, at the places where the spiking network has its neurons."""

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks.base import Network
from ..neurons import NormNeuron, layers
from ..simulation import Simulation

Percentile = float | Literal["max"]
SAMPLE = 1_000_000  # values of a batch that a percentile is taken of; more cost time and change nothing


class Meter(nn.Module):
    """ReLU that notes the percentile of its outputs, batch by batch."""

    def __init__(self, percentile: Percentile) -> None:
        super().__init__()
        self.percentile, self.seen = percentile, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        y = x.clamp(min=0)
        self.seen.append(percentile_of(y.detach(), self.percentile))
        return y

    @property
    def value(self) -> float:
        """The largest batch's maximum, or the batches' mean percentile."""
        return max(self.seen) if self.percentile == "max" else sum(self.seen) / len(self.seen)


def percentile_of(x: Tensor, percentile: Percentile) -> float:
    """The percentile of all values, zeros included."""
    if percentile == "max":
        return float(x.max())
    flat = x.flatten().float()
    # Every k-th value, not drawn ones: the same calibration gives the same thetas.
    return float(torch.quantile(flat[:: max(1, flat.numel() // SAMPLE)][: 2 * SAMPLE], percentile / 100))


def check_percentile(percentile: Percentile) -> None:
    """Raise unless it is "max" or a percentile."""
    if percentile != "max" and not (isinstance(percentile, int | float) and 0 < percentile <= 100):
        raise SpikedistillError(
            f"percentile must be 'max' or more than 0 and at most 100, found {percentile!r}"
        )


def with_activations(network: Network, make: Any) -> tuple[Network, dict[str, nn.Module]]:
    """A copy whose neurons are ``make(path)``: run for one step it is the ANN. Also these, by path."""
    twin = copy.deepcopy(network)
    made: dict[str, nn.Module] = {}
    for path in layers(network):
        module = twin.get_submodule(path)
        made[path] = make(path)
        if isinstance(module, NormNeuron):
            module.neuron = made[path]
        else:
            parent, _, key = path.rpartition(".")
            setattr(twin.get_submodule(parent), key, made[path])
    return twin.eval(), made


def run_as_ann(twin: Network, ann: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) of a copy made by :func:`with_activations`, normalised as ``ann`` does it."""
    source = ann if isinstance(ann, Network) else twin
    with Simulation(source, None) as sim:
        folded = source.fold(x, sim) if isinstance(ann, Network) and not ann.spiking else _normalised(twin, x)
    # One step: what repeats over time in the spiking network repeats once.
    with Simulation(twin, 1):
        return twin.body(folded)


def _normalised(network: Network, x: Tensor) -> Tensor:
    if x.dim() == 5:
        x = x.transpose(0, 1).flatten(0, 1)
    return (x - network.mean.view(1, -1, 1, 1)) / network.std.view(1, -1, 1, 1)


@torch.no_grad()
def measure(
    network: Network, ann: nn.Module, calibration: Iterable[Tensor], percentile: Percentile = 99.9
) -> dict[str, float]:
    """Range of the ANN's activation at each neuron layer of ``network``, whose weights are the ANN's.

    A layer that is silent on all batches gets 1. Percentiles are over all values, zeros included (after
    Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for
    image classification", Frontiers in Neuroscience 2017, whose 99.9 is the default), averaged over batches
    (our reading); "max" is over all batches.
    """
    check_percentile(percentile)
    twin, meters = with_activations(network, lambda path: Meter(percentile))
    batches = 0
    for x in calibration:
        run_as_ann(twin, ann, x)
        batches += 1
    if not batches:
        raise SpikedistillError(
            "conversion needs calibration: give at least one batch of images (N, C, H, W) in [0, 1]"
        )
    return {
        path: meter.value if meter.seen and meter.value > 0 else 1.0  # type: ignore[operator, misc]
        for path, meter in meters.items()
    }
