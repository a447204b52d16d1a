"""The sections of one run's page, from its summary and its logs; a section without data is None."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..terminal import amount
from ..training.summary import Difference, Spread
from . import chip, learned, plots, provenance
from .canvas import part
from .confusion import confusion as confusion_svg
from .parts import Figure, Group, Legend, Section, Study, Table, colours
from .table import (
    HEADINGS,
    all_warnings,
    by_time_steps,
    caption,
    conversions,
    figure,
    least_favourable,
    rows,
)


def build(study: Study) -> list[Section]:
    """Every section that the run has data for, in the order of the page."""
    made = (
        # Of a run that has just begun there would be a table without rows.
        results(study) if study.summary.stages or study.live is None else None,
        training(study),
        learned.section(study),
        activity(study),
        membranes(study),
        confusion(study),
        chip.section(study),
        provenance.what_was_run(study),
    )
    return [section for section in made if section is not None]


def results(study: Study) -> Section:
    """The table of stages, the seeds behind its means, and paired differences."""
    summary = study.summary
    table = Table(
        HEADINGS,
        [row.cells() for row in rows(summary)],
        caption(summary),
        [study.colour(s.name) for s in summary.stages],
    )
    figures = []
    accuracies = [
        (s.name, study.colour(s.name), scaled(found, 100))
        for s in summary.stages
        if (found := figure(s, "accuracy"))
    ]
    if len(study.runs) > 1:
        text = "Test accuracy in %: a dot per seed, the mark is the mean."
        svg = plots.dots(accuracies, "test accuracy [%]", text)
        figures.append(Figure(svg, text, (), spreads(accuracies, study.seeds), "accuracy"))
    paired = [d for d in getattr(summary, "differences", []) if d.figure == "accuracy" and d.low is not None]
    if paired:
        figures.append(_differences(paired[:15], study.seeds))
    points = chip.energy_points(study)
    if len(points) > 1:
        figures.append(chip.frontier(points, "from operation counts"))
    return Section(
        "results",
        "Results",
        tables=[table],
        groups=[Group(figures)],
        notes=_integers(study)
        + least_favourable(summary)
        + conversions(summary)
        + [f"Warning: {w}" for w in all_warnings(summary)],
    )


def spreads(found: Sequence[tuple[str, Any, Spread]], seeds: Sequence[int]) -> list[Sequence[Any]]:
    """Rows of a CSV file: a name, its mean, its value for each seed."""
    values = [(name, spread.mean, *spread.values) for name, _, spread in found]
    return [("stage", "mean", *(f"seed {seed}" for seed in seeds)), *values]


def _differences(found: Sequence[Difference], seeds: Sequence[int]) -> Figure:
    text = (
        "Difference in test accuracy in percentage points, paired seed by seed: small dots are seeds, the "
        "large one is the mean, the line its 95 % interval (Student's t)."
    )
    table: list[Sequence[Any]] = [
        ("stage", "minus", "mean", "low", "high", *(f"seed {seed}" for seed in seeds))
    ]
    table += [
        (d.stage, d.baseline, *(100 * v for v in (d.mean, d.low or 0.0, d.high or 0.0, *d.values)))
        for d in found
    ]
    return Figure(plots.forest(found, text), text, (), table, "differences")


def training(study: Study) -> Section | None:
    """Validation accuracy of all stages, the parts of their losses; accuracy and loss of each, folded."""
    every = [
        (name, study.colour(name), [curves(log.epochs(name)) for log in study.logs]) for name in study.names
    ]
    stages = [(name, colour, seeds) for name, colour, seeds in every if any(seeds)]
    if not stages:
        return None
    shown = []
    for what, unit in (("accuracy", "accuracy [%]"), ("loss", "loss")):
        key = f"validation_{what}"
        lines = [(name, colour, [c[key] for c in seeds if key in c]) for name, colour, seeds in stages]
        lines = [line for line in lines if line[2]]
        if len(stages) > 1 and lines:
            text = f"Validation {what} of all stages{' in %' * (what == 'accuracy')}, by epoch of the stage."
            drawn = [(plots.paint(colour), "", seeds) for _, colour, seeds in lines]
            svg = plots.curves(drawn, "epoch of the stage", f"validation {unit}", text)
            legend: Legend = [(name, colour, "line") for name, colour, _ in lines]
            shown.append(Figure(svg, text, legend, table_of(lines, study.logged), key))
    shown += _losses(study)
    each = [one for name, colour, seeds in stages for one in _both(study, name, colour, seeds)]
    # While a run goes its last line may just be on its way.
    torn = [run.seed for run, log in zip(study.runs, study.logs) if log.torn and study.live is None]
    notes = [
        f"Seed {seed}: the log's last line is torn (the process was stopped); it is left out."
        for seed in torn
    ]
    groups = [
        Group(shown),
        Group(each, "Each stage: training and validation" if shown else "", folded=bool(shown)),
    ]
    return Section("training", "Training", groups=groups, notes=notes)


def _both(study: Study, name: str, colour: Any, seeds: Sequence[dict[str, plots.Curve]]) -> list[Figure]:
    """Accuracy and loss of a stage, validation in its colour, training in grey."""
    made = []
    for what, unit in (("accuracy", "accuracy [%]"), ("loss", "loss")):
        kinds = (
            ("training", f"train_{what}", None, "dash"),
            ("validation", f"validation_{what}", colour, "line"),
        )
        lines = [(word, key, c, style, [s[key] for s in seeds if key in s]) for word, key, c, style in kinds]
        lines = [line for line in lines if line[-1]]
        if not lines:
            continue
        text = f"{name}: {what}{' in %' * (what == 'accuracy')} by epoch."
        text += " Thin lines are seeds." if len(seeds) > 1 else ""
        drawn = [
            (plots.paint(c), plots.DASH if style == "dash" else "", found) for *_, c, style, found in lines
        ]
        table = table_of([(word, c, found) for word, _, c, _, found in lines], study.logged)
        legend: Legend = [(word, c, style) for word, _, c, style, _ in lines]
        made.append(Figure(plots.curves(drawn, "epoch", unit, text), text, legend, table, f"{what}-{name}"))
    return made


def _losses(study: Study) -> list[Figure]:
    """The terms of each stage's loss, where it has several; a term has one colour in all stages."""
    each = {name: [terms(log.epochs(name)) for log in study.logs] for name in study.names}
    of = colours([term for seeds in each.values() for found in seeds for term in found])
    made = []
    for name, seeds in each.items():
        found = list(dict.fromkeys(term for one in seeds for term in one))
        if len(found) < 2:
            continue
        lines = [(term, part(of[term]), [one[term] for one in seeds if term in one]) for term in found]
        text = f"{name}: the parts of its training loss by epoch, before they are weighted."
        text += " Thin lines are seeds." if len(seeds) > 1 else ""
        svg = plots.curves([(colour, "", drawn) for _, colour, drawn in lines], "epoch", "loss", text)
        legend: Legend = [(term.replace("_", " "), colour, "line") for term, colour, _ in lines]
        made.append(Figure(svg, text, legend, table_of(lines, study.logged), f"loss-parts-{name}"))
    return made


