"""The confusion matrix as an SVG of its own: only the cells that hold images are drawn."""

from collections.abc import Sequence
from html import escape

from spikedistill.report.plots import SERIES, short


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], colour: int, alt: str) -> str:
    """Rows are true classes, columns predicted ones; the shade is the share of the row, empty cells are
    not drawn.
    """
    classes = len(matrix)
    cell = max(340 / classes, 3.0)
    labelled = classes <= 30
    margin = 14 + (min(max(map(len, names), default=1), 12) * 5.6 + 6 if labelled else 4)
    side = margin + classes * cell + 2
    parts = [
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {side:.0f} {side:.0f}" class="matrix">'
    ]
    parts.append(
        f'<rect class="frame" x="{margin}" y="{margin}" width="{classes * cell:.2f}" '
        f'height="{classes * cell:.2f}"/>'
    )
    for i, row in enumerate(matrix):
        for j, number in enumerate(row):
            if not number:
                continue
            share = number / sum(row)
            x, y = margin + j * cell, margin + i * cell
            tip = f"{_class(names, i)} taken for {_class(names, j)}: {number} of {sum(row)}"
            parts.append(
                f'<rect x="{x:.2f}" y="{y:.2f}" width="{cell:.2f}" height="{cell:.2f}" '
                f'fill="var(--s{colour % len(SERIES)})" '
                f'fill-opacity="{0.08 + 0.86 * share:.3f}"><title>{escape(tip)}</title></rect>'
            )
            if classes <= 12:
                tone = ' class="on"' if share > 0.55 else ""
                parts.append(
                    f'<text x="{x + cell / 2:.2f}" y="{y + cell / 2:.2f}" dy=".35em" '
                    f'text-anchor="middle"{tone}>{number}</text>'
                )
    if labelled:
        for i in range(classes):
            middle, text = margin + (i + 0.5) * cell, escape(short(_class(names, i)))
            parts.append(
                f'<text x="{margin - 5}" y="{middle:.2f}" dy=".35em" text-anchor="end">{text}</text>'
            )
            turn = f' transform="rotate(-90 {middle:.2f} {margin - 5})" text-anchor="start" dy=".35em"'
            upright = max(map(len, names), default=1) <= 2
            where = ' text-anchor="middle"' if upright else turn
            parts.append(f'<text x="{middle:.2f}" y="{margin - 5}"{where}>{text}</text>')
    middle = margin + classes * cell / 2
    parts.append(f'<text class="axis" x="{middle:.2f}" y="9" text-anchor="middle">predicted class</text>')
    parts.append(
        f'<text class="axis" x="9" y="{middle:.2f}" transform="rotate(-90 9 {middle:.2f})" '
        'text-anchor="middle">true class</text>'
    )
    return "".join([*parts, "</svg>"])


def _class(names: Sequence[str], index: int) -> str:
    return str(names[index]) if index < len(names) else str(index)
