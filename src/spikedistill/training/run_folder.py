"""What makes a folder a run: whose recipe and data it is (``recipe.yaml``), where it ran, what lies in it."""

import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import own_code
from ..data import DataInfo
from ..errors import SpikedistillError
from ..files import LEFTOVERS, make_folder, write_text
from ..own_code import TWIN
from ..recipe import Recipe
from ..recipe import load as load_recipe
from . import checkpoint
from .records import RECORD, complete, upgraded_recipe

FILE = "recipe.yaml"
COMPARISON = "comparison.json"  # of methods (:mod:`.comparison`)
# Raised where the same recipe comes to train to other numbers: stages of before are then not taken over.
# 2: norm statistics of augmented images. 3: of batches that differ widely, together. 4: few bits, rounding.
# 5: features through an adapter, rounding. 6: how transformers start; rounding with AMX. 7: rounding of
# convolutions that are no longer, or now, computed by events.
NUMBERS = 7
# and what may lie in a folder before it is a run's
OURS = (TWIN, COMPARISON, *LEFTOVERS, ".lock*", "tracking")


@dataclass(frozen=True)
class Claim:
    """``recipe``: every value in force; ``given``: as its author wrote it, for the summary and the page."""

    name: str
    recipe: Recipe
    given: Recipe


def claim(
    folder: Path, recipe: Recipe | None, name: str, info: DataInfo | None = None, custom: Iterable[str] = ()
) -> Claim:
    """Make the folder this recipe's, or see that it already is; what it holds is then the recipe in force.

    ``recipe`` None: what the folder holds, whatever it is. ``info``: the data opened for it; another hash
    than the run's is refused. ``custom``: names of the caller's networks.
    """
    if (folder / FILE).exists():
        held, theirs = read_file(folder / FILE, custom)
        # The same words are the same run, whatever has become of the defaults. Else both are compared with
        # every value in force: what one leaves out, the other may spell out.
        if recipe is not None and held.get("given") != recipe.plain():
            then = load_recipe(upgraded_recipe(recipe.plain(), held["record"]), custom=custom)
            mine, other = complete(then, custom), complete(theirs.recipe, custom)
            if mine != other:
                raise SpikedistillError(
                    f"{folder} holds a run of another recipe ({_first_difference(other, mine)}); choose "
                    "another --out, or remove the folder"
                )
        _same_data(folder, held, info)
        return theirs
    if recipe is None:
        raise SpikedistillError(f"{folder} is no run folder: it has no recipe.yaml")
    prepare(folder)
    tree: dict[str, Any] = {
        "name": name,
        "record": RECORD,
        "recipe": complete(recipe, custom),
        "given": recipe.plain(),
    }
    if info is not None:
        tree["data"] = {"name": info.name, "hash": info.hash, "split_hash": info.split_hash}
    write_claim(folder, tree)
    # What was written is what is in force: a run that goes on will read the same.
    return Claim(name, load_recipe(tree["recipe"], custom=custom), recipe)


def write_claim(folder: Path, tree: Mapping[str, Any]) -> None:
    """``recipe.yaml``, and a twin by which a change by hand is known."""
    try:
        twin = (folder / TWIN, checkpoint.sealed({"recipe": tree["recipe"]}).decode())
        file = (folder / FILE, yaml.safe_dump(dict(tree), sort_keys=False))
        # A new run is one with a twin; of a change, killed between the two, people's file is the truth.
        for path, text in (file, twin) if (folder / FILE).exists() else (twin, file):
            write_text(path, text)
    except OSError as error:
        raise SpikedistillError(
            f"cannot write {folder / FILE}: {error.strerror or error}; choose another --out"
        ) from None


def prepare(folder: Path) -> None:
    """Make the folder; one that holds something else than a run is refused and left as it is."""
    try:
        if not (folder / FILE).exists():
            refuse_foreign(folder)
        make_folder(folder)
    except OSError as error:
        raise SpikedistillError(
            f"cannot write {folder}: {error.strerror or error}; choose another --out"
        ) from None


def refuse_foreign(folder: Path) -> None:
    """Raise where a folder without a run holds what no run has left there, or where no folder can be."""
    for place in (folder, *folder.parents):
        if place.is_file():
            raise SpikedistillError(f"cannot write {folder}: {place} is a file; choose another --out")
    inside = list(folder.iterdir()) if folder.exists() else []
    if any(not any(p.match(kind) for kind in OURS) for p in inside):
        raise SpikedistillError(f"{folder} exists and holds no run; choose another --out")


def read_claim(folder: Path) -> tuple[str, Recipe]:
    """Name and resolved recipe of a run folder (or one of its seeds)."""
    found = read_whole_claim(folder)
    return found.name, found.recipe


def read_whole_claim(folder: Path, custom: Iterable[str] = ()) -> Claim:
    """The claim of a run folder (or one of its seeds); no code of its author's is imported."""
    for place in (folder, folder.parent):
        if (place / FILE).exists():
            with own_code.closed():
                return read_file(place / FILE, custom)[1]
    raise SpikedistillError(f"{folder} is no run folder: it has no recipe.yaml")


