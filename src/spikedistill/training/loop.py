"""The training loop of one stage. It reads top to bottom; every random draw is seeded by its position."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import finite
from ..data import Data
from ..distiller import Distiller
from ..errors import SpikedistillError
from ..neurons import Neuron
from ..neurons.packing import packed_spikes
from ..neurons.recompute import lean
from ..neurons.shared_norms import synchronize
from ..randomness import seed_everything
from ..recipe import Optimizer
from . import checkpoint, metrics, signals
from .calibration import settle
from .diagnosis import explain
from .evaluate import Evaluation, evaluate, evaluating
from .guard import Guard
from .optim import MovingAverage, learning_rate, optimizer, restore_by_name, set_learning_rate, state_by_name
from .progress import Progress
from .tracking import scalars

GATHER_EVERY = 20  # steps between reads of the loss from the device
READ_EVERY_STEP = ("cpu",)  # devices that are asked at every step: reading them waits for nothing
PARTS = ("data", "teacher", "forward", "backward", "optimizer")


@dataclass
class Settings:
    """What a stage's training needs beside the distiller and the data; trackers know it as ``label``, from ``first_epoch``."""

    name: str
    epochs: int
    batch_size: int
    seed: int
    optimizer: Optimizer
    device: torch.device
    precision: str = "float32"
    folder: Path | None = None
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int | None = None
    memory: str = "default"
    settle: bool = True
    label: str = ""
    first_epoch: int = 0


@dataclass
class Position:
    """Where training stands, and the sums of the running epoch; all a resumed run needs beside the tensors."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    sums: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    images: int = 0
    last: dict[str, Any] | None = None  # the last epoch's line, which the finished stage shows


class Clock:
    """Splits a step's time into parts; ``lap(name)`` books what has passed since the last one (host time)."""

    def __init__(self, times: dict[str, float], device: torch.device) -> None:
        self.times, self.device = times, device
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.times[name] = self.times.get(name, 0.0) + now - self.last
        self.last = now


def saving(memory: str, network: nn.Module) -> AbstractContextManager[Any]:
    """How the forward pass keeps what backward needs: as it is, spikes as bits, or blocks recomputed with spikes as bits."""
    stack = ExitStack()
    if memory != "default":
        stack.enter_context(packed_spikes())
    if memory == "lean" and any(isinstance(m, Neuron) for m in network.modules()):
        stack.enter_context(lean(network))
    return stack


def autocast(settings: Settings) -> AbstractContextManager[Any]:
    """bfloat16 autocast where the precision is that, else nothing."""
    if settings.precision == "bfloat16":
        return torch.autocast(settings.device.type, torch.bfloat16)
    return nullcontext()


