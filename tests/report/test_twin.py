"""Energies never come alone: the ANN twin at equal bits and the least favourable estimate are beside them."""

import pytest
from synthetic import run

from spikedistill.report import methods, table
from spikedistill.report.page import tiles
from spikedistill.report.parts import Study, colours
from spikedistill.training.summary import merge


def priced():
    summary = run(0)
    hardware = {
        "operations": {"energy_pj": 1e6},
        "memory": {"total_pj": 4e6},
        "spikesim": {"dense": {"energy_pj": 8e6}, "event": {"energy_pj": 2e6}},
        "ann_twin": {
            "operations": {"energy_pj": 6.4e6},
            "memory": {"total_pj": 6e6},
            "spikesim": {"dense": {"energy_pj": 4e6}},
        },
    }
    for stage in summary.stages:
        stage.hardware = hardware if stage.kind == "snn" else None
    return summary


def test_each_estimate_has_its_twin():
    found = {one.model: one.ratio for one in table.estimates(priced().stage("quantized"))}
    assert found == pytest.approx(
        {"operations": 6.4, "with memory": 1.5, "SpikeSim dense": 0.5, "SpikeSim event": 2.0}
    )


def test_the_table_has_twin_and_least_favourable_beside_the_energy():
    rows = {row.stage: row for row in table.rows(priced())}
    assert (rows["quantized"].twin, rows["quantized"].least) == ("6.40", "0.500")
    assert (rows["teacher"].twin, rows["teacher"].least) == ("–", "–")
    assert len(rows["quantized"].cells()) == len(table.HEADINGS)
    line = "quantized: least favourable is SpikeSim dense: 8.000 µJ, its ANN twin at equal bits 4.000 µJ"
    assert line in table.lines_below(priced())
    several = table.rows(merge([priced(), priced().model_copy(update={"seed": 1})]))
    assert several[-1].least == "0.500"


def test_so_have_the_pages_card_and_the_comparison_of_methods():
    summary = priced()
    study = Study("a", summary, [summary], [], colours=colours([s.name for s in summary.stages]))
    *_, (value, what, beside) = tiles(study)
    assert "energy" in what
    assert "ANN twin at equal bits: 6.40 µJ" in beside
    assert "least favourable, SpikeSim dense: 8.00 µJ, twin 4.00 µJ" in beside
    assert methods.HEADINGS[-3:] == table.HEADINGS[-3:]
    assert [row[-2:] for row in methods.rows(summary, ["student"])][-1] == ("6.40", "0.500")


def test_what_has_no_price_has_a_dash():
    summary = run(0)
    for stage in summary.stages:
        stage.hardware = None
    assert {(row.twin, row.least) for row in table.rows(summary)} == {("–", "–")}
