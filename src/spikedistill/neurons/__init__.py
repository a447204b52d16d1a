"""Neurons: equations (``dynamics``), surrogate gradients, modules. A new one: class and line in ``TYPES``."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import own_code
from ..errors import SpikedistillError, nearest
from .compilation import eager
from .modules import IF, LIF, PLIF, Neuron, Repeat
from .norm_neuron import NormNeuron, layers, neuron_of
from .parallel import PSN, TIED, MaskedPSN, Parallel, SlidingPSN
from .qcfs import QCFS, SignedIF
from .surrogate import SURROGATES, Surrogate

TYPES: dict[str, type[nn.Module]] = {
    "if": IF, "lif": LIF, "plif": PLIF, "qcfs": QCFS, "signed_if": SignedIF,
    "psn": PSN, "masked_psn": MaskedPSN, "sliding_psn": SlidingPSN,
}  # fmt: skip
TYPES |= own_code.installed("neurons")


def build(neuron: "nn.Module | Mapping[str, Any] | None", default: Neuron | None = None) -> nn.Module:
    """A fresh neuron from an instance (copied), a recipe's mapping ``{type: lif, tau: 2.0}``, or the default.

    ``type``: a name of ``TYPES``, packages' entry points among them, or ``module:Class``.
    """
    if neuron is None:
        return copy.deepcopy(default) if default is not None else LIF()
    if isinstance(neuron, nn.Module):
        return copy.deepcopy(neuron)
    options = dict(neuron)
    kind = str(options.pop("type", "lif"))
    kind = kind if own_code.is_address(kind) else kind.lower()
    cls = find(kind)
    # Where a neuron stands decides whether it encodes; the network sets it.
    allowed = [p for p in inspect.signature(cls).parameters if p != "encode"]
    for key in options:
        if key not in allowed:
            raise SpikedistillError(f"neuron {kind}: unknown option {key!r}; {nearest(key, allowed)}")
    try:
        made = cls(**options)
    except SpikedistillError:
        raise
    except (TypeError, ValueError) as error:  # text where a number belongs
        found = ", ".join(f"{key}: {value!r}" for key, value in options.items())
        raise SpikedistillError(f"neuron {kind}: {found}: a value of another type ({error})") from error
    if isinstance(made, Neuron):
        made.recipe_type = kind
    return made


def find(kind: str) -> type[nn.Module]:
    """The class of a type: a name of ``TYPES``, or ``module:Class``, a subclass of :class:`Neuron`."""
    if kind in TYPES:
        return TYPES[kind]
    if not own_code.is_address(kind):
        raise SpikedistillError(f"unknown neuron type {kind!r}: {nearest(kind, TYPES)}")
    found = own_code.find(kind, "neuron type")
    if not (isinstance(found, type) and issubclass(found, Neuron)):
        raise SpikedistillError(f"neuron type {kind!r} is no subclass of spikedistill.neurons.Neuron")
    return found


__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "PSN",
    "QCFS",
    "SURROGATES",
    "TIED",
    "TYPES",
    "MaskedPSN",
    "Neuron",
    "NormNeuron",
    "Parallel",
    "Repeat",
    "SignedIF",
    "SlidingPSN",
    "Surrogate",
    "build",
    "eager",
    "find",
    "layers",
    "neuron_of",
]
