"""One printer of tables: nothing is cut in a pipe, in a notebook or on a narrow terminal."""

import io
import re

import pytest
from rich.console import Console

from spikedistill.terminal import Table, show

ROWS = [["a_long_name_of_a_layer.with.a.path", "15,906,934.02624", "100.0 %"], ["[b]", "6", "-"]]
TABLE = Table(
    ["layer of the network", "energy of an inference (pJ)", "share of the whole network"], ROWS, "[red]Title"
)


def printed(width: int, terminal: bool) -> str:
    file = io.StringIO()
    show(TABLE, "warning: [b] is dead", console=Console(file=file, width=width, force_terminal=terminal))
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def test_a_pipe_gets_the_whole_table_aligned():
    lines = printed(20, terminal=False).splitlines()
    assert lines[0] == "[red]Title"
    assert len({line.rindex("  ") for line in lines[1:3]}) == 1
    assert lines[3].split() == ["a_long_name_of_a_layer.with.a.path", "15,906,934.02624", "100.0", "%"]
    assert len(lines[1]) == len(lines[2]) == len(lines[3]) == len(lines[4])
    assert lines[5] == "warning: [b] is dead"


@pytest.mark.parametrize("width", [80, 48, 20])
def test_a_narrow_terminal_cuts_no_figure(width):
    text = printed(width, terminal=True)
    for figure in ("15,906,934.02624", "100.0 %", "[red]Title", "[b]"):
        assert figure in text
    assert "…" not in text
    assert width == 20 or all(len(line) <= width for line in text.splitlines())


def test_the_results_of_a_run_fit_80_columns():
    from spikedistill.report.table import HEADINGS

    row = [
        "quantized",
        "97.05 ± 0.07",
        "4",
        "12.05 ± 0.07",
        "1.40 M   MACs",
        "4/4/8",
        "0.861",
        "5.51",
        "0.612",
    ]
    file = io.StringIO()
    show(Table(HEADINGS, [row]), console=Console(file=file, width=80, force_terminal=True))
    assert all(cell in file.getvalue() for cell in row)


def test_a_pipe_is_what_stdout_is(capsys):
    show(Table(["T", "accuracy"], [[1, "50.00 %"], ["-", "9.00 %"]], left=(0, 1)))
    assert capsys.readouterr().out == "T  accuracy\n1  50.00 %\n-  9.00 %\n"


def test_a_pipe_begins_with_the_first_words_and_has_no_two_empty_lines(capsys):
    show("", TABLE, "", TABLE, TABLE, "", "the end")
    out = capsys.readouterr().out
    assert out.startswith("[red]Title\n")
    assert "\n\n\n" not in out
    assert out.count("\n\n[red]Title\n") == 2
    assert out.endswith("\n\nthe end\n")
