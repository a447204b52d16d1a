"""Neurons: equations (``dynamics``), surrogate gradients, and modules."""

from .compilation import eager
from .modules import IF, LIF, PLIF, Neuron, NormNeuron, Repeat, build
from .surrogate import SURROGATES, Surrogate

__all__ = ["IF", "LIF", "PLIF", "SURROGATES", "Neuron", "NormNeuron", "Repeat", "Surrogate", "build", "eager"]