class Training:
    """Trains one stage: ``Training(distiller, data, settings, ...).run()``."""

    def __init__(
        self,
        distiller: Distiller,
        data: Data,
        settings: Settings,
        progress: Progress,
        accelerator: Any = None,
        calibration: Callable[[], list[Tensor]] = list,
    ) -> None:
        self.distiller, self.data, self.s, self.progress = distiller, data, settings, progress
        self.accelerator, self.calibration = accelerator, calibration
        self.rank: int = accelerator.process_index if accelerator else 0
        self.world: int = accelerator.num_processes if accelerator else 1
        batches = data.num_batches("train", settings.batch_size * self.world, train=True)
        # Batches to an update. As with images to a batch, an incomplete last window is dropped unless it is the only one.
        self.micro = min(settings.optimizer.accumulate, max(1, batches))
        self.per_epoch = max(1, batches // self.micro)
        self.dropped_batches = max(0, batches - self.per_epoch * self.micro)
        self.steps = self.per_epoch * settings.epochs
        self.optimizer = optimizer(distiller, settings.optimizer)
        self.average = MovingAverage(distiller.student, settings.optimizer.ema) if settings.optimizer.ema else None
        self.best: dict[str, Tensor] | None = None
        self.at = Position()
        self.guard = Guard(settings.device, self.world)
        self.channels_last = False
        self.warned: set[str] = set()
        self.suspects: set[str] = set()
        self.saved, self.saved_step = time.perf_counter(), 0

    @property
    def student(self) -> nn.Module:
        """The network that learns."""
        return self.distiller.student

    def run(self) -> None:
        """Train from where the last checkpoint stands to the end; leaves the product in ``student``."""
        self.restore()
        if self.channels_last:
            self.distiller.to(memory_format=torch.channels_last)
        self.progress.begin(self.s.name, self.steps, self.at.step)
        model: nn.Module = self.distiller
        if self.accelerator is not None and self.world > 1:
            self.distiller.student = synchronize(self.student)
            model = self.accelerator.prepare_model(self.distiller)
        with signals.watch.finishing():
            while self.at.epoch < self.s.epochs:
                self.epoch(model)
        if self.average is not None:
            self.average.swap(self.student)
        if self.settles:
            self.settle()

    def epoch(self, model: nn.Module) -> None:
        """One pass over the training set, from the current batch on, then validation."""
        update = getattr(self.student, "requantize", None)
        if update is not None and self.at.batch == 0:
            update()
        self.distiller.train()
        start = time.perf_counter()
        clock = Clock(self.at.times, self.s.device)
        pending: list[tuple[Tensor, dict[str, Tensor], Tensor]] = []
        micro = self.micro
        batches = self.batches(self.at.epoch, self.at.batch * micro)
        while self.at.batch < self.per_epoch:
            self.optimizer.zero_grad(set_to_none=True)
            rate = learning_rate(self.s.optimizer, self.at.step, self.steps, self.per_epoch)
            set_learning_rate(self.optimizer, rate)
            seen: list[Tensor] = []
            for k in range(micro):
                x, y = self.next_batch(batches, self.at.step, k)
                clock.lap("data")
                total, parts, right = self.loss(model, x, y, clock)
                (total / micro).backward()
                clock.lap("backward")
                pending.append((total.detach(), parts, right))
                seen += [x, total.detach()]
                self.at.images += len(x)
            self.guard.look(self.at.step, seen, self.distiller.parameters())
            if self.s.optimizer.clip:
                nn.utils.clip_grad_norm_(self.distiller.parameters(), self.s.optimizer.clip)
            # On a CPU the flag costs nothing to read; a GPU is asked rarely, its optimizer looks at the flag by itself.
            if (
                len(pending) >= GATHER_EVERY * micro
                or self.s.device.type in READ_EVERY_STEP
                or self.at.batch + 1 == self.per_epoch
            ):
                self.gather(pending)
            self.guard.update(self.optimizer)
            if self.average is not None:
                self.average.update(self.student)
            clock.lap("optimizer")
            self.at.step += 1
            self.at.batch += 1
            self.progress.step(self.s.batch_size * self.world * micro)
            save, stop = self.wishes(bool(pending))
            if (save or stop) and self.at.batch < self.per_epoch:
                self.gather(pending)
                self.at.seconds += time.perf_counter() - start
                start = time.perf_counter()
                self.save()
                clock.last = time.perf_counter()
                self.leave(stop)
        self.at.seconds += time.perf_counter() - start
        self.finish_epoch()

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, clock: Clock) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Total loss, its parts and the number of right answers, on the device."""
        progress = self.at.step / max(1, self.steps)
        self.distiller.clock = clock.lap
        with autocast(self.s), saving(self.s.memory, self.student):
            losses = model(x, y, progress)
        clock.lap("forward")
        hard = y if y.dim() == 1 else y.argmax(-1)
        return losses.total, losses.parts, (losses.logits.argmax(-1) == hard).sum()

    def next_batch(self, batches: Iterator[tuple[Tensor, Tensor]], step: int, k: int) -> tuple[Tensor, Tensor]:
        """Batch ``k`` of a step; its augmentation is drawn alike by all processes, what the network draws is not."""
        seed_everything(self.s.seed, step, 0, *([k] if k else []))
        x, y = next(batches)
        self.seed_draws(step, k)
        return x, y

    def seed_draws(self, step: int, k: int) -> None:
        """Other draws inside the network on each process and in each batch of a step (the first process goes on)."""
        if self.rank:
            seed_everything(self.s.seed, step, self.rank, k)

    def micro_batches(self, step: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one step once more, ``start`` batches into its epoch."""
        batches = self.batches(step // self.per_epoch, start)
        for k in range(self.micro):
            yield self.next_batch(batches, step, k)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's training batches of this process, from batch ``start`` on."""
        each = self.data.batches(
            "train",
            self.s.batch_size * self.world,
            epoch=epoch,
            seed=self.s.seed,
            train=True,
            device=self.s.device,
            start=start,
            shard=(self.rank, self.world),
        )
        for x, y in each:
            if self.s.precision == "float64":
                x = x.double()
            if self.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            yield x, y

    def wishes(self, unread: bool) -> tuple[bool, bool]:
        """Whether to write the state, and whether to stop then: what one process wants, all do, where all have read alike."""
        wanted = [self.due(), signals.watch.asked is not None]
        if self.world > 1:
            if unread:
                return False, False
            each = torch.tensor(wanted, dtype=torch.float32, device=self.s.device)
            torch.distributed.all_reduce(each, torch.distributed.ReduceOp.MAX)
            wanted = [bool(value) for value in each.tolist()]
        return wanted[0], wanted[1]

    def leave(self, stop: bool) -> None:
        """Stop where that was asked, the state being written."""
        if not stop:
            return
        if self.world > 1:
            self.accelerator.wait_for_everyone()
        raise signals.Stopped(signals.watch.asked or signals.SIGNALS[0])

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        steps = self.s.checkpoint_steps
        late = time.perf_counter() - self.saved > self.s.checkpoint_seconds
        return late or (steps is not None and self.at.step - self.saved_step >= steps)

    def gather(self, pending: list[tuple[Tensor, dict[str, Tensor], Tensor]]) -> None:
        """Read losses from the device; refuse to go on where a step was not finite, and say which and why."""
        bad = self.guard.first_bad_step()
        if bad is not None:
            raise explain(self, bad)
        sums = self.at.sums
        for total, parts, right in pending:
            sums["loss"] = sums.get("loss", 0.0) + float(total)
            for name, part in parts.items():
                sums[f"part.{name}"] = sums.get(f"part.{name}", 0.0) + float(part)
            sums["right"] = sums.get("right", 0.0) + float(right)
            sums["count"] = sums.get("count", 0.0) + 1
        pending.clear()

    def finish_epoch(self) -> None:
        """Validation, the epoch's line in the log, best weights, checkpoint."""
        sums, images = self.over_processes(self.at.sums, self.at.images)
        n = max(sums.get("count", 1.0), 1.0)
        self.at.epoch += 1
        self.at.batch = 0
        validation = self.validate()
        seconds = sum(self.at.times.values())
        line: dict[str, Any] = {
            "stage": self.s.name,
            "epoch": self.at.epoch,
            "epochs": self.s.epochs,
            "step": self.at.step,
            "train": {
                "loss": sums.get("loss", 0.0) / n,
                "parts": {k.removeprefix("part."): v / n for k, v in sums.items() if k.startswith("part.")},
                "accuracy": sums.get("right", 0.0) / images,
            },
            "lr": learning_rate(self.s.optimizer, self.at.step - 1, self.steps, self.per_epoch),
            "images_per_second": images / max(seconds, 1e-9),
            "peak_memory_mb": peak_memory_mb(self.s.device),
            "step_time": {k: v / self.per_epoch for k, v in self.at.times.items()},
        }
        train = line["train"]
        text = f"epoch {self.at.epoch}/{self.s.epochs}, loss {train['loss']:.4f}, train {100 * train['accuracy']:.1f} %"
        if validation is not None:
            line["validation"] = {"loss": validation.loss, "accuracy": validation.accuracy}
            text += f", validation {100 * validation.accuracy:.1f} %"
            self.watch(validation)
        if self.s.folder is not None and self.rank == 0:
            metrics.append(self.s.folder, "epoch", **line)
        if self.accelerator is not None:
            self.accelerator.log(scalars(self.s.label, line), step=self.s.first_epoch + self.at.epoch)
        self.progress.epoch(text)
        self.at.last = line
        self.at.sums, self.at.images, self.at.times = {}, 0, dict.fromkeys(PARTS, 0.0)
        save, stop = self.wishes(False)
        if save or stop or self.at.epoch == self.s.epochs:
            self.save()
            self.leave(stop)

    def over_processes(self, sums: dict[str, float], images: int) -> tuple[dict[str, float], int]:
        """An epoch's sums and images of all processes together."""
        if self.world > 1:
            names = sorted(sums)
            kind = torch.float32 if self.s.device.type == "mps" else torch.float64
            each = torch.tensor([images, *(sums[name] for name in names)], dtype=kind, device=self.s.device)
            torch.distributed.all_reduce(each)
            images, sums = int(each[0]), dict(zip(names, each[1:].tolist()))
        return sums, max(images, 1)

    def validate(self) -> Evaluation | None:
        """Accuracy and firing rates on the validation part, with the averaged weights where there are such.

        The weights and statistics of the best epoch are kept as they were measured.
        """
        if not self.data.info.sizes.get("validation"):
            return None
        with self.measured():
            with autocast(self.s), evaluating(self.student):
                found = evaluate(
                    self.student,
                    self.plain_batches("validation"),
                    self.data.info.num_classes,
                    position=("validation", self.s.seed),
                )
            if self.at.best is None or found.accuracy > self.at.best["validation_accuracy"]:
                self.at.best = {"epoch": self.at.epoch, "validation_accuracy": found.accuracy}
                self.best = {k: v.detach().cpu().clone() for k, v in self.student.state_dict().items()}
        return found

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The student as its product would be now: averaged weights, settled statistics; afterwards as it was."""
        if self.average is not None:
            self.average.swap(self.student)
        buffers = {name: value.clone() for name, value in self.student.named_buffers()}
        try:
            if self.settles:
                self.settle()
            yield
        finally:
            with torch.no_grad():
                for name, value in self.student.named_buffers():
                    value.copy_(buffers[name])
            if self.average is not None:
                self.average.swap(self.student)

    @property
    def settles(self) -> bool:
        """Averaged weights always: an average of other weights' statistics is not theirs."""
        return self.s.settle or self.average is not None

    def settle(self) -> None:
        """Statistics of the weights as they are, from unaugmented training images."""
        batches = [x.double() if self.s.precision == "float64" else x for x in self.calibration()]
        if self.world > 1:  # the norms share their statistics: each process gives its part
            batches = [x[self.rank :: self.world] for x in batches]
        if batches:
            with autocast(self.s):
                settle(self.student, batches)

    def plain_batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without shuffling or augmentation."""
        for x, y in self.data.batches(split, max(self.s.batch_size, 128), device=self.s.device):
            yield (x.double() if self.s.precision == "float64" else x), y

    def watch(self, found: Evaluation) -> None:
        """Warn once of each layer that is dead or saturated in two validations running (at first many are)."""
        suspects = {layer.path for layer in found.layers() if layer.warning}
        for layer in found.layers():
            if layer.warning and layer.path in self.suspects and layer.path not in self.warned:
                self.warned.add(layer.path)
                rate = f"{100 * layer.firing_rate:.2f} % (epoch {self.at.epoch})"
                self.note(f"layer {layer.path} is {layer.warning}: it fires at {rate}")
        self.suspects = suspects

    def note(self, text: str) -> None:
        """A warning, on the screen and in the log."""
        self.progress.note(f"{self.s.name}: warning: {text}")
        if self.s.folder is not None and self.rank == 0:
            metrics.append(self.s.folder, "warning", stage=self.s.name, text=text)

    # Checkpoints: weights, adapters, optimizer, average, best, position.

    @property
    def checkpoint_folder(self) -> Path:
        """Where this stage's training state lies."""
        assert self.s.folder is not None
        return self.s.folder / "checkpoints" / self.s.name

    def save(self) -> None:
        """Write the full training state, atomically; nothing of a network that holds NaN."""
        self.saved, self.saved_step = time.perf_counter(), self.at.step
        if self.s.folder is None or self.rank:
            return
        tensors = {f"model.{k}": v for k, v in self.distiller.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in state_by_name(self.optimizer, self.distiller).items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.values.items()}
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.items()}
        # Buffers may hold infinity on purpose (masks); a statistic that does is as broken as a NaN.
        wrong = [f"model.{k}" for k in finite.of(self.distiller)]
        wrong += finite.faulty((k, v) for k, v in tensors.items() if not k.startswith(("model.", "best.")))
        if wrong:
            raise SpikedistillError(
                f"stage {self.s.name!r}, step {self.at.step}: {finite.words(wrong)} holds NaN or infinity; no checkpoint is "
                f"written of it, the last good one is in {self.checkpoint_folder}. Look for what gives such values (the "
                "data, a layer of your own), then resume"
            )
        state = {"warned": sorted(self.warned), "suspects": sorted(self.suspects), "steps": self.steps}
        checkpoint.save(self.checkpoint_folder, tensors, {"position": self.at.__dict__, **state})

    def restore(self) -> None:
        """Continue from this stage's checkpoint, if there is one."""
        if self.s.folder is None:
            return
        found = checkpoint.load_latest(self.checkpoint_folder, self.note)
        if found is None:
            return
        tensors, state = found
        if state["steps"] != self.steps:
            raise SpikedistillError(
                f"{self.checkpoint_folder} is of a training of {state['steps']} steps, this one has {self.steps}; the data or "
                "the number of processes changed: use the same, or another --out"
            )
        self.distiller.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        states = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        restore_by_name(self.optimizer, self.distiller, states)
        if self.average is not None:
            for k in self.average.values:
                self.average.values[k].copy_(tensors[f"average.{k}"])
        self.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")} or None
        self.at = Position(**state["position"])
        self.warned, self.suspects = set(state["warned"]), set(state.get("suspects", ()))
        self.saved_step = self.at.step
        if self.at.last is None and self.at.epoch:  # a checkpoint from before the line was kept in it
            lines = metrics.read(self.s.folder).epochs(self.s.name)
            self.at.last = lines[-1] if lines else None
        if self.rank == 0:
            metrics.append(self.s.folder, "resume", stage=self.s.name, epoch=self.at.epoch, step=self.at.step)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far, in MB: allocated on the GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


__all__ = ["Position", "Settings", "Training", "autocast", "peak_memory_mb"]
