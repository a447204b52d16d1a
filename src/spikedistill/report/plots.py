"""The page's plots: pure functions from numbers to inline SVG."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..training.summary import Difference, LayerSummary, MembraneSummary, Spread
from .canvas import INK, MUTED, Canvas, Colour, Panel, paint, part, rows, whole
from .scales import span, widened, width

WIDTH, HEIGHT = 400.0, 215.0
DASH = "6 3"
Curve = tuple[Sequence[float], Sequence[float]]


def curves(lines: Sequence[tuple[str, str, Sequence[Curve]]], xlabel: str, ylabel: str, alt: str) -> str:
    """(colour, dash, a curve a seed) each: seeds thin, the mean over the epochs that all have reached thick.

    The axis of values is logarithmic where all are positive and differ more than fifty times.
    """
    every = [y for *_, seeds in lines for _, ys in seeds for y in ys]
    steps = [x for *_, seeds in lines for xs, _ in seeds for x in xs]
    steep = bool(every) and min(every) > 0 and max(every) > 50 * min(every)
    canvas = Canvas(WIDTH, HEIGHT)
    x = (min(steps, default=0.0), max(steps, default=1.0))
    # A single epoch: an axis needs two ends.
    x = x if x[0] < x[1] else (x[0] - 0.5, x[1] + 0.5)
    y = widened(every, 0.06) if steep else span(every)
    panel = Panel(canvas, (44, 24, WIDTH - 14, HEIGHT - 36), x, y, "y" if steep else "")
    panel.axes(xlabel, ylabel, whole(*x) or [tick for tick in panel.x.ticks() if tick[0] == round(tick[0])])
    for colour, dash, seeds in lines:
        _mean_of_seeds(panel, seeds, colour, dash)
    return canvas.svg(alt)


def dots(values: Sequence[tuple[str, Colour, Spread]], xlabel: str, alt: str) -> str:
    """One row a name: a faint dot per seed, a strong tick for the mean (values in the axis's unit)."""
    every = [value for *_, spread in values for value in [*spread.values, spread.mean]]
    canvas, panel = rows([name for name, *_ in values], span(every), xlabel, WIDTH, 25)
    for y, (_, colour, spread) in enumerate(values):
        for value in spread.values:
            panel.dot(value, y, paint(colour), radius=3.6, faint=0.5)
        at, middle = panel.x(spread.mean), panel.y(y)
        canvas.line([(at, middle - 7), (at, middle + 7)], paint(colour), 2.6)
    return canvas.svg(alt)


def forest(
    differences: Sequence[Difference], alt: str, scale: float = 100.0, xlabel: str = "difference [points]"
) -> str:
    """Paired differences with their 95 % intervals around the line of no difference."""
    every = [scale * v for d in differences for v in [0.0, *d.values, d.low or 0.0, d.high or 0.0]]
    names = [f"{d.stage} − {d.baseline}" for d in differences]
    canvas, panel = rows(names, span(every), xlabel, WIDTH, 25)
    panel.upright(0, MUTED, "4 3")
    for y, difference in enumerate(differences):
        if difference.low is not None and difference.high is not None:
            panel.curve([scale * difference.low, scale * difference.high], [y, y], INK, thick=1.5)
        for value in difference.values:
            panel.dot(scale * value, y, MUTED, radius=2.6, faint=0.6)
        panel.dot(scale * difference.mean, y, INK, radius=4.2)
    return canvas.svg(alt)


def firing(stages: Sequence[tuple[Colour, Sequence[Sequence[LayerSummary]]]], alt: str) -> str:
    """Firing rate by layer: (colour, one list of layers a seed) for each stage; mean and range of the seeds.

    Rings are layers with a warning: dead or saturated.
    """
    names = list(dict.fromkeys(layer.path for _, seeds in stages for layers in seeds for layer in layers))
    every = [100 * layer.firing_rate for _, seeds in stages for layers in seeds for layer in layers]
    step = max(15.0, 8.0 * len(stages) + 2) if len(names) <= 20 else 15.0
    low, high = span(every, zero=True)
    canvas, panel = rows(names, (-0.02 * high, high), "spikes per neuron and time step [%]", WIDTH, step)
    for place, (colour, seeds) in enumerate(stages):
        aside = (place - (len(stages) - 1) / 2) * min(0.25, 0.7 / len(stages))
        for y, name in enumerate(names):
            found = [layer for layers in seeds for layer in layers if layer.path == name]
            if not found:
                continue
            rates = [100 * layer.firing_rate for layer in found]
            panel.curve([min(rates), max(rates)], [y + aside] * 2, paint(colour), thick=1.6)
            odd = any(layer.warning for layer in found)
            panel.dot(sum(rates) / len(rates), y + aside, paint(colour), radius=3.2, hollow=odd)
    return canvas.svg(alt)


def against_time(
    stages: Sequence[tuple[Colour, str, Mapping[int, Spread]]],
    references: Sequence[tuple[Colour, float]],
    alt: str,
) -> str:
    """Test accuracy by time steps: (colour, "-" or "--", {T: accuracy in %}); references: ANNs' level lines.

    A first T far below all others does not flatten the curve: the axis begins above it, the value stands at
    its foot.
    """
    every = [T for *_, at in stages for T in at]
    low, high = floor_of(
        [[at[T].mean for T in sorted(at)] for *_, at in stages], [level for _, level in references]
    )
    canvas = Canvas(WIDTH, HEIGHT)
    # Room at both ends, by a factor: the axis is logarithmic.
    ends = (min(every) / 1.12, max(every) * 1.12)
    panel = Panel(canvas, (44, 24, WIDTH - 14, HEIGHT - 36), ends, (low, high), "x")
    panel.axes("time steps T", "test accuracy [%]", [(T, str(T)) for T in sorted(set(every))])
    for colour, level in references:
        panel.level(level, paint(colour))
    feet: list[float] = []
    for colour, style, at in stages:
        shown = [(T, at[T]) for T in sorted(at) if at[T].mean >= low]
        panel.curve(
            [T for T, _ in shown],
            [found.mean for _, found in shown],
            paint(colour),
            dash=DASH if style == "--" else "",
        )
        for T, found in shown:
            if found.std:
                ends = (max(found.mean - found.std, low), min(found.mean + found.std, high))
                panel.curve([T, T], ends, paint(colour), thick=1)
            panel.dot(T, found.mean, paint(colour), radius=3, hollow=style == "--")
        for T in sorted(at):
            if at[T].mean < low:
                # Above each other: several stages may fall below the axis at one T.
                x, y = panel.x(T) + 4, panel.bottom - 9 - 13 * len(feet)
                feet.append(y)
                canvas.text(x, y, f"↓ {at[T].mean:.1f}", colour=paint(colour), kind="halo")
    return canvas.svg(alt)


def floor_of(lines: Sequence[Sequence[float]], levels: Sequence[float] = ()) -> tuple[float, float]:
    """Ends of an axis for curves whose first value may lie far below the others: these have at least half."""
    rest = [value for line in lines for value in line[1:]] + list(levels)
    every = [value for line in lines for value in line] + list(levels)
    low, high = min(every), max(every)
    if rest and high - low > 2.5 * max(high - min(rest), 1e-9) and high - low > 5:
        least = min(rest)
        return least - max(0.25 * (high - least), 1.0), high + max(0.06 * (high - least), 0.25)
    return span(every)


def membrane(histogram: MembraneSummary, colour: Colour, teacher: Colour, alt: str) -> str:
    """Share of charged membranes by value in thresholds: student filled, teacher a line, threshold dotted."""
    canvas = Canvas(200, 112)
    both = [
        [count / max(sum(counts), 1) for count in counts] if counts else []
        for counts in (histogram.student, histogram.teacher)
    ]
    edges = histogram.edges
    top = max(value for shares in both for value in [*shares, 0.0]) or 1.0
    panel = Panel(canvas, (16, 4, 184, 76), (edges[0], edges[-1]), (0.0, top))
    panel.axes("H [thresholds]", yticks=())
    for shares, line in zip(both, (False, True)):
        if not shares:
            continue
        stairs = [
            (panel.x(edge), panel.y(share))
            for k, share in enumerate(shares)
            for edge in (edges[k], edges[k + 1])
        ]
        if line:
            canvas.line(stairs, paint(teacher), 1.4)
        else:
            way = "L".join(
                f"{x:.1f} {y:.1f}"
                for x, y in [(panel.left, panel.bottom), *stairs, (panel.right, panel.bottom)]
            )
            canvas.parts.append(f'<path d="M{way}Z" fill="{paint(colour)}" opacity=".6"/>')
    panel.upright(1, INK)
    return canvas.svg(alt)


def stacked(
    bars: Sequence[tuple[str, Mapping[str, float]]], colours: Mapping[str, int], xlabel: str, alt: str
) -> str:
    """One horizontal bar a row, stacked from named parts, sum behind it; equal names have equal colours."""
    sums = [sum(parts.values()) for _, parts in bars]
    # Longer than the longest bar, behind which its sum is written; 1e-12: all may be 0.
    canvas, panel = rows([name for name, _ in bars], (0.0, max([*sums, 1e-12]) * 1.22), xlabel, WIDTH, 21)
    for y, ((_, parts), total) in enumerate(zip(bars, sums)):
        left = 0.0
        for name in colours:
            if value := parts.get(name, 0.0):
                x, end = panel.x(left), panel.x(left + value)
                canvas.box(
                    x, panel.y(y) - 7, max(end - x, 0.3), 14, part(colours[name]), tip=f"{name}: {value:.3g}"
                )
                left += value
        canvas.text(panel.x(total) + 5, panel.y(y), f"{total:.3g}", colour=MUTED, kind="total")
    return canvas.svg(alt)


def pareto(points: Sequence[tuple[str, Colour, float, float]], xlabel: str, alt: str) -> str:
    """Accuracy in % against log energy: (name, colour, energy, accuracy); a line joins what nothing beats."""
    canvas = Canvas(WIDTH, HEIGHT)
    x, y = widened([p[2] for p in points], 0.3), span([p[3] for p in points], 0.2)
    panel = Panel(canvas, (44, 24, WIDTH - 14, HEIGHT - 36), x, y, "x")
    panel.axes(xlabel, "test accuracy [%]", grid="xy")
    best = frontier([(energy, accuracy) for *_, energy, accuracy in points])
    for (x0, y0), (x1, y1) in pairwise(best):
        panel.curve([x0, x1, x1], [y0, y0, y1], MUTED, thick=1.2, dash="4 3")
    for _, colour, energy, accuracy in points:
        panel.dot(energy, accuracy, paint(colour), radius=4.6)
    _name_points(canvas, [(name, panel.x(energy), panel.y(accuracy)) for name, _, energy, accuracy in points])
    return canvas.svg(alt)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, quality) pairs that no other pair beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    # Of equal cost the best comes first, and so beats the others.
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((cost, quality))
    return best


