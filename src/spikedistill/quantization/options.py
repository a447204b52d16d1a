"""What :func:`quantize` was asked for, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SpikedistillError
from .weights import Range, WeightFormat


@dataclass(frozen=True)
class Options:
    """What :func:`quantize` was asked for, checked."""

    weight_bits: int | None
    membrane_bits: int | None
    norm_bits: int | None
    leak_bits: int | None
    fraction_bits: int
    residual_bits: int
    input_bits: int
    first_last_bits: int | None
    weight_scale: Any
    weight_range: Any
    unit: str
    percentile: float
    scheme: str
    freeze_norms: bool
    input_size: Sequence[int] | None

    def __post_init__(self) -> None:
        for name in (
            "weight_bits",
            "membrane_bits",
            "norm_bits",
            "leak_bits",
            "first_last_bits",
            "input_bits",
        ):
            bits = getattr(self, name)
            if bits is None and name != "input_bits":
                continue
            if not isinstance(bits, int) or not 2 <= bits <= 8:
                raise SpikedistillError(f"{name} must be 2 to 8, or None, found {bits!r}")
        for name, low, high in (("fraction_bits", 1, 16), ("residual_bits", 4, 24)):
            if not isinstance(getattr(self, name), int) or not low <= getattr(self, name) <= high:
                raise SpikedistillError(f"{name} must be {low} to {high}, found {getattr(self, name)!r}")
        allowed = {
            "weight_scale": ("channel", "tensor"), "weight_range": (None, "max", "percentile", "mse",
            "learned"),
            "unit": ("threshold", "max", "percentile", "learned", "weights"), "scheme": ("uniform", "mint"),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise SpikedistillError(
                    f"{name} must be one of {', '.join(v or 'null' for v in values)}, "
                    f"found {getattr(self, name)!r}"
                )
        number = isinstance(self.percentile, int | float)
        if not number or not 50 <= self.percentile <= 100:
            raise SpikedistillError(f"percentile must be between 50 and 100, found {self.percentile!r}")

        if self.scheme == "mint" and (self.weight_bits is None or self.membrane_bits != self.weight_bits):
            raise SpikedistillError(
                "scheme 'mint' has one step and equal bits for weights and membrane, found "
                f"weight_bits={self.weight_bits}, membrane_bits={self.membrane_bits}"
            )
        if self.folded and self.weight_bits is None:
            raise SpikedistillError("unit='weights' counts membranes in weight codes; weight_bits is None")

    @property
    def range(self) -> Range:
        """How the weights' range is found; by default learned for mint, as its step is (Yin et al., 2024)."""
        if self.weight_range is not None:
            return self.weight_range
        return "learned" if self.scheme == "mint" else "max"

    @property
    def folded(self) -> bool:
        """Whether norms are folded into the weights."""
        return self.scheme == "mint" or self.unit == "weights"

    def weights(self, edge: bool) -> WeightFormat:
        """The format of a layer's weights; ``edge``: the first or last layer."""
        bits = self.first_last_bits if edge and self.first_last_bits is not None else self.weight_bits
        return WeightFormat(bits, self.weight_scale, self.range, self.percentile)
