"""Neurons: equations (``dynamics``), surrogate gradients, and modules. A new one is a class and a line in ``TYPES``."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import SpikedistillError, nearest
from .compilation import eager
from .modules import IF, LIF, PLIF, Neuron, NormNeuron, Repeat, layers, neuron_of
from .parallel import PSN, TIED, MaskedPSN, Parallel, SlidingPSN
from .qcfs import QCFS, SignedIF
from .surrogate import SURROGATES, Surrogate

TYPES: dict[str, type[nn.Module]] = {
    "if": IF, "lif": LIF, "plif": PLIF, "qcfs": QCFS, "signed_if": SignedIF,
    "psn": PSN, "masked_psn": MaskedPSN, "sliding_psn": SlidingPSN,
}  # fmt: skip


def build(neuron: "nn.Module | Mapping[str, Any] | None", default: Neuron | None = None) -> nn.Module:
    """A fresh neuron from an instance (copied), a recipe's mapping ``{type: lif, tau: 2.0}``, or the default."""
    if neuron is None:
        return copy.deepcopy(default) if default is not None else LIF()
    if isinstance(neuron, nn.Module):
        return copy.deepcopy(neuron)
    options = dict(neuron)
    kind = str(options.pop("type", "lif")).lower()
    if kind not in TYPES:
        raise SpikedistillError(f"unknown neuron type {kind!r}: {nearest(kind, TYPES)}")
    allowed = [p for p in inspect.signature(TYPES[kind].__init__).parameters if p not in ("self", "encode")]
    for key in options:
        if key not in allowed:
            raise SpikedistillError(f"neuron {kind}: unknown option {key!r}; {nearest(key, allowed)}")
    return TYPES[kind](**options)


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
    "layers",
    "neuron_of",
]
