"""The page's plots: pure functions from numbers to inline SVG whose colours are the page's own (light,
dark, print).
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec
from zlib import crc32

from spikedistill.training.summary import Difference, LayerSummary, MembraneSummary, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib needs real colours; each is exchanged for a CSS variable, so that one drawing serves light, dark
# and paper.
INK, MUTED, GRID = "#101112", "#707172", "#d0d1d2"
SERIES = ("#0a5c9e", "#c2500a", "#0b7d5b", "#a8488a", "#8f6b00", "#4b8fc4", "#6a58b5", "#5b6472")
_VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--s{index})" for index, colour in enumerate(SERIES)
}
WIDTH = 4.6
P = ParamSpec("P")
Curve = tuple[Sequence[float], Sequence[float]]


_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spikedistill",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}


def _drawing(plot: Callable[P, str]) -> Callable[P, str]:
    """Draw with matplotlib's defaults and ours, whatever the user's own settings; texts are no formulas."""

    @wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            # Names may be in a script that matplotlib's font lacks; the browser draws the text, not
            # matplotlib.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            return plot(*args, **kwargs)

    return draw


def series(index: int) -> str:
    """The drawing colour of a series; ``var(--sN)`` is its name on the page."""
    return SERIES[index % len(SERIES)]


@_drawing
def training(seeds: Sequence[Mapping[str, Curve]], colour: int, alt: str) -> str:
    """Accuracy above, loss below, against epochs: seeds thin, their mean thick; validation coloured, training
    grey.

    Each seed maps ``train_accuracy``, ``validation_accuracy``, ``train_loss``, ``validation_loss`` to
    (epochs, values).
    """
    figure = _figure(WIDTH, 3.7)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, what in ((upper, "accuracy"), (lower, "loss")):
        for part, shade, style in (("train", MUTED, (0, (4, 1.5))), ("validation", series(colour), "-")):
            _mean_of_seeds(
                axes, [seed[f"{part}_{what}"] for seed in seeds if f"{part}_{what}" in seed], shade, style
            )
        _style(axes, "y")
    upper.set_ylabel("accuracy [%]")
    lower.set_ylabel("loss")
    lower.set_xlabel("epoch")
    _whole_numbers(lower)
    return _svg(figure, alt)


@_drawing
def validation(stages: Sequence[tuple[int, Sequence[Curve]]], alt: str) -> str:
    """Validation accuracy of every stage against the share of its epochs: (colour, a curve per seed)."""
    figure = _figure(WIDTH, 3.7)
    axes = figure.subplots()
    for colour, curves in stages:
        _mean_of_seeds(axes, curves, series(colour), "-")
    _style(axes, "y")
    _whole_numbers(axes)
    axes.set_xlabel("epoch of the stage")
    axes.set_ylabel("validation accuracy [%]")
    return _svg(figure, alt)


@_drawing
def dots(rows: Sequence[tuple[str, int, Spread]], xlabel: str, alt: str) -> str:
    """One row a name: a faint dot per seed, a strong tick for the mean (values already in the axis's
    unit).
    """
    figure = _figure(WIDTH, 0.75 + 0.34 * len(rows))
    axes = figure.subplots()
    for y, (_, colour, spread) in enumerate(rows):
        axes.plot(
            spread.values,
            [y] * len(spread.values),
            "o",
            color=series(colour),
            alpha=0.45,
            markersize=5.5,
            mew=0,
        )
        axes.plot([spread.mean], [y], "|", color=series(colour), markersize=15, mew=2.2)
    _rows(axes, [name for name, *_ in rows])
    axes.set_xlabel(xlabel)
    return _svg(figure, alt)


@_drawing
def forest(
    differences: Sequence[Difference], alt: str, scale: float = 100.0, xlabel: str = "difference [points]"
) -> str:
    """Paired differences with their 95 % intervals around the line of no difference."""
    figure = _figure(WIDTH, 0.75 + 0.34 * len(differences))
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    for y, difference in enumerate(differences):
        low, high = difference.low, difference.high
        if low is not None and high is not None:
            axes.plot([scale * low, scale * high], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.plot(
            [scale * v for v in difference.values],
            [y] * len(difference.values),
            "o",
            color=series(0),
            alpha=0.4,
            markersize=4,
            mew=0,
        )
        axes.plot([scale * difference.mean], [y], "D", color=INK, markersize=5)
    _rows(axes, [f"{d.stage} − {d.baseline}" for d in differences])
    axes.set_xlabel(xlabel)
    return _svg(figure, alt)


@_drawing
def firing(stages: Sequence[tuple[int, Sequence[Sequence[LayerSummary]]]], alt: str) -> str:
    """Firing rate by layer: (colour, one list of layers a seed) for each stage; the mean with the seeds'
    range.
    """
    names = list(dict.fromkeys(layer.path for _, seeds in stages for layers in seeds for layer in layers))
    figure = _figure(
        WIDTH, 0.85 + (0.16 + 0.1 * len(stages)) * len(names) * (1 if len(names) <= 20 else 0.55)
    )
    axes = figure.subplots()
    for place, (colour, seeds) in enumerate(stages):
        offset = (place - (len(stages) - 1) / 2) * min(0.22, 0.66 / len(stages))
        for y, name in enumerate(names):
            rates = [100 * layer.firing_rate for layers in seeds for layer in layers if layer.path == name]
            odd = any(layer.warning for layers in seeds for layer in layers if layer.path == name)
            if not rates:
                continue
            mean = sum(rates) / len(rates)
            axes.plot([min(rates), max(rates)], [y + offset] * 2, color=series(colour), linewidth=1.6)
            axes.plot(
                [mean],
                [y + offset],
                "o",
                color=series(colour),
                markersize=5,
                mfc="none" if odd else series(colour),
            )
    _rows(axes, names)
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])
    axes.set_xlabel("spikes per neuron and time step [%]")
    return _svg(figure, alt)


@_drawing
def against_time(
    stages: Sequence[tuple[int, str, Mapping[int, Spread]]], references: Sequence[tuple[int, float]], alt: str
) -> str:
    """Test accuracy against time steps: (colour, "-" or "--", {T: accuracy in %}); references are ANNs'
    level lines.
    """
    figure = _figure(WIDTH, 2.9)
    axes = figure.subplots()
    for colour, level in references:
        axes.axhline(level, color=series(colour), linewidth=1.2, linestyle=(0, (1, 1.5)))
    for colour, style, at in stages:
        steps = sorted(at)
        axes.errorbar(
            steps,
            [at[t].mean for t in steps],
            yerr=[at[t].std or 0.0 for t in steps],
            color=series(colour),
            linestyle=style,
            marker="o" if style == "-" else "s",
            markersize=4.5,
            linewidth=1.6,
            elinewidth=1,
            capsize=2.5,
        )
    every = sorted({t for *_, at in stages for t in at})
    axes.set_xticks(every, [str(t) for t in every])
    _style(axes, "y")
    axes.set_xlabel("time steps T")
    axes.set_ylabel("test accuracy [%]")
    return _svg(figure, alt)


@_drawing
def membrane(histogram: MembraneSummary, colour: int, alt: str) -> str:
    """Share of charged membranes by value in thresholds: student filled, teacher as a line, the threshold
    dotted.
    """
    figure = _figure(2.5, 1.55, constrained=False)
    figure.subplots_adjust(left=0.05, right=0.97, bottom=0.27, top=0.97)
    axes = figure.subplots()
    for counts, filled in ((histogram.student, True), (histogram.teacher, False)):
        if counts is None:
            continue
        shares = [c / max(sum(counts), 1) for c in counts]
        if filled:
            axes.stairs(shares, histogram.edges, fill=True, color=series(colour), alpha=0.5, linewidth=0)
        else:
            axes.stairs(shares, histogram.edges, color=INK, linewidth=1.2)
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
    _style(axes, None)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(histogram.edges[0], histogram.edges[-1])
    axes.set_xlabel("H [thresholds]")
    return _svg(figure, alt)


@_drawing
def stacked(
    rows: Sequence[tuple[str, Mapping[str, float]]], colours: Mapping[str, int], xlabel: str, alt: str
) -> str:
    """One horizontal bar a row, stacked from named parts; equal names have equal colours."""
    figure = _figure(WIDTH, 0.75 + 0.3 * len(rows))
    axes = figure.subplots()
    for y, (_, parts) in enumerate(rows):
        left = 0.0
        for name in colours:
            if width := parts.get(name, 0.0):
                axes.barh(y, width, left=left, height=0.66, color=series(colours[name]), edgecolor="none")
                left += width
    _rows(axes, [name for name, _ in rows])
    axes.set_xlim(left=0)
    axes.set_xlabel(xlabel)
    return _svg(figure, alt)


@_drawing
def pareto(points: Sequence[tuple[str, int, float, float]], xlabel: str, alt: str) -> str:
    """Accuracy in % against energy (logarithmic) of (name, colour, energy, accuracy); the line joins what
    nothing beats.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = _figure(WIDTH, 3.1)
    axes = figure.subplots()
    best = frontier([(energy, accuracy) for *_, energy, accuracy in points])
    axes.step(
        [x for x, _ in best],
        [y for _, y in best],
        where="post",
        color=MUTED,
        linewidth=1.1,
        linestyle=(0, (3, 2)),
    )
    for _, colour, energy, accuracy in points:
        axes.plot([energy], [accuracy], "o", color=series(colour), markersize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.28, y=0.16)
    _style(axes, "both")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("test accuracy [%]")
    _name_points(figure, axes, [(name, energy, accuracy) for name, _, energy, accuracy in points])
    return _svg(figure, alt)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, quality) pairs that no other pair beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((cost, quality))
    return best


