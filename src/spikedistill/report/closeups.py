"""Drawings of single networks from near: spikes, membranes, calibration, layers beside a teacher's."""

from collections.abc import Sequence

from ..terminal import amount
from ..training.observations import Activity, Bin, Drawn
from .canvas import INK, MUTED, Canvas, Colour, Panel, ending, paint, rows, whole
from .plots import WIDTH
from .scales import span, width

TRACED, PANELS = 3, 4  # neurons of a layer, layers
NAMED = 19  # characters of a layer's name
NAME = 9.5  # size of the name of a teacher's layer


def calibration(networks: Sequence[tuple[Colour, Sequence[Bin]]], alt: str) -> str:
    """Accuracy of the images whose confidence lies in each tenth; on the dashed line both are equal, in %.

    A larger dot stands for more images.
    """
    canvas = Canvas(WIDTH, 250)
    panel = Panel(canvas, (44, 24, WIDTH - 14, 214), (0, 100), (0, 100))
    panel.axes("confidence [%]", "accuracy [%]")
    panel.curve([0, 100], [0, 100], MUTED, thick=1.2, dash="4 3")
    for colour, bins in networks:
        shown = [one for one in bins if one.images]
        most = max(one.images for one in shown)
        xs, ys = [100 * one.confidence for one in shown], [100 * one.accuracy for one in shown]
        panel.curve(xs, ys, paint(colour), thick=1.2, faint=0.7)
        for x, y, one in zip(xs, ys, shown):
            # By the root: it is the area that the eye compares.
            panel.dot(x, y, paint(colour), radius=2 + 3 * (one.images / most) ** 0.5)
    return canvas.svg(alt)


def layers(
    student: Sequence[Activity],
    teacher: Sequence[tuple[Activity, float]],
    colours: tuple[Colour, Colour],
    alt: str,
) -> str:
    """A row a layer of the student: its share of values not zero; below it that of a layer of the teacher.

    ``teacher``: for each the layer beside it, and how like their features are, which stands at the right.
    """
    top = 100 * max([one.share for one in student] + [one.share for one, _ in teacher] + [1e-3])
    names = [one.path for one in student]
    said = [
        ending(theirs.path, 16) if theirs.path != mine.path else ""
        for mine, (theirs, _) in zip(student, teacher)
    ]
    likenesses = [f"{like:.2f}" for _, like in teacher]
    # An axis on which each bar ends early enough for the name behind it, left of the column of likenesses.
    column = max(map(width, likenesses)) + 8
    left = rows(names, (0, top), "", WIDTH, 30)[1].left
    ends = [WIDTH - column - left - 5 - width(name, NAME) for name in said]
    high = max(
        [top * (WIDTH - 12 - left) / (WIDTH - column - left)]
        + [100 * theirs.share * (WIDTH - 12 - left) / end for (theirs, _), end in zip(teacher, ends)]
    )
    canvas, panel = rows(names, (0, high), "values that are not zero [%]", WIDTH, 30)
    for y, (mine, (theirs, _)) in enumerate(zip(student, teacher)):
        for share, colour, side in ((mine.share, colours[0], -6.5), (theirs.share, colours[1], 6.5)):
            canvas.box(
                panel.left,
                panel.y(y) + side - 5,
                max(panel.x(100 * share) - panel.left, 1),
                10,
                paint(colour),
            )
        if said[y]:
            end = max(panel.x(100 * theirs.share), panel.left + 1) + 5
            canvas.text(end, panel.y(y) + 6.5, said[y], colour=MUTED, size=NAME, kind="halo")
        canvas.text(WIDTH - 2, panel.y(y), likenesses[y], "end", kind="total")
    return canvas.svg(alt)


def raster(images: Sequence[Drawn], colour: Colour, alt: str) -> str:
    """A mark a spike: images beside each other, time to the right in each, a line a neuron, layers apart."""
    names = [one.path for one in images[0].layers]
    left = max(width(ending(name, NAMED)) for name in names) + 10
    steps = max(len(row) for one in images for layer in one.layers for row in layer.spikes)
    room = (WIDTH - left - 4 - 10 * (len(images) - 1)) / len(images)
    heights = [4 * len(layer.neurons) for layer in images[0].layers]
    canvas = Canvas(WIDTH, 22 + sum(heights) + 8 * len(heights) + 24)
    for i, one in enumerate(images):
        x, step = left + i * (room + 10), room / steps
        said = f"class {one.target}" + ("" if one.prediction == one.target else f" → {one.prediction}")
        canvas.text(x, 9, said, size=10)
        top = 20.0
        for height, layer in zip(heights, one.layers):
            canvas.box(x, top, room, height, "var(--grid)", 0.45)
            marks = [
                f"M{x + t * step + 0.5:.1f} {top + 4 * n + 2:.0f}h{step - 1:.1f}"
                for n, row in enumerate(layer.spikes)
                for t, spike in enumerate(row)
                if spike == "1"
            ]
            if marks:
                canvas.parts.append(
                    f'<path d="{"".join(marks)}" stroke="{paint(colour)}" stroke-width="3.2"/>'
                )
            if i == 0:
                canvas.text(left - 6, top + height / 2, ending(layer.path, NAMED), "end", kind="name")
            top += height + 8
        canvas.text(x + room / 2, top + 6, f"{amount(steps, 'time step')} →", "middle", MUTED, kind="tick")
    return canvas.svg(alt)


def traces(image: Drawn, colour: Colour, alt: str) -> str:
    """Charged membranes of a few neurons over time, a panel a layer; threshold dotted, dots are spikes."""
    chosen = [image.layers[round(i * (len(image.layers) - 1) / (PANELS - 1))] for i in range(PANELS)]
    shown = list({layer.path: layer for layer in chosen}.values())
    canvas = Canvas(WIDTH, 112 * ((len(shown) + 1) // 2) + 22)
    for i, layer in enumerate(shown):
        kept = lively(layer.spikes)
        values = [value for n in kept for value in layer.membranes[n]]
        steps = max(len(layer.membranes[n]) for n in kept)
        x, y = 34.0 + 202 * (i % 2), 22.0 + 112 * (i // 2)
        place = (x, y, x + 158, y + 66)
        # Rest and threshold are always in view: a trace says little without them.
        panel = Panel(canvas, place, (0.7, steps + 0.3), span([*values, 0.0, 1.0], 0.08))
        panel.axes("", "", whole(1, steps), grid="")
        canvas.text(x - 28, y - 12, ending(layer.path, 24), size=10, kind="name")
        panel.level(1, INK, thick=1.2)
        for n, dash in zip(kept, ("", "5 2", "1.5 2")):
            times = [float(t + 1) for t in range(len(layer.membranes[n]))]
            panel.curve(times, layer.membranes[n], paint(colour), thick=1.4, dash=dash)
            for t, value, spike in zip(times, layer.membranes[n], layer.spikes[n]):
                if spike == "1":
                    panel.dot(t, value, paint(colour), radius=2.8)
    canvas.text(WIDTH / 2, canvas.height - 9, "time step (H in thresholds upwards)", "middle")
    return canvas.svg(alt)


def lively(spikes: Sequence[str]) -> list[int]:
    """Traced neurons: the first that fire at some steps and not at others, else the first that fire."""
    order = sorted(range(len(spikes)), key=lambda n: (len(set(spikes[n])) < 2, "1" not in spikes[n], n))
    return sorted(order[:TRACED])
