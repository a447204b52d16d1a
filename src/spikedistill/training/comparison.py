"""Shipped methods on one's own data, at equal budget and teacher: what each gives, and which to take."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..data import Data
from ..errors import SpikedistillError
from ..files import write_text
from ..methods import chosen
from ..recipe import Recipe
from ..terminal import amount
from .contest import base, generated, student_of
from .cost import seconds_each
from .rehearsal import rehearse
from .reuse import beside, finished
from .run import Run, folder_of, name_of, opened
from .run import run as run_recipe
from .run_folder import COMPARISON, FILE, refuse_foreign
from .summary import BASELINE, StageSpread, StageSummary, Summary, spread
from .verdict import judge, sentence

Say = Callable[[str], None]


@dataclass
class Plan:
    """What is compared: decided once, kept beside the run, so that a continued comparison is the same one.

    ``request``: what was asked for; ``left_out``: a reason by method; ``seconds``: of one seed of each stage,
    estimated.
    """

    request: dict[str, Any]
    methods: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sentence: str = ""


@dataclass(repr=False)
class Comparison:
    """A finished comparison: ``run`` (folder, summary, networks), ``plan``, ``sentence`` (what to take)."""

    run: Run
    plan: Plan
    sentence: str

    def __repr__(self) -> str:
        return f"Comparison({str(self.run.folder)!r}, {', '.join(self.plan.methods)}: {self.sentence})"


def compare(
    on: "str | Path | Mapping[str, Any] | Recipe",
    methods: str | Sequence[str] = "all",
    *,
    seeds: int = 3,
    budget: "str | float | None" = None,
    out: "str | Path | None" = None,
    overrides: Sequence[str] = (),
    data: "Data | Mapping[str, Any] | None" = None,
    networks: Mapping[str, Callable[[], nn.Module]] | None = None,
    device: str | None = None,
    quiet: bool = False,
    say: Say | None = None,
) -> Comparison:
    """Train every method on one student, network, start, epochs and teacher being equal; say which to take.

    ``on``: a recipe (its student is trained), or data: a data set's name, an .npz file, a folder of images.
    ``methods``: "all", "a,b" or names of :func:`spikedistill.methods.catalogue`. ``budget``: "2h", "30m" or
    seconds; methods that do not fit are left out. ``out``: default ``runs/compare-NAME``; one that was
    stopped goes on, and stages that are finished in folders beside it are taken over. What is to take is
    drawn from the validation part. ``say``: where lines go.

    Raises :class:`SpikedistillError` for whatever the user has to mend; a method that does not fit the
    network is left out.
    """
    say = say or (lambda text: None if quiet else print(text, flush=True))
    if seeds < 1:
        raise SpikedistillError(f"--seeds must be at least 1, found {seeds}")
    factories, recipe = dict(networks or {}), base(on, overrides, list(networks or {}))
    name = f"compare-{name_of(on)}"
    folder = folder_of(name, out)
    names = methods if isinstance(methods, str) else ",".join(methods)
    limit = None if budget is None else duration_seconds(budget)
    # The recipe itself and not its name: a file that has changed is another question.
    request = {"on": recipe.plain(), "methods": names, "seeds": seeds, "budget_seconds": limit}
    around = beside(folder)
    plan = read_plan(folder)
    if plan is None:
        # Before the time is estimated, and before anything is written there.
        if (folder / FILE).exists():
            raise SpikedistillError(f"{folder} holds a run and no comparison; choose another --out")
        refuse_foreign(folder)
        # Written before anything trains: after a kill the same methods go on, however the time is estimated
        # then.
        plan = _plan(request, recipe, names, seeds, limit, data, factories, device, around, say)
        write_plan(folder, plan)
    elif plan.request != json.loads(json.dumps(request)):
        raise SpikedistillError(
            f"{folder} holds a comparison of other methods, data, seeds or budget; choose another --out"
        )
    whole = generated(recipe, chosen(plan.methods), seeds, factories)
    for method, reason in plan.left_out.items():
        say(f"left out: {method}: {reason}")
    say(
        f"about {hours(remaining(plan, folder, whole))} to train: {amount(len(plan.methods), 'method')} and "
        f"{BASELINE}, {amount(seeds, 'seed')}"
    )
    run = run_recipe(whole, name, folder, opened(whole, data), factories, device, quiet, reuse=around)
    plan.sentence = concluded(run.summary, plan.methods)
    write_plan(folder, plan)
    return Comparison(run, plan, plan.sentence)


def _plan(
    request: dict[str, Any],
    recipe: Recipe,
    names: str,
    seeds: int,
    budget: float | None,
    data: "Data | Mapping[str, Any] | None",
    factories: Mapping[str, Callable[[], nn.Module]],
    device: str | None,
    around: Sequence[Path],
    say: Say,
) -> Plan:
    wanted = chosen(names)
    whole = generated(recipe, wanted, seeds, factories)
    source = opened(whole, data)
    if not source.info.sizes.get("validation"):
        raise SpikedistillError(
            "compare: what to take is drawn from the validation part; set data.validation above 0"
        )
    left_out = rehearse(whole, source, factories, [method.name for method in wanted], say)
    fitting = [method for method in wanted if method.name not in left_out]
    if not fitting:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise SpikedistillError(
            f"compare: no method fits the network {student_of(recipe).name!r} trains: {reasons}"
        )
    whole = generated(recipe, fitting, seeds, factories)
    seconds = seconds_each(whole, source, factories, device, finished(around), say)
    kept = [method.name for method in fitting]
    if budget is not None:
        basis = sum(value for stage, value in seconds.items() if stage not in kept) * seeds
        kept = []
        # The cheapest first, so that the budget holds as many methods as it can.
        for method in sorted(fitting, key=lambda method: seconds[method.name]):
            need = seconds[method.name] * seeds
            if basis + need <= budget:
                basis += need
                kept.append(method.name)
            else:
                left_out[method.name] = f"its {hours(need)} would not fit the budget of {hours(budget)}"
        if not kept:
            raise SpikedistillError(
                f"--budget {hours(budget)} holds no method: teacher and {BASELINE} take about "
                f"{hours(basis)}; give more, or fewer --seeds"
            )
        # Back in the order asked for, which the stages and the table follow.
        kept = [method.name for method in fitting if method.name in kept]
    return Plan(
        request, kept, left_out, {stage: seconds[stage] for stage in seconds if stage not in left_out}
    )


def read_plan(folder: Path) -> Plan | None:
    """The comparison that a folder holds; None where it holds none."""
    path = folder / COMPARISON
    if not path.is_file():
        return None
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SpikedistillError(
            f"{path} is not the plan of a comparison ({error}); choose another --out"
        ) from None


def write_plan(folder: Path, plan: Plan) -> None:
    """Keep the plan beside the run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / COMPARISON, json.dumps(asdict(plan), indent=1) + "\n")


