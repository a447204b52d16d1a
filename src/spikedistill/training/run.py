"""A whole recipe: stages in order, for one seed or several, into a run folder that can be stopped and continued."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data as datasets
from .. import heap, own_code
from ..bibliography import citations
from ..data import Data
from ..distiller import Distiller
from ..errors import SpikedistillError
from ..files import write_text
from ..networks.base import Network
from ..recipe import Recipe, Stage, at
from ..recipe import load as load_recipe
from . import checkpoint, metrics, summary
from .bfloat16 import trainable_precision
from .calibration import CALIBRATION_IMAGES, calibration_batches, recalibrate
from .changes import change, edited
from .lock import locked
from .loop import Settings, Training
from .machine import autocast, compiling, estimate, peak_memory_mb, saving, worth_compiling
from .progress import Progress
from .rehearsal import rehearse
from .results import stage_summary
from .reuse import finished, stage_keys, take
from .run_folder import (
    FILE,
    Claim,
    card,
    claim,
    clean,
    environment,
    prepare,
    read_claim,
    recorded_code,
    recorded_environment,
    remember,
)
from .signals import watching
from .stages import Product, build
from .store import Factories, load_network, own_target, save_network
from .summary import RunSummary, StageSummary, Summary
from .tracking import accelerator, begin


@dataclass(repr=False)
class Run:
    """A finished run: its folder, its summary (over seeds where there are several), its networks."""

    folder: Path
    summary: Summary

    def __repr__(self) -> str:
        seeds = self.summary.seeds if isinstance(self.summary, summary.MultiSummary) else [self.summary.seed]
        stages = ", ".join(f"{stage.name} {_accuracy(stage)}" for stage in self.summary.stages)
        word = "seed" if len(seeds) == 1 else "seeds"
        return f"Run({str(self.folder)!r}, {word} {', '.join(map(str, seeds))}, test accuracy: {stages or 'none yet'})"

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

    ``networks``: your own, by the name under which a stage's ``network.name`` asks for them. A class or function is called
    for each stage, with the stage's options and what its signature names of num_classes, in_channels, input, time_steps, mean
    and std; a module is copied. ``data``: your own (``spikedistill.data.from_arrays(...)`` or a mapping of arrays) in place of
    the recipe's. ``out``: the run folder (default ``runs/<recipe>``); one that holds the same resolved recipe is continued,
    another's is refused. ``seeds``: how many; ``seed``: only this one. ``track``: an experiment tracker that accelerate knows
    ("tensorboard", "wandb", "mlflow", ... or a ``GeneralTracker``); its steps are epochs of the whole run. ``code``: files of
    own code that a run which has begun goes on with although they changed (docs/own_code.md). ``reuse``: run folders whose
    finished stages are taken over where they are equal (:mod:`.reuse`).

    Raises :class:`SpikedistillError` for whatever the user has to mend.
    """
    name = _name(recipe)
    folder = Path(out) if out is not None else Path("runs") / name.replace(" ", "-").replace("/", "-")
    beside = [Path(recipe).parent] if isinstance(recipe, str | Path) and Path(recipe).is_file() else []
    factories = dict(networks or {})
    with own_code.search(beside, folder, code, recorded_code(folder).get("code")):
        checked = load_recipe(recipe, overrides, factories)
        if seeds is not None:
            checked = checked.model_copy(update={"seeds": seeds}) if seeds >= 1 else _refuse_seeds(seeds)
        if seed is not None and seed < 0:
            raise SpikedistillError(f"--seed must be at least 0, found {seed}")
        if seed is not None:
            checked = checked.model_copy(update={"seeds": 1, "seed": seed})
        source = data if not isinstance(data, Mapping) else None
        with at(f"{recipe}" if isinstance(recipe, str | Path) else "the recipe"):
            citations(checked)  # a paper's key that is not known
            if isinstance(data, Mapping):
                source = datasets.from_arrays(data, checked.data, checked.all_time_steps())
            elif source is None:
                source = datasets.open(checked.data, checked.all_time_steps())
        return run(checked, name, folder, source, factories, device, quiet, track, reuse=reuse)


