import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from synthetic import run

from spikedistill.report import table
from spikedistill.report.table import against_alone
from spikedistill.training.summary import merge
from spikedistill.training.summary_models import Difference


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.500"),
        (9.994, "9.99"),
        (999.4, "999"),
        (999.6, "1.00 k"),
        (1234567, "1.23 M"),
        (2.5e9, "2.50 G"),
        (3e12, "3.00 T"),
    ],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert table.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00033149, "0.000331"),
        (0.0114, "0.0114"),
        (0.99951, "1.00"),
        (1.0, "1.00"),
        (99.94, "99.9"),
        (99.96, "100"),
        (8421.1, "8421"),
        (123456, "1.23e+05"),
        (2e-5, "2.00e-05"),
        (-4.321, "-4.32"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert table.number(value) == text


def test_one_row_a_stage_with_the_summary_s_numbers() -> None:
    rows = {row.stage: row for row in table.rows(merge([run(0), run(1), run(2)]))}
    assert list(rows) == ["teacher", "alone", "student", "quantized"]
    assert rows["student"].accuracy == "90.40 ± 0.40"
    assert rows["student"].firing_rate == "12.10 ± 0.10"
    assert rows["student"].operations == "341 k SynOps"
    assert rows["student"].energy == "0.861"
    assert rows["teacher"].operations == "1.40 M   MACs"
    assert (rows["teacher"].time_steps, rows["teacher"].firing_rate) == ("–", "–")
    assert (rows["quantized"].bits, rows["student"].bits) == ("4/4/8", "float")


def test_one_seed_shows_no_spread() -> None:
    assert table.rows(run(0))[1].accuracy == "86.00"


def test_plain_text_outside_a_terminal() -> None:
    file = io.StringIO()
    table.render(run(0, title="[bold]a title"), Console(file=file, width=40))
    text = file.getvalue()
    assert text.startswith("[bold]a title\n")
    lines = text.splitlines()
    assert len({line.index("T ") for line in lines[1:2]}) == 1
    assert [line.split()[0] for line in lines[3:7]] == ["teacher", "alone", "student", "quantized"]
    assert "\x1b" not in text
    assert "warning: alone: head.neuron is dead: 0.04 % firing" in text


def test_colours_in_a_terminal() -> None:
    file = io.StringIO()
    table.render(run(0, title="[bold]a title"), Console(file=file, width=140, force_terminal=True))
    text = file.getvalue()
    assert "\x1b[" in text
    assert "[bold]a title" in text
    assert "quantized" in text


def difference(stage: str, low: float | None = 0.02, **more: Any) -> Difference:
    kept = {
        "figure": "accuracy",
        "baseline": "alone",
        "mean": 0.0252,
        "high": low and 0.0304,
        "values": [0.0],
    }
    return Difference(**{**kept, "stage": stage, "low": low, **more})


def said(*found: Difference) -> list[str]:
    return against_alone(SimpleNamespace(differences=list(found)))


def test_of_stages_with_an_interval_beside_the_one_alone():
    line = "points against alone, paired by seed, with the 95 % interval: student +2.52 [+2.00, +3.04]"
    others = [
        difference("student", baseline="teacher"),
        difference("student", figure="firing_rate"),
        difference("quantized", low=None),
    ]
    assert said(difference("student"), *others) == [line]
    assert said(*others) == []


def test_of_many_the_page_tells():
    assert said(*(difference(f"arm{i}") for i in range(6))) == []


def test_one_seed_has_no_difference():
    assert against_alone(SimpleNamespace()) == []
