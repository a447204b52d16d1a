"""Networks as files for other tools: NIR and ONNX."""

from .nir import to_nir
from .nir_reader import from_nir
from .onnx import to_onnx

__all__ = ["from_nir", "to_nir", "to_onnx"]