def _name(recipe: "str | Path | Mapping[str, Any] | Recipe") -> str:
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
    """Go on with the run of ``folder``. Own code comes from the current folder, installed packages and ``code``."""
    name, recipe = read_claim(folder := Path(folder))
    if not (folder / FILE).exists():
        folder = folder.parent
    known = recorded_code(folder)
    with own_code.search((), folder, code, known.get("code")):
        factories = {key: own_code.find(value, f"network {key!r},") for key, value in known.get("networks", {}).items()}
        data = datasets.open(recipe.data, recipe.all_time_steps())
        return run(None, name, folder, data, factories, device, quiet, track, changed)


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
    """Run a checked recipe on opened data; continues what the folder already holds (``recipe`` None: whatever it is).

    ``changed``: ``path=value`` of the few keys that may change in a run that has begun (:mod:`.changes`).
    """
    found: list[RunSummary] = []
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(not quiet))
        engaged = stack.enter_context(accelerator(device, track, folder))
        stack.enter_context(compiling(False))
        stack.enter_context(watching())
        if recipe is not None and not (folder / FILE).exists():
            rehearse(recipe, data, factories)
        if engaged.is_main_process:
            prepare(folder)
            stack.enter_context(locked(folder, progress.note))
        if engaged.is_main_process:
            if (folder / FILE).exists():
                edited(folder, factories)
            change(folder, changed, factories)
        with engaged.main_process_first():
            claimed = claim(folder, recipe, name, data.info, factories)
        if engaged.is_main_process:
            remember(folder, *own_code.in_use(factories))
            clean(folder)
        recipe = claimed.recipe
        begin(engaged, name, claimed.given.plain())
        # With several processes each would have to see the same folders: there everything is trained.
        held = finished(reuse) if engaged.num_processes == 1 else {}
        for index in range(recipe.seeds):
            seed = recipe.seed + index
            inner = folder / f"seed-{seed}" if recipe.seeds > 1 else folder
            if recipe.seeds > 1:
                progress.note(f"seed {seed} ({index + 1} of {recipe.seeds})")
            found.append(OneSeed(claimed, inner, data, factories, seed, engaged, progress, held).run())
    result: Summary = found[0]
    if recipe.seeds > 1:
        result = summary.merge(found)
        summary.write(folder, result)
    return Run(folder, result)