def remaining(plan: Plan, folder: Path, recipe: Recipe) -> float:
    """Seconds of the stages that no seed's folder has finished."""
    total = 0.0
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        place = folder / f"seed-{seed}" if recipe.seeds > 1 else folder
        done = {path.parent.name for path in place.glob("stages/*/config.json")}
        total += sum(value for stage, value in plan.seconds.items() if stage not in done)
    return total


def concluded(summary: Summary, methods: Sequence[str]) -> str:
    """What to take, of a finished run."""
    rows = {stage.name: stage for stage in summary.stages}

    def values(name: str) -> list[float]:
        stage: StageSummary | StageSpread = rows[name]
        if isinstance(stage, StageSpread):
            return stage.figures["validation_accuracy"].values
        assert stage.validation_accuracy is not None
        return spread([stage.validation_accuracy]).values

    images = int((summary.data.get("sizes") or {}).get("validation") or 1)
    verdicts = judge({name: values(name) for name in methods}, values(BASELINE), images)
    return sentence(verdicts, len(summary.seeds), BASELINE)


def duration_seconds(text: "str | float") -> float:
    """``2h``, ``30m``, ``90s`` or a number of seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([hms]?)\s*", str(text))
    found = float(match[1]) * {"h": 3600, "m": 60, "s": 1, "": 1}[match[2]] if match else 0.0
    if found <= 0:
        raise SpikedistillError(f"--budget takes a time such as 2h, 30m or 90s; found {text!r}")
    return found


def hours(seconds: float) -> str:
    """``1.5 h``, ``12 min`` or ``40 s``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
