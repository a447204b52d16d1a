"""``balance``: a network's neurons and classifier balanced on a batch, whatever weights it has."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import finite
from ..errors import SpikedistillError
from ..neurons import Neuron, NormNeuron, Parallel, Surrogate
from .balanced import FIRING_RATE, HEAD_INPUT, balance_of, check_firing_rate, check_neuron
from .base import Network
from .gradients import batch_statistics, gradient_tilt, level
from .mean_field import crossing

SAMPLES = 20_000  # neurons whose currents are looked at in each layer
RECORDED = ("thresholds", "stretches", "input_factors")  # what ``network.config`` keeps of a balance


@torch.no_grad()
def balance(
    network: Network, batch: "Tensor | Sequence[Tensor]", firing_rate: float | None = None
) -> Network:
    """Make every layer of neurons fire at about ``firing_rate`` on ``batch``, in place; returns the network.

    For networks whose balance is no function of the neuron alone: without norms, with attention, on raw
    counts, with copied or pretrained weights. One pass in training mode (norms use the batch's statistics,
    which are not tracked), layer by layer: a layer's current is multiplied by the factor at which it fires as
    wanted. The factor lands in the norm in front of the neuron (weight and bias), or, where the current is a
    sum or comes from no norm, in the neuron's threshold, which ``network.config`` records. Neurons without a
    surrogate of the user's choice get the rectangular one that suits them; its width follows the threshold
    (families have theirs from the start, and keep it). Where convolutions at the input have gradients 16
    times larger or smaller than the last ones, all such widths get one factor, also those of families whose
    balance is a matter of data. The classifier learns as if its input were as large as an ANN's
    (``input_factor``, see :func:`spikedistill.parameter_groups`), and its weight is multiplied alike; not
    where a neuron reads it, whose spikes are the logits.

    ``batch``: images (N, C, H, W) or frames, as the network takes them; of several batches the first counts.
    ``firing_rate``: spikes a neuron and step (None: the network's own aim, else 0.16).
    Raises :class:`SpikedistillError` for a network without neurons, neurons with a decay for each channel, a
    rate outside of 0 to 0.5, and a batch that is empty or holds NaN.
    """
    check_firing_rate(firing_rate)
    rate = firing_rate or getattr(network, "firing_rate", None) or FIRING_RATE
    first = next(network.parameters())
    x = batch if isinstance(batch, Tensor) else batch[0]
    finite.check_batches([x], "balance")
    x = x.to(first.device)
    # Bytes stay: the network takes them for levels of 255.
    x = x if x.dtype == torch.uint8 else x.to(first.dtype)
    owners = {
        id(m.neuron): m
        for m in network.modules()
        if isinstance(m, NormNeuron) and isinstance(m.neuron, Neuron)
    }
    neurons = {name: m for name, m in network.named_modules() if isinstance(m, Neuron)}
    if not neurons:
        raise SpikedistillError("this network has no neurons to balance; an ANN needs no balance")
    for neuron in neurons.values():
        check_neuron(neuron)
    residual = _Residuals(network)
    head = _head(network)
    order: list[object] = []  # neurons and the classifier, as they are called
    for name, neuron in neurons.items():
        norm = owners.get(id(neuron))
        # On the instance: its class, which others share, stays as it is.
        neuron.__dict__["simulate"] = _Fit(network, name, neuron, norm, rate, residual, order)
    head_input: list[Tensor] = []

    def seen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        head_input.append(inputs[0])
        order.append(head)

    hook = None if head is None else head.register_forward_pre_hook(seen)
    try:
        # Eager: the fused arithmetic would pass ``simulate`` by.
        with batch_statistics(network):
            network(x)
    finally:
        for neuron in neurons.values():
            neuron.__dict__.pop("simulate", None)
        residual.remove()
        if hook is not None:
            hook.remove()
    # Of a spiking head the last in order is its neuron: the logits are its spikes.
    if head is not None and order[-1] is head:
        _balance_head(network, head, head_input[0])
    _balance_widths(network, x)
    return network


class _Residuals:
    """Which norm-neurons receive a residual in this pass: their norm alone does not make their current."""

    def __init__(self, network: nn.Module) -> None:
        self.received: set[int] = set()
        self.hooks = [
            m.register_forward_pre_hook(self._note, with_kwargs=True)
            for m in network.modules()
            if isinstance(m, NormNeuron)
        ]

    def _note(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if len(args) > 1 or kwargs.get("residual") is not None:
            self.received.add(id(module))

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


class _Fit:
    """Stands in for a neuron's ``simulate`` in one pass: finds the factor, applies it, gives its spikes."""

    def __init__(
        self, network: Network, name: str, neuron: Neuron, norm: NormNeuron | None, rate: float,
        residuals: _Residuals, order: list[object],
    ) -> None:  # fmt: skip
        self.network, self.name, self.neuron, self.norm, self.rate = network, name, neuron, norm, rate
        self.residuals, self.order = residuals, order
        self.done = False

    def __call__(
        self, current: Tensor, state: Tensor | None, T: int, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        self.order.append(self.neuron)
        simulate = type(self.neuron).simulate
        # A neuron that is called again keeps the factor of its first call: another would undo that one.
        if not self.done:
            self.done = True
            factor = self.factor(current.detach(), T)
            if not self.neuron.surrogate_chosen:
                suit(self.neuron, balance_of(self.neuron, self.rate).width)
            if self.norm is not None and id(self.norm) not in self.residuals.received:
                self.norm.weight.mul_(factor)
                self.norm.bias.mul_(factor)
                # The norm has run already: from here on this pass sees what it will give.
                current = current * factor
            else:
                # All that the current is measured against: the spikes are those of ``factor`` times it.
                _move(self.network, self.name, self.neuron, self.neuron.threshold / factor)
                if isinstance(self.neuron, Parallel):
                    self.neuron.bias.div_(factor)
        return simulate(self.neuron, current, state, T, membrane)

    def factor(self, current: Tensor, T: int) -> float:
        """Of the current, so that the layer fires as wanted."""
        encode = self.neuron.encode
        flat = current.reshape(1 if encode else T, -1)
        if flat.shape[1] > SAMPLES:
            # Evenly spread, not drawn: two calls find the same factor.
            places = torch.linspace(0, flat.shape[1] - 1, SAMPLES, device=flat.device).long()
            flat = flat[:, places]
        # A shallow copy has a ``__dict__`` of its own, without the stand-in, and shares the parameters.
        probe = copy.copy(self.neuron)
        probe.__dict__.pop("simulate", None)

        def rate_of(factor: float) -> float:
            spikes, _, _ = probe.simulate(flat[0] * factor if encode else flat * factor, None, T, False)
            return float(spikes.float().mean())

        low, high = 1e-4, 1e4
        # Where most currents are negative (late layers of a trained network), only so many can fire at all.
        rate = min(self.rate, 0.8 * rate_of(high))
        return crossing(lambda f: rate_of(f) < rate, low, high, halvings=20) if rate > 0 else 1.0


def suit(neuron: Neuron, width: float) -> None:
    """Give a neuron whose user named no surrogate the rectangular one of that width."""
    neuron.surrogate = neuron.suited = Surrogate("rectangle", width)
    neuron.surrogate_chosen = True


def _move(network: Network, path: str, neuron: Neuron, threshold: float) -> None:
    """Another threshold, which the record keeps; a width that suited the old one moves along."""
    # Currents are as large as the threshold that suits them: another part of them would lie in the old width.
    if neuron.surrogate == neuron.suited:
        neuron.stretch *= threshold / neuron.threshold
        _keep(network, "stretches", path, neuron.stretch)
    neuron.move_threshold(threshold)
    _keep(network, "thresholds", path, threshold)


def _set_input_factor(network: Network, path: str, linear: nn.Linear, factor: float) -> None:
    """How much larger its input counts for the learning rates, which the record keeps."""
    linear.input_factor = factor  # type: ignore[assignment]
    _keep(network, "input_factors", path, factor)


def _keep(network: Network, key: str, path: str, value: float) -> None:
    network.config[key] = {**network.config.get(key, {}), path: value}


def _balance_widths(network: Network, x: Tensor) -> None:
    """One factor on all widths that suit their neurons, where the first layers' gradients ask for it."""
    # Families whose balance is a matter of data too; those of the closed form keep theirs.
    family = network.balanced_by == "data" and network.widths_fit
    suited = {
        name: m
        for name, m in network.named_modules()
        if isinstance(m, Neuron)
        and m.surrogate.name == "rectangle"
        and (family or (m.suited is not None and m.surrogate == m.suited))
    }
    if not suited:
        return
    before = {name: m.stretch for name, m in suited.items()}

    def tilt(factor: float) -> float:
        for name, neuron in suited.items():
            neuron.stretch = before[name] * factor
        return gradient_tilt(network, x)

    factor = level(tilt)
    for name, neuron in suited.items():
        neuron.stretch = before[name] * factor
        if factor != 1:
            _keep(network, "stretches", name, neuron.stretch)


def _head(network: Network) -> nn.Linear | None:
    """The classifier: the network's own, else its last linear layer."""
    found = dict(network.named_modules()).get(network.head_path)
    linears = [m for m in (found or network).modules() if isinstance(m, nn.Linear)]
    return linears[-1] if linears else None


def _balance_head(network: Network, head: nn.Linear, x: Tensor) -> None:
    T = network.time_steps or 1
    # Logits are averaged over T: what the classifier reads is, in effect, the average.
    average = x.float().unflatten(0, (T, -1)).mean(0) if x.shape[0] % T == 0 else x.float()
    size = float(average.square().mean().sqrt())
    before = float(getattr(head, "input_factor", 1.0))
    factor = max(1.0, HEAD_INPUT / size) if size > 0 else before
    # A balanced start has multiplied the weight by ``before`` already.
    head.weight.mul_(factor / before)
    path = next(name for name, m in network.named_modules() if m is head)
    _set_input_factor(network, path, head, factor)


def restore_balance(network: nn.Module, config: Mapping[str, Any]) -> None:
    """Thresholds, stretched surrogates, input factors that :func:`balance` found, from a network's record."""
    modules = dict(network.named_modules())
    for path, threshold in dict(config.get("thresholds") or {}).items():
        neuron = modules[path]
        neuron.move_threshold(threshold)  # a bias of parallel neurons is in the file
    for path, stretch in dict(config.get("stretches") or {}).items():
        neuron = modules[path]
        neuron.stretch, neuron.suited = stretch, neuron.surrogate
    for path, factor in dict(config.get("input_factors") or {}).items():
        modules[path].input_factor = factor
    if isinstance(network, Network):
        # Its own record says them too: it may be saved again.
        for key in RECORDED:
            if config.get(key):
                network.config[key] = {**network.config.get(key, {}), **config[key]}


def take_balance(network: Network, source: Network) -> None:
    """Thresholds and input factors of the spiking network ``source``, whose weights ``network`` has taken.

    Weights are as large as these ask. Thresholds stay where the two were made with different ones.
    """
    theirs = dict(source.named_modules())
    alike = _threshold_option(network) == _threshold_option(source)
    for path, module in network.named_modules():
        other = theirs.get(path)
        if isinstance(module, Neuron) and isinstance(other, Neuron):
            if alike and other.threshold != module.threshold:
                _move(network, path, module, other.threshold)
        elif isinstance(module, nn.Linear):
            factor = float(getattr(other, "input_factor", 1.0))
            if factor != getattr(module, "input_factor", 1.0):
                _set_input_factor(network, path, module, factor)


def _threshold_option(network: Network) -> float | None:
    """The threshold that a network's neurons were asked for; None where it cannot be said."""
    return None if network.neuron_spec is None else network.neuron_spec.get("threshold")
