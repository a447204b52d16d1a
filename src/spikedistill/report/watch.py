"""``report --watch``: the page of a run that goes, made again when something is new, until it has ended."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import SpikedistillError
from ..training import lock, metrics, summary
from ..training.run_folder import read_claim, seed_folders
from ..training.summary import RunSummary
from .live import Live, standing
from .page import render, target_of, write
from .parts import Study, load, study

EVERY = 10.0


def watch(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    every: float = EVERY,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page now and, while a process trains in ``folder``, when its log has grown; return its path.

    The page asks the browser to load it again every ``every`` seconds; the last one, of the run that has
    ended or when Ctrl-C is pressed, does not. Raises: SpikedistillError where ``folder`` holds no run.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").exists() and not (folder / summary.FILE).exists():
        raise SpikedistillError(f"no run in {folder}: give a run's folder, or start it first")
    page, known = target_of([folder], out), None
    try:
        going = lock.held(folder)
        say(
            f"{page}: "
            + (f"made again every {every:g} s; Ctrl-C ends" if going else "no process trains there")
        )
        while going:
            # Looked at before the page is made: what is logged meanwhile makes it again.
            now = _state(folder)
            if now != known:
                write(page, render([live(folder, every)]))
                known = now
            time.sleep(every)
            going = lock.held(folder)
        say(f"{page}: the run has ended")
    except KeyboardInterrupt:
        say(f"{page}: no longer made again")
    write(page, render([_last(folder)]))
    return page


def live(folder: Path, seconds: float) -> Study:
    """A run as far as it is: all seeds' logs; results of the finished seeds, else of the one that goes."""
    places = seed_folders(folder) or [folder]
    begun = [place for place in places if (place / metrics.FILE).exists()]
    found = [(place, _summary(place)) for place in begun]
    runs = [(place, run) for place, run in found if run is not None]
    most = max((len(run.stages) for _, run in runs), default=0)
    # merge() leaves out what some seed has not finished: one that lags would take results away.
    runs = [(place, run) for place, run in runs if len(run.stages) == most]
    if runs:
        whole = summary.merge([run for _, run in runs]) if len(runs) > 1 else runs[0][1]
    else:
        whole = _nothing(folder)
        runs = [(folder, whole)]
    lines = standing(metrics.read(begun[-1]).events, begun[-1].name) if begun else [("stage", "not begun")]
    lines = [line for line in lines if line[0] != "seed" or len(places) > 1]
    return study(folder, whole, [r for _, r in runs], [p for p, _ in runs], begun, Live(lines, seconds))


def _last(folder: Path) -> Study:
    """The run as it was left: whole, or as far as it came."""
    try:
        return load(folder)
    except SpikedistillError:
        return live(folder, 0)


def _summary(place: Path) -> RunSummary | None:
    found = summary.read(place) if (place / summary.FILE).exists() else None
    return found if isinstance(found, RunSummary) else None


def _nothing(folder: Path) -> RunSummary:
    """The summary of a run that has finished no stage."""
    name, recipe = read_claim(folder)
    title, data = recipe.title or name, {"name": recipe.data.name}
    return RunSummary(title=title, recipe=name, seed=recipe.seed, data=data)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """What the page is made from, by its age and size."""
    files = [
        *folder.glob(metrics.FILE),
        *folder.glob(f"*/{metrics.FILE}"),
        *folder.glob(f"**/{summary.FILE}"),
    ]
    return sorted((str(path), (at := path.stat()).st_mtime_ns, at.st_size) for path in files)
