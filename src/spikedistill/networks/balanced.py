"""The balanced start: neurons that fire, gradients that arrive, whatever the neuron, T and depth.

With an ANN's initial weights few neurons of a spiking network fire (3 to 7 % with LIF, tau = 2) and the
surrogate passes a fraction of the gradient, layer by layer: what reaches the first layers is a hundredth of
the ANN's. Two numbers cure it, both functions of the neuron and T alone (:mod:`.mean_field`): the initial
weight of the norms, at which neurons fire at the rate wanted, and the width of the rectangular surrogate, at
which a layer multiplies the gradients' variance by a number near 1. Nothing is left of either at inference:
norms have the weights they have learned, a surrogate is a matter of training.

A third number belongs to the classifier. It reads spikes averaged over T (and space), of the size of the
firing rate, where the ANN's reads values of about 0.6; at the same learning rate its function moves 16 times
slower. So its weights start, and learn, as if the inputs were ``HEAD_INPUT / rate`` times larger:
``linear.input_factor``, which :func:`spikedistill.parameter_groups` turns into a learning rate of its own.
"""

import copy
import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SpikedistillError
from ..neurons import Neuron, build
from .mean_field import MOST_STEPS, MeanField, crossing, normals

FIRING_RATE = 0.16
# What a layer (a residual block) multiplies the gradients' variance by. Pools and strides take back what is
# above 1 in plain networks; a residual network has as many layers behind each other as it has blocks, and
# its gradients neither grow nor shrink.
# soft: plain networks of neurons with soft reset (VGG of 6 to 10 layers: 1.5 to 2)
# deep: plain networks of more than ``DEEP`` layers (VGG-16; T = 1 to 16, hard and soft reset)
# sew: branches that add spikes behind the neurons (20 to 56 layers, hard and soft reset: 1.2 to 1.5)
# summed: branches of transformers that add spikes to a stream
# stream: branches of transformers that add real values to one
PLAIN_GAIN, SOFT_GAIN, DEEP_GAIN, BLOCK_GAIN = 2.0, 1.75, 2.3, 1.0
DEEP = 10
SEW_GAIN, SUMMED_GAIN, STREAM_GAIN = 1.5, 1.2, 1.0
HEAD_INPUT = 0.6


@dataclass(frozen=True)
class Balance:
    """Of one kind of neuron: the rate to fire at, the norms' initial weight, and what goes with them.

    The first norm's weight, whose current is constant, stands apart. Also the shift of a block's last norm
    and the width of the rectangular surrogate.
    """

    rate: float
    scale: float
    first_scale: float
    shift: float
    width: float


def balance_of(
    neuron: Neuron, rate: float | None = None, residual: bool = False, gain: float | None = None
) -> Balance:
    """Balance of a network of such neurons at ``time_steps``; ``rate``, ``gain``: None for the default."""
    check_neuron(neuron)
    gain = gain or (BLOCK_GAIN if residual else SOFT_GAIN if neuron.reset == "soft" else PLAIN_GAIN)
    if neuron.rebuilds:
        # Cached by what the neuron is: modules equal only themselves, and each site has its own.
        spec = json.dumps(neuron.spec(), sort_keys=True)
        return _balance(spec, neuron.time_steps, rate or FIRING_RATE, residual, gain)
    return _found(copy.deepcopy(neuron), rate or FIRING_RATE, residual, gain)


def _like(spec: str, time_steps: int) -> Neuron:
    """A neuron of that kind; weights over time that are drawn at random are the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        # The one generator that the fork puts back: torch.manual_seed would seed a GPU's too.
        torch.default_generator.manual_seed(0)
        neuron = build(json.loads(spec))
        assert isinstance(neuron, Neuron)
        neuron.time_steps = time_steps
    return neuron


@lru_cache(maxsize=256)
def _balance(spec: str, time_steps: int, rate: float, residual: bool, gain: float) -> Balance:
    return _found(_like(spec, time_steps), rate, residual, gain)


def _found(neuron: Neuron, rate: float, residual: bool, gain: float) -> Balance:
    found = MeanField(neuron, rate, residual)
    width = found.width(gain)
    # Three digits are about what the search resolves; more would be noise in every record.
    return Balance(rate, *(float(f"{v:.3g}") for v in (found.scale, found.first_scale, found.shift, width)))


@lru_cache(maxsize=256)
def _threshold(spec: str, time_steps: int, rate: float, mean: float, deviation: float) -> float:
    return _threshold_of(_like(spec, min(time_steps, MOST_STEPS)), rate, mean, deviation)


def _threshold_of(neuron: Neuron, rate: float, mean: float, deviation: float) -> float:
    T = neuron.time_steps
    current = (mean + deviation * normals(T, 0)).clamp(min=0)

    def fires_more(threshold: float) -> bool:
        neuron.move_threshold(threshold)
        with torch.no_grad():
            return float(neuron.simulate(current, None, T, False)[0].mean()) > rate

    return float(f"{crossing(fires_more, 0.01 * mean, 100 * mean):.3g}")


def attention_threshold(neuron: Neuron, rate: float, mean: float) -> float:
    """The threshold at which a neuron fires at ``rate`` on positive currents of that mean, as attention's."""
    if neuron.rebuilds:
        spec = json.dumps(neuron.spec(), sort_keys=True)
        return _threshold(spec, neuron.time_steps, rate, mean, 0.6 * mean)
    probe = copy.deepcopy(neuron)
    probe.time_steps = min(neuron.time_steps, MOST_STEPS)
    return _threshold_of(probe, rate, mean, 0.6 * mean)


def check_neuron(neuron: Neuron) -> None:
    """Refuse a neuron of the user's with a decay or gain for each channel: layers differ in their number."""
    for name in ("decay", "gain"):
        value = getattr(neuron, name)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise SpikedistillError(
                f"{type(neuron).__name__}.{name} has {value.numel()} values; a balanced start is found for "
                "neurons with one: set initialisation: plain"
            )


def check_firing_rate(firing_rate: float | None) -> None:
    """Refuse a rate at which no network learns."""
    number = isinstance(firing_rate, int | float) and not isinstance(firing_rate, bool)
    if firing_rate is not None and not (number and 0 < firing_rate < 0.5):
        raise SpikedistillError(f"firing_rate must lie between 0 and 0.5, found {firing_rate!r}")


def check_options(initialisation: str, firing_rate: float | None) -> None:
    """Refuse options that mean nothing."""
    if initialisation not in ("balanced", "plain"):
        raise SpikedistillError(f"initialisation must be 'balanced' or 'plain', found {initialisation!r}")
    check_firing_rate(firing_rate)
    if firing_rate is not None and initialisation == "plain":
        raise SpikedistillError(
            "firing_rate aims a balanced start; leave it out, or set initialisation: balanced"
        )
