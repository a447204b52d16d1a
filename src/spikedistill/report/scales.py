"""From numbers to places on paper: scales, round ticks, and which of their labels have room."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

SIZE = 11.0  # of the text in a drawing, in its own units
_DIGIT = 0.64  # of a character, in its size: no digit of a usual font is wider
_ROUND = (1.0, 2.0, 2.5, 5.0)


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on the way from ``start`` to ``end``, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = log10(low), log10(high), log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, upright: bool = False) -> list[tuple[float, str]]:
        """Round values within and their labels, as many as fit beside (``upright``: above) each other."""
        # Coarser steps before gaps: labels are left out only where not even two have room.
        for most in (6, 5, 4, 3, 2):
            found = _decades(self.low, self.high, most) if self.logarithmic else []
            # Between two powers of ten there may be no such number: then any round ones, as on an even scale.
            if len(found) < 2:
                found = _steps(self.low, self.high, most)
            if len(fitting(found, self, upright)) == len(found):
                return found
        return fitting(found, self, upright)


def fitting(
    ticks: Sequence[tuple[float, str]], scale: Scale, upright: bool = False
) -> list[tuple[float, str]]:
    """Those of some labels within the scale, the last first, that do not touch a label already kept."""
    kept: list[tuple[float, str]] = []
    taken: list[tuple[float, float]] = []
    # A multiple of the step may miss the end that it stands for by a rounding.
    blur = 1e-9 * (scale.high - scale.low)
    # From the end: where labels crowd, as on a logarithmic axis, the largest value keeps its own.
    for value, label in reversed(ticks):
        if not scale.low - blur <= value <= scale.high + blur:
            continue
        half = (SIZE if upright else width(label)) / 2 + 3
        place = scale(value)
        if all(place + half <= low or high <= place - half for low, high in taken):
            kept.append((value, label))
            taken.append((place - half, place + half))
    return kept[::-1]


def span(values: Iterable[float], margin: float = 0.06, zero: bool = False) -> tuple[float, float]:
    """The least and the largest value with some room around them; ``zero``: begins at 0."""
    every = list(values) or [0.0, 1.0]
    low, high = min(every), max(every)
    if zero:
        low = min(0.0, low)
    # All values may be equal, or 0: a scale without length would divide by it.
    room = margin * (high - low) or 0.05 * abs(high) or 0.5
    return (low if zero else low - room), high + room


def widened(values: Iterable[float], factor: float) -> tuple[float, float]:
    """The least and the largest of positive values, for a logarithmic scale, with room around them."""
    every = list(values)
    low, high = min(every), max(every)
    # Equal values, too, get room: a scale without length would divide by it.
    room = max(high / low, 1.5) ** factor
    return low / room, high * room


def width(text: str, size: float = SIZE) -> float:
    """Room for a text, rather too much than too little; the browser has the font."""
    return size * _DIGIT * len(text)


def label(value: float) -> str:
    """A tick's number: as short as it is exact."""
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def _steps(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most ``most`` multiples of a round number."""
    raw = (high - low) / most
    power = 10.0 ** floor(log10(raw))
    for step in [factor * scale for scale in (power, 10 * power) for factor in _ROUND]:
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        if step >= raw and last - first < most:
            # Without the last digits' noise: 3 * 0.1 is above 0.3.
            values = [float(f"{k * step:.12g}") for k in range(first, last + 1)]
            return [(value, label(value)) for value in values]
    return []


def _decades(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Up to ``most`` of 1, 2, 5 times powers of ten, else of the powers, else of every second, third ..."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), n) for n in range(1, len(powers) + 1))):
        found = [f * 10.0**p for p in powers if p % every == 0 for f in factors if low <= f * 10.0**p <= high]
        if len(found) <= most:
            return [(value, label(float(f"{value:.3g}"))) for value in found]
    return []