class OneSeed:
    """All stages of a recipe for one seed."""

    def __init__(
        self,
        claimed: Claim,
        folder: Path,
        data: Data,
        factories: Factories,
        seed: int,
        accelerator: Any,
        progress: Progress,
        held: Mapping[str, Path] | None = None,
    ) -> None:
        self.held = held or {}
        self.recipe, self.given, self.name = claimed.recipe, claimed.given, claimed.name
        self.folder, self.data = folder, data
        self.factories, self.seed, self.accelerator, self.progress = factories, seed, accelerator, progress
        self.device: torch.device = accelerator.device
        self.products: dict[str, Product] = {}
        self.keys: dict[str, str | None] | None = None

    def run(self) -> RunSummary:
        """Train what is not finished; write ``summary.json`` after each stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resolved = self.resolve()
        write_text(self.folder / "order.json", json.dumps({"stages": [s.name for s in self.recipe.stages]}))
        stages: list[StageSummary] = []
        for stage in self.recipe.stages:
            place = self.folder / "stages" / stage.name
            if (place / "config.json").exists() and (place / summary.FILE).exists():
                row = summary.read_stage(place)
            else:
                row = self.take_over(stage, place) or self.train_stage(stage, place)
            if stage.name not in self.products:
                if self.accelerator.is_main_process:
                    self.forget_checkpoints(stage)
                network = load_network(place, self._fresh(stage), self.factories).to(self.device)
                self.products[stage.name] = Product(stage.name, network, place)
            stages.append(row)
            done = self.summarise(stages)
            if self.accelerator.is_main_process:
                summary.write(self.folder, done)
        return done

    def resolve(self) -> dict[str, Any]:
        """What "auto" means on this machine: decided once, stored, so that a continued run repeats it."""
        path = self.folder / "resolved.json"
        if path.exists():
            held = checkpoint.read_json(path)
        else:
            from ..precision import resolve_precision

            held = {"precision": resolve_precision(self.recipe.precision, self.device)}
            write_text(path, json.dumps(held))
        if not recorded_environment(self.folder):
            write_text(self.folder / "environment.json", json.dumps(environment(), indent=1))
        return held

    def _fresh(self, stage: Stage) -> nn.Module | None:
        """A user's own network to load weights into, where a stage has one."""
        if stage.network is not None and own_target(str(stage.network.name), self.factories) is not None:
            return self.build(stage)
        return None

    def build(self, stage: Stage) -> nn.Module:
        """The stage's network before training."""
        return build(stage, self.recipe, self.data.info, self.products, self.factories, self.calibration, self.seed)

    def calibration(self) -> list[Tensor]:
        """A few training batches, unaugmented."""
        batch = self.recipe.data.batch_size * self.accelerator.num_processes  # as many as a step of all processes sees
        return calibration_batches(self.data, batch, CALIBRATION_IMAGES, self.device)

    def take_over(self, stage: Stage, place: Path) -> StageSummary | None:
        """A stage that another run has finished, where one is equal."""
        if not self.held:
            return None
        if self.keys is None:
            about = json.loads(json.dumps(asdict(self.data.info), default=str))
            precision = self.resolved["precision"]
            self.keys = stage_keys(self.recipe, about, self.seed, precision, self.factories)
        source = self.held.get(self.keys[stage.name] or "")
        if source is None or source.resolve() == place.resolve():
            return None
        row = summary.read_stage(source)
        taken = take(source, place, stage, [("README.md", card(self.name, stage, row, self.data))])
        self.progress.note(f"{stage.name}: taken over from {source}")
        self.log("stage_end", stage=stage.name, accuracy=taken.accuracy, seconds=taken.seconds, taken=str(source))
        return taken

    def train_stage(self, stage: Stage, place: Path) -> StageSummary:
        """Train one stage, evaluate it, write its folder and its row."""
        self.log("stage", stage=stage.name, epochs=stage.epochs)
        if self.device.type == "cpu":
            heap.suit(self.recipe.memory)
        network = self.build(stage).to(self.device)
        if self.resolved["precision"] == "float64":
            network.double()
        teachers = {name: self.products[name].network for name in stage.teachers or {}}
        started = time.perf_counter()
        settings = Settings(
            stage.name,
            stage.epochs,
            self.recipe.data.batch_size,
            self.seed,
            self.recipe.optimizer_of(stage),
            self.device,
            self.resolved["precision"],
            self.folder,
            checkpoint_seconds=self.recipe.checkpoint.seconds,
            checkpoint_steps=self.recipe.checkpoint.steps,
            memory=self.recipe.memory,
            settle=bool(stage.settle),
            label=stage.name if self.recipe.seeds == 1 else f"seed-{self.seed}/{stage.name}",
            first_epoch=self.epochs_before(stage),
        )
        training: Training | None = None
        if stage.epochs:
            distiller = Distiller(network, teachers or None, stage.objectives, stage.teachers, stage.teacher_heads)
            distiller.to(self.device)
            x, y = next(iter(self.data.batches("train", self.recipe.data.batch_size, device=self.device)))
            distiller.setup(x.double() if settings.precision == "float64" else x, self.seed)
            settings.precision, note = trainable_precision(
                settings.precision, self.recipe.precision, network, x, stage.name
            )
            if note:
                self.progress.note(note)
            training = Training(distiller, self.data, settings, self.progress, self.accelerator, self.calibration)
            self.say_what_fits(stage, distiller, x, y, training)
            compiled = self.compiles(stage, distiller, x, y, training)
            training.channels_last = compiled or settings.precision == "bfloat16"
            with compiling(compiled):
                training.run()
            longer = distiller.time_steps
            if (
                isinstance(network, Network)
                and longer is not None
                and network.time_steps is not None
                and longer > network.time_steps
                and not training.settles
            ):
                recalibrate(network, self.calibration())
        network.eval()
        teacher = next(iter(teachers.values()), None)
        row = stage_summary(self, stage, network, teacher, training, time.perf_counter() - started)
        if self.accelerator.is_main_process:
            about = {"stage": stage.name, "class_names": list(self.data.info.class_names), "data": self.data.info.name}
            # The folder, its summary in it, appears at once: until then all of the above can be repeated.
            save_network(
                place,
                network,
                about,
                card(self.name, stage, row, self.data),
                training.best if training else None,
                {summary.FILE: row.model_dump_json(indent=1)},
            )
            self.forget_checkpoints(stage)
        self.log("stage_end", stage=stage.name, accuracy=row.accuracy, seconds=row.seconds)
        self.products[stage.name] = Product(stage.name, network, place)
        heap.trim()
        return row

    def forget_checkpoints(self, stage: Stage) -> None:
        """A finished stage needs none."""
        folder = self.folder / "checkpoints" / stage.name
        for place in (checkpoint.previous(folder), folder):
            shutil.rmtree(place, ignore_errors=True)

    def log(self, event: metrics.Event, **values: Any) -> None:
        """One line of the log, by one process."""
        if self.accelerator.is_main_process:
            metrics.append(self.folder, event, **values)

    def epochs_before(self, stage: Stage) -> int:
        """Epochs of the run, seeds one after the other, before this stage's."""
        epochs = [s.epochs for s in self.recipe.stages]
        return (self.seed - self.recipe.seed) * sum(epochs) + sum(epochs[: self.recipe.stages.index(stage)])

    def say_what_fits(self, stage: Stage, distiller: Distiller, x: Tensor, y: Tensor, training: Training) -> None:
        """Log what a step will keep in memory and what an epoch is; warn where that is more than there is."""
        settings = training.settings
        updates = {"updates_per_epoch": training.per_epoch, "dropped_batches_per_epoch": training.dropped_batches}
        if settings.precision == "float64":
            x = x.double()
        with autocast(settings.precision, settings.device), saving(settings.memory, distiller.student):
            fit = estimate(distiller, x, y, settings.batch_size, states=1 if settings.optimizer.name == "sgd" else 2)
        self.log("start", stage=stage.name, step_mb=fit.step_mb, fixed_mb=fit.fixed_mb, **updates)
        if not fit.fits:
            self.progress.note(
                f"{stage.name}: warning: a step keeps about {fit.step_mb:,.0f} MB, {fit.available_mb:,.0f} MB are free; "
                f"lower data.batch_size (about {fit.largest_batch} fits) or set memory: lean"
            )

    def compiles(self, stage: Stage, distiller: Distiller, x: Tensor, y: Tensor, training: Training) -> bool:
        """Whether this stage runs compiled; decided once, so that a continued run repeats it."""
        if self.recipe.compile != "auto":
            return bool(self.recipe.compile)
        known = self.resolved.setdefault("compile", {})
        if stage.name not in known:
            with autocast(training.settings.precision, self.device):
                known[stage.name] = worth_compiling(
                    distiller, x, y, training.steps * training.settings.optimizer.accumulate
                )
            write_text(self.folder / "resolved.json", json.dumps(self.resolved))
            if known[stage.name]:
                self.progress.note(f"{stage.name}: compiling the neurons first (compile: false trains without)")
        return bool(known[stage.name])

    def summarise(self, stages: list[StageSummary]) -> RunSummary:
        """The run's summary with the stages finished so far."""
        return RunSummary(
            title=self.recipe.title or self.name,
            recipe=self.name,
            seed=self.seed,
            environment=recorded_environment(self.folder) | {"resolved": self.resolved},
            data=json.loads(json.dumps(asdict(self.data.info), default=str)),
            citations=citations(self.recipe),
            stages=stages,
        )


__all__ = ["Run", "environment", "peak_memory_mb", "read_claim", "resume", "run", "train"]
