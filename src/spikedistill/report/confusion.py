"""The confusion matrix: only the cells that hold images are drawn."""

from collections.abc import Sequence

from .canvas import GRID, INK, MUTED, Canvas, Colour, paint, short

FULL = 0.5  # the share of a row above which a cell is filled and its number has the paper's colour
SHADES = (
    0.08,
    0.5,
)  # opacity of shares from 0 to 1 below it; a number in the text's colour can be read on all


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], colour: Colour, alt: str) -> str:
    """Rows are true classes, columns predicted ones; the shade is the share of the row, full above a half."""
    classes = len(matrix)
    # With many classes the drawing grows: a smaller cell could not be seen.
    cell = max(340 / classes, 3.0)
    labelled = classes <= 30
    longest = min(max(map(len, names), default=1), 12)
    margin = 19 + (longest * 6.2 + 6 if labelled else 4)
    end = margin + classes * cell
    canvas = Canvas(end + 2, end + 2)
    canvas.line([(margin, margin), (end, margin), (end, end), (margin, end), (margin, margin)], GRID, 1)
    for i, row in enumerate(matrix):
        for j, number in enumerate(row):
            if not number:
                continue
            share = number / sum(row)
            x, y = margin + j * cell, margin + i * cell
            tip = f"{_class(names, i)} taken for {_class(names, j)}: {number} of {sum(row)}"
            canvas.box(x, y, cell, cell, paint(colour), 1.0 if share > FULL else opacity(share), tip)
            if classes <= 12:
                tone = "var(--on)" if share > FULL else INK
                canvas.text(x + cell / 2, y + cell / 2, str(number), "middle", tone, 10)
    if labelled:
        upright = max(map(len, names), default=1) <= 2
        for i in range(classes):
            middle, text = margin + (i + 0.5) * cell, short(_class(names, i))
            canvas.text(margin - 5, middle, text, "end", size=10, kind="tick")
            anchor = "middle" if upright else "start"
            canvas.text(
                middle,
                margin - (10 if upright else 5),
                text,
                anchor,
                size=10,
                kind="tick",
                turned=not upright,
            )
    middle = margin + classes * cell / 2
    canvas.text(middle, 6, "predicted class", "middle", MUTED, 10)
    canvas.text(7, middle, "true class", "middle", MUTED, 10, turned=True)
    return canvas.svg(alt, "matrix")


def opacity(share: float) -> float:
    """Of a cell that is not filled."""
    low, high = SHADES
    return low + (high - low) * share


def _class(names: Sequence[str], index: int) -> str:
    return str(names[index]) if index < len(names) else str(index)
