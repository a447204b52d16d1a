"""One thing is not "1 things", wherever a number of things is said."""

import re

import pytest

from spikedistill import terminal
from spikedistill.data.verify import Report
from spikedistill.hardware.show import figures_table
from spikedistill.training import card
from spikedistill.training.verdict import Verdict, sentence


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("epoch",), "0 epochs"),
        (1, ("epoch",), "1 epoch"),
        (1200, ("epoch",), "1,200 epochs"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_amounts(number: int, words: tuple[str, ...], text: str) -> None:
    assert terminal.amount(number, *words) == text


def test_one_of_a_thing_is_said_in_the_singular() -> None:
    report = str(Report("mine", files=1, counts={"train": {"a": 1}}))
    assert "1 file read" in report
    assert "train: 1 sample, 1 class of 1 to 1" in report
    assert "2 files read" in str(Report("mine", files=2))
    assert "1 method, over 1 seed)" in sentence([Verdict("a", 0.1, 0.05, 0.2)], seeds=1)
    assert "2 methods, over 3 seeds)" in sentence([Verdict(name, 0.1, 0.05, 0.2) for name in "ab"], seeds=3)
    assert "logits of 1 class out" in card.form({"num_classes": 1})


def test_figures_whose_unit_stands_behind_the_number_have_none_in_their_name() -> None:
    figures = {"mode": "event", "energy_pj": 23.45e6, "latency_ns": 1e6, "area_um2": 1.0, "tops": 1.0}
    rows = figures_table({"event": figures}).cells
    scaled = [row for row in rows if re.search(r" ([µn]J|[mµ]s)$", row[1])]
    assert [row[:2] for row in scaled] == [["energy", "23.45 µJ"], ["latency", "1.000 ms"]]
    exact = figures_table({"released": {**figures, "mode": "released"}}).cells
    assert {"energy_pj", "latency_ns"} <= {row[0] for row in exact}
