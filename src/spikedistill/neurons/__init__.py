"""Neurons: equations (``dynamics``), surrogate gradients, and modules."""

from .compilation import eager
from .modules import IF, LIF, PLIF, Neuron, NormNeuron, Repeat, build
from .qcfs import QCFS, SignedIF
from .surrogate import SURROGATES, Surrogate

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "QCFS",
    "SURROGATES",
    "Neuron",
    "NormNeuron",
    "Repeat",
    "SignedIF",
    "Surrogate",
    "build",
    "eager",
]
