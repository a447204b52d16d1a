"""Records of runs in results/evidence, a file a seed: read, and compared stage by stage."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from spikedistill.training.summary import paired_interval

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "evidence"
BASELINE = "alone"  # stages are compared with this one, seed by seed
Seeds = dict[int, dict[str, Any]]  # of one stage: its record by seed


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The records of one recipe, a seed each."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]


def by_stage(records: list[dict[str, Any]]) -> dict[str, Seeds]:
    """Stage, then seed: its record."""
    found: dict[str, Seeds] = {}
    for record in records:
        for stage in record["stages"]:
            found.setdefault(stage["name"], {})[record["seed"]] = stage
    return found


def reading(stages: dict[str, Seeds], student: str) -> str:
    """What the paired interval of ``student`` and ``alone`` shows; a dash for a single seed."""
    interval = paired_interval(paired(stages[student], stages[BASELINE]))
    if not interval:
        return "–"
    return "gain" if interval[0] > 0 else "loss" if interval[1] < 0 else "no difference"


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


def paired(mine: Seeds, theirs: Seeds) -> list[float]:
    """Differences in points, seed by seed."""
    return [100 * (mine[s]["accuracy"] - theirs[s]["accuracy"]) for s in sorted(mine.keys() & theirs.keys())]


def difference(mine: Seeds, theirs: Seeds) -> str:
    values = paired(mine, theirs)
    if not values:
        return "–"
    interval = paired_interval(values)
    return f"{fmean(values):+.2f}" + (
        f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else " (one seed)"
    )
