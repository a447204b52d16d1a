"""Energy of one addition and one multiplication at any width, 45 nm.

M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: integer add 0.03 pJ (8
bits), 0.1 pJ (32 bits); integer multiply 0.2 pJ (8 bits), 3.1 pJ (32 bits); float32 add 0.9 pJ, multiply 3.7
pJ.
"""

from math import log, sqrt

FLOAT_ADD_PJ = 0.9
FLOAT_MULTIPLY_PJ = 3.7
FLOAT_MAC_PJ = FLOAT_ADD_PJ + FLOAT_MULTIPLY_PJ
INTEGER_ADD_PJ = {8: 0.03, 32: 0.1}
INTEGER_MULTIPLY_PJ = {8: 0.2, 32: 3.1}


def _power_law(points: dict[int, float], bits: float) -> float:
    (b0, e0), (b1, e1) = points.items()
    return e0 * (bits / b0) ** (log(e1 / e0) / log(b1 / b0))


def add_energy(bits: float, floating: bool = False) -> float:
    """Energy of one addition, pJ: Horowitz's two points, elsewhere the power law through both (ours).

    ``bits``: width of the result. ``floating``: float32 whatever ``bits`` says.
    """
    return FLOAT_ADD_PJ if floating else _power_law(INTEGER_ADD_PJ, bits)


def multiply_energy(bits_a: float, bits_b: float, floating: bool = False) -> float:
    """Energy of one multiplication, pJ, at the widths' geometric mean: `add_energy`'s power law (ours)."""
    return FLOAT_MULTIPLY_PJ if floating else _power_law(INTEGER_MULTIPLY_PJ, sqrt(bits_a * bits_b))
