"""Weights as symmetric integer codes: ``w ~ scale * code`` with ``|code| <= 2^(bits-1) - 1``.

Rounding is half-up, ``floor(x + 1/2)``; what lies outside saturates. The gradient of a code is straight
through inside the range and 0 outside.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..neurons.dynamics import round_ste, saturate_ste

Scale = Literal["channel", "tensor"]
Range = Literal["max", "percentile", "mse", "learned"]


def largest_code(bits: int) -> int:
    """Largest code of a symmetric range: ``2^(bits-1) - 1``."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True)
class WeightFormat:
    """Bits (None: real weights), one scale per output channel or per tensor, and how the range is found."""

    bits: int | None
    scale: Scale = "channel"
    range: Range = "max"
    percentile: float = 99.9

    @property
    def largest_code(self) -> int:
        """Largest code; real weights are bounded by nothing, so this is only asked of coded ones."""
        assert self.bits is not None
        return largest_code(self.bits)


def weight_scale(weight: Tensor, f: WeightFormat) -> Tensor:
    """Value of one code, from the weights alone.

    ``max``: largest magnitude / limit. ``percentile``: that percentile of the magnitudes / limit; larger ones
    saturate. ``mse``: of 40 shares of the largest magnitude, 0.25 to 1, the one of least squared error.

    Shape: weight (C', C, ...) to (C', 1, ...) per channel, (1, 1, ...) per tensor; float64.
    """
    w = weight.detach().double()
    rows = w.flatten(1) if f.scale == "channel" else w.reshape(1, -1)
    if f.range == "percentile":
        top = _quantile(rows.abs(), f.percentile / 100)
    else:
        top = rows.abs().amax(1)
    if f.range == "mse":
        # The whole is among the shares: never worse than max.
        shares = torch.linspace(0.25, 1, 40, dtype=torch.float64, device=w.device)
        errors = torch.stack([_squared_error(rows, top * share, f.largest_code) for share in shares])
        top = top * shares[errors.argmin(0)]
    # Rows of zeros have codes 0 at any scale but 0.
    scale = torch.where(top > 0, top / f.largest_code, torch.ones_like(top))
    return scale.view(-1, *[1] * (w.dim() - 1))


def _quantile(rows: Tensor, share: float) -> Tensor:
    """That quantile of each row, linear between the two values beside it."""
    # Not torch.quantile, which refuses more than 2^24 values: a large layer has more.
    place = share * (rows.shape[1] - 1)
    below, ordered = math.floor(place), rows.sort(1).values
    return ordered[:, below].lerp(ordered[:, math.ceil(place)], place - below)


def _squared_error(rows: Tensor, top: Tensor, most: int) -> Tensor:
    scale = (top / most).clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return ((rows / scale + 0.5).floor().clamp(-most, most) * scale - rows).square().sum(1)


def learned_start(weight: Tensor, f: WeightFormat) -> Tensor:
    """First value of a learned scale: ``2 mean|w| / sqrt(limit)``.

    Esser et al., "Learned step size quantization", ICLR 2020. Shape: as :func:`weight_scale`, float32.
    """
    rows = weight.detach().double()
    rows = rows.flatten(1) if f.scale == "channel" else rows.reshape(1, -1)
    mean = rows.abs().mean(1)
    scale = torch.where(mean > 0, 2 * mean / f.largest_code**0.5, torch.ones_like(mean))
    return scale.float().view(-1, *[1] * (weight.dim() - 1))


class _Learned(torch.autograd.Function):
    """The scale as it is; its gradient divided by ``sqrt(weights * limit)``, as in LSQ."""

    @staticmethod
    def forward(ctx: object, scale: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return scale.view_as(scale)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None  # type: ignore[attr-defined]


def learned_step(step: Tensor, factor: float) -> Tensor:
    """``step``, whose gradient is multiplied by ``factor``."""
    return _Learned.apply(step, factor)


def learned_scale(scale: Tensor, weight: Tensor, f: WeightFormat) -> Tensor:
    """A learned scale with LSQ's gradient factor, kept above 0."""
    factor = (weight.numel() / scale.numel() * f.largest_code) ** -0.5
    # An optimizer may carry it to 0 and past it.
    return learned_step(scale, factor).abs().clamp(min=1e-8)


def weight_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """``clamp(floor(w / scale + 1/2), -limit, limit)`` in float64, straight-through inside the range."""
    return saturate_ste(round_ste(weight.double() / scale), -largest_code(bits), largest_code(bits))


def exact_scale(scale: Tensor, bound: int) -> Tensor:
    """The next scale of so few mantissa bits that ``scale * n`` is exact in float32 for all ``|n| <= bound``.

    So equal integer logits are equal logits. At most one bit of resolution is lost, less where the bound
    leaves room.
    """
    # A product has at most the bits of both factors, and float32 holds 24.
    bits = max(1, 24 - max(1, bound).bit_length())
    mantissa, exponent = torch.frexp(scale.double())
    # Up: below the scale that was asked for the largest weights would saturate.
    return torch.ldexp((mantissa * 2**bits).ceil(), exponent - bits)
