"""The sections of one run's page, from its summary and its logs; a section without data is None."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikedistill.report import chip, plots
from spikedistill.report.confusion import confusion as confusion_svg
from spikedistill.report.parts import Figure, Group, Section, Study, Table
from spikedistill.report.table import (
    HEADINGS,
    all_warnings,
    by_time_steps,
    caption,
    conversions,
    count,
    figure,
    least_favourable,
    rows,
)
from spikedistill.training.summary import Spread, StageSummary

Legend = list[tuple[str, int | None, str]]


def build(study: Study) -> list[Section]:
    """Every section that the run has data for, in the order of the page."""
    made = (
        results(study),
        training(study),
        activity(study),
        membranes(study),
        confusion(study),
        chip.section(study),
        what_was_run(study),
    )
    return [section for section in made if section is not None]


def results(study: Study) -> Section:
    """The table of stages, the seeds behind its means, and paired differences."""
    summary = study.summary
    table = Table(
        HEADINGS,
        [row.cells() for row in rows(summary)],
        caption(summary),
        [study.colours[s.name] for s in summary.stages],
    )
    figures = []
    accuracies = [
        (s.name, study.colours[s.name], _scaled(found, 100))
        for s in summary.stages
        if (found := figure(s, "accuracy"))
    ]
    if len(study.runs) > 1:
        text = "Test accuracy in %: a dot per seed, the mark is the mean."
        figures.append(Figure(plots.dots(accuracies, "test accuracy [%]", text), text))
    differences = [
        d for d in getattr(summary, "differences", []) if d.figure == "accuracy" and d.low is not None
    ][:15]
    if differences:
        text = (
            "Difference in test accuracy in percentage points, paired seed by seed: dots are seeds, the "
            "diamond is the mean, "
            "the line its 95 % interval (Student's t)."
        )
        figures.append(Figure(plots.forest(differences, text), text))
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


def training(study: Study) -> Section | None:
    """Accuracy and loss by epoch."""
    stages = [
        (s.name, study.colours[s.name], [curves(log.epochs(s.name)) for log in study.logs])
        for s in study.summary.stages
    ]
    stages = [(name, colour, seeds) for name, colour, seeds in stages if any(seeds)]
    if not stages:
        return None
    figures = []
    shown = [
        (colour, [c["validation_accuracy"] for c in seeds if "validation_accuracy" in c])
        for _, colour, seeds in stages
    ]
    if len(stages) > 1 and any(found for _, found in shown):
        text = "Validation accuracy of all stages, by epoch of the stage."
        figures.append(
            Figure(
                plots.validation(shown, text), text, [(name, colour, "line") for name, colour, _ in stages]
            )
        )
    for name, colour, seeds in stages:
        text = f"{name}: accuracy in % (above) and loss (below) by epoch." + (
            " Thin lines are seeds." if len(seeds) > 1 else ""
        )
        legend: Legend = [("validation", colour, "line"), ("training", None, "dash")]
        figures.append(Figure(plots.training(seeds, colour, text), text, legend))
    torn = [run.seed for run, log in zip(study.runs, study.logs) if log.torn]
    notes = [
        f"Seed {seed}: the log's last line is torn (the process was stopped); it is left out."
        for seed in torn
    ]
    return Section("training", "Training", groups=[Group(figures)], notes=notes)


def curves(epochs: Sequence[Mapping[str, Any]]) -> dict[str, plots.Curve]:
    """``train_accuracy``, ``validation_loss`` ... as (epochs, values) of the epoch lines that have them;
    accuracies in %.
    """
    found: dict[str, plots.Curve] = {}
    for part in ("train", "validation"):
        for what, scale in (("accuracy", 100.0), ("loss", 1.0)):
            points = [
                (line["epoch"], scale * value)
                for line in epochs
                if (value := (line.get(part) or {}).get(what)) is not None
            ]
            if points:
                found[f"{part}_{what}"] = ([x for x, _ in points], [y for _, y in points])
    return found


def activity(study: Study) -> Section | None:
    """Firing rate per layer, accuracy against T."""
    figures = []
    spiking = [
        (s.name, study.colours[s.name], [one.layers for one in study.stages(s.name)])
        for s in study.summary.stages
    ]
    spiking = [(name, colour, seeds) for name, colour, seeds in spiking if any(seeds)]
    if spiking:
        text = "Firing rate by layer: spikes per neuron and time step on the test set, in %." + (
            " Mean and range over seeds." if len(study.runs) > 1 else ""
        )
        if any(layer.warning for _, _, seeds in spiking for layers in seeds for layer in layers):
            text += " Hollow marks are dead (< 0.1 %) or saturated layers."
        svg = plots.firing([(colour, seeds) for _, colour, seeds in spiking], text)
        figures.append(Figure(svg, text, [(name, colour, "dot") for name, colour, _ in spiking]))
    timed = against_time(study)
    return (
        Section("activity", "Spikes and time", groups=[Group(figures + timed)]) if figures or timed else None
    )


def against_time(study: Study) -> list[Figure]:
    """Accuracy by time steps of every stage evaluated at more than one T; ANNs as level lines."""
    lines, legend = [], Legend()
    for stage in study.summary.stages:
        for field, style, word in (("accuracy_at", "-", ""), ("recalibrated_at", "--", ", recalibrated")):
            at = {T: _scaled(found, 100) for T, found in by_time_steps(stage, field).items()}
            if len(at) > 1:
                lines.append((study.colours[stage.name], style, at))
                legend.append(
                    (stage.name + word, study.colours[stage.name], "line" if style == "-" else "dash")
                )
    if not lines:
        return []
    anns = [s for s in study.summary.stages if s.kind == "ann"]
    levels = [(study.colours[s.name], 100 * found.mean) for s in anns if (found := figure(s, "accuracy"))]
    legend += [(f"{s.name} (ANN)", study.colours[s.name], "dots") for s in anns]
    text = "Test accuracy in % by time steps T: the first T steps of one simulation." + (
        " Bars are one standard deviation over seeds." if len(study.runs) > 1 else ""
    )
    return [Figure(plots.against_time(lines, levels, text), text, legend)]


def membranes(study: Study) -> Section | None:
    """Histograms of charged membranes, student and teacher."""
    groups = []
    for stage in study.summary.stages:
        histograms = next((one.membranes for one in study.stages(stage.name) if one.membranes), None)
        if not histograms:
            continue
        colour = study.colours[stage.name]
        taught = any(h.teacher for h in histograms)
        legend = [entry for entry in _membrane_legend(stage.name, colour) if taught or entry[0] != "teacher"]
        figures = [
            Figure(plots.membrane(h, colour, f"{stage.name}: membrane histogram of {h.path}"), h.path)
            for h in histograms
        ]
        groups.append(Group(figures, stage.name, small=True, colour=colour, legend=legend))
    lead = (
        "Share of neurons and time steps by charged membrane H, the state before the spike is drawn, in "
        "units of the threshold"
    )
    lead += f" (seed {study.seeds[0]})." if len(study.runs) > 1 else "."
    return Section("membranes", "Membranes", lead, groups=groups) if groups else None


def _membrane_legend(name: str, colour: int) -> Legend:
    return [(name, colour, "box"), ("teacher", None, "line"), ("threshold", None, "dots")]


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
        figures.append(
            Figure(
                confusion_svg(total, names, study.colours[stage.name], f"Confusion matrix of {text}"), text
            )
        )
    lead = (
        "Test images by true class (rows) and predicted class (columns); the shade is the share of the "
        "true class."
    )
    lead += " Counts are summed over seeds." if len(study.runs) > 1 else ""
    return Section("confusion", "Confusion", lead, groups=[Group(figures)]) if figures else None


def what_was_run(study: Study) -> Section:
    """Networks, objectives, cost of training, data, versions, recipe, citations."""
    summary = study.summary
    firsts = [study.stages(stage.name)[0] for stage in summary.stages]
    swatches = [study.colours[stage.name] for stage in firsts]
    stages = Table(
        ("Stage", "Network", "Begins from", "Teacher", "Objectives"),
        [
            (
                s.name,
                _options(s.network),
                _origin(s),
                s.teacher or "–",
                "; ".join(map(_options, s.objectives)) or "–",
            )
            for s in firsts
        ],
        colours=swatches,
        text_columns=5,
        title="Stages",
    )
    headings = (
        "Stage",
        "Parameters",
        "Epochs",
        "Time [s]",
        "Images/s",
        "Peak memory [MB]",
        "Data",
        "Teacher",
        "Forward",
        "Backward",
        "Optimizer",
    )
    cost = Table(
        headings,
        [_cost(study, s) for s in firsts],
        "Means over seeds. The five last columns: milliseconds of one training step.",
        swatches,
        title="Cost of training",
    )
    seeds = summary.seeds
    data = {key: value for key, value in summary.data.items() if key != "class_names" and value is not None}
    facts = [("recipe", summary.recipe), ("seeds" if len(seeds) > 1 else "seed", ", ".join(map(str, seeds)))]
    facts += _flat(data, "data") + _flat(summary.environment, "")
    return Section(
        "run",
        "What was run",
        tables=[stages, cost, Table((), facts, text_columns=2, title="Data and environment")],
        items=summary.citations,
        items_title="Papers whose methods were used",
        code=study.recipe,
        code_title="Recipe",
    )


def _cost(study: Study, first: StageSummary) -> tuple[str, ...]:
    every = study.stages(first.name)
    steps = [stage.step_time for stage in every if stage.step_time]
    parts = ("data", "teacher", "forward", "backward", "optimizer")
    times = [
        f"{1000 * sum(getattr(s, part) for s in steps) / len(steps):.1f}" if steps else "–" for part in parts
    ]
    return (
        first.name,
        count(first.parameters),
        str(first.epochs),
        f"{sum(stage.seconds for stage in every) / len(every):.1f}",
        _mean([stage.images_per_second for stage in every]),
        _mean([stage.peak_memory_mb for stage in every]),
        *times,
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.0f}" if known else "–"


def _origin(stage: StageSummary) -> str:
    if stage.from_:
        return f"{stage.from_} (continued)"
    if stage.convert:
        return f"{_options(stage.convert)}, converted"
    return _options(stage.init) if stage.init else "random weights"


def _options(options: Mapping[str, Any]) -> str:
    """``{name: vgg9, width: 0.25}`` as ``vgg9 (width 0.25)``."""
    head = next((str(options[key]) for key in ("name", "type", "from") if key in options), "")
    rest = ", ".join(
        f"{key} {value}"
        for key, value in options.items()
        if key not in ("name", "type", "from") and value is not None
    )
    return f"{head} ({rest})" if head and rest else head or rest


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix} {str(key).replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            found += _flat(value, name)
        else:
            found.append(
                (name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
            )
    return found


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
                f"{stage.name}: the integer network gives {word} on {images} images; its file has "
                f"{size:.0f} kB."
            )
    return notes


def _scaled(spread: Spread, scale: float) -> Spread:
    std = None if spread.std is None else spread.std * scale
    return Spread(mean=spread.mean * scale, std=std, values=[value * scale for value in spread.values])
