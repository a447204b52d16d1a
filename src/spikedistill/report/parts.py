"""What a page is made of, and the run folders it is made from."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import SpikedistillError
from ..training import metrics, observations, summary
from ..training.comparison import read_plan
from ..training.metrics import Metrics
from ..training.observations import Observations
from ..training.run_folder import seed_folders
from ..training.summary import MultiSummary, RunSummary, StageSummary, Summary
from .canvas import Colour
from .live import Live

Legend = Sequence[tuple[str, Colour, str]]


@dataclass(frozen=True)
class Table:
    """Text rows under headings; ``colours``: a series' swatch before a row; ``text_columns`` are set left."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    colours: Sequence[Colour] = ()
    text_columns: int = 1
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """An inline SVG, what it shows and in which units, and its legend: (name, colour, style).

    ``rows``: its numbers under headings, which stand beside it as a file, ``name``.csv.
    """

    svg: str
    caption: str
    legend: Legend = ()
    rows: Sequence[Sequence[Any]] = ()
    name: str = "figure"

    @property
    def csv(self) -> str:
        """The rows as a data URI of a CSV file (RFC 4180)."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([_number(cell) for cell in row] for row in self.rows)
        return "data:text/csv;charset=utf-8," + quote(file.getvalue(), safe=",;:.-_()[]@")


@dataclass(frozen=True)
class Group:
    """Figures side by side under a small heading; ``folded``: shown when the heading is asked."""

    figures: Sequence[Figure]
    title: str = ""
    small: bool = False
    colour: Colour = None
    legend: Legend = ()
    shown: int = 12
    folded: bool = False

    @property
    def parts(self) -> tuple[Sequence[Figure], Sequence[Figure]]:
        """What is shown at once, and what a small group folds away when it has many figures."""
        cut = self.shown if self.small and len(self.figures) > self.shown + 4 else len(self.figures)
        return self.figures[:cut], self.figures[cut:]


@dataclass(frozen=True)
class Section:
    """One part of a page; parts without content are not built. ``folded``: its heading opens it."""

    id: str
    title: str
    lead: str = ""
    tables: Sequence[Table] = ()
    groups: Sequence[Group] = ()
    notes: Sequence[str] = ()
    items: Sequence[str] = ()
    items_title: str = ""
    code: str = ""
    code_title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Study:
    """One run folder: its summary, the runs behind it (one a seed), their logs, the resolved recipe's text.

    ``plan``: what a comparison of methods decided (:class:`~spikedistill.training.comparison.Plan`), else
    nothing; ``seen``: observations by stage, a mapping a seed; ``live``: where it stands, while it goes;
    ``logged``: the logs' seeds.
    """

    label: str
    summary: Summary
    runs: Sequence[RunSummary]
    logs: Sequence[Metrics]
    recipe: str = ""
    colours: dict[str, int] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    seen: Sequence[Mapping[str, Observations]] = ()
    live: Live | None = None
    logged: Sequence[int] = ()

    def colour(self, name: str | None) -> Colour:
        """The colour of a stage; grey for what is none of this page."""
        return self.colours.get(name or "")

    def observations(self, name: str) -> list[Observations]:
        """What was seen of a stage in every run that has it, in the order of the seeds."""
        return [one[name] for one in self.seen if name in one]

    def stages(self, name: str) -> list[StageSummary]:
        """The stage of that name in every run that has it, in the order of the seeds."""
        return [stage for run in self.runs for stage in run.stages if stage.name == name]

    def teacher(self, name: str) -> str:
        """The name of a stage's (first) teacher, or nothing."""
        return next((one.teacher.split(", ")[0] for one in self.stages(name) if one.teacher), "")

    @property
    def names(self) -> list[str]:
        """The stages, finished or begun, in order."""
        begun = [str(line["stage"]) for log in self.logs for line in log.events if line["event"] == "epoch"]
        return list(dict.fromkeys([*(stage.name for stage in self.summary.stages), *begun]))

    @property
    def seeds(self) -> list[int]:
        """The seeds in order."""
        return [run.seed for run in self.runs]


def load(folder: Path) -> Study:
    """Read a run folder, of one seed or of several.

    Raises: SpikedistillError when the folder holds no summary.
    """
    folders = [path for path in seed_folders(folder) if (path / summary.FILE).exists()]
    if not folders:
        alone = summary.read(folder)
        if isinstance(alone, MultiSummary):
            raise SpikedistillError(
                f"{folder} sums up seeds {alone.seeds}, but holds no seed-N folder: give the whole run folder"
            )
        return study(folder, alone, [alone], [folder], [folder])
    # Merged here: the folder's own summary is not written before the last seed has ended.
    runs = [run for path in folders if isinstance(run := summary.read(path), RunSummary)]
    return study(folder, summary.merge(runs), runs, folders, folders)


def study(
    folder: Path,
    whole: Summary,
    runs: Sequence[RunSummary],
    places: Sequence[Path],
    begun: Sequence[Path],
    live: Live | None = None,
) -> Study:
    """A run folder's study: ``runs`` and their ``places``; ``begun``: folders that have a log."""
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    found = read_plan(folder)
    plan = asdict(found) if found is not None else {}
    logs = [metrics.read(place) for place in begun]
    seen = [_observations(place, run) for place, run in zip(places, runs)]
    own = {place: run.seed for place, run in zip(places, runs)}
    # One that is still training has no summary to say its seed.
    seeds = [own.get(place, seed_in_name(place, runs[0].seed)) for place in begun]
    return Study(folder.name, whole, runs, logs, text, plan=plan, seen=seen, live=live, logged=seeds)


def seed_in_name(path: Path, otherwise: int) -> int:
    """The seed in the name of a ``seed-N`` folder; a run of one seed may have any name."""
    number = path.name.removeprefix("seed-")
    return int(number) if path.name.startswith("seed-") and number.isdecimal() else otherwise


def _observations(folder: Path, run: RunSummary) -> dict[str, Observations]:
    found = {stage.name: observations.read(folder / "stages" / stage.name) for stage in run.stages}
    return {name: one for name, one in found.items() if one is not None}


def _number(cell: Any) -> Any:
    """Seven digits, as a float32 has."""
    return f"{cell:.7g}" if isinstance(cell, float) else cell


def colours(names: Sequence[str]) -> dict[str, int]:
    """One colour a name, in order of appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}