def terms(epochs: Sequence[Mapping[str, Any]]) -> dict[str, plots.Curve]:
    """``parts`` of the training loss by objective, as (epochs, values)."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in epochs:
        parts = (line.get("train") or {}).get("parts")
        for name, value in (parts if isinstance(parts, Mapping) else {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                xs, ys = found.setdefault(str(name), ([], []))
                xs.append(line["epoch"])
                ys.append(value)
    return dict(found)


def table_of(
    lines: Sequence[tuple[str, Any, Sequence[plots.Curve]]], seeds: Sequence[int]
) -> list[Sequence[Any]]:
    """Rows of a CSV file: each curve of each seed by epoch."""
    table: list[Sequence[Any]] = [("curve", "seed", "epoch", "value")]
    for name, _, found in lines:
        for seed, (xs, ys) in zip(seeds, found):
            table += [(name, seed, x, y) for x, y in zip(xs, ys)]
    return table


def curves(epochs: Sequence[Mapping[str, Any]]) -> dict[str, plots.Curve]:
    """``train_accuracy``, ``validation_loss`` ... as (epochs, values) of lines with them; accuracies in %."""
    found: dict[str, plots.Curve] = {}
    for split in ("train", "validation"):
        for what, scale in (("accuracy", 100.0), ("loss", 1.0)):
            points = [
                (line["epoch"], scale * value)
                for line in epochs
                if (value := (line.get(split) or {}).get(what)) is not None
            ]
            if points:
                found[f"{split}_{what}"] = ([x for x, _ in points], [y for _, y in points])
    return found


def activity(study: Study) -> Section | None:
    """Firing rate per layer, accuracy against T, neurons from near."""
    figures = []
    every = [
        (s.name, study.colour(s.name), [one.layers for one in study.stages(s.name)])
        for s in study.summary.stages
    ]
    spiking = [(name, colour, seeds) for name, colour, seeds in every if any(seeds)]
    if spiking:
        text = "Firing rate by layer: spikes per neuron and time step on the test set, in %." + (
            " Mean and range over seeds." if len(study.runs) > 1 else ""
        )
        if any(layer.warning for _, _, seeds in spiking for layers in seeds for layer in layers):
            text += " Hollow marks are dead (< 0.1 %) or saturated layers."
        svg = plots.firing([(colour, seeds) for _, colour, seeds in spiking], text)
        table: list[Sequence[Any]] = [("stage", "layer", "seed", "firing rate")]
        table += [
            (name, layer.path, seed, layer.firing_rate)
            for name, _, seeds in spiking
            for seed, layers in zip(study.seeds, seeds)
            for layer in layers
        ]
        legend: Legend = [(name, colour, "dot") for name, colour, _ in spiking]
        figures.append(Figure(svg, text, legend, table, "firing"))
    groups = [Group([*figures, *against_time(study)]), *learned.neurons(study)]
    groups = [group for group in groups if group.figures]
    return Section("activity", "Spikes and time", groups=groups) if groups else None


def against_time(study: Study) -> list[Figure]:
    """Accuracy by time steps of every stage evaluated at more than one T; ANNs as level lines."""
    lines, legend = [], []
    table: list[Sequence[Any]] = [("stage", "T", "mean", "std")]
    for stage in study.summary.stages:
        for field, style, word in (("accuracy_at", "-", ""), ("recalibrated_at", "--", ", recalibrated")):
            at = {T: scaled(found, 100) for T, found in by_time_steps(stage, field).items()}
            if len(at) > 1:
                colour = study.colour(stage.name)
                lines.append((colour, style, at))
                legend.append((stage.name + word, colour, "line" if style == "-" else "dash"))
                table += [
                    (stage.name + word, T, one.mean, "" if one.std is None else one.std)
                    for T, one in at.items()
                ]
    if not lines:
        return []
    anns = [s for s in study.summary.stages if s.kind == "ann"]
    levels = [(study.colour(s.name), 100 * found.mean) for s in anns if (found := figure(s, "accuracy"))]
    legend += [(f"{s.name} (ANN)", study.colour(s.name), "dots") for s in anns]
    text = "Test accuracy in % by time steps T: the first T steps of one simulation." + (
        " Bars are one standard deviation over seeds." if len(study.runs) > 1 else ""
    )
    svg = plots.against_time(lines, levels, text)
    # Only the drawing knows what fell below its axis.
    if "↓" in svg:
        text += " Accuracies below the axis stand at its foot."
    return [Figure(svg, text, legend, table, "time-steps")]


def membranes(study: Study) -> Section | None:
    """Histograms of charged membranes, student and teacher."""
    groups = []
    for stage in study.summary.stages:
        histograms = next((one.membranes for one in study.stages(stage.name) if one.membranes), None)
        if not histograms:
            continue
        colour, teacher = study.colour(stage.name), study.teacher(stage.name)
        legend: Legend = [(stage.name, colour, "box"), ("threshold", "currentColor", "dots")]
        if any(h.teacher for h in histograms):
            legend = [legend[0], (f"teacher: {teacher}", study.colour(teacher), "line"), legend[1]]
        figures = []
        for h in histograms:
            alt = f"{stage.name}: membrane histogram of {h.path}"
            table: list[Sequence[Any]] = [("from", "to", "student", "teacher")]
            theirs: Sequence[Any] = h.teacher or [""] * len(h.student)
            table += zip(h.edges, h.edges[1:], h.student, theirs)
            svg = plots.membrane(h, colour, study.colour(teacher), alt)
            figures.append(Figure(svg, h.path, (), table, f"histogram-{stage.name}-{h.path}"))
        groups.append(Group(figures, stage.name, small=True, colour=colour, legend=legend))
    lead = (
        "Share of neurons and time steps by charged membrane H, the state before the spike is drawn, in "
        "units of the threshold"
    )
    lead += f" (seed {study.seeds[0]})." if len(study.runs) > 1 else "."
    return Section("membranes", "Membranes", lead, groups=groups, folded=True) if groups else None


def confusion(study: Study) -> Section | None:
    """Confusion matrices, summed over seeds."""
    names = [str(name) for name in study.summary.data.get("class_names") or []]
    figures = []
    for stage in study.summary.stages:
        found = [one.confusion for one in study.stages(stage.name) if one.confusion]
        if not found:
            continue
        total = [[sum(cells) for cells in zip(*rows)] for rows in zip(*found)]
        text = f"{stage.name}. {_most_frequent(total, names)}"
        svg = confusion_svg(total, names, study.colour(stage.name), f"Confusion matrix of {text}")
        known = [names[k] if k < len(names) else str(k) for k in range(len(total))]
        table: list[Sequence[Any]] = [("true class", *known)]
        table += [(name, *row) for name, row in zip(known, total)]
        figures.append(Figure(svg, text, (), table, f"confusion-{stage.name}"))
    lead = (
        "Test images by true class (rows) and predicted class (columns); the shade is the share of the "
        "true class, full above a half."
    )
    lead += " Counts are summed over seeds." if len(study.runs) > 1 else ""
    return Section("confusion", "Confusion", lead, groups=[Group(figures)], folded=True) if figures else None


def _most_frequent(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    wrong = [(cell, i, j) for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j]
    cell, i, j = max(wrong, key=lambda item: item[0], default=(0, 0, 0))
    if not cell:
        return "No image was taken for another class."
    name = [str(names[k]) if k < len(names) else str(k) for k in (i, j)]
    return f"Most frequent mistake: {name[0]} taken for {name[1]} ({cell} of {sum(matrix[i])})."


def _integers(study: Study) -> list[str]:
    notes = []
    for stage in study.summary.stages:
        found = [one.integer for one in study.stages(stage.name) if one.integer]
        if found:
            equal = all(one.equal_predictions for one in found)
            word = "equal predictions" if equal else "DIFFERENT predictions"
            images, size = sum(one.images for one in found), found[0].bytes / 1000
            notes.append(
                f"{stage.name}: the integer network gives {word} on {amount(images, 'image')}; its file has "
                f"{size:.0f} kB."
            )
    return notes


def scaled(spread: Spread, scale: float) -> Spread:
    """Mean, deviation and values in another unit."""
    std = None if spread.std is None else spread.std * scale
    return Spread(mean=spread.mean * scale, std=std, values=[value * scale for value in spread.values])
