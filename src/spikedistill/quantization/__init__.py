"""Quantized spiking networks: fake quantization on integer codes, and the integer network that equals it."""

from .build import quantize
from .integer import IntegerNetwork, to_integer

__all__ = ["IntegerNetwork", "quantize", "to_integer"]
