"""The page's last section: networks, objectives, cost of training, data, versions, recipe, citations."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..training.summary import StageSummary
from .parts import Section, Study, Table
from .table import count


def what_was_run(study: Study) -> Section:
    """Networks, objectives, cost of training, data, versions, recipe, citations."""
    summary = study.summary
    firsts = [study.stages(stage.name)[0] for stage in summary.stages]
    swatches = [study.colour(stage.name) for stage in firsts]
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
        folded=True,
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
