"""What ``spikedistill evaluate`` does: a stage measured again, of every seed of the run, with their mean."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Unpack

from .. import data as datasets
from ..terminal import Table, amount, tell
from ..training.reevaluate import Reading, Wanted, reevaluate, split_run
from ..training.run_folder import read_claim, seed_folders

Columns = dict[str, dict[int | None, list[float]]]


def evaluate_command(run: str, as_json: bool, **wanted: Unpack[Wanted]) -> None:
    """Print the accuracies of one network, or of each seed and their mean."""
    found = readings(run, **wanted)
    first = next(iter(found.values()))
    columns = {
        name: {T: [one.columns[name][T] for one in found.values()] for T in column}
        for name, column in first.columns.items()
    }
    several = len(found) > 1
    title = f"{run}, stage {first.stage}, {amount(first.images, 'test image')}"
    title += f", seeds {', '.join(map(str, found))}" if several else ""
    notes = [f"seed {seed}: {note}" if several else note for seed, one in found.items() for note in one.notes]
    tree = {
        "run": run,
        "stage": first.stage,
        "images": first.images,
        "seeds": list(found),
        "accuracy": {
            name: {str(T or "-"): values for T, values in column.items()} for name, column in columns.items()
        },
        "notes": notes,
    }
    tell(tree, title, _table(columns, list(found)), *notes, as_json=as_json)


def readings(run: str, **wanted: Unpack[Wanted]) -> dict[int | None, Reading]:
    """By seed; of a network that is no run of several seeds one reading alone."""
    folder, stage = split_run(run)
    places = seed_folders(folder)
    if len(places) < 2:
        return {None: reevaluate(run, **wanted)}
    _, recipe = read_claim(folder)
    # Opened once for all seeds, which share it.
    data = datasets.open(recipe.data, recipe.all_time_steps())
    suffix = f":{stage}" if stage is not None else ""
    return {
        int(place.name.removeprefix("seed-")): reevaluate(f"{place}{suffix}", data=data, **wanted)
        for place in places
    }


def _table(columns: Columns, seeds: Sequence[int | None]) -> Table:
    steps = sorted({T for column in columns.values() for T in column}, key=lambda T: T or 0)

    def row(T: int | None, pick: Any) -> list[str]:
        return [pick(column[T]) if T in column else "-" for column in columns.values()]

    if len(seeds) == 1:
        rows: list[list[Any]] = [[T or "-", *row(T, lambda values: _percent(values[0]))] for T in steps]
        headings = ["T", *columns]
    else:
        headings = ["T", "seed", *columns]
        rows = []
        for T in steps:
            rows += [[T or "-", seed, *row(T, lambda v, i=i: _percent(v[i]))] for i, seed in enumerate(seeds)]
            rows.append(
                [T or "-", "mean", *row(T, lambda v: f"{100 * fmean(v):.2f} ± {100 * stdev(v):.2f} %")]
            )
    return Table(headings, rows, left=range(len(headings)))


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
