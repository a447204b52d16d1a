"""Quantized spiking networks: fake quantization on integer codes, and the integer network that equals it."""

from .integer import IntegerNetwork, to_integer
from .preparation import quantize

__all__ = ["IntegerNetwork", "quantize", "to_integer"]
