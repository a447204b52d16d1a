"""What a network costs on a chip: workloads, SpikeSim, operation counts, memory."""

from spikedistill.hardware import memory, operations, spikesim
from spikedistill.hardware.config import Config, read_config
from spikedistill.hardware.events import at_rate
from spikedistill.hardware.files import read_layers, resolve, write_layers
from spikedistill.hardware.layer import Layer
from spikedistill.hardware.twin import break_even, twin
from spikedistill.hardware.workload import layers

__all__ = [
    "Config",
    "Layer",
    "at_rate",
    "break_even",
    "layers",
    "memory",
    "operations",
    "read_config",
    "read_layers",
    "resolve",
    "spikesim",
    "twin",
    "write_layers",
]
