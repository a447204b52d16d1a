"""All stages of a recipe for one seed: built, trained, measured, saved; what is finished stays."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import heap
from ..bibliography import citations
from ..data import Data
from ..distiller import Distiller
from ..errors import SpikedistillError
from ..files import write_text
from ..networks.base import Network
from ..recipe import Stage
from . import checkpoint, metrics, observations, summary
from .bfloat16 import trainable_precision
from .calibration import CALIBRATION_IMAGES, LAST_EPOCH, calibration_batches, recalibrate, settling_batches
from .card import card
from .loop import Training
from .machine import autocast, channels_last, compiling, estimate, worth_compiling
from .progress import Progress
from .reuse import stage_keys, take
from .run_folder import (
    Claim,
    environment,
    recorded_environment,
)
from .settings import Settings
from .stage_measures import Conditions, batches_of, stage_summary
from .stage_network import Product, build, distiller_of
from .store import Factories, load_network, own_target, save_network
from .summary import RunSummary, StageSummary


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
        # One process writes: what the others leave aside on the way it would take for leftovers.
        with self.accelerator.main_process_first():
            self.resolved = self.resolve()
        if self.accelerator.is_main_process:
            order = {"stages": [stage.name for stage in self.recipe.stages]}
            write_text(self.folder / "order.json", json.dumps(order))
        stages: list[StageSummary] = []
        for stage in self.recipe.stages:
            place = self.folder / "stages" / stage.name
            # Both are asked for: older versions wrote the summary apart from the folder, and a kill could
            # come between.
            if (place / "config.json").exists() and (place / summary.FILE).exists():
                row = summary.read_stage(place)
            else:
                row = self.take_over(stage, place) or self.train_stage(stage, place)
            if stage.name not in self.products:
                # A kill may have come behind the stage's folder, before its checkpoints were removed.
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
            before, now = held.get("processes", 1), self.accelerator.num_processes
            if before != now:
                raise SpikedistillError(
                    f"{self.folder} was begun by {before} processes and {now} would go on, with another "
                    f"batch at each update; use {before}, or another --out"
                )
        else:
            from ..precision import resolve_precision

            held = {
                "precision": resolve_precision(self.recipe.precision, self.device),
                "processes": self.accelerator.num_processes,
            }
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
        return build(
            stage,
            self.recipe,
            self.data.info,
            self.products,
            self.factories,
            self.calibration,
            self.settling,
            self.seed,
        )

    def calibration(self) -> list[Tensor]:
        """A few training batches, unaugmented."""
        return calibration_batches(self.data, self.joint_batch, CALIBRATION_IMAGES, self.device)

    def settling(self, epoch: int = LAST_EPOCH) -> list[Tensor]:
        """A few training batches, augmented as in ``epoch``: for the statistics of norms."""
        return settling_batches(self.data, self.joint_batch, CALIBRATION_IMAGES, self.device, epoch)

    @property
    def joint_batch(self) -> int:
        """As many images as a step of all processes sees."""
        return self.recipe.data.batch_size * self.accelerator.num_processes

    def take_over(self, stage: Stage, place: Path) -> StageSummary | None:
        """A stage that another run has finished, where one is equal."""
        if not self.held:
            return None
        if self.keys is None:
            about, precision = asdict(self.data.info), self.resolved["precision"]
            self.keys = stage_keys(
                self.recipe, about, self.seed, precision, self.factories, processes=self.resolved["processes"]
            )
        source = self.held.get(self.keys[stage.name] or "")
        if source is None or source.resolve() == place.resolve():
            return None
        row = summary.read_stage(source)
        taken = take(source, place, stage, [("README.md", card(self.title, stage, row, self.data))])
        self.progress.note(f"{stage.name}: taken over from {source}")
        self.log(
            "stage_end", stage=stage.name, accuracy=taken.accuracy, seconds=taken.seconds, taken=str(source)
        )
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
            keep_answers=stage.keep_answers,
            time_inheritance=stage.time_inheritance,
            label=stage.name if self.recipe.seeds == 1 else f"seed-{self.seed}/{stage.name}",
            first_epoch=self.epochs_before(stage),
        )
        training: Training | None = None
        if stage.epochs:
            distiller = distiller_of(stage, network, teachers)
            distiller.to(self.device)
            x, y = next(iter(self.data.batches("train", self.recipe.data.batch_size, device=self.device)))
            # Before Training, which makes the optimizer: the adapters made here are among its parameters.
            distiller.setup(x.double() if settings.precision == "float64" else x, self.seed)
            settings.precision, note = trainable_precision(
                settings.precision, self.recipe.precision, network, x, stage.name
            )
            if note:
                self.progress.note(note)
            training = Training(
                distiller, self.data, settings, self.progress, self.accelerator, self.settling
            )
            self.say_what_fits(stage, distiller, x, y, training)
            compiled = self.compiles(stage, distiller, x, y, training)
            training.channels_last = channels_last(compiled, settings.precision)
            with compiling(compiled):
                training.run()
            # Trained over an objective's longer T, the norms have averaged over steps that the network itself
            # does not run.
            longer = distiller.time_steps
            if (
                isinstance(network, Network)
                and longer is not None
                and network.time_steps is not None
                and longer > network.time_steps
                and not training.settles
            ):
                recalibrate(network, self.settling())
        network.eval()
        teacher = next(iter(teachers.values()), None)
        double = self.resolved["precision"] == "float64"
        run = Conditions(self.data, self.recipe, self.given, self.device, self.seed, double)
        row = stage_summary(run, stage, network, teacher, training, time.perf_counter() - started)
        seen = observations.observe(network, teacher, batches_of(run, "test"))
        if self.accelerator.is_main_process:
            about = {
                "stage": stage.name,
                "class_names": list(self.data.info.class_names),
                "data": self.data.info.name,
            }
            # The folder, its summary in it, appears at once: until then all of the above can be repeated.
            save_network(
                place,
                network,
                about,
                card(self.title, stage, row, self.data),
                training.best if training else None,
                {summary.FILE: row.model_dump_json(indent=1), observations.FILE: observations.contents(seen)},
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
        # One count over all seeds and stages: trackers want steps that never go back.
        return (self.seed - self.recipe.seed) * sum(epochs) + sum(epochs[: self.recipe.stages.index(stage)])

    def say_what_fits(
        self, stage: Stage, distiller: Distiller, x: Tensor, y: Tensor, training: Training
    ) -> None:
        """Log what a step will keep in memory and what an epoch is; warn where that is more than there is."""
        settings = training.settings
        updates = {
            "updates_per_epoch": training.per_epoch,
            "dropped_batches_per_epoch": training.dropped_batches,
        }
        if settings.precision == "float64":
            x = x.double()
        states = 1 if settings.optimizer.name == "sgd" else 2
        with autocast(settings.precision, settings.device):
            fit = estimate(distiller, x, y, settings.batch_size, states, settings.memory)
        self.log("start", stage=stage.name, step_mb=fit.step_mb, fixed_mb=fit.fixed_mb, **updates)
        if not fit.fits:
            self.progress.note(
                f"{stage.name}: warning: a step keeps about {fit.step_mb:,.0f} MB, {fit.available_mb:,.0f} "
                f"MB are free; lower data.batch_size (about {fit.largest_batch} fits) or set memory: lean"
            )

    def compiles(self, stage: Stage, distiller: Distiller, x: Tensor, y: Tensor, training: Training) -> bool:
        """Whether this stage runs compiled; decided once, so that a continued run repeats it."""
        if self.recipe.compile != "auto":
            return bool(self.recipe.compile)
        known = self.resolved.setdefault("compile", {})
        if stage.name not in known:
            with autocast(training.settings.precision, self.device):
                # Batches and not updates: the network runs once for each.
                known[stage.name] = worth_compiling(
                    distiller,
                    x,
                    y,
                    training.steps * training.settings.optimizer.accumulate,
                    training.settings.memory,
                )
            if self.accelerator.is_main_process:
                write_text(self.folder / "resolved.json", json.dumps(self.resolved))
            if known[stage.name]:
                self.progress.note(
                    f"{stage.name}: compiling the neurons first (compile: false trains without)"
                )
        return bool(known[stage.name])

    @property
    def title(self) -> str:
        """Of the recipe, else its file's name."""
        return self.recipe.title or self.name

    def summarise(self, stages: list[StageSummary]) -> RunSummary:
        """The run's summary with the stages finished so far."""
        return RunSummary(
            title=self.title,
            recipe=self.name,
            seed=self.seed,
            environment=recorded_environment(self.folder) | {"resolved": self.resolved},
            data=json.loads(json.dumps(asdict(self.data.info), default=str)),
            citations=citations(self.recipe),
            stages=stages,
        )
