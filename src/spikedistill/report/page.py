"""``write_report``: one run, or several side by side, as a single offline HTML file."""

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ..errors import SpikedistillError
from ..files import write_text
from ..training.summary import Spread, StageSpread, StageSummary, paired_interval
from . import chip, methods, plots, sections
from .canvas import paint, part
from .parts import Figure, Group, Legend, Section, Study, Table, colours, load
from .table import (
    HEADINGS,
    bits_text,
    count,
    estimates,
    figure,
    microjoule,
    operations,
    percent,
    twin_cells,
)

Folder = str | os.PathLike[str]


def write_report(folders: Folder | Sequence[Folder], out: Folder | None = None) -> Path:
    """Write the page of a run folder, or of several side by side (paired by stage name); return its path.

    The file stands alone: style and plots are inside, nothing is loaded. ``out`` defaults to ``report.html``
    in the first folder (one run) or ``comparison.html`` beside it (several). Raises: SpikedistillError when a
    folder holds no finished stage.
    """
    paths = (
        [Path(folders)] if isinstance(folders, str | os.PathLike) else [Path(folder) for folder in folders]
    )
    if not paths:
        raise SpikedistillError("no run folder to report: give at least one")
    # Resolved: the label is the folder's name, and `.` has none.
    studies = _labelled([load(path.resolve()) for path in paths], paths)
    target = target_of(paths, out)
    write(target, render(studies))
    return target


def target_of(paths: Sequence[Path], out: Folder | None = None) -> Path:
    """Where a page goes."""
    if out is not None:
        return Path(out)
    return paths[0] / "report.html" if len(paths) == 1 else paths[0].parent / "comparison.html"


def write(target: Path, page: str) -> None:
    """Write a page so that a browser sees the old one or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)


def render(studies: Sequence[Study]) -> str:
    """The page's HTML."""
    from jinja2 import Environment
    from markupsafe import Markup

    source = files("spikedistill.report")
    # Names, notes and code come from users; only what is passed as Markup is taken as HTML.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((source / "page.html").read_text(encoding="utf-8"))
    style = Markup((source / "page.css").read_text(encoding="utf-8"))
    # Over all runs at once: stages of equal name must have equal colours.
    stage_colours = colours([name for study in studies for name in study.names])
    studies = [replace(study, colours=stage_colours) for study in studies]
    several = len(studies) > 1
    live = studies[0].live
    return template.render(
        title=" / ".join(dict.fromkeys(study.summary.title for study in studies)),
        style=style,
        svg=Markup,
        paint=paint,
        live=live,
        comparison=comparison(studies) if several else None,
        studies=[
            {
                "label": study.label,
                # Anchors: all runs have sections of the same names, and stand on one page.
                "id": f"r{number}-" if several else "",
                "lead": lead(study),
                "tiles": tiles(study),
                "sections": [*([first] if (first := methods.section(study)) else []), *sections.build(study)],
            }
            for number, study in enumerate(studies)
        ],
        several=several,
    )


def lead(study: Study) -> str:
    """One line under the title: the recipe, the data, the seeds."""
    data, seeds = study.summary.data, study.seeds
    sizes = data.get("sizes") or {}
    recipe, unsaid = study.summary.recipe, (study.summary.title, "recipe")  # said above, or no name
    parts = ["" if recipe in unsaid else f"Recipe {recipe}", str(data.get("name", ""))]
    parts[1] += f" ({', '.join(f'{value:,} {key}' for key, value in sizes.items())})" if sizes else ""
    parts.append(f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}")
    return " · ".join(part for part in parts if part)


def tiles(study: Study) -> list[tuple[str, str, str]]:
    """The last stage at a glance: (figure, what it is, beside what)."""
    if not study.summary.stages:
        return []
    first, last = study.summary.stages[0], study.summary.stages[-1]
    accuracy, rate, work, energy = (
        figure(last, "accuracy"),
        figure(last, "firing_rate"),
        operations(last),
        figure(last, "energy_pj"),
    )
    beside = f"{first.name}: {percent(figure(first, 'accuracy'))} %" if first is not last else ""
    made = [(f"{percent(accuracy)} %", f"test accuracy, {last.name}", beside)]
    if last.kind == "snn" and rate:
        made.append((f"{percent(rate)} %", "mean firing rate", f"T = {last.time_steps}"))
    if work:
        word = "synaptic operations per image" if last.kind == "snn" else "multiply-accumulates per image"
        before = operations(first)
        made.append(
            (
                count(work.mean),
                word,
                f"{first.name}: {count(before.mean)} {_work(first)}" if before and first is not last else "",
            )
        )
    if energy:
        made.append(
            (f"{microjoule(energy.mean)} µJ", "energy per image, from operation counts", _beside(last))
        )
    return made


