"""What a run leaves behind in numbers: the typed form of ``summary.json``, for one seed and over seeds."""

import os
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import SpikedistillError
from ..files import write_text
from ..reading import parse_json, read_text
from ..typed import lines
from .summary_models import (  # noqa: F401 - public here
    FORMAT,
    Best,
    Bits,
    Difference,
    IntegerSummary,
    LayerSummary,
    MembraneSummary,
    Model,
    MultiSummary,
    RunSummary,
    Spread,
    StageFacts,
    StageSpread,
    StageSummary,
    StepTime,
)

FILE = "summary.json"
BASELINE = "alone"  # the stage that learned without what the others have
PAIRED = ("accuracy", "firing_rate", "synaptic_operations", "energy_pj")


Summary = RunSummary | MultiSummary
_ADAPTER: TypeAdapter[Summary] = TypeAdapter(Annotated[Summary, Field(discriminator="kind")])


def schema() -> dict[str, Any]:
    """The JSON schema of ``summary.json``."""
    return _ADAPTER.json_schema(by_alias=True)


def write(folder: str | os.PathLike[str], summary: Summary) -> Path:
    """Write a run folder's ``summary.json``, so that readers see the old file or the new one, never half."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, summary.model_dump_json(indent=1) + "\n")
    return path


def read(folder: str | os.PathLike[str]) -> Summary:
    """The summary in a run folder: of one run, or over seeds.

    Raises: SpikedistillError when there is none, or it is of another format or not what
    ``docs/run_folder.md`` says.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise SpikedistillError(f"no {FILE} in {folder}: give a run folder with at least one finished stage")
    # With a limit: the file may be anybody's, and its size is known before it is read.
    text = read_text(path, 1 << 28)
    try:
        found = parse_json(text, "it")
    except SpikedistillError as error:
        raise SpikedistillError(f"{path} is not a summary ({error}): finish or repeat the run") from None
    if not isinstance(found, dict):
        raise SpikedistillError(
            f"{path} is not a summary (a {type(found).__name__}): finish or repeat the run"
        )
    # Before the model looks: of another format it would name some key, not the version.
    if found.get("format") != FORMAT:
        raise SpikedistillError(
            f"{path} has format {found.get('format')!r:.80}; this version reads format {FORMAT}: "
            "use the version that wrote it"
        )
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise SpikedistillError(f"{path}: {lines(error)[0]}") from error


def read_stage(folder: str | os.PathLike[str]) -> StageSummary:
    """The row of a finished stage, from its folder."""
    path = Path(folder) / FILE
    try:
        return StageSummary.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpikedistillError(
            f"{path} is not a stage's summary ({str(error).splitlines()[0]}); remove {Path(folder)} and "
            "resume: the stage is trained anew"
        ) from error


def merge(runs: Sequence[RunSummary]) -> MultiSummary:
    """One recipe's runs as means, spreads and paired differences; runs are put in the order of their seeds.

    Stages that not every seed has finished are left out, and named in ``warnings``.
    Raises: SpikedistillError when there is no run, two have one seed, or they are of different recipes.
    """
    runs = sorted(runs, key=lambda run: run.seed)
    if not runs:
        raise SpikedistillError("no runs to merge: give at least one seed's summary")
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise SpikedistillError(f"two runs have the same seed ({seeds}): merge runs of different seeds")
    recipes = sorted({run.recipe for run in runs})
    if len(recipes) > 1:
        raise SpikedistillError(
            f"runs of different recipes ({', '.join(recipes)}): merge runs of one recipe, "
            "report the others beside it"
        )
    names = list(dict.fromkeys(stage.name for run in runs for stage in run.stages))
    everywhere = [name for name in names if all(name in {stage.name for stage in run.stages} for run in runs)]
    warnings = _warnings([run.warnings for run in runs], seeds)
    warnings += [f"{name}: not finished by every seed, left out" for name in names if name not in everywhere]
    stages = [_spread_stage([run.stage(name) for run in runs], seeds) for name in everywhere]
    differences = [
        difference
        for later, stage in enumerate(stages)
        for baseline in stages[:later]
        for figure in PAIRED
        if (difference := _paired(figure, stage, baseline)) is not None
    ]
    return MultiSummary(
        title=runs[0].title,
        recipe=recipes[0],
        seeds=seeds,
        environment=runs[0].environment,
        data=runs[0].data,
        citations=list(dict.fromkeys(citation for run in runs for citation in run.citations)),
        stages=stages,
        differences=differences,
        warnings=warnings,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation ``sqrt(sum (x - mean)^2 / (n - 1))``."""
    return Spread(mean=fmean(values), std=stdev(values) if len(values) > 1 else None, values=list(values))


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """``mean ± t((1 + confidence)/2, n - 1) * std / sqrt(n)``; None for fewer than two values."""
    if len(differences) < 2:
        return None
    # Not scipy.stats, which is slow to import, for one quantile.
    from scipy.special import stdtrit

    half = (
        float(stdtrit(len(differences) - 1, (1 + confidence) / 2))
        * stdev(differences)
        / sqrt(len(differences))
    )
    return fmean(differences) - half, fmean(differences) + half


def figures(stage: StageSummary) -> dict[str, float]:
    """Every number of a stage that can be averaged over seeds, by name.

    Names such as ``accuracy_at.2`` and ``hardware.spikesim.dense.edap``.
    """
    plain = {name: getattr(stage, name) for name in _SCALARS}
    found = {name: float(value) for name, value in plain.items() if value is not None}
    for field in ("accuracy_at", "recalibrated_at"):
        found |= {f"{field}.{steps}": value for steps, value in getattr(stage, field).items()}
    return found | dict(_numbers(stage.hardware or {}, "hardware"))


_SCALARS = (
    "accuracy",
    "validation_accuracy",
    "firing_rate",
    "synaptic_operations",
    "macs",
    "energy_pj",
    "seconds",
    "peak_memory_mb",
    "images_per_second",
)


def _numbers(tree: dict[str, Any], prefix: str) -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            numbers += _numbers(value, f"{prefix}.{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((f"{prefix}.{key}", float(value)))
    return numbers


def _spread_stage(stages: Sequence[StageSummary], seeds: Sequence[int]) -> StageSpread:
    each = [figures(stage) for stage in stages]
    facts = {name: getattr(stages[0], name) for name in StageFacts.model_fields}
    facts["warnings"] = _warnings([stage.warnings for stage in stages], seeds)
    # Only what every seed has: values stand in the order of the seeds and are compared in pairs.
    figures_of = {name: spread([e[name] for e in each]) for name in each[0] if all(name in e for e in each)}
    return StageSpread(**facts, figures=figures_of)


def _warnings(each: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[str]:
    """Each warning once, with the seeds that gave it."""
    unique = dict.fromkeys(warning for warnings in each for warning in warnings)
    return [
        f"seed {', '.join(str(seed) for seed, warnings in zip(seeds, each) if warning in warnings)}: "
        f"{warning}"
        for warning in unique
    ]


def _paired(figure: str, stage: StageSpread, baseline: StageSpread) -> Difference | None:
    if figure not in stage.figures or figure not in baseline.figures:
        return None
    values = [x - y for x, y in zip(stage.figures[figure].values, baseline.figures[figure].values)]
    low, high = paired_interval(values) or (None, None)
    return Difference(
        figure=figure,
        stage=stage.name,
        baseline=baseline.name,
        mean=fmean(values),
        low=low,
        high=high,
        values=values,
    )
