"""Networks by name, ANN twin and SNN from one definition."""

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from .. import own_code
from ..errors import SpikedistillError, nearest
from ..neurons import QCFS, Neuron
from ..neurons.event_driven import equip
from ..neurons.strided import guard
from . import event_cameras, hybrid_vit, qkformer, resnet, spike_driven, spikformer, sresnet, vgg
from .balancing import balance
from .base import Network
from .outside.library import load_published
from .outside.spiking import spiking

BUILDERS: dict[str, Callable[..., Network]] = {
    **vgg.NAMES,
    **resnet.NAMES,
    **spikformer.NAMES,
    **spike_driven.NAMES,
    **qkformer.NAMES,
    **event_cameras.NAMES,
    **sresnet.NAMES,
    **hybrid_vit.NAMES,
    **own_code.installed("networks"),
}


def names() -> list[str]:
    """Names that :func:`create` knows."""
    return sorted(BUILDERS)


def options(name: str) -> dict[str, inspect.Parameter]:
    """The options a named network takes, from its class's signature; raises for an unknown name."""
    if name not in BUILDERS:
        raise SpikedistillError(f"unknown network {name!r}: {nearest(name, BUILDERS)}")
    # A partial leaves out what it fills by position and has its keywords as defaults (num_classes=35),
    # so that a record holds what this name means.
    return dict(inspect.signature(BUILDERS[name]).parameters)


def create(name: str, **given: Any) -> Network:
    """A network by name; ``time_steps=None`` gives its ANN twin with the same parameter names.

    Options common to all (defaults): ``num_classes=10, in_channels=3, input="image"|"frames", time_steps=4,
    width=1.0, neuron=None`` (an instance, copied per site, or a recipe's mapping; None: the family's own),
    ``encoding="direct"| "poisson"|"latency", head="linear"|"spiking", mean=None, std=None`` (0 and 1),
    ``initialisation="balanced"|"plain", firing_rate=None``.
    Raises :class:`SpikedistillError` for an unknown name or option, with the nearest known one.
    """
    allowed = options(name)
    for key in given:
        if key not in allowed:
            raise SpikedistillError(f"network {name!r} has no option {key!r}; {nearest(key, allowed)}")
    _in_range(name, given)
    network = BUILDERS[name](**given)
    if not isinstance(network, Network):
        raise SpikedistillError(
            f"network {name!r} gives {type(network).__name__}; a name's builder returns a spikedistill "
            "Network (a plain module is named by its address, module:Name)"
        )
    # Every value in force: a default that changes later must not change what this network is.
    whole = {**{k: p.default for k, p in allowed.items() if p.default is not p.empty}, **given}
    if network.neuron_spec is not None and (network.spiking or whole.get("neuron") is not None):
        whole["neuron"] = network.neuron_spec
    network.config = {"name": name, "options": {k: _plain(v) for k, v in whole.items()}}
    # An ANN has no spikes to look for; its strided 1x1 convolutions need the guard all the same.
    return equip(network) if network.spiking else guard(network)


LOWEST = {"num_classes": 1, "in_channels": 1, "hidden": 0}


def _in_range(name: str, given: Mapping[str, Any]) -> None:
    """Numbers that mean the same in all networks; torch would round them, or fail in words of its own."""
    for key, value in given.items():
        wrong = ""
        if key in LOWEST and value is not None:
            each = value if isinstance(value, list | tuple) else [value]
            if any(not isinstance(v, Integral) or v < LOWEST[key] for v in each):
                wrong = f"a whole number from {LOWEST[key]}"
        elif key == "width" and not (isinstance(value, Real) and 0 < float(value) < math.inf):
            wrong = "a finite number above 0"
        elif key == "dropout" and not (isinstance(value, Real) and 0 <= float(value) <= 1):
            wrong = "a number from 0 to 1"
        if wrong:
            raise SpikedistillError(f"network {name!r}: {key} must be {wrong}, found {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Neuron | QCFS):
        return value.spec()
    if isinstance(value, nn.Module):
        return type(value).__name__
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


__all__ = ["BUILDERS", "Network", "balance", "create", "load_published", "names", "options", "spiking"]