def short(text: str, limit: int = 12) -> str:
    """At most ``limit`` characters, the cut marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _figure(width: float, height: float, constrained: bool = True) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained" if constrained else None)


def _name_points(figure: "Figure", axes: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Each name beside its point where nothing else stands: right, left, above or below; nowhere free, no
    name.
    """
    figure.draw_without_rendering()
    per_point = figure.dpi / 72
    places = [axes.transData.transform((x, y)) / per_point for _, x, y in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (name, *point), (x, y) in zip(points, places):
        width = 4.9 * len(name)
        for dx, dy, align, before in (
            (7, -3, "left", 0.0),
            (-7, -3, "right", 1.0),
            (0, 7, "center", 0.5),
            (0, -14, "center", 0.5),
        ):
            left = x + dx - before * width
            box = (left, y + dy - 1, left + width, y + dy + 9)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                axes.annotate(
                    name,
                    (point[0], point[1]),
                    (dx, dy),
                    textcoords="offset points",
                    ha=align,
                    fontsize=8.5,
                    color=INK,
                    gid=f"halo{len(taken)}",
                )
                break


def _style(axes: "Axes", grid: str | None) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(length=0, colors=MUTED, labelcolor=MUTED, labelsize=8.5)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    _style(axes, "x")
    axes.set_yticks(range(len(names)), [short(name, 34) for name in names])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _mean_of_seeds(axes: "Axes", curves: Sequence[Curve], colour: str, style: Any) -> None:
    """Each seed thin; over the epochs that all seeds have reached, their mean thick."""
    curves = [curve for curve in curves if curve[0]]
    if not curves:
        return
    if len(curves) > 1:
        for x, y in curves:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
    tables = [dict(zip(*curve)) for curve in curves]
    epochs = sorted(set.intersection(*[set(table) for table in tables]))
    mean = [sum(table[epoch] for table in tables) / len(tables) for epoch in epochs]
    axes.plot(
        epochs,
        mean,
        color=colour,
        linewidth=1.8,
        linestyle=style,
        marker="o" if len(epochs) == 1 else None,
        markersize=4,
    )


def _svg(figure: "Figure", alt: str) -> str:
    """The figure as an inline SVG: no header, no metadata, no name spaces, own ids, the page's colours and
    font.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None
    inner = body[body.index(">") + 1 :].replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        inner = inner.replace(colour, variable)
    inner = re.sub(r"(?<=[\" ])font-family: [^;\"<>]*;? ?", "", inner)
    inner = re.sub(
        r"(?<=[\" ])font: ([\d.]+)px [^;\"<>]*", r"font-size: \1px", inner
    )  # how matplotlib before 3.11 says it
    inner = re.sub(r">\s*\n\s*<", "><", inner)
    own = f"f{crc32(inner.encode()):x}-"
    inner = (
        re.sub(r'\bid="', f'id="{own}', inner)
        .replace("url(#", f"url(#{own}")
        .replace('href="#', f'href="#{own}')
    )
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="{view.group(1)}">{inner.strip()}'
