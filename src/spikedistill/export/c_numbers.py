"""Ranges of the numbers of an integer network: which integer type of C holds them."""

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import SpikedistillError
from ..quantization.header import Neuron

Range = tuple[int, int]


def width(*ranges: Range, least: int = 8, where: str = "") -> int:
    """Bits of the smallest integer type that holds all ranges; raises beyond 64."""
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    for bits in (8, 16, 32, 64):
        if bits >= least and low >= -(1 << (bits - 1)) and high < 1 << (bits - 1):
            return bits
    raise SpikedistillError(
        f"to_c: {where}: numbers from {low:.3g} to {high:.3g} do not fit 64 bits; use fewer bits"
    )


def times(a: Range, b: Range) -> Range:
    """Range of a product."""
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def plus(a: Range, b: Range) -> Range:
    """Range of a sum."""
    return a[0] + b[0], a[1] + b[1]


def membrane(op: Neuron, current: Range, T: int) -> tuple[Range, int, list[Range]]:
    """Range of what is stored between steps, its unit as a shift, and the ranges on the way, over T steps."""
    (l, L), q, threshold = op.leak, op.shift, op.threshold
    # as codes only where the initial value is one: the first step reads it unrounded
    coded = op.bits is not None and op.initial % (1 << q) == 0
    v, seen = (op.initial, op.initial), [(threshold, threshold), (op.by, op.by), (l, l), (0, 1 << q)]
    stored = v
    limits = (-(1 << (op.bits - 1)) << q, ((1 << (op.bits - 1)) - 1) << q) if op.bits is not None else None
    for _ in range(T):
        before = v
        if not op.leak_first:
            product = times(v, (l, l))
            seen.append(product)
            v = product[0] >> L, product[1] >> L
        h = plus(v, current)
        seen.append(h)
        if op.reset == "hard":
            # what has not fired is below the threshold, whatever the current: this keeps membranes narrow
            v = min(0, h[0]), max(0, min(h[1], threshold - 1))
        elif op.reset == "soft":
            v = min(0, h[0], threshold - op.by), max(0, min(h[1], threshold - 1), h[1] - op.by)
            seen.append((h[0] - op.by, h[1] - op.by))
        else:
            v = h
        shift = q
        if op.leak_first:
            v, shift = times(v, (l, l)), L + q if limits else L
            seen.append(v)
        if limits is not None:
            half = 1 << (shift - 1) if shift else 0
            # the C code adds the half before it shifts: that sum must fit too
            seen += [plus(v, (half, half)), limits]
            low, high = (min(max((x + half) >> shift << q, limits[0]), limits[1]) for x in v)
            v = low, high
        elif op.leak_first:
            v = v[0] >> L, v[1] >> L
        stored = min(stored[0], v[0]), max(stored[1], v[1])
        # a fixed point: later steps reach nothing new
        if v == before:
            break
        v = stored
    if coded:
        return (stored[0] >> q, stored[1] >> q), q, [*seen, stored]
    return stored, 0, [*seen, stored]


def sums(codes: np.ndarray, x: Range, bias: Tensor | None) -> Range:
    """Range of all sums on the way of an accumulator: products of a column, in any order, and zeros."""
    low, high = min(x[0], 0), max(x[1], 0)
    positive, negative = np.maximum(codes, 0).sum(1), np.minimum(codes, 0).sum(1)
    b = [0] * len(codes) if bias is None else bias.tolist()
    lows = [int(p) * low + int(n) * high + min(c, 0) for p, n, c in zip(positive, negative, b)]
    highs = [int(p) * high + int(n) * low + max(c, 0) for p, n, c in zip(positive, negative, b)]
    return min(*lows, low), max(*highs, high)


def range_of(t: Tensor) -> Range:
    """Smallest and largest entry."""
    return int(t.min()), int(t.max())


def hull(ranges: list[Range]) -> Range:
    """The range that holds all."""
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def per_channel(t: Tensor, channels: int) -> list[int] | None:
    """A number a channel, from as many or from one; None where neither."""
    if t.numel() == 1:
        return [int(t)] * channels
    return [int(x) for x in t.tolist()] if t.numel() == channels else None


def braces(numbers: Any) -> str:
    """An array's numbers in C."""
    return "{" + ", ".join(str(int(n)) for n in numbers) + "}"


def by(shape: Any) -> str:
    """A shape in words."""
    return "x".join(str(n) for n in shape) or "1"


def number(n: int) -> str:
    """A constant of up to 64 bits."""
    # C reads a literal's minus apart, and 2^63 fits no signed type
    if n == -(1 << 63):
        return "INT64_MIN"
    return str(n) if abs(n) < 1 << 31 else f"INT64_C({n})"
