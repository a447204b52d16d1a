"""What the parts of a recipe do not say alone: stages that name each other, teachers, time steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import own_code
from .errors import SpikedistillError, at, nearest
from .network_options import NetworkOptions
from .neurons import TIED
from .objectives import OperationsAim, UnseenObjective
from .overrides import RESERVED
from .rate_based import check_terms
from .teachers import check_head_names, lessons, shares
from .time_inheritance import check_shares

if TYPE_CHECKING:
    from .recipe import Optimizer, Recipe, Stage


def check(recipe: "Recipe") -> None:
    """Raise, by path, for the first thing that cannot be."""
    if recipe.hardware:
        from .hardware.pricing import settings

        settings(("hardware", recipe.hardware))
    _check_optimizer(recipe.optimizer, recipe.optimizer, "optimizer")
    before: list[str] = []
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if stage.name in RESERVED or stage.name in before or not stage.name.replace("-", "_").isidentifier():
            why = (
                "is taken"
                if stage.name in before
                else "is reserved"
                if stage.name in RESERVED
                else "is not a plain name"
            )
            raise SpikedistillError(f"{where}: the stage name {stage.name!r} {why}; choose another")
        for key, other in (
            ("from", stage.from_),
            *(("teacher", name) for name in stage.teachers or {}),
            ("init.from", stage.init.from_ if stage.init else None),
            ("convert.from", stage.convert.from_ if stage.convert else None),
        ):
            if other is not None and other not in before:
                raise SpikedistillError(
                    f"{where}.{key}: no earlier stage {other!r}; {nearest(other, before)}"
                )
        if sum(given is not None for given in (stage.network, stage.from_, stage.convert)) != 1:
            raise SpikedistillError(f"{where}: give exactly one of `network`, `from` and `convert`")
        if stage.convert is not None and stage.init is not None:
            raise SpikedistillError(
                f"{where}.init: a converted network has its weights already; leave `init` out"
            )
        _check_objectives(stage, where)
        _check_steps(recipe, stage, where)
        _check_inheritance(recipe, stage, where)
        _check_backpropagation(recipe, stage, where)
        _check_optimizer(recipe.optimizer_of(stage), stage.optimizer, f"{where}.optimizer")
        before.append(stage.name)


def _check_objectives(stage: "Stage", where: str) -> None:
    # What own code needs is not known without importing it: the stage goes unchecked.
    if own_code.is_shut() and any(isinstance(options, UnseenObjective) for options in stage.objectives):
        return
    built = stage.terms
    names = [o.name for o in built]
    with at(f"{where}.teacher"):
        if stage.teacher is not None and not stage.teachers:
            raise SpikedistillError("the list of teachers is empty; name at least one stage")
        for key in ("teacher_heads", "keep_answers"):
            if getattr(stage, key) and stage.teacher is None:
                raise SpikedistillError(f"{key} needs a teacher; add `teacher: STAGE`")
        if stage.teacher_heads:
            check_head_names(stage.teachers or {})
    for objective in built:
        if names.count(objective.name) > 1:
            raise SpikedistillError(
                f"{where}.objectives: two are named {objective.name!r}; give one a `name`"
            )
        if objective.needs_teacher and stage.teacher is None:
            raise SpikedistillError(
                f"{where}.objectives: {objective.name!r} needs a teacher; add `teacher: STAGE`"
            )
    if stage.teachers:
        with at(f"{where}.objectives"):
            asked = [one.teacher for one in lessons(built, shares(list(stage.teachers), stage.teachers))]
        for name in stage.teachers:
            if name not in asked:
                raise SpikedistillError(
                    f"{where}.teacher: no objective learns from {name!r}; add one that does, such as "
                    "logit_distillation, or leave the teacher out"
                )


def _check_steps(recipe: "Recipe", stage: "Stage", where: str) -> None:
    """Neurons whose weights belong to one T are run at no other."""
    first = _line(recipe, stage)[-1]
    kind = _neuron_of(first.network)
    if kind not in TIED:
        return
    T = first.time_steps or recipe.time_steps
    given = [("time_steps", stage.time_steps), *(("accuracy_at", steps) for steps in stage.accuracy_at)]
    given += [("time_inheritance", steps) for steps in stage.time_inheritance]
    given += [(f"objectives.{term.name}.time_steps", term.time_steps) for term in stage.terms]
    for key, steps in given:
        if steps is not None and steps != T:
            raise SpikedistillError(
                f"{where}.{key}: {kind} has weights for T = {T} time steps, found {steps}; leave it out, or "
                "take sliding_psn, which runs at any T"
            )


def _check_inheritance(recipe: "Recipe", stage: "Stage", where: str) -> None:
    """Fewer time steps at first: for spiking networks, and for objectives that are made for one T."""
    if not stage.time_inheritance:
        return
    line = _line(recipe, stage)
    T = next((one.time_steps for one in line if one.time_steps is not None), recipe.time_steps)
    with at(f"{where}.time_inheritance"):
        check_shares(stage.time_inheritance, T)
        first = line[-1].network
        if first is not None and first.get("ann"):
            raise SpikedistillError("an ANN has no time steps; leave it out")
        for term in stage.terms:
            # Of operations, however they were asked for: those of fewer steps are not those aimed at.
            if term.time_steps is not None or isinstance(term, OperationsAim):
                what = term.name if stage.operations is None else "operations"
                raise SpikedistillError(
                    f"{what!r} is about the steps that all have; leave one of the two out"
                )
            term.check_steps(min(stage.time_inheritance))


def _check_backpropagation(recipe: "Recipe", stage: "Stage", where: str) -> None:
    """What a recipe says of it; the network itself is looked at when it is made."""
    if stage.backpropagation != "rate_based":
        return
    with at(f"{where}.backpropagation"):
        check_terms(stage.terms)
        if recipe.memory == "lean":
            raise SpikedistillError("rate_based keeps no time steps anyway; leave out memory: lean")


_ONLY_OF = {
    "momentum": ("name", "sgd"), "nesterov": ("name", "sgd"), "betas": ("name", "adam", "adamw"),
    "min_lr": ("schedule", "cosine", "one_cycle"), "gamma": ("schedule", "step"),
    "step_epochs": ("schedule", "step"), "one_cycle_up": ("schedule", "one_cycle"),
}  # fmt: skip


def _check_optimizer(optimizer: "Optimizer", given: Mapping[str, object], where: str) -> None:
    """What was asked for and would not be heard; a default, as a run's record has it, asks for nothing."""
    for key, (of, *values) in _ONLY_OF.items():
        found, default = getattr(optimizer, key), type(optimizer).model_fields[key].default
        if key in given and found != default and getattr(optimizer, of) not in values:
            raise SpikedistillError(
                f"{where}.{key}: {of} {getattr(optimizer, of)} does not know it, only "
                f"{' and '.join(values)}; leave it out"
            )
    if "warm_up_lr" in given and optimizer.warm_up_lr and not optimizer.warm_up:
        raise SpikedistillError(f"{where}.warm_up_lr: there is no warm-up; give warm_up, or leave it out")
    if optimizer.nesterov and not optimizer.momentum:
        raise SpikedistillError(f"{where}.nesterov: Nesterov's momentum needs one; give momentum above 0")


def _line(recipe: "Recipe", stage: "Stage") -> "list[Stage]":
    """The stage, the one whose network and T it goes on with, as `from` says, and so on to the first."""
    line = [stage]
    while line[-1].from_ is not None:
        line.append(recipe.stage(line[-1].from_))
    return line


def _neuron_of(network: NetworkOptions | None) -> str | None:
    """Type of the neuron that a recipe names for a spiking network."""
    neuron = None if network is None or network.get("ann") else network.get("neuron")
    return str(neuron.get("type", "lif")).lower() if isinstance(neuron, Mapping) else None
