"""The table of docs/methods.md: what each method gave where it was measured, from the records."""

import json
from statistics import fmean

from evidence_records import BASELINE, RECORDS, ROOT, Seeds, by_stage, difference, recorded

from spikedistill.methods import STUDENT, catalogue

DIGITS, CIFAR = "8x8 digits", "CIFAR-10, 10,000 images"
# Of several records the first that has the method.
MEASURED = {DIGITS: ("compare-digits", "compare-digits-kdsnn"), CIFAR: ("compare-evidence-unit",)}
STEPS = ROOT / "results" / "performance" / "methods.json"  # of `distill.py --methods`
OWN = "digits-{}"  # a method that fits none of these networks: its own recipe


def measured() -> list[str]:
    """A row a shipped method: difference to ``alone``, operations and time of a step as shares of its."""
    stages = {name: by_stage(recorded(RECORDS / name)) for names in MEASURED.values() for name in names}
    steps = json.loads(STEPS.read_text())["rows"]
    titles = [title for data in MEASURED for title in (f"{data} [points]", "operations")] + ["step"]
    lines = ["| method | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    for method in catalogue():
        cells = []
        for data, names in MEASURED.items():
            found = [(stages[n][method], stages[n][BASELINE], "") for n in names if method in stages[n]]
            own = by_stage(recorded(RECORDS / OWN.format(method))) if data == DIGITS else {}
            if STUDENT in own:
                found.append((own[STUDENT], own[BASELINE], " †"))
            cells += _cells(*found[0]) if found else ["–"] * 2
        share = steps[method]["median_ms"] / steps["plain"]["median_ms"] if method in steps else None
        lines.append(f"| `{method}` | " + " | ".join([*cells, f"{share:.2f}" if share else "–"]) + " |")
    return lines


def _cells(mine: Seeds, alone: Seeds, mark: str) -> list[str]:
    seeds = sorted(mine.keys() & alone.keys())
    share = fmean(mine[s]["operations"] for s in seeds) / fmean(alone[s]["operations"] for s in seeds)
    return [difference(mine, alone) + mark, f"{share:.2f}"]
