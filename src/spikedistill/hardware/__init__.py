"""What a network costs on a chip: workloads, SpikeSim, operation counts, memory."""

from spikedistill.hardware import spikesim
from spikedistill.hardware.config import Config
from spikedistill.hardware.files import read_layers, resolve, write_layers
from spikedistill.hardware.layer import Layer

__all__ = ["Config", "Layer", "read_layers", "resolve", "spikesim", "write_layers"]
