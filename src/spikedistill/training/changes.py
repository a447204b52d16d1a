"""What may change in a run that has begun: the advice after a divergence, the machine.

All else makes another run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import SpikedistillError
from ..overrides import RESERVED, apply_override
from ..recipe import Recipe, Stage
from ..recipe import load as load_recipe
from . import checkpoint
from .run_folder import FILE, TWIN, read_file, write_claim

OPTIMIZER = ("lr", "min_lr", "clip")
OTHERS = ("data.workers", "checkpoint", "checkpoint.seconds", "checkpoint.steps")
WORDS = (
    "a run that has begun may change optimizer.lr, .min_lr, .clip (also STAGE.optimizer.lr), data.workers, "
    "checkpoint and --device"
)


def permitted(path: str) -> bool:
    """Whether the value at ``path`` (``optimizer.lr``, ``student.optimizer.clip``) may change."""
    parts = path.removeprefix("stages.").split(".")
    return path in OTHERS or (len(parts) in (2, 3) and parts[-2] == "optimizer" and parts[-1] in OPTIMIZER)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Paths at which two records differ, stages by name."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = dict.fromkeys([*a, *b])
        return [p for k in keys for p in differences(a.get(k), b.get(k), f"{path}.{k}".lstrip("."))]
    if path == "stages" and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [p for x, y in zip(a, b) for p in differences(x, y, str(y.get("name")))]
    return [] if a == b else [path]


def change(folder: Path, overrides: Sequence[str], custom: Iterable[str] = ()) -> None:
    """Apply ``path=value`` to a run's record; refuses all else. The record says from which step on."""
    if not overrides:
        return
    held, claimed = read_file(folder / FILE, custom)
    tree, given = (
        json.loads(json.dumps(held["recipe"])),
        json.loads(json.dumps(held.get("given") or held["recipe"])),
    )
    finished = _finished(folder, claimed.recipe)
    for text in overrides:
        path = text.partition("=")[0]
        if not permitted(path):
            raise SpikedistillError(f"{text!r} cannot be changed in {folder}: {WORDS}")
        first = path.removeprefix("stages.").partition(".")[0]
        if first not in RESERVED and first in finished:
            raise SpikedistillError(
                f"{text!r}: stage {first!r} of {folder} is finished; what it was trained with stays"
            )
        if first == "optimizer" and len(finished) == len(claimed.recipe.stages):
            raise SpikedistillError(
                f"{text!r}: all stages of {folder} are finished; what they were trained with stays"
            )
        apply_override(tree, text)
        apply_override(given, text)
        if path.startswith("optimizer."):
            _to_stages(tree, claimed.given, path.partition(".")[2], text, finished)
    # Both must load before anything is written: a bad value leaves the record as it was.
    load_recipe(given, custom=custom)
    load_recipe(tree, custom=custom)
    changes = [*held.get("changes", []), {"set": list(overrides), "from": _places(folder, claimed.recipe)}]
    write_claim(folder, {**held, "recipe": tree, "given": given, "changes": changes})


def _to_stages(tree: dict[str, Any], given: Recipe, key: str, text: str, finished: set[str]) -> None:
    """The recipe's optimizer keys reach the stages that say nothing of them and are not finished."""
    # The record holds each stage's whole optimizer: a value set for the recipe alone would reach none.
    for stage in tree["stages"]:
        own = given.stage(stage["name"]).optimizer
        other = own.get("name", given.optimizer.name) != given.optimizer.name
        if key not in own and not other and stage["name"] not in finished:
            apply_override(tree, f"{stage['name']}.{text}")


def _seeds(folder: Path, recipe: Recipe) -> list[Path]:
    return (
        [folder] if recipe.seeds == 1 else [folder / f"seed-{recipe.seed + i}" for i in range(recipe.seeds)]
    )


def _done(place: Path, stage: Stage) -> bool:
    return (place / "stages" / stage.name / "config.json").exists()


def _finished(folder: Path, recipe: Recipe) -> set[str]:
    # Of every seed: while one still has the stage to train, its values may change.
    return {s.name for s in recipe.stages if all(_done(place, s) for place in _seeds(folder, recipe))}


def _places(folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Where each seed of the run stands: the first unfinished stage and the step of its last checkpoint."""
    found: list[dict[str, Any]] = []
    for i, place in enumerate(_seeds(folder, recipe)):
        stage = next((s for s in recipe.stages if not _done(place, s)), None)
        if stage is None:
            continue
        step = 0
        last = place / "checkpoints" / stage.name
        # As a resume will: from the one before, where the last is damaged.
        for each in (last, checkpoint.previous(last)):
            try:
                step = int(checkpoint.read_json(each / checkpoint.STATE)["position"]["step"])
                break
            except (SpikedistillError, KeyError, TypeError):
                continue
        found.append({"seed": recipe.seed + i, "stage": stage.name, "step": step})
    return found


def edited(folder: Path, custom: Iterable[str] = ()) -> None:
    """``recipe.yaml`` changed by hand: what may change is taken (noted with its step), all else refused."""
    twin = folder / TWIN
    # A run of an older version: there is nothing to hold its record against.
    if not twin.exists():
        return
    try:
        written = checkpoint.read_json(twin)["recipe"]
    except (SpikedistillError, KeyError, TypeError):
        raise SpikedistillError(
            f"{twin} is damaged: whether {FILE} was changed by hand cannot be said; see that {FILE} is as "
            f"it was, remove {twin}, then resume"
        ) from None
    held, claimed = read_file(folder / FILE, custom)
    paths = differences(written, held["recipe"])
    if not paths:
        return
    wrong = [path for path in paths if not permitted(path)]
    if wrong:
        raise SpikedistillError(
            f"{folder / FILE} was changed by hand at {', '.join(wrong[:3])}: {WORDS}; "
            "put the old value back, or use another --out"
        )
    values = [
        # The first line: behind a bare value YAML writes a second one, "...".
        f"{path}={yaml.safe_dump(_at(held['recipe'], path), default_flow_style=True).splitlines()[0]}"
        for path in paths
    ]
    recipe = claimed.recipe
    finished = _finished(folder, recipe)
    closed = finished | ({"optimizer"} if len(finished) == len(recipe.stages) else set())
    late = [path for path in paths if path.partition(".")[0] in closed]
    if late:
        what = "all stages are" if late[0].startswith("optimizer.") else "that stage is"
        raise SpikedistillError(
            f"{folder / FILE} was changed by hand at {late[0]}: {what} finished; put the old value back"
        )
    tree = json.loads(json.dumps(held["recipe"]))
    for path, value in zip(paths, values):
        if path.startswith("optimizer."):
            # Who also edited a stage's own value has said where it holds: spread to all, it would be lost.
            unset = [s for s in tree["stages"] if f"{s['name']}.{path}" in paths]
            if not unset:
                _to_stages(tree, claimed.given, path.partition(".")[2], value, finished)
    note = {"set": values, "by": "hand", "from": _places(folder, recipe)}
    write_claim(folder, {**held, "recipe": tree, "changes": [*held.get("changes", []), note]})


def _at(tree: Mapping[str, Any], path: str) -> Any:
    parts = path.split(".")
    here: Any = tree
    if parts[0] not in tree:
        here = next(s for s in tree["stages"] if s.get("name") == parts[0])
        parts = parts[1:]
    for part in parts:
        here = here.get(part)
    return here