def _beside(stage: StageSummary | StageSpread) -> str:
    """Never an energy alone: the ANN twin's at equal bits and the estimate that favours the network least."""
    found = {one.model: one for one in estimates(stage)}
    words = [f"bits w/m/n: {bits_text(stage.bits)}"]
    if (counted := found.get("operations")) is not None:
        words.append(f"ANN twin at equal bits: {microjoule(counted.twin)} µJ")
    if found:
        least = min(found.values(), key=lambda one: one.ratio)
        pair = f"{microjoule(least.network)} µJ, twin {microjoule(least.twin)} µJ"
        words.append(f"least favourable, {least.model}: {pair}")
    return "; ".join(words)


def comparison(studies: Sequence[Study]) -> list[Section]:
    """Stages of equal name beside each other: figures, paired differences to the first run, energy."""
    names = list(studies[0].colours)
    rows, swatches = [], []
    shown = []
    for name in names:
        for index, study in enumerate(studies):
            stage = next((s for s in study.summary.stages if s.name == name), None)
            if stage is None:
                continue
            work, energy, accuracy = operations(stage), figure(stage, "energy_pj"), figure(stage, "accuracy")
            rows.append(
                (
                    name,
                    study.label,
                    percent(accuracy),
                    "–" if index == 0 else _difference(study, studies[0], name),
                    "–" if stage.time_steps is None else str(stage.time_steps),
                    percent(figure(stage, "firing_rate")),
                    f"{count(work.mean)} {_work(stage)}" if work else "–",
                    bits_text(stage.bits),
                    microjoule(energy.mean) if energy else "–",
                    *twin_cells(stage),
                )
            )
            swatches.append(part(index))
            if accuracy:
                shown.append(
                    (
                        f"{name} · {study.label}",
                        part(index),
                        Spread(mean=100 * accuracy.mean, values=[100 * v for v in accuracy.values]),
                    )
                )
    headings = (
        "Stage",
        "Run",
        "Test accuracy [%]",
        f"Against {studies[0].label}",
        "T",
        "Firing rate [%]",
        "Operations / image",
        "Bits w/m/n",
        *HEADINGS[-3:],
    )
    caption = (
        "Stages are paired by name. Against: difference in test accuracy in percentage points, paired over "
        "the seeds that both runs have, with its 95 % interval (Student's t). Equal-bit ANN: the twin, "
        "from operation counts; least ratio: the twin's energy over the SNN's in the estimate that favours "
        "the SNN least."
    )
    text = "Test accuracy in % of every stage in every run: a dot per seed, the mark is the mean."
    legend: Legend = [(study.label, part(i), "box") for i, study in enumerate(studies)]
    values = [("stage and run", "mean", "seeds"), *((name, s.mean, *s.values) for name, _, s in shown)]
    figures = [Figure(plots.dots(shown, "test accuracy [%]", text), text, legend, values, "runs")]
    points = [
        (name, part(index), energy, accuracy)
        for index, study in enumerate(studies)
        for name, _, energy, accuracy in chip.energy_points(study)
    ]
    if len(points) > 1:
        figures.append(
            replace(
                chip.frontier(points, "from operation counts"),
                legend=legend,
            )
        )
    return [
        Section(
            "comparison",
            "Runs side by side",
            tables=[Table(headings, rows, caption, swatches, text_columns=2)],
            groups=[Group(figures)],
        )
    ]


def _difference(study: Study, baseline: Study, name: str) -> str:
    """``+1.20 [0.40, 2.00]`` in points over common seeds."""
    here, there = (
        {run.seed: s.accuracy for run in one.runs for s in run.stages if s.name == name}
        for one in (study, baseline)
    )
    values = [100 * (here[seed] - there[seed]) for seed in sorted(here.keys() & there.keys())]
    if not values:
        return "–"
    interval = paired_interval(values)
    return f"{sum(values) / len(values):+.2f}" + (
        f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    )


def _work(stage: StageSummary | StageSpread) -> str:
    return "SynOps" if stage.kind == "snn" else "MACs"


def _labelled(studies: Sequence[Study], paths: Sequence[Path]) -> list[Study]:
    """Folder names as labels; whole paths where two folders have the same name."""
    names = [study.label for study in studies]
    return [
        replace(study, label=study.label if names.count(study.label) == 1 else str(path))
        for study, path in zip(studies, paths)
    ]