def read_file(path: Path, custom: Iterable[str]) -> tuple[dict[str, Any], Claim]:
    """A ``recipe.yaml`` as it stands there, and as a claim."""
    held, record = _read(path)
    try:
        recipe = load_recipe(upgraded_recipe(held["recipe"], record), custom=custom)
        given = load_recipe(held["given"], custom=custom) if isinstance(held.get("given"), dict) else recipe
        if "given" not in held:  # an older record is what its author gave
            given = load_recipe(held["recipe"], custom=custom)
    except (SpikedistillError, TypeError, RecursionError) as error:
        raise SpikedistillError(f"{path}: {error}") from None
    return held, Claim(held["name"], recipe, given)


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """A ``recipe.yaml`` as a mapping, and the version of its record."""
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpikedistillError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    whole = (
        isinstance(held, dict) and isinstance(held.get("recipe"), dict) and isinstance(held.get("name"), str)
    )
    # Record 1 had no such key.
    if not whole or not isinstance(held.setdefault("record", 1), int):
        raise SpikedistillError(
            f"{path} is not a run's record (name, record, recipe); restore it, or repeat the run"
        )
    if held["record"] > RECORD:
        raise SpikedistillError(
            f"{path} is of record {held['record']}, this version reads up to {RECORD}: use the version that "
            "wrote it"
        )
    return held, held["record"]


def recorded_code(folder: Path) -> dict[str, Any]:
    """What a run's record says of own code: ``{"code": {address: {file, sha256}}, "networks": ...}``.

    As it stands there; networks are ``{name: address}``. Nothing of a folder that is no run yet.
    """
    if not (folder / FILE).exists():
        return {}
    held, _ = _read(folder / FILE)
    # Not read as a recipe: that would import the very code of which this says whether it may be.
    found = {}
    for key in ("code", "networks"):
        value = held.get(key, {})
        inner = dict if key == "code" else str
        if not isinstance(value, dict) or not all(
            own_code.is_address(v if key == "networks" else k) for k, v in value.items()
        ):
            raise SpikedistillError(f"{folder / FILE}: {key}: a mapping of addresses is needed, module:Name")
        found[key] = {k: v for k, v in value.items() if isinstance(v, inner)}
    return found


def remember(folder: Path, code: Mapping[str, Any], networks: Mapping[str, str]) -> None:
    """Write down own code that a run was begun, or went on, with."""
    held, _ = _read(folder / FILE)
    said = {"code": {**held.get("code", {}), **code}, "networks": {**held.get("networks", {}), **networks}}
    said = {key: value for key, value in said.items() if value}
    if any(held.get(key) != value for key, value in said.items()):
        before = {
            key: held["code"][key]
            for key in code
            if key in held.get("code", {}) and held["code"][key] != code[key]
        }
        changes = (
            {"changes": [*held.get("changes", []), {"code": dict(code), "before": before}]} if before else {}
        )
        write_claim(folder, {**held, **said, **changes})


def check_data(folder: Path, info: DataInfo) -> None:
    """Refuse, to read a run (or one of its seeds), data that it was not trained on."""
    place = next((p for p in (folder, folder.parent) if (p / FILE).exists()), folder)
    held, _ = _read(place / FILE)
    _same_data(place, held, info, "name them, or others on purpose, with --data FILE.npz, or a folder")


def _same_data(
    folder: Path,
    held: Mapping[str, Any],
    info: DataInfo | None,
    advice: str = "give the same, or another --out",
) -> None:
    known = held.get("data")
    # Records of older versions name no data.
    if info is None or not isinstance(known, dict):
        return
    where = f"{folder} was trained on {known.get('name')!r}"
    if known.get("hash") != info.hash:
        raise SpikedistillError(
            f"{where} of content {str(known.get('hash'))[:12]}..., found {info.name!r} of "
            f"{info.hash[:12]}...: the data changed, or were given by the caller (sd.train(recipe, data=..., "
            f"out=...)); {advice}"
        )
    if known.get("split_hash") != info.split_hash:
        raise SpikedistillError(
            f"{where}, split otherwise ({str(known.get('split_hash'))[:12]}... there, "
            f"{info.split_hash[:12]}... here): use the same split files and version, or another --out"
        )


def seed_folders(run: Path) -> list[Path]:
    """The folders of a run's seeds in order: ``seed-9`` before ``seed-10``."""
    folders = [path for path in run.glob("seed-*") if path.is_dir()]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def clean(folder: Path) -> None:
    """Remove what processes that died left aside; only for who holds the run's lock."""
    for place in (folder, *folder.glob("seed-*")):
        for inner in (place, place / "stages", place / "checkpoints"):
            for kind in LEFTOVERS:
                for left in inner.glob(kind):
                    shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _first_difference(a: Any, b: Any, path: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *b]:
            if a.get(key) != b.get(key):
                return _first_difference(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b):
            if x != y:
                label = x.get("name") or x.get("type", "") if isinstance(x, dict) else ""
                return _first_difference(x, y, f"{path}.{label}")
    return f"{path}: {a!r} there, {b!r} here"


PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "scikit-learn", "pydantic")


def environment() -> dict[str, Any]:
    """Versions, commit, machine."""
    from .. import __version__

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "spikedistill": __version__,
        "numbers": NUMBERS,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {p: installed(p) for p in PACKAGES},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def recorded_environment(folder: Path) -> dict[str, Any]:
    """What ``environment.json`` says; nothing of a file that is damaged or gone, which harms no run."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _commit() -> str | None:
    """The commit of the package's sources; None where git does not keep them.

    They may be installed within a repository of something else.
    """
    file = Path(__file__)
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    return _git(file.parent, "rev-parse", "HEAD")


def _git(folder: Path, *words: str) -> str | None:
    """What git says in a folder; None where it fails or says nothing."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
