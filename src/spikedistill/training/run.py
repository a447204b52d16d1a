"""A whole recipe: stages in order, for one seed or several, into a run folder that can be continued."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .. import data as datasets
from .. import own_code
from ..bibliography import citations
from ..data import Data
from ..drawn import drawn
from ..errors import SpikedistillError, at
from ..interrupt import going
from ..recipe import LARGEST_SEED, Recipe
from ..recipe import load as load_recipe
from . import summary
from .changes import change, edited
from .lock import locked
from .machine import compiling
from .one_seed import OneSeed
from .progress import Progress
from .rehearsal import rehearse
from .reuse import finished
from .run_folder import (
    FILE,
    claim,
    clean,
    prepare,
    read_claim,
    recorded_code,
    remember,
)
from .signals import watching
from .store import Factories
from .summary import RunSummary, StageSummary, Summary
from .tracking import accelerator, begin


@dataclass(repr=False)
class Run:
    """A finished run: its folder, its summary (over seeds where there are several), its networks."""

    folder: Path
    summary: Summary

    def __repr__(self) -> str:
        seeds = self.summary.seeds
        stages = ", ".join(f"{stage.name} {_accuracy(stage)}" for stage in self.summary.stages)
        word = "seed" if len(seeds) == 1 else "seeds"
        return (
            f"Run({str(self.folder)!r}, {word} {', '.join(map(str, seeds))}, test accuracy: "
            f"{stages or 'none yet'})"
        )

    _repr_html_ = drawn("run")

    def network(self, stage: str | None = None, seed: int | None = None) -> nn.Module:
        """The network of a stage (default: the last), of the first seed unless told."""
        from .store import load

        return load(self.folder if seed is None else self.folder / f"seed-{seed}", stage)


def _accuracy(stage: StageSummary | summary.StageSpread) -> str:
    if isinstance(stage, StageSummary):
        return f"{100 * stage.accuracy:.2f} %"
    found = stage.figures["accuracy"]
    return f"{100 * found.mean:.2f}" + (f" ± {100 * found.std:.2f} %" if found.std is not None else " %")


def train(
    recipe: "str | Path | Mapping[str, Any] | Recipe",
    networks: Mapping[str, Any] | None = None,
    data: "Data | Mapping[str, Any] | None" = None,
    *,
    out: "str | Path | None" = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    quiet: bool = False,
    track: Any = None,
    reuse: Sequence[Path] = (),
    code: Sequence["str | Path"] = (),
) -> Run:
    """Run a recipe: a shipped name, a file, a mapping or a :class:`Recipe`.

    ``networks``: your own, by the name under which a stage's ``network.name`` asks for them. A class or
    function is called for each stage, with the stage's options and what its signature names of num_classes,
    in_channels, input, time_steps, mean and std; a module is copied. ``data``: your own
    (``spikedistill.data.from_arrays(...)`` or a mapping of arrays) in place of the recipe's. ``out``: the run
    folder (default ``runs/<recipe>``); one that holds the same resolved recipe is continued, another's is
    refused. ``seeds``: how many; ``seed``: only this one. ``track``: an experiment tracker that accelerate
    knows ("tensorboard", "wandb", "mlflow", ... or a ``GeneralTracker``); its steps are epochs of the whole
    run. ``code``: files of own code that a run which has begun goes on with although they changed
    (docs/own_code.md). ``reuse``: run folders whose finished stages are taken over where they are equal
    (:mod:`.reuse`).

    Raises :class:`SpikedistillError` for whatever the user has to mend.
    """
    name = name_of(recipe)
    folder = folder_of(name, out)
    beside = [Path(recipe).parent] if isinstance(recipe, str | Path) and Path(recipe).is_file() else []
    factories = dict(networks or {})
    with own_code.search(beside, folder, code, recorded_code(folder).get("code")):
        checked = load_recipe(recipe, overrides, factories)
        if seeds is not None:
            checked = checked.model_copy(update={"seeds": seeds}) if seeds >= 1 else _refuse_seeds(seeds)
        if seed is not None and not 0 <= seed <= LARGEST_SEED:
            wanted = "at least 0" if seed < 0 else f"at most {LARGEST_SEED}"
            raise SpikedistillError(f"--seed must be {wanted}, found {seed}")
        if seed is not None:
            checked = checked.model_copy(update={"seeds": 1, "seed": seed})
        with at(f"{recipe}" if isinstance(recipe, str | Path) else "the recipe"):
            citations(checked)  # a paper's key that is not known
            source = opened(checked, data)
        return run(checked, name, folder, source, factories, device, quiet, track, reuse=reuse)


def opened(recipe: Recipe, data: "Data | Mapping[str, Any] | None" = None) -> Data:
    """The caller's own data, or the recipe's, for the time steps that the recipe asks for."""
    if isinstance(data, Mapping):
        return datasets.from_arrays(data, recipe.data, recipe.all_time_steps())
    return data if data is not None else datasets.open(recipe.data, recipe.all_time_steps())


def folder_of(name: str, out: "str | Path | None" = None) -> Path:
    """Where a run goes: ``out``, else a folder of its name in ``runs``."""
    return Path(out) if out is not None else Path("runs") / name.replace(" ", "-").replace("/", "-")


def name_of(recipe: "str | Path | Mapping[str, Any] | Recipe") -> str:
    """A run's name: that of the recipe's file, else its title."""
    if isinstance(recipe, str | Path):
        return Path(recipe).stem
    title = recipe.title if isinstance(recipe, Recipe) else recipe.get("title")
    return title if isinstance(title, str) and title else "recipe"


def resume(
    folder: "str | Path",
    changed: Sequence[str] = (),
    device: str | None = None,
    quiet: bool = False,
    track: Any = None,
    code: Sequence["str | Path"] = (),
) -> Run:
    """Go on with the run of ``folder``. Own code: the current folder, installed packages and ``code``."""
    name, recipe = read_claim(folder := Path(folder))
    if not (folder / FILE).exists():
        # A seed's folder: the record lies above it.
        folder = folder.parent
    known = recorded_code(folder)
    with own_code.search((), folder, code, known.get("code")):
        factories = {
            key: own_code.find(value, f"network {key!r},") for key, value in known.get("networks", {}).items()
        }
        return run(None, name, folder, opened(recipe), factories, device, quiet, track, changed)


def _refuse_seeds(seeds: int) -> Recipe:
    raise SpikedistillError(f"--seeds must be at least 1, found {seeds}")


def run(
    recipe: Recipe | None,
    name: str,
    folder: Path,
    data: Data,
    factories: Factories,
    device: str | None = None,
    quiet: bool = False,
    track: Any = None,
    changed: Sequence[str] = (),
    reuse: Sequence[Path] = (),
) -> Run:
    """Run a checked recipe on opened data; continues what the folder holds (``recipe`` None: whatever it is).

    ``changed``: ``path=value`` of the few keys that may change in a run that has begun (:mod:`.changes`).
    """
    found: list[RunSummary] = []
    with ExitStack() as stack:
        engaged = stack.enter_context(accelerator(device, track, folder))
        progress = stack.enter_context(Progress(not quiet and engaged.is_main_process))
        # Neurons compile by default: here only in a stage that is worth it, within a context of its own.
        stack.enter_context(compiling(False))
        stack.enter_context(watching())
        # Before the folder is made: a recipe that cannot run leaves nothing behind. A run that goes on did it
        # once.
        if recipe is not None and not (folder / FILE).exists():
            rehearse(recipe, data, factories, device=engaged.device.type)
        if engaged.is_main_process:
            prepare(folder)
            # For all processes of the run: each with a lock of its own would shut the others out.
            stack.enter_context(locked(folder, progress.note))
        if engaged.is_main_process:
            if (folder / FILE).exists():
                # First: a change writes the twin anew, and an edit by hand would pass unseen after it.
                edited(folder, factories)
            change(folder, changed, factories)
        # One process writes recipe.yaml, the others find it there.
        with engaged.main_process_first():
            claimed = claim(folder, recipe, name, data.info, factories)
        if engaged.is_main_process:
            remember(folder, *own_code.in_use(factories))
            clean(folder)
        recipe = claimed.recipe
        going.folder = str(folder)
        begin(engaged, name, claimed.given.plain())
        # With several processes each would have to see the same folders: there everything is trained.
        held = finished(reuse) if engaged.num_processes == 1 else {}
        for index in range(recipe.seeds):
            seed = recipe.seed + index
            inner = folder / f"seed-{seed}" if recipe.seeds > 1 else folder
            if recipe.seeds > 1:
                progress.note(f"seed {seed} ({index + 1} of {recipe.seeds})")
            found.append(OneSeed(claimed, inner, data, factories, seed, engaged, progress, held).run())
    # Not in a finally: whoever is told that the run was stopped is told its folder.
    going.folder = None
    result: Summary = found[0]
    if recipe.seeds > 1:
        result = summary.merge(found)
        summary.write(folder, result)
    return Run(folder, result)


__all__ = ["Run", "resume", "run", "train"]
