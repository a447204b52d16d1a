"""The recipe of a comparison: one teacher, ``alone``, a stage a method, equal but for their objectives."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import data as datasets
from .. import objectives
from ..errors import SpikedistillError
from ..methods import Method
from ..overrides import apply_override
from ..recipe import Recipe, Stage, load, shipped
from .summary import BASELINE

TEACHER = "teacher"
# What one method may have other than another: of a stage's keys, none of these is shared.
APART = ("name", "objectives", "teacher", "teacher_heads", "from", "backpropagation")
# For data without a recipe: what small images of a new kind are tried with first.
DEFAULT: dict[str, Any] = {
    "time_steps": 4,
    "optimizer": {
        "name": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "schedule": "one_cycle",
    },
    "stages": [
        {"name": TEACHER, "network": {"name": "conv6", "ann": True}, "epochs": 20},
        {
            "name": "student",
            "network": {"name": "conv6"},
            "teacher": TEACHER,
            "epochs": 20,
            "objectives": [{"type": "logit_distillation"}],
        },
    ],
}


def base(
    on: "str | Path | Mapping[str, Any] | Recipe", overrides: Sequence[str] = (), custom: Iterable[str] = ()
) -> Recipe:
    """The recipe to compare on: a recipe, or the default one on a data set, an .npz or a folder of images."""
    if isinstance(on, Recipe | Mapping) or str(on) in shipped() or Path(on).suffix in (".yaml", ".yml"):
        return load(on, overrides, custom)
    path = Path(on)
    if path.is_file():
        data = {"name": "arrays", "root": str(path)}
    elif path.is_dir():
        data = {"name": "folder", "root": str(path)}
    elif str(on) in datasets.NAMES:
        data = {"name": str(on)}
    else:
        return load(on, overrides, custom)  # says what there is
    # A copy to the leaves: the overrides below would change DEFAULT for the whole process.
    tree = json.loads(json.dumps({"title": path.stem, "data": {**data, "batch_size": 64}, **DEFAULT}))
    for override in overrides:
        apply_override(tree, override)
    return load(tree, (), custom)


def student_of(recipe: Recipe) -> Stage:
    """The stage whose network the methods train: the last spiking one made anew, one with a teacher first."""
    spiking = [stage for stage in recipe.stages if stage.network is not None and not stage.network.get("ann")]
    taught = [stage for stage in spiking if stage.teacher is not None]
    if not spiking:
        raise SpikedistillError(
            "compare: the recipe has no stage with a spiking `network` to train by several methods"
        )
    return (taught or spiking)[-1]


def generated(recipe: Recipe, methods: Sequence[Method], seeds: int, custom: Iterable[str] = ()) -> Recipe:
    """``recipe`` with its teacher, ``alone`` and a stage for each method on its student."""
    tree, student = recipe.plain(), student_of(recipe)
    written = {stage["name"]: stage for stage in tree["stages"]}
    shared = {key: value for key, value in written[student.name].items() if key not in APART}
    T = student.time_steps or recipe.time_steps
    shared.setdefault("accuracy_at", sorted({t for t in (1, 2, 4, 8, 16, 32) if t < T} | {T}))
    anns = [stage.name for stage in recipe.stages if stage.network is not None and stage.network.get("ann")]
    taught: Any = written[student.name].get("teacher") or (anns[0] if anns else TEACHER)
    kept = _with_ancestors(
        recipe, [*(student.teachers or anns[:1]), *([student.init.from_] if student.init else [])]
    )
    stages = [written[stage.name] for stage in recipe.stages if stage.name in kept]
    if taught == TEACHER and TEACHER not in kept:
        twin = {
            key: value
            for key, value in shared["network"].items()
            if key not in ("neuron", "encoding", "head")
        }
        # In front: a stage can only learn from one that is finished.
        stages.insert(
            0, {"name": TEACHER, "network": {**twin, "ann": True}, "epochs": shared.get("epochs", 1)}
        )
    stages.append({"name": BASELINE, **shared})
    for method in methods:
        terms = method.at(T)
        needs = any(objectives.build(term).needs_teacher for term in terms)
        stages.append(
            {"name": method.name, **shared, **({"teacher": taught} if needs else {}), "objectives": terms}
        )
    title = f"Methods compared: {recipe.title}" if recipe.title else "Methods compared"
    papers = list(dict.fromkeys(paper for method in methods for paper in method.paper))
    return load({**tree, "title": title, "paper": papers, "seeds": seeds, "stages": stages}, (), custom)


def _with_ancestors(recipe: Recipe, names: Sequence[str]) -> set[str]:
    kept: set[str] = set()
    waiting = list(names)
    while waiting:
        stage = recipe.stage(waiting.pop())
        if stage.name not in kept:
            kept.add(stage.name)
            waiting += [stage.from_] if stage.from_ else []
            waiting += [stage.init.from_] if stage.init else []
            waiting += [stage.convert.from_] if stage.convert else []
            waiting += list(stage.teachers or {})
    return kept
