"""What a notebook shows: the objects' numbers, escaped, in the notebook's own colours, from nowhere else."""

import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from synthetic import run as made_run

import spikedistill as sd
from spikedistill.hardware.pricing import Price
from spikedistill.report import table
from spikedistill.training.evaluate import Evaluation
from spikedistill.training.run import Run
from spikedistill.training.summary import merge


@pytest.fixture(scope="module")
def student() -> torch.nn.Module:
    return sd.networks.create("vgg5", in_channels=1, time_steps=2, width=0.25, pools=1)


def texts(html: str) -> str:
    return re.sub(r"<[^>]*>", " ", html)


def is_safe(html: str) -> None:
    """No script, nothing loaded, no colour of a light page left."""
    assert html.startswith("<div class='spikedistill' style='color:inherit")
    assert not re.search(r"<script|<link|<img|<style|\bsrc=|@import|https?:|\bon\w+=", html)
    assert re.findall(r"url\((?!#)", html) == []
    assert not re.search(r"(?<!-)color: ?#|fill: ?#(000|fff)|--ink|--paper|#1c1f23", html)
    known = set(re.findall(r"(--[\w-]+):", html.partition(">")[0]))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= known


def test_a_run_is_its_table_and_its_accuracies(tmp_path: Path) -> None:
    for summary in (made_run(0), merge([made_run(seed) for seed in range(3)])):
        html = Run(tmp_path, summary)._repr_html_()
        is_safe(html)
        for row in table.rows(summary):
            assert row.accuracy in html
            assert row.stage in html
        assert "<svg" in html
        assert "dead: 0.04 % firing" in html
        assert str(tmp_path) in html


def test_names_are_escaped(tmp_path: Path) -> None:
    bad = made_run(0, title="<script>alert(1)</script>")
    bad.stages[0].name = "<b onclick=x>"
    bad.warnings.append("<img src=x>")
    html = Run(tmp_path / "<i>", bad)._repr_html_()
    assert not re.search(r"<(script|b|img|i)\b", html)
    assert "&lt;script&gt;" in html


def test_losses_are_their_parts() -> None:
    student = sd.networks.create("vgg5", in_channels=1, time_steps=2, width=0.125, pools=1)
    losses = sd.Distiller(student, None, [{"type": "cross_entropy"}])(
        torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    )
    html = losses._repr_html_()
    is_safe(html)
    assert f"{float(losses.total.detach()):.4g}" in html
    assert "cross_entropy" in html
    assert "(2, 10)" in html
    assert losses == tuple(losses)
    assert issubclass(type(losses), namedtuple("Losses", "total parts logits").__mro__[1])


def test_a_network_is_its_layers(student: torch.nn.Module) -> None:
    html = student._repr_html_()
    is_safe(html)
    shown = texts(html)
    assert (
        f"vgg5: SNN, T = 2, {sum(p.numel() for p in student.parameters()):,} parameters, 3 layers of neurons"
        in shown
    )
    counts = [int(text.replace(",", "")) for text in re.findall(r"right'>([\d,]+)</td>", html)]
    assert sum(counts) == sum(p.numel() for p in student.parameters())
    assert "IF(reset=" in shown
    assert "16 x 1 x 3 x 3" in shown


def test_a_quantized_network_says_its_bits(student: torch.nn.Module) -> None:
    quantized = sd.quantize(student, weight_bits=3, calibration=[torch.rand(4, 1, 8, 8)])
    html = quantized._repr_html_()
    is_safe(html)
    assert "weight bits" in html
    assert html.count("right'>3</td>") >= 1


def test_an_evaluation_is_its_firing_rates() -> None:
    confusion = torch.zeros(2, 2, dtype=torch.long)
    found = Evaluation(0.75, 0.1, 8, confusion, {}, {"a": 0.125, "b": 0.0001}, {"a": 10, "b": 20})
    html = found._repr_html_()
    is_safe(html)
    assert "75.00 % of 8 images" in html
    assert "12.50" in html
    assert "dead" in html
    assert "<svg" in html
    assert "<svg" not in Evaluation(0.75, 0.1, 8, confusion)._repr_html_()


def test_a_price_is_all_estimates_and_still_plain(student: torch.nn.Module) -> None:
    price = sd.hardware.price(sd.hardware.layers(student, torch.rand(2, 1, 8, 8)))
    html = price._repr_html_()
    is_safe(html)
    for words in ("SpikeSim, dense", "SpikeSim, event", "energy with memory", "least favourable", "ANN twin"):
        assert words in html
    assert isinstance(price, dict)
    assert price == dict(price)
    assert isinstance(sd.hardware.pricing.headline(price), Price)


def test_many_rows_are_folded() -> None:
    deep = sd.networks.create("resnet50", time_steps=2, width=0.0625)
    html = deep._repr_html_()
    assert re.search(r"<details><summary[^>]*>\d+ more rows", html)
