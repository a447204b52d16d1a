"""Knowledge distillation for spiking neural networks, from an ANN teacher to an integer network and its price on a chip."""

from . import networks, objectives
from .distiller import Distiller, Losses
from .errors import SpikedistillError
from .neurons import IF, LIF, PLIF, NormNeuron, Repeat
from .simulation import time_steps

__version__ = "0.1.0"

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Distiller",
    "Losses",
    "NormNeuron",
    "Repeat",
    "SpikedistillError",
    "networks",
    "objectives",
    "time_steps",
]
