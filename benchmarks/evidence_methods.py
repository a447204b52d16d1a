"""The table of docs/methods.md: what each method gave where it was measured, from the records."""

from collections.abc import Sequence
from statistics import fmean

from evidence_records import BASELINE, RECORDS, Seeds, by_stage, difference, recorded

from spikedistill.methods import STUDENT, catalogue

DIGITS, CIFAR = "8x8 digits", "CIFAR-10, 10,000 images"
# Of several records the first that has the method.
MEASURED = {DIGITS: ("compare-digits", "compare-digits-kdsnn"), CIFAR: ("compare-evidence-unit",)}
# Times of digits were taken beside other work, stage by stage another share of the machine.
KEYS = {DIGITS: ("operations",), CIFAR: ("operations", "seconds")}
OWN = "digits-{}"  # a method that fits none of these networks: its own recipe


def measured() -> list[str]:
    """A row a shipped method: difference to ``alone``, operations and time of training as shares of its."""
    stages = {name: by_stage(recorded(RECORDS / name)) for names in MEASURED.values() for name in names}
    titles = [title for data in MEASURED for title in (f"{data} [points]", *KEYS[data])]
    lines = ["| method | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    for method in catalogue():
        cells = []
        for data, names in MEASURED.items():
            found = [(stages[n][method], stages[n][BASELINE], "") for n in names if method in stages[n]]
            own = by_stage(recorded(RECORDS / OWN.format(method))) if data == DIGITS else {}
            if STUDENT in own:
                found.append((own[STUDENT], own[BASELINE], " †"))
            cells += _cells(*found[0], KEYS[data]) if found else ["–"] * (1 + len(KEYS[data]))
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return lines


def _cells(mine: Seeds, alone: Seeds, mark: str, keys: Sequence[str]) -> list[str]:
    seeds = sorted(mine.keys() & alone.keys())
    shares = [fmean(mine[s][key] for s in seeds) / fmean(alone[s][key] for s in seeds) for key in keys]
    return [difference(mine, alone) + mark, *(f"{share:.2f}" for share in shares)]
