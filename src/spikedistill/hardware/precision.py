"""The same workload at other bit widths."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import SpikedistillError
from ..quantization.preparation import DEFAULTS
from .layer import Layer


def at_bits(
    layers: Sequence[Layer],
    weight_bits: int | None = DEFAULTS["weight_bits"],
    membrane_bits: int | None = DEFAULTS["membrane_bits"],
    norm_bits: int | None = DEFAULTS["norm_bits"],
    residual_bits: int = DEFAULTS["residual_bits"],
    first_last_bits: int | None = DEFAULTS["first_last_bits"],
) -> list[Layer]:
    """Layers with the widths of ``sd.quantize``'s options and their defaults; None: floating point, 32 bits.

    First and last weight layer have ``first_last_bits`` where weights are quantized (None: no exception).
    Real values on residual streams and shortcuts get ``residual_bits``; images and pooled spikes keep the
    bits they need. Activity stays as it was measured; widths that an integer network was seen to hold do not,
    as other bits hold others.
    """
    weighted = [layer.name for layer in layers if layer.kind in ("conv", "linear")]
    for name, bits in (
        ("weight", weight_bits),
        ("membrane", membrane_bits),
        ("norm", norm_bits),
        ("residual", residual_bits),
        ("first_last", first_last_bits),
    ):
        if bits is not None and not 1 <= bits <= 64:
            raise SpikedistillError(f"{name}_bits must be 1 to 64, or None for floating point; found {bits}")
    outer = {weighted[0], weighted[-1]} if weighted and weight_bits and first_last_bits else set()
    out = []
    for layer in layers:
        changed: dict[str, Any] = {
            "weight_bits": (first_last_bits if layer.name in outer else weight_bits) or 32,
            "membrane_bits": membrane_bits or 32,
            "norm_bits": norm_bits or 32,
            "accumulator_bits": None,
            "potential_bits": None,
            "norm_stored_bits": None,
            "norm_folded": False,
            "current_bits": None,
        }
        if layer.terms:
            changed["weight_bits"] = weight_bits or 32  # over time
            # kept spikes need no other bits; real currents (32) take the membrane's
            changed["kept_bits"] = layer.kept_bits if layer.kept_bits < 32 else membrane_bits or 32
        if layer.input_kind == "real" and layer.input_bits >= 32:
            changed["input_bits"] = residual_bits
        out.append(replace(layer, **changed))
    return out
