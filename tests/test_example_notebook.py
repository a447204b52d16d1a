"""The example notebook: it is what its script makes, its code runs, and what it shows loads nothing."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = json.loads((EXAMPLES / "digits.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def shown(kind: str) -> list[str]:
    outputs = [o for cell in NOTEBOOK["cells"] for o in cell.get("outputs", [])]
    return ["".join(o["data"][kind]) for o in outputs if kind in o.get("data", {})]


def test_it_is_what_its_script_makes() -> None:
    cells = runpy.run_path(str(EXAMPLES / "make_notebook.py"))["CELLS"]
    assert cells == [(cell["cell_type"], "".join(cell["source"])) for cell in NOTEBOOK["cells"]]
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert [c["execution_count"] for c in NOTEBOOK["cells"] if c["cell_type"] == "code"] == [
        *range(1, len(CODE) + 1)
    ]


def test_what_it_shows() -> None:
    assert len(shown("text/html")) == 5  # run, network, evaluation, losses, price
    for html in shown("text/html"):
        assert not re.search(r"<script|<link|<img|<style|\bsrc=|@import|https?:", html)
    assert "128 of 128 predictions are equal" in shown("text/plain")[-2]
    assert not re.search(r"/tmp|/home|/root", json.dumps(NOTEBOOK))
    assert (EXAMPLES / "digits.ipynb").stat().st_size < 200_000


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in CODE:
        exec(source, names)
    assert bool(names["same"].all())
    assert names["run"].summary.stage("student").accuracy > 0.8
    assert names["price"]["ann_twin"]["operations"]["energy_pj"] > 0
