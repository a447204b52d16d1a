"""Networks as files for other tools: NIR, ONNX and C."""

from .c import to_c
from .nir import to_nir
from .nir_reader import from_nir
from .onnx import to_onnx

__all__ = ["from_nir", "to_c", "to_nir", "to_onnx"]
