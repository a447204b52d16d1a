"""A stage's training at one moment: networks, optimizer, position, its batches; and its checkpoints.

A checkpoint is what a resumed stage needs: weights, adapters, optimizer, average, best weights, position.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import finite
from ..data import Data
from ..distiller import Distiller
from ..errors import SpikedistillError
from ..randomness import seed_everything
from ..time_inheritance import TimeInheritance
from . import checkpoint, metrics
from .guard import Guard
from .optim import MovingAverage, optimizer, restore_by_name, state_by_name
from .position import Position
from .progress import Progress
from .settings import Settings


class TrainingState:
    """What a training is made of, and keeps; :class:`.loop.Training` moves it."""

    def __init__(
        self,
        distiller: Distiller,
        data: Data,
        settings: Settings,
        progress: Progress,
        accelerator: Any = None,
        settling: Callable[[int], list[Tensor]] = lambda epoch: [],
    ) -> None:
        self.distiller, self.data, self.settings, self.progress = distiller, data, settings, progress
        self.accelerator, self.settling = accelerator, settling
        self.rank: int = accelerator.process_index if accelerator else 0
        self.world: int = accelerator.num_processes if accelerator else 1
        batches = data.num_batches("train", settings.batch_size * self.world, train=True)
        # Batches to an update. As with images to a batch, an incomplete last window is dropped unless it is
        # the only one.
        self.micro = min(settings.optimizer.accumulate, max(1, batches))
        self.per_epoch = max(1, batches // self.micro)
        self.dropped_batches = max(0, batches - self.per_epoch * self.micro)
        self.steps = self.per_epoch * settings.epochs
        self.optimizer = optimizer(distiller, settings.optimizer)
        self.average = (
            MovingAverage(distiller.student, settings.optimizer.ema) if settings.optimizer.ema else None
        )
        self.best: dict[str, Tensor] | None = None
        self.position = Position()
        self.inheritance = TimeInheritance(distiller, settings.time_inheritance)
        self.guard = Guard(settings.device, self.world)
        self.channels_last = False
        self.warned: set[str] = set()  # of these layers
        self.said: list[str] = []  # of the whole stage
        self.suspects: set[str] = set()
        self.saved, self.saved_step = time.perf_counter(), 0

    @property
    def student(self) -> nn.Module:
        """The network that learns."""
        return self.distiller.student

    def next_batch(
        self, batches: Iterator[tuple[Tensor, Tensor]], step: int, k: int
    ) -> tuple[Tensor, Tensor]:
        """Batch ``k`` of a step; all processes draw its augmentation alike, not what the network draws."""
        # Without k for the first: with one batch to a step the draws are those of a run that accumulates
        # nothing.
        seed_everything(self.settings.seed, step, 0, *([k] if k else []))
        x, y = next(batches)
        # Other draws inside the network on each process and in each batch of a step (the first goes on).
        if self.rank:
            seed_everything(self.settings.seed, step, self.rank, k)
        return x, y

    def micro_batches(self, step: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one step once more, ``start`` batches into its epoch."""
        batches = self.batches(step // self.per_epoch, start)
        for k in range(self.micro):
            yield self.next_batch(batches, step, k)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's training batches of this process, from batch ``start`` on."""
        size, shard, seed = self.settings.batch_size * self.world, (self.rank, self.world), self.settings.seed
        each = self.data.batches(
            "train",
            size,
            epoch=epoch,
            seed=seed,
            train=True,
            device=self.settings.device,
            start=start,
            shard=shard,
        )
        for x, y in each:
            if self.settings.precision == "float64":
                x = x.double()
            # Images alone: torch has this layout for four dimensions, and frames have five.
            if self.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            yield x, y

    def note(self, text: str) -> None:
        """A warning, on the screen and in the log."""
        self.progress.note(f"{self.settings.name}: warning: {text}")
        if self.settings.folder is not None and self.rank == 0:
            metrics.append(self.settings.folder, "warning", stage=self.settings.name, text=text)

    @property
    def checkpoint_folder(self) -> Path:
        """Where this stage's training state lies."""
        assert self.settings.folder is not None
        return self.settings.folder / "checkpoints" / self.settings.name

    def save(self) -> None:
        """Write the checkpoint, whole or not at all, by one process; raises for a network that holds NaN."""
        self.saved, self.saved_step = time.perf_counter(), self.position.step
        # Behind the line above: all processes count the time to the next checkpoint from here.
        if self.settings.folder is None or self.rank:
            return
        tensors = {f"model.{k}": v for k, v in self.distiller.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in state_by_name(self.optimizer, self.distiller).items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.values.items()}
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.items()}
        # With what `load` will ask: else a checkpoint could be written that it refuses.
        wrong = finite.faulty(tensors.items(), self._masks())
        if wrong:
            raise SpikedistillError(
                f"stage {self.settings.name!r}, step {self.position.step}: {finite.words(wrong)} holds "
                "NaN or infinity; no checkpoint is written of it, the last good one is in "
                f"{self.checkpoint_folder}. Look for what gives such values (the data, a layer of your own), "
                "then resume"
            )
        # With the warnings: a stage that goes on must not give them twice, nor wait longer for them.
        state = {
            "warned": sorted(self.warned),
            "suspects": sorted(self.suspects),
            "said": self.said,
            "steps": self.steps,
        }
        checkpoint.save(self.checkpoint_folder, tensors, {"position": self.position.__dict__, **state})

    def _masks(self) -> set[str]:
        """Tensors of a checkpoint that may hold infinity."""
        student = finite.mask_names(self.student)
        masks = {f"model.{name}" for name in finite.mask_names(self.distiller)}
        return masks | {f"{part}.{name}" for part in ("average", "best") for name in student}

    def _latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last whole checkpoint. One process puts in order what a kill or damage left; the others wait.

        All at once they would rename the same folders under each other's feet.
        """
        try:
            if self.rank == 0:
                return checkpoint.load_latest(self.checkpoint_folder, self.note, self._masks())
        finally:
            # Met also behind an error: else the others would wait for ever for one that has gone.
            if self.world > 1:
                self.accelerator.wait_for_everyone()
        folder = self.checkpoint_folder
        return checkpoint.load(folder, self._masks()) if folder.exists() else None

    def restore(self) -> None:
        """Go on from this stage's checkpoint, if there is one; raises for one of another length."""
        folder = self.settings.folder
        if folder is None:
            return
        found = self._latest()
        if found is None:
            return
        tensors, state = found
        # In a training of another length the same position means another rate and other images.
        if state["steps"] != self.steps:
            raise SpikedistillError(
                f"{self.checkpoint_folder} is of a training of {state['steps']} steps, this one has "
                f"{self.steps}; the data or the number of processes changed: use the same, or another --out"
            )
        checkpoint.fill(
            self.distiller,
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")},
            str(self.checkpoint_folder),
            "the network's code changed: use it as it was, or another --out",
        )
        states = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        restore_by_name(self.optimizer, self.distiller, states)
        if self.average is not None:
            # Into the tensors there are: they lie on the device and have the right types.
            for k in self.average.values:
                self.average.values[k].copy_(tensors[f"average.{k}"])
        self.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")} or None
        self.position = Position(**state["position"])
        self.warned, self.suspects = set(state["warned"]), set(state.get("suspects", ()))
        self.said = list(state.get("said", ()))
        self.saved_step = self.position.step
        at = self.position
        if at.last is None and at.epoch:  # a checkpoint from before the line was kept in it
            lines = metrics.read(folder).epochs(self.settings.name)
            at.last = lines[-1] if lines else None
        if self.rank == 0:
            metrics.append(folder, "resume", stage=self.settings.name, epoch=at.epoch, step=at.step)
