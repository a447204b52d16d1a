"""The training loop of one stage. It reads top to bottom; every random draw is seeded by its position."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data import AugmentConfig
from ..neurons.shared_norms import synchronize
from ..optimizer_groups import clip_gradients
from . import metrics, signals
from .calibration import UNEVEN, settle
from .diagnosis import FALLEN, explain, has_fallen
from .evaluate import Evaluation, evaluate, evaluating, remedy
from .machine import autocast, peak_memory_mb, saving
from .optim import learning_rate, set_learning_rate
from .position import PARTS, Clock
from .tracking import scalars
from .training_state import TrainingState

GATHER_EVERY = 20  # steps between reads of the loss from the device
READ_EVERY_STEP = ("cpu",)  # devices that are asked at every step: reading them waits for nothing


class Training(TrainingState):
    """Trains one stage: ``Training(distiller, data, settings, ...).run()``."""

    def run(self) -> None:
        """Train from where the last checkpoint stands to the end; leaves the product in ``student``."""
        self.restore()
        if self.channels_last:
            self.distiller.to(memory_format=torch.channels_last)
        if self.settings.keep_answers:
            if len(self.inheritance.networks) > 1:
                self.note("keep_answers is left out: a spiking teacher's answers change with its time steps")
            elif self.data.augment == AugmentConfig():
                self.distiller.remember(self.data.info.sizes["train"])
            elif self.position.step == 0:
                self.note("keep_answers is of no use: the data are augmented, no input comes twice")
        self.progress.begin(self.settings.name, self.steps, self.position.step)
        model: nn.Module = self.distiller
        if self.accelerator is not None and self.world > 1:
            # Statistics of the whole batch: several processes train what one would train.
            self.distiller.student = synchronize(self.student)
            model = self.accelerator.prepare_model(self.distiller)
        try:
            with signals.watch.finishing():
                while self.position.epoch < self.settings.epochs:
                    self.epoch(model)
        finally:
            self.inheritance.end()
        # The average is the product; settled after the swap, since statistics belong to weights.
        if self.average is not None:
            self.average.swap(self.student)
        if self.settles:
            self.settle()

    def epoch(self, model: nn.Module) -> None:
        """One pass over the training set, from the current batch, then validation. A step has five parts."""
        update = getattr(self.student, "requantize", None)
        # Shifts follow the weights once an epoch; a resumed run has them from its checkpoint.
        if update is not None and self.position.batch == 0:
            update()
        self.distiller.train()
        start = time.perf_counter()
        clock = Clock(self.position.times)
        pending: list[tuple[Tensor, dict[str, Tensor], Tensor]] = []
        micro = self.micro
        batches = self.batches(self.position.epoch, self.position.batch * micro)
        while self.position.batch < self.per_epoch:
            # --- 1. Rate and time steps: functions of the position alone, so that a resumed run goes on at
            # the same ones.
            if T := self.inheritance.begin(self.position.step / self.steps):
                self.progress.note(f"{self.settings.name}: T = {T} from here on")
            self.optimizer.zero_grad(set_to_none=True)
            rate = learning_rate(self.settings.optimizer, self.position.step, self.steps, self.per_epoch)
            set_learning_rate(self.optimizer, rate)

            # --- 2. Gradients of the step's batches, added up.
            seen: list[Tensor] = []
            for k in range(micro):
                x, y = self.next_batch(batches, self.position.step, k)
                clock.lap("data")
                total, parts, right = self.loss(model, x, y, clock)
                (total / micro).backward()  # the mean of the batches, as one batch of all of them would give
                clock.lap("backward")
                # Kept on the device: reading a loss here would wait for the GPU at every step.
                pending.append((total.detach(), parts, right))
                seen += [x, total.detach()]
                self.position.images += len(x)

            # --- 3. Guard: before the clipping, whose norm would carry one NaN into every tensor.
            self.guard.look(self.position.step, seen, self.distiller.parameters())
            if self.settings.optimizer.clip:
                clip_gradients(self.optimizer, self.settings.optimizer.clip)
            # On a CPU the flag costs nothing to read; a GPU is asked rarely, its optimizer looks by itself.
            if (
                len(pending) >= GATHER_EVERY * micro
                or self.settings.device.type in READ_EVERY_STEP
                or self.position.batch + 1 == self.per_epoch
            ):
                self.gather(pending)

            # --- 4. Update: of the weights, then of their average, which is to hold the newest.
            self.guard.update(self.optimizer)
            if self.average is not None:
                self.average.update(self.student)
            clock.lap("optimizer")
            self.position.step += 1
            self.position.batch += 1
            self.progress.step(self.settings.batch_size * self.world * micro)

            # --- 5. Save, where it is time. At an epoch's end that waits for the validation, which may change
            # what is best.
            save, stop = self.wishes(bool(pending))
            if (save or stop) and self.position.batch < self.per_epoch:
                self.gather(pending)  # a step that was not finite is never written
                self.position.seconds += time.perf_counter() - start
                start = time.perf_counter()
                self.save()
                clock.last = time.perf_counter()  # writing belongs to no part of a step
                self.leave(stop)
        self.position.seconds += time.perf_counter() - start
        self.inheritance.end()
        self.finish_epoch()

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Total loss, its parts and the number of right answers, on the device."""
        progress = self.position.step / max(1, self.steps)
        self.distiller.clock = clock.lap
        with (
            autocast(self.settings.precision, self.settings.device),
            saving(self.settings.memory, self.student),
        ):
            losses = model(x, y, progress)
        clock.lap("forward")
        # Mixed images (mixup, cutmix) have shares of classes: the largest counts as the right answer.
        hard = y if y.dim() == 1 else y.argmax(-1)
        return losses.total, losses.parts, (losses.logits.argmax(-1) == hard).sum()

    def wishes(self, unread: bool) -> tuple[bool, bool]:
        """Whether to write the state, and whether to stop then: what one process wants, all do.

        To be asked where all have read alike.
        """
        wanted = [self.due(), signals.watch.asked is not None]
        if self.world > 1:
            # What is unread depends on the step alone, so all processes leave here together or meet below:
            # their clocks and signals differ, and a collective that one of them misses would hang.
            if unread:
                return False, False
            each = torch.tensor(wanted, dtype=torch.float32, device=self.settings.device)
            torch.distributed.all_reduce(each, torch.distributed.ReduceOp.MAX)
            wanted = [bool(value) for value in each.tolist()]
        return wanted[0], wanted[1]

    def leave(self, stop: bool) -> None:
        """Stop where that was asked, the state being written."""
        if not stop:
            return
        if self.world > 1:
            # Those that write nothing are done at once; a launcher that sees one process end with an error
            # ends the others, the writer among them.
            self.accelerator.wait_for_everyone()
        raise signals.Stopped(signals.watch.asked or signals.SIGNALS[0])

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        steps = self.settings.checkpoint_steps
        late = time.perf_counter() - self.saved > self.settings.checkpoint_seconds
        return late or (steps is not None and self.position.step - self.saved_step >= steps)

    def gather(self, pending: list[tuple[Tensor, dict[str, Tensor], Tensor]]) -> None:
        """Read losses from the device; refuse to go on where a step was not finite, and say which and why."""
        bad = self.guard.first_bad_step()
        if bad is not None:
            raise explain(self, bad)
        sums = self.position.sums
        for total, parts, right in pending:
            sums["loss"] = sums.get("loss", 0.0) + float(total)
            for name, part in parts.items():
                sums[f"part.{name}"] = sums.get(f"part.{name}", 0.0) + float(part)
            sums["right"] = sums.get("right", 0.0) + float(right)
            sums["count"] = sums.get("count", 0.0) + 1
        pending.clear()

    def finish_epoch(self) -> None:
        """Validation, the epoch's line in the log, best weights, checkpoint."""
        sums, images = self.position.totals(self.world, self.settings.device)
        n = max(sums.get("count", 1.0), 1.0)
        # Moved on before the validation: the best epoch is counted from 1, and the checkpoint below is of the
        # next epoch, its first batch.
        self.position.epoch += 1
        self.position.batch = 0
        validation = self.validate()
        seconds = sum(self.position.times.values())
        line: dict[str, Any] = {
            "stage": self.settings.name,
            "epoch": self.position.epoch,
            "epochs": self.settings.epochs,
            "step": self.position.step,
            "train": {
                "loss": sums.get("loss", 0.0) / n,
                "parts": {k.removeprefix("part."): v / n for k, v in sums.items() if k.startswith("part.")},
                "accuracy": sums.get("right", 0.0) / images,
            },
            # Of the last update: the position has moved on already.
            "lr": learning_rate(self.settings.optimizer, self.position.step - 1, self.steps, self.per_epoch),
            "images_per_second": images / max(seconds, 1e-9),
            "peak_memory_mb": peak_memory_mb(self.settings.device),
            "step_time": {k: v / self.per_epoch for k, v in self.position.times.items()},
        }
        train = line["train"]
        text = (
            f"epoch {line['epoch']}/{line['epochs']}, loss {train['loss']:.4f}, "
            f"train {100 * train['accuracy']:.1f} %"
        )
        if validation is not None:
            line["validation"] = {"loss": validation.loss, "accuracy": validation.accuracy}
            text += f", validation {100 * validation.accuracy:.1f} %"
            self.watch(validation)
        if has_fallen(self.position.peak, train["accuracy"]):
            self.say(FALLEN)
        self.position.peak = max(self.position.peak, train["accuracy"])
        if self.settings.folder is not None and self.rank == 0:
            # Before the checkpoint: a kill in between writes the line twice, and the later one counts; the
            # other way round it would be missing for ever.
            metrics.append(self.settings.folder, "epoch", **line)
        if self.accelerator is not None:
            self.accelerator.log(
                scalars(self.settings.label, line), step=self.settings.first_epoch + self.position.epoch
            )
        self.progress.epoch(text)
        self.position.last = line
        self.position.sums, self.position.images, self.position.times = {}, 0, dict.fromkeys(PARTS, 0.0)
        save, stop = self.wishes(False)
        # Always after the last epoch: the measuring that follows can be killed too.
        if save or stop or self.position.epoch == self.settings.epochs:
            self.save()
            self.leave(stop)

    def validate(self) -> Evaluation | None:
        """Accuracy and firing rates on the validation part, with the averaged weights where there are such.

        The weights and statistics of the best epoch are kept as they were measured.
        """
        if not self.data.info.sizes.get("validation"):
            return None
        with self.measured():
            with autocast(self.settings.precision, self.settings.device), evaluating(self.student):
                found = evaluate(
                    self.student,
                    self.plain_batches("validation"),
                    self.data.info.num_classes,
                    position=("validation", self.settings.seed),
                )
            if self.position.best is None or found.accuracy > self.position.best["validation_accuracy"]:
                self.position.best = {"epoch": self.position.epoch, "validation_accuracy": found.accuracy}
                # Cloned, because a state dict shares its tensors with the network; on the host, where room
                # costs less.
                self.best = {k: v.detach().cpu().clone() for k, v in self.student.state_dict().items()}
        return found

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The student as its product would be now: averaged weights, settled statistics; then as it was."""
        if self.average is not None:
            self.average.swap(self.student)
        # After the swap, and put back before the next one: the average swaps buffers too.
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
        return self.settings.settle or self.average is not None

    def settle(self) -> None:
        """Statistics of the weights as they are, from images as those that they were trained on."""
        # The epoch that these weights come from: the position has moved on.
        batches = self.settling(max(self.position.epoch - 1, 0))
        if self.settings.precision == "float64":
            batches = [x.double() for x in batches]
        if self.world > 1:  # the norms share their statistics: each process gives its part
            batches = [x[self.rank :: self.world] for x in batches]
        if batches:
            with autocast(self.settings.precision, self.settings.device):
                together = settle(self.student, batches)
            if together:
                self.say(UNEVEN)

    def plain_batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without shuffling or augmentation."""
        # The same size as for the finished stage: an encoding draws by batch, so other batches are other
        # spikes.
        for x, y in self.data.batches(split, max(self.settings.batch_size, 128), device=self.settings.device):
            yield (x.double() if self.settings.precision == "float64" else x), y

    def say(self, warning: str) -> None:
        """Warn of the whole stage, once; its summary says it, too."""
        if warning not in self.said:
            self.said.append(warning)
            self.note(warning)

    def watch(self, found: Evaluation) -> None:
        """Warn once of each layer dead or saturated in two validations running (at first many are)."""
        suspects = {layer.path for layer in found.layers() if layer.warning}
        for layer in found.layers():
            if layer.warning and layer.path in self.suspects and layer.path not in self.warned:
                self.warned.add(layer.path)
                rate = f"{100 * layer.firing_rate:.2f} % (epoch {self.position.epoch})"
                advice = "" if len(self.warned) > 1 else f"; {remedy(layer.warning, self.student)}"
                self.note(f"layer {layer.path} is {layer.warning}: it fires at {rate}{advice}")
        self.suspects = suspects
