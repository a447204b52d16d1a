"""Paper for drawings: SVG text whose colours are the page's own names, so light, dark and print need one."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor

from .scales import SIZE, Scale, fitting, label, width

INK, MUTED, GRID = "currentColor", "var(--muted)", "var(--grid)"
# Of a palette; the page's style has them as --s0 ... (stages, runs) and --p0 ... (parts of something).
COLOURS = 8
Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]
Colour = int | str | None


def series(index: int) -> str:
    """The colour of a stage or a run."""
    return f"var(--s{index % COLOURS})"


def part(index: int) -> str:
    """The colour of a part: a component, a term of the loss."""
    return f"var(--p{index % COLOURS})"


def paint(colour: Colour) -> str:
    """A colour as a drawing says it: a stage's number, a colour's name, or None for grey."""
    return MUTED if colour is None else colour if isinstance(colour, str) else series(colour)


def short(text: str, limit: int = 12) -> str:
    """At most ``limit`` characters, the cut marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def ending(text: str, limit: int) -> str:
    """At most ``limit`` characters, the last ones: paths differ at their end."""
    return text if len(text) <= limit else "…" + text[1 - limit :]


class Canvas:
    """Lines, dots, boxes and texts, in the order of drawing; ``width`` and ``height`` in its own units."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def line(
        self, points: Sequence[Point], colour: str, thick: float = 1.8, dash: str = "", faint: float = 1.0
    ) -> None:
        """Straight from point to point; ``dash`` as SVG has it, ``faint``: opacity."""
        way = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        more = (f' stroke-dasharray="{dash}"' if dash else "") + (f' opacity="{faint}"' if faint < 1 else "")
        self.parts.append(
            f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="{_n(thick)}"{more}/>'
        )

    def dot(
        self, x: float, y: float, colour: str, radius: float = 3.5, faint: float = 1.0, hollow: bool = False
    ) -> None:
        """A disc, or a ring."""
        paint = f'fill="none" stroke="{colour}" stroke-width="1.6"' if hollow else f'fill="{colour}"'
        more = f' opacity="{faint}"' if faint < 1 else ""
        self.parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" {paint}{more}/>')

    def box(
        self, x: float, y: float, w: float, h: float, colour: str, faint: float = 1.0, tip: str = ""
    ) -> None:
        """A filled rectangle; ``tip`` shows under the pointer."""
        more = f' fill-opacity="{faint:.3g}"' if faint < 1 else ""
        end = f"><title>{escape(tip)}</title></rect>" if tip else "/>"
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" fill="{colour}"{more}{end}'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        anchor: str = "start",
        colour: str = INK,
        size: float = SIZE,
        kind: str = "",
        turned: bool = False,
    ) -> None:
        """One line, middle at height ``y``; ``kind``: its class on the page; ``turned``: reads upwards."""
        more = f' class="{kind}"' if kind else ""
        more += f' text-anchor="{anchor}"' if anchor != "start" else ""
        more += f' font-size="{_n(size)}"' if size != SIZE else ""
        more += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
        self.parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" dy=".35em"{more} fill="{colour}">{escape(words)}</text>'
        )

    def svg(self, alt: str, kind: str = "") -> str:
        """The drawing; ``alt``: what it shows, for those who cannot see it."""
        named = f' class="{kind}"' if kind else ""
        head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        return f'{head} font-size="{_n(SIZE)}"{named}>{"".join(self.parts)}</svg>'


class Panel:
    """A rectangle of a canvas with a scale each way."""

    def __init__(
        self,
        canvas: Canvas,
        place: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
        logarithmic: str = "",
    ) -> None:
        """``place``: left, top, right, bottom; ``x``, ``y``: values at the ends; ``logarithmic``: say "x"."""
        self.canvas = canvas
        self.left, self.top, self.right, self.bottom = place
        self.x = Scale(*x, self.left, self.right, "x" in logarithmic)
        # From the bottom up: SVG counts downwards.
        self.y = Scale(*y, self.bottom, self.top, "y" in logarithmic)

    def axes(
        self,
        xlabel: str,
        ylabel: str = "",
        xticks: Ticks | None = None,
        yticks: Ticks | None = None,
        grid: str = "y",
    ) -> "Panel":
        """Grid lines, ticks and what is drawn; rather fewer ticks than two that touch."""
        xticks = self.x.ticks() if xticks is None else fitting(xticks, self.x)
        yticks = self.y.ticks(upright=True) if yticks is None else fitting(yticks, self.y, upright=True)
        for value, words in xticks:
            at = self.x(value)
            if "x" in grid:
                self.canvas.line([(at, self.top), (at, self.bottom)], GRID, 0.8)
            # What lies beyond the paper is not shown: a long last label moves in.
            within = min(at, self.canvas.width - width(words) / 2)
            self.canvas.text(within, self.bottom + 11, words, "middle", MUTED, kind="tick")
        for value, words in yticks:
            at = self.y(value)
            if "y" in grid:
                self.canvas.line([(self.left, at), (self.right, at)], GRID, 0.8)
            self.canvas.text(self.left - 6, at, words, "end", MUTED, kind="tick")
        if "y" not in grid:
            return self._named(xlabel, ylabel)
        self.canvas.line([(self.left, self.bottom), (self.right, self.bottom)], GRID, 1.2)
        return self._named(xlabel, ylabel)

    def _named(self, xlabel: str, ylabel: str) -> "Panel":
        if xlabel:
            self.canvas.text((self.left + self.right) / 2, self.bottom + 27, xlabel, "middle")
        if ylabel:
            self.canvas.text(max(self.left - 36, 2), self.top - 11, ylabel)
        return self

    def curve(self, xs: Sequence[float], ys: Sequence[float], colour: str, **style: float | str) -> None:
        """A line through values; a single one is a dot."""
        points = [(self.x(x), self.y(y)) for x, y in zip(xs, ys)]
        if len(points) == 1:
            self.canvas.dot(*points[0], colour, 3)
        elif points:
            self.canvas.line(points, colour, **style)  # type: ignore[arg-type]

    def dot(self, x: float, y: float, colour: str, **style: float | bool) -> None:
        """A dot at values."""
        self.canvas.dot(self.x(x), self.y(y), colour, **style)  # type: ignore[arg-type]

    def level(self, y: float, colour: str, dash: str = "1.5 3", thick: float = 1.4) -> None:
        """A line across at one value."""
        self.canvas.line([(self.left, self.y(y)), (self.right, self.y(y))], colour, thick, dash)

    def upright(self, x: float, colour: str, dash: str = "1.5 3", thick: float = 1.2) -> None:
        """A line from bottom to top at one value."""
        self.canvas.line([(self.x(x), self.top), (self.x(x), self.bottom)], colour, thick, dash)


def rows(
    names: Sequence[str], x: tuple[float, float], xlabel: str, total: float, step: float
) -> tuple[Canvas, Panel]:
    """A canvas with a name each ``step`` down the left side; row i stands at y = i."""
    # Names take at most half of the drawing; what is longer loses its beginning.
    limit = int((0.5 * total - 12) / width("0"))
    left = max((width(ending(name, limit)) for name in names), default=0) + 12
    canvas = Canvas(total, step * len(names) + 46)
    # The axis is turned over, so that the first row is the uppermost.
    panel = Panel(canvas, (left, 6, total - 12, step * len(names) + 6), x, (len(names) - 0.5, -0.5))
    panel.axes(xlabel, yticks=(), grid="x")
    for y, name in enumerate(names):
        canvas.text(left - 8, panel.y(y), ending(name, limit), "end", kind="name")
    return canvas, panel


def whole(low: float, high: float) -> Ticks | None:
    """Ticks for few whole numbers, all those within; None where there are many."""
    return [(float(k), label(k)) for k in range(ceil(low), floor(high) + 1)] if high - low <= 6 else None


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
