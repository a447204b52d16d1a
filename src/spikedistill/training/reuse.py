"""Finished stages of other runs: a stage equal in all that its training sees is taken over, not trained.

Equal means: the same version and seed, the same contents and split of the data, the same values in force, and
the same of every stage it begins or learns from. What code of the user's own had a part in, or what was
changed on the way, is never taken.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import SpikedistillError
from ..files import replace_folder
from ..recipe import Recipe, Stage
from . import checkpoint, metrics, summary
from .records import complete
from .run_folder import FILE, NUMBERS, read_file, recorded_environment, seed_folders
from .summary import StageSummary

# of the data: where they lie, how they are read
PLACES = ("name", "root", "train", "test", "download", "workers")
CONTENT = ("hash", "split_hash", "input", "frames", "size", "sizes")
Keys = dict[str, str | None]


def stage_keys(
    recipe: Recipe,
    data: Mapping[str, Any],
    seed: int,
    precision: str,
    own: Iterable[str] = (),
    version: str = f"{__version__}/{NUMBERS}",
    processes: int | None = 1,
) -> Keys:
    """A hash for each stage of a recipe; None for one that cannot be known by what its recipe says.

    ``data``: what :class:`~spikedistill.data.DataInfo` says, as a mapping; ``own``: names of the user's
    networks; ``processes``: those that trained together, each with a batch of its own.
    """
    own = set(own)
    tree = json.loads(json.dumps(complete(recipe, own), default=str))
    common = {
        "version": version,
        "seed": seed,
        "data": json.loads(json.dumps({key: data.get(key) for key in CONTENT}, default=str)),
        "reading": {k: v for k, v in tree["data"].items() if k not in PLACES},
        "time_steps": recipe.time_steps,
        # As asked for, and as it was decided: auto is another precision on another machine.
        "precision": [tree["precision"], precision],
        "processes": processes,
        **{key: tree[key] for key in ("compile", "memory", "hardware")},
    }
    keys: Keys = {}
    for stage, written in zip(recipe.stages, tree["stages"]):
        spec = {k: v for k, v in written.items() if k not in ("name", "from", "teacher")}
        before = {
            "from": stage.from_,
            "init": stage.init.from_ if stage.init else None,
            "convert": stage.convert.from_ if stage.convert else None,
        }
        # By the keys of the stages that are named, not by their names: equal work is equal under any name.
        parts: dict[str, Any] = {role: keys[name] for role, name in before.items() if name is not None}
        parts["teachers"] = [[keys[name], weight] for name, weight in (stage.teachers or {}).items()]
        for role in ("init", "convert"):
            spec[role] = {k: v for k, v in (spec[role] or {}).items() if k != "from"}
        known = all(parts[role] for role in before if role in parts) and all(
            key for key, _ in parts["teachers"]
        )
        if _is_own(stage, own) or not known:
            keys[stage.name] = None
            continue
        whole = json.dumps([common, spec, parts], sort_keys=True)
        keys[stage.name] = hashlib.sha256(whole.encode()).hexdigest()
    return keys


def _is_own(stage: Stage, own: set[str]) -> bool:
    """Whether code or files that the recipe only points at have a part in it."""
    network = dict(stage.network or {})
    name = str(network.get("name", ""))
    # A stage that goes on from another has no network of its own, and no name.
    if name in own or "/" in name or (name and Path(name).is_dir()) or network.get("weights"):
        return True
    pretrained = name.startswith(("timm:", "torchvision:"))
    return (":" in name and not pretrained) or any(":" in str(o.get("type")) for o in stage.objectives)


def beside(folder: Path) -> list[Path]:
    """What stands beside a run's folder: where finished stages are looked for."""
    return [path for path in folder.parent.iterdir() if path != folder] if folder.parent.is_dir() else []


def runs(folders: Iterable[Path]) -> list[Path]:
    """The folders, all of which must be runs."""
    folders = list(folders)
    for folder in folders:
        if not (folder / FILE).is_file():
            raise SpikedistillError(
                f"--reuse {folder}: no run here (no {FILE}); give the folder that `train --out` made"
            )
    return folders


def finished(folders: Iterable[Path]) -> dict[str, Path]:
    """The finished stages of run folders, by key; a folder that is no run, or cannot be read, has none."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not (folder / FILE).is_file():
            continue
        try:
            held, claim = read_file(folder / FILE, set())
            if not held.get("changes"):
                for place in (folder, *seed_folders(folder)):
                    found |= _of_seed(place, claim.recipe)
        except SpikedistillError:
            continue
    return found


def _of_seed(place: Path, recipe: Recipe) -> dict[str, Path]:
    if not (place / summary.FILE).is_file() or not (place / "stages").is_dir():
        return {}
    run = summary.read(place)
    if not isinstance(run, summary.RunSummary):
        return {}
    resolved = run.environment.get("resolved") or {}
    # Of the version that trained it: where that is another, no key is equal and nothing is taken.
    environment = recorded_environment(place)
    version = f"{environment.get('spikedistill')}/{environment.get('numbers', 1)}"
    # Where an older version did not say how many processes trained, nothing is taken.
    keys = stage_keys(
        recipe, run.data, run.seed, str(resolved.get("precision")), (), version, resolved.get("processes")
    )
    places = {key: place / "stages" / name for name, key in keys.items() if key is not None}
    return {
        key: at
        for key, at in places.items()
        if (at / "config.json").is_file() and (at / summary.FILE).is_file()
    }


def take(source: Path, place: Path, stage: Stage, about: Sequence[tuple[str, str]] = ()) -> StageSummary:
    """Copy a finished stage under the name it has here, its log too; ``about``: other files, as the card."""
    config = {k: v for k, v in checkpoint.read_json(source / "config.json").items() if k != "checksum"}
    row = summary.read_stage(source).model_copy(
        update={
            "name": stage.name,
            "from_": stage.from_,
            "teacher": ", ".join(stage.teachers) if stage.teachers else None,
            "init": stage.init.model_dump(by_alias=True) if stage.init else None,
            "convert": stage.convert.model_dump(by_alias=True) if stage.convert else None,
        }
    )
    contents = {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()}
    contents |= {name: text.encode() for name, text in about}
    contents[summary.FILE] = row.model_dump_json(indent=1).encode()
    contents["config.json"] = checkpoint.sealed({**config, "stage": stage.name})
    for line in metrics.read(source.parents[1]).epochs(source.name):
        values = {k: v for k, v in line.items() if k != "event"}
        metrics.append(place.parents[1], "epoch", **{**values, "stage": stage.name})
    # Last, because a stage is finished once its folder stands: a kill before it copies the log's lines once
    # more, and of these the later count.
    replace_folder(place, contents)
    return row


__all__ = ["beside", "finished", "runs", "stage_keys", "take"]
