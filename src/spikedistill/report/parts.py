"""What a page is made of, and the run folders it is made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spikedistill.errors import SpikedistillError
from spikedistill.training import metrics, summary
from spikedistill.training.comparison import read_plan
from spikedistill.training.metrics import Metrics
from spikedistill.training.summary import MultiSummary, RunSummary, StageSummary, Summary


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; ``colours`` puts a series' swatch before a row, ``text_columns`` are
    set left.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    colours: Sequence[int | None] = ()
    text_columns: int = 1
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """An inline SVG, what it shows and in which units, and its legend: (name, series or None for grey,
    style).
    """

    svg: str
    caption: str
    legend: Sequence[tuple[str, int | None, str]] = ()


@dataclass(frozen=True)
class Group:
    """Figures side by side under a small heading."""

    figures: Sequence[Figure]
    title: str = ""
    small: bool = False
    colour: int | None = None
    legend: Sequence[tuple[str, int | None, str]] = ()
    shown: int = 12

    @property
    def parts(self) -> tuple[Sequence[Figure], Sequence[Figure]]:
        """What is shown at once, and what a small group folds away when it has many figures."""
        cut = self.shown if self.small and len(self.figures) > self.shown + 4 else len(self.figures)
        return self.figures[:cut], self.figures[cut:]


@dataclass(frozen=True)
class Section:
    """One part of a page; parts without content are not built."""

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


@dataclass(frozen=True)
class Study:
    """One run folder: its summary, the runs behind it (one a seed), their logs, the resolved recipe's text,
    ``plan``: what a comparison of methods decided (:class:`~spikedistill.training.comparison.Plan`), else
    nothing.
    """

    label: str
    summary: Summary
    runs: Sequence[RunSummary]
    logs: Sequence[Metrics]
    recipe: str = ""
    colours: dict[str, int] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)

    def stages(self, name: str) -> list[StageSummary]:
        """The stage of that name in every run that has it, in the order of the seeds."""
        return [stage for run in self.runs for stage in run.stages if stage.name == name]

    @property
    def seeds(self) -> list[int]:
        """The seeds in order."""
        return [run.seed for run in self.runs]


def load(folder: Path) -> Study:
    """Read a run folder, of one seed or of several.

    Raises: SpikedistillError when the folder holds no summary.
    """
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    found = read_plan(folder)
    plan = asdict(found) if found is not None else {}
    folders = sorted(
        (path.parent for path in folder.glob(f"seed-*/{summary.FILE}")),
        key=lambda path: (len(path.name), path.name),
    )
    if not folders:
        alone = summary.read(folder)
        if isinstance(alone, MultiSummary):
            raise SpikedistillError(
                f"{folder} sums up seeds {alone.seeds}, but holds no seed-N folder: give the whole run folder"
            )
        return Study(folder.name, alone, [alone], [metrics.read(folder)], text, plan=plan)
    runs = [run for path in folders if isinstance(run := summary.read(path), RunSummary)]
    return Study(
        folder.name, summary.merge(runs), runs, [metrics.read(path) for path in folders], text, plan=plan
    )


def colours(names: Sequence[str]) -> dict[str, int]:
    """One series colour a name, in order of appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(names))}
