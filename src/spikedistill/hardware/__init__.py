"""What a network costs on a chip: workloads, SpikeSim, operation counts, memory."""

from spikedistill.hardware import chips, floorline, memory, operations, spikesim
from spikedistill.hardware.ann import break_even, twin
from spikedistill.hardware.config import Config, read_config
from spikedistill.hardware.events import at_rate
from spikedistill.hardware.files import read_layers, resolve, write_layers
from spikedistill.hardware.layer import Layer
from spikedistill.hardware.precision import at_bits
from spikedistill.hardware.pricing import against, iso_accuracy, price, price_file
from spikedistill.hardware.workload import layers

__all__ = [
    "Config",
    "Layer",
    "against",
    "at_bits",
    "at_rate",
    "break_even",
    "chips",
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
