"""Tables for people: lines and colours on a terminal, aligned text in a pipe, file or notebook."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich import table as rich_table
    from rich.console import Console

BETWEEN = "  "  # columns
TEXT = 8  # a column of words can be as narrow as this


@dataclass(frozen=True)
class Table:
    """Rows under headings; columns are set right but for those of ``left``."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    caption: str = ""
    left: Collection[int] = (0,)

    @property
    def cells(self) -> list[list[str]]:
        """The rows' texts."""
        return [[str(cell) for cell in row] for row in self.rows]

    @property
    def least_width(self) -> int:
        """Columns of a terminal that hold every figure in one piece, with texts and headings wrapped."""
        figures = [self.figures_width(i) for i in range(len(self.headings)) if i not in self.left]
        return sum(figures) + TEXT * len(self.left) + len(BETWEEN) * (len(self.headings) - 1)

    def figures_width(self, column: int) -> int:
        """The longest figure of a column, or word of its heading."""
        return max(
            len(text) for text in [*self.headings[column].split(), *(row[column] for row in self.cells)]
        )

    def aligned(self) -> str:
        """As plain text: the title above a ruled table, the caption below."""
        cells = [[*self.headings], *self.cells]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [
            BETWEEN.join(
                text.ljust(width) if i in self.left else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in cells
        ]
        if self.title:
            lines = [self.title, lines[0], BETWEEN.join("-" * width for width in widths), *lines[1:]]
        return "\n".join([*lines, self.caption] if self.caption else lines)

    def coloured(self, width: int) -> "rich_table.Table":
        """For rich. Where ``width`` is narrow headings and texts are wrapped; figures stay in one piece."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text  # texts are shown as they are: a title may hold brackets

        title, caption = Text(self.title, style="bold"), Text(self.caption)
        table = RichTable(
            title=title if self.title else None, title_justify="left",
            caption=caption if self.caption else None, caption_justify="left",
            box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1),
        )  # fmt: skip
        narrow = max(map(len, self.aligned().splitlines()[: len(self.rows) + 3])) > width
        for i, heading in enumerate(self.headings):
            if i in self.left:
                table.add_column(Text(heading), overflow="fold")
            else:
                # Left to itself rich takes from the widest columns first, figures too.
                fixed = self.figures_width(i) if narrow else None
                table.add_column(Text(heading), justify="right", width=fixed)
        for row in self.cells:
            table.add_row(*map(Text, row))
        return table


def show(*parts: "Table | str", console: "Console | None" = None) -> None:
    """Print tables and lines one below the other, each table that has a title after an empty line.

    In a pipe nothing empty stands before the first.
    """
    file = sys.stdout if console is None else console.file
    # rich cuts tables to 80 columns where it knows no terminal (a notebook, a pipe): these get all text.
    if not (sys.stdout.isatty() if console is None else console.is_terminal):
        written = list(dropwhile(lambda part: part == "", parts))
        for before, part in zip(["", *written], written):
            space = "\n" if before != "" and isinstance(part, Table) and part.title else ""
            file.write(space + (part if isinstance(part, str) else part.aligned()) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    out = console or Console()
    for part in parts:
        if isinstance(part, str):
            out.print(Text(part, style="yellow" if part.startswith("warning: ") else ""))
        elif part.least_width > out.width:  # rich would leave out columns; the terminal wraps lines of text
            out.print(Text(part.aligned()), soft_wrap=True)
        else:
            out.print("", part.coloured(out.width), sep="\n")


def tell(tree: Any, *parts: "Table | str", as_json: bool) -> None:
    """What a command found: ``tree`` as one JSON object alone, or the tables and lines that people read."""
    if as_json:
        print(json.dumps(tree, default=str))
    else:
        show(*parts)


def amount(number: int, one: str, more: str = "") -> str:
    """A number of things: ``1 epoch``, ``1,200 epochs``; ``more``: a plural that is not ``one`` and s."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def energy(picojoule: float | None) -> str:
    """An energy with its unit and four significant digits: ``15.91 µJ``."""
    return "-" if picojoule is None else _scaled(picojoule, (("µJ", 1e6), ("nJ", 1e3), ("pJ", 1.0)))


def duration(nanoseconds: float | None) -> str:
    """A latency with its unit and four significant digits: ``62.83 ms``."""
    return "-" if nanoseconds is None else _scaled(nanoseconds, (("ms", 1e6), ("µs", 1e3), ("ns", 1.0)))


def significant(value: float | int | None, digits: int = 4) -> str:
    """A number with so many significant digits, without exponent if readable; whole numbers stay whole."""
    if value is None:
        return "-"
    if isinstance(value, int) or not value:
        return f"{value:,.0f}"
    if not 1e-4 <= abs(value) < 1e12:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits}g}")
    # `#` keeps zeros at the end: all figures show as many digits.
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:#.{digits}g}"


def _scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    # What four digits round up to the next unit belongs there: 1.000 µJ, not 1,000 nJ.
    name, size = next(((n, s) for n, s in units if abs(value) >= 0.99995 * s), units[-1])
    return f"{significant(value / size)} {name}"