def _name_points(canvas: Canvas, points: Sequence[tuple[str, float, float]]) -> None:
    """Each name beside its point where nothing else is: right, left, above, below; nowhere free, no name."""
    # All points first: a name must not cover one that is yet to get its own.
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in points]
    for name, x, y in points:
        room = width(name)
        for dx, dy, anchor, before in (
            (9, 0, "start", 0.0),
            (-9, 0, "end", 1.0),
            (0, -13, "middle", 0.5),
            (0, 13, "middle", 0.5),
        ):
            left = x + dx - before * room
            box = (left, y + dy - 6, left + room, y + dy + 6)
            inside = left >= 0 and left + room <= canvas.width
            if inside and not any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                taken.append(box)
                canvas.text(x + dx, y + dy, name, anchor, kind="halo")
                break


def _mean_of_seeds(panel: Panel, seeds: Sequence[Curve], colour: str, dash: str) -> None:
    """Each seed thin; over the epochs that all seeds have reached, their mean thick."""
    seeds = [curve for curve in seeds if curve[0]]
    if not seeds:
        return
    if len(seeds) > 1:
        for xs, ys in seeds:
            panel.curve(xs, ys, colour, thick=0.8, faint=0.45)
    xs, mean = mean_curve(seeds)
    panel.curve(xs, mean, colour, dash=dash)


def mean_curve(seeds: Sequence[Curve]) -> Curve:
    """The mean over the epochs that all seeds have reached."""
    tables = [dict(zip(*curve)) for curve in seeds]
    epochs = sorted(set.intersection(*[set(table) for table in tables]))
    return epochs, [sum(table[epoch] for table in tables) / len(tables) for epoch in epochs]
