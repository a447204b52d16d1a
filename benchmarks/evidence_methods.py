"""The table of docs/methods.md: what each method gave where it was measured, from the records."""

import json
from collections.abc import Sequence
from statistics import fmean

from evidence_records import BASELINE, RECORDS, ROOT, by_stage, difference, recorded

from spikedistill.methods import STUDENT, catalogue

# Of several records the first that has the method.
DIGITS, CIFAR = ("compare-digits", "compare-digits-kdsnn"), ("compare-evidence-unit",)
OWN = "digits-{}"  # a method that fits none of the networks of digits: its own recipe
NONE = ["–", "–"]
STEPS = ROOT / "results" / "performance" / "methods.json"  # of `distill.py --methods`
TITLES = (
    "method",
    "8x8 digits [points]",
    "operations",
    "CIFAR-10, 10,000 images [points]",
    "operations",
    "step",
)


def measured() -> list[str]:
    """A row a shipped method: difference to ``alone``, operations and time of a step as shares of its."""
    steps = json.loads(STEPS.read_text())["rows"]
    lines = ["| " + " | ".join(TITLES) + " |", "|" + " --- |" * len(TITLES)]
    for method in catalogue():
        digits = _cells(DIGITS, method)
        if not digits and (own := _cells((OWN.format(method),), STUDENT)):
            digits = [own[0] + " †", own[1]]
        share = steps[method]["median_ms"] / steps["plain"]["median_ms"] if method in steps else None
        cells = [*(digits or NONE), *(_cells(CIFAR, method) or NONE), f"{share:.2f}" if share else "–"]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def _cells(records: Sequence[str], name: str) -> list[str]:
    """Difference and share of operations of a stage in the first record that has it."""
    for record in records:
        stages = by_stage(recorded(RECORDS / record))
        if name in stages:
            mine, alone = stages[name], stages[BASELINE]
            seeds = sorted(mine.keys() & alone.keys())
            share = fmean(mine[s]["operations"] for s in seeds) / fmean(alone[s]["operations"] for s in seeds)
            return [difference(mine, alone), f"{share:.2f}"]
    return []
