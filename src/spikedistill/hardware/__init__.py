"""What a network costs on a chip: workloads, SpikeSim, operation counts, memory."""

from . import chips, crossbar, floorline, memory, operations, spikesim
from .ann import break_even, twin
from .config import Config, read_config
from .events import at_rate
from .files import read_layers, resolve, write_layers
from .layer import Layer
from .precision import at_bits
from .pricing import against, iso_accuracy, price, price_file
from .workload import layers

__all__ = [
    "Config",
    "Layer",
    "against",
    "at_bits",
    "at_rate",
    "break_even",
    "chips",
    "crossbar",
    "floorline",
    "iso_accuracy",
    "layers",
    "memory",
    "operations",
    "price",
    "price_file",
    "read_config",
    "read_layers",
    "resolve",
    "spikesim",
    "twin",
    "write_layers",
]
