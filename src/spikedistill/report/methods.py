"""Methods side by side: one table for terminal and page, what was left out, and which to take."""

from collections.abc import Sequence
from typing import Any

from ..training.summary import BASELINE, MultiSummary, Summary
from . import chip, plots
from .parts import Figure, Group, Section, Study, Table
from .sections import against_time
from .table import HEADINGS as RUN
from .table import bits_text, count, figure, microjoule, operations, percent, twin_cells

HEADINGS = (
    "Method", "Test [%]", f"Against {BASELINE} [points]", "Validation [%]", "Rate [%]", "Operations", "T",
    "Bits", *RUN[-3:],
)  # fmt: skip
CAPTION = (
    "Test and validation part, last checkpoint, mean ± sample standard deviation over seeds. Against "
    f"{BASELINE}: test accuracy, paired seed by seed, with its 95 % interval, not corrected. Rate: spikes "
    "per neuron and step. Operations and energy (from the operations alone) per image, beside it the ANN "
    "twin's at equal bits, and the twin's energy over the SNN's in the estimate that favours the SNN "
    "least: below 1 the twin is cheaper."
)


def rows(summary: Summary, methods: list[str]) -> list[tuple[str, ...]]:
    """A row each for teacher, the baseline and the methods, in the run's order."""
    found: list[tuple[str, ...]] = []
    for stage in summary.stages:
        work, energy = operations(stage), figure(stage, "energy_pj")
        validation = figure(stage, "validation_accuracy")
        cells = (
            stage.name,
            percent(figure(stage, "accuracy")),
            _difference(summary, stage.name) if stage.name in methods else "–",
            f"{100 * validation.mean:.1f}" if validation else "–",
            f"{100 * rate.mean:.1f}" if (rate := figure(stage, "firing_rate")) else "–",
            count(work.mean) if work else "–",
            "–" if stage.time_steps is None else str(stage.time_steps),
            bits_text(stage.bits),
            microjoule(energy.mean) if energy else "–",
            *twin_cells(stage),
        )
        found.append(cells)
    return found


def _difference(summary: Summary, method: str) -> str:
    if not isinstance(summary, MultiSummary):
        own, base = summary.stage(method).accuracy, summary.stage(BASELINE).accuracy
        return f"{100 * (own - base):+.2f}"
    for one in summary.differences:
        if (one.figure, one.stage, one.baseline) == ("accuracy", method, BASELINE):
            interval = (
                ""
                if one.low is None or one.high is None
                else f" [{100 * one.low:+.2f}, {100 * one.high:+.2f}]"
            )
            return f"{100 * one.mean:+.2f}{interval}"
    return "–"


def section(study: Study) -> Section | None:
    """The page's first section of a comparison of methods; None for another run."""
    plan: dict[str, Any] = study.plan
    if not plan.get("sentence"):
        return None
    names = list(plan["methods"])
    table = Table(
        HEADINGS,
        rows(study.summary, names),
        CAPTION,
        [study.colour(stage.name) for stage in study.summary.stages],
    )
    figures = (
        [chip.frontier(points, "from operation counts")]
        if len(points := chip.energy_points(study)) > 1
        else []
    )
    work = [
        (stage.name, study.colour(stage.name), found.mean / 1e6, 100 * accuracy.mean)
        for stage in study.summary.stages
        if stage.kind == "snn"
        and (found := operations(stage))
        and found.mean > 0
        and (accuracy := figure(stage, "accuracy"))
    ]
    if len(work) > 1:
        text = (
            "Test accuracy in % against synaptic operations per image in millions, means. Up and left is "
            "better."
        )
        svg = plots.pareto(work, "operations per image [M], logarithmic", text)
        numbers: list[Sequence[Any]] = [
            ("method", "operations [M]", "accuracy [%]"),
            *((name, x, y) for name, _, x, y in work),
        ]
        figures.append(Figure(svg, text, (), numbers, "accuracy-operations"))
    left = [f"Left out: {name}: {reason}" for name, reason in plan.get("left_out", {}).items()]
    return Section(
        "methods",
        "Which method",
        plan["sentence"],
        [table],
        [Group([*figures, *against_time(study)])],
        notes=left,
    )
