"""What ``spikedistill compare`` does: methods on one data set, or whole recipes beside each other."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SpikedistillError
from ..terminal import Table, tell
from ..training.comparison import compare
from ..training.reuse import beside
from ..training.run import train
from . import methods as rows_of
from . import table
from .page import write_report


def compare_command(
    given: Sequence[str],
    methods: str | None,
    on: str | None,
    seeds: int,
    budget: str | None,
    out: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """``given``: recipes; with ``methods`` overrides, ``path=value``, of what stands behind ``on``."""
    if methods is None:
        if on is not None or budget is not None or not given:
            raise SpikedistillError(
                "compare takes recipes, or --methods all (or a,b) with --on RECIPE_OR_DATA"
            )
        return _recipes(given, seeds, out or Path("runs"), device, as_json)
    if on is None:
        raise SpikedistillError("--methods needs --on RECIPE_OR_DATA: what the methods are tried on")
    if plain := [text for text in given if "=" not in text]:
        raise SpikedistillError(
            f"with --methods only path=value may stand beside the options; found {plain[0]!r}"
        )
    found = compare(
        on, methods, seeds=seeds, budget=budget, out=out, overrides=list(given), device=device, say=_note
    )  # fmt: skip
    page = write_report(found.run.folder)
    summary = found.run.summary
    rows = rows_of.rows(summary, found.plan.methods)
    tree = {
        "report": page,
        "sentence": found.sentence,
        "methods": found.plan.methods,
        "left_out": found.plan.left_out,
        "summary": summary.model_dump(mode="json"),
    }
    shown = Table(rows_of.HEADINGS, rows, summary.title, rows_of.CAPTION)
    left = [f"left out: {name}: {reason}" for name, reason in found.plan.left_out.items()]
    return tell(tree, "", shown, *left, "", found.sentence, f"\nreport: {page}", as_json=as_json)


def _note(text: str) -> None:
    # stdout is for the result: with --json it holds one object and nothing else.
    print(text, file=sys.stderr, flush=True)


def _recipes(recipes: Sequence[str], seeds: int, out: Path, device: str | None, as_json: bool) -> None:
    found = []
    for recipe in recipes:
        folder = out / Path(recipe).stem
        # Recipes that share a stage, a teacher mostly, train it once: the runs before stand beside.
        found.append(train(recipe, out=folder, seeds=seeds, device=device, reuse=beside(folder)))
    page = write_report([run.folder for run in found], out / "comparison.html")
    parts: list[Any] = []
    for run in found:
        parts += ["", table.shown(run.summary), *table.lines_below(run.summary)]
    if len(found) > 1:
        parts += ["", together([(run.folder.name, run.summary) for run in found])]
    tree = {
        "report": page,
        "summaries": {str(run.folder): run.summary.model_dump(mode="json") for run in found},
    }
    tell(tree, *parts, f"\nreport: {page}", as_json=as_json)


def together(runs: Sequence[tuple[str, Any]]) -> Table:
    """Stages of equal name beside each other."""
    names = list(dict.fromkeys(stage.name for _, summary in runs for stage in summary.stages))
    rows = []
    for name in names:
        for label, summary in runs:
            stage = next((stage for stage in summary.stages if stage.name == name), None)
            if stage is not None:
                rows.append(
                    (name, label, *next(row.cells()[1:] for row in table.rows(summary) if row.stage == name))
                )
    return Table((table.HEADINGS[0], "Run", *table.HEADINGS[1:]), rows, "Side by side", left=(0, 1))
