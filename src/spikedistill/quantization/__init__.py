"""Quantized spiking networks: fake quantization on integer codes, and the integer network that equals it."""

from .build import quantize

__all__ = ["quantize"]
