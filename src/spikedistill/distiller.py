"""Student, teacher and objectives in one module: ``(x, y) -> losses``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import taps
from .errors import SpikedistillError
from .networks.base import Network
from .neurons.kernels import wide
from .neurons.strided import guard
from .objectives import Objective, Setup, View, build
from .randomness import seed_everything
from .taps import Captures, Tap


class Losses(NamedTuple):
    """``total``: weighted sum, a scalar; ``parts``: unweighted scalars by objective's name; ``logits``: (N, K), mean over T."""

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


class Distiller(nn.Module):
    """Computes the weighted sum of objectives for a student and an optional frozen teacher.

    Call ``setup(batch)`` once, before the optimizer is made: it resolves taps and builds the objectives' adapters without
    touching norm statistics or random state. The teacher is frozen, in eval mode, without gradients, and is not part of
    ``state_dict``. The student runs once per step, at the largest number of time steps any objective asks for; objectives,
    prediction and cross-entropy otherwise see the network's own T.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        objectives: Sequence[Objective | Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.student = student
        built = [build(o, f"objectives[{i}]") for i, o in enumerate(objectives or [{"type": "cross_entropy"}])]
        names = [o.name for o in built]
        for name in names:
            if names.count(name) > 1:
                raise SpikedistillError(f"two objectives are named {name!r}; give one of them another `name`")
            if "." in name:
                raise SpikedistillError(f"an objective's name has no dots, found {name!r}")
        needing = [o.name for o in built if o.needs_teacher]
        if needing and teacher is None:
            raise SpikedistillError(f"objective {needing[0]!r} needs a teacher, and none was given")
        if teacher is student:
            raise SpikedistillError(
                "student and teacher are the same module; give the teacher as copy.deepcopy(student)"
            )
        self.objectives = nn.ModuleDict({o.name: o for o in built})
        self._teacher = [teacher] if teacher is not None else []  # in a list: not a submodule, not in the state dict
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self.clock: Callable[[str], None] | None = None  # books the time that passed, split by who used it
        self._student_taps: dict[str, list[Tap]] | None = None
        self._teacher_taps: dict[str, list[Tap]] = {}
        self._asks_teacher = bool(needing)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher."""
        return self._teacher[0] if self._teacher else None

    @property
    def terms(self) -> list[Objective]:
        """The objectives in order."""
        return list(self.objectives.values())  # type: ignore[arg-type]

    @property
    def time_steps(self) -> int | None:
        """Steps of one student simulation in training: its own T, or more where an objective asks for more."""
        own = self.student.time_steps if isinstance(self.student, Network) else None
        asked = [o.time_steps for o in self.terms if o.time_steps]
        return max([own, *asked]) if own is not None else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self

    def setup(self, batch: "Tensor | Sequence[Tensor]", seed: int = 0) -> "Distiller":
        """Resolve taps and build adapters from the shapes of a training batch (x or (x, y)); returns self.

        Norm statistics, training flags and random state stay as they are. An adapter's initial weights are a function of
        ``seed`` and the objective's name alone.
        """
        x = batch if isinstance(batch, Tensor) else batch[0]
        batch_size, x = x.shape[0], x[:2]
        student, teacher = self.student, self.teacher if self._asks_teacher else None
        self._student_taps = _resolve(self.terms, student, "student", x)
        self._teacher_taps = _resolve(self.terms, teacher, "teacher", x) if teacher is not None else {}
        flags = {m: m.training for m in student.modules()}
        student.eval()
        student.training = True  # norms stand still, and a quantized student may run longer than its T, as in training
        devices = [x.device] if x.is_cuda else []
        try:
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                logits, mine = taps.run_resolved(student, x, self._student_taps, self.time_steps)
                theirs = taps.run_resolved(teacher, x, self._teacher_taps) if teacher is not None else None
        finally:
            for module, flag in flags.items():
                module.training = flag
        own = self._own_steps(logits)
        for term in self.terms:
            steps = max(term.time_steps or own, own)
            given = Setup(
                x=x, student_network=student, teacher_network=teacher, student=mine.cut(steps),
                teacher=theirs[1] if theirs else None, logits=logits[:steps],
                teacher_logits=theirs[0] if theirs else None, batch_size=batch_size, time_steps=own,
            )  # fmt: skip
            with torch.random.fork_rng(devices=devices):
                seed_everything(seed, "adapters", term.name)
                term.setup(given)
            term.to(x.device, wide(logits).dtype)
        return guard(self)  # student and adapters

    def _own_steps(self, logits: Tensor) -> int:
        """The student's own T; that of its logits where it is somebody else's network."""
        own = self.student.time_steps if isinstance(self.student, Network) else None
        return own if own is not None else logits.shape[0]

    def train(self, mode: bool = True) -> "Distiller":
        """Training mode for student and adapters; the teacher stays in eval mode."""
        super().train(mode)
        return self

    def forward(self, x: Tensor, y: Tensor, progress: float = 0.0) -> Losses:
        """Losses of one batch.

        Shape: ``x`` as the student takes it, ``y`` (N,) class numbers or (N, K) probabilities; ``progress`` in 0..1 drives
        the weights' schedules.
        """
        if self._student_taps is None:
            self.setup(x)
        assert self._student_taps is not None
        logits, mine = taps.run_resolved(self.student, x, self._student_taps, self.time_steps)
        teacher_logits, theirs = None, None
        if self.teacher is not None and self._asks_teacher:
            with torch.no_grad():
                if self.clock is not None:
                    self.clock("forward")
                teacher_logits, theirs = taps.run_resolved(self.teacher, x, self._teacher_taps)
                if self.clock is not None:
                    self.clock("teacher")
        return self.losses(logits, mine, teacher_logits, theirs, y, progress)

    def losses(
        self,
        logits: Tensor,
        mine: Captures,
        teacher_logits: Tensor | None,
        theirs: Captures | None,
        y: Tensor,
        progress: float,
    ) -> Losses:
        """The objectives over captures; in float32 or float64, but for adapters, which run in the student's precision."""
        T, kind = self._own_steps(logits), logits.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        parts: dict[str, Tensor] = {}
        total = logits.new_zeros((), dtype=wide(logits).dtype)
        with torch.autocast(kind, enabled=False):
            logits, mine = wide(logits), replace(mine, widen=True)
            y = y.to(logits.dtype) if y.is_floating_point() else y
            teacher_logits = None if teacher_logits is None else wide(teacher_logits)
            theirs = None if theirs is None else replace(theirs, widen=True)
            for term in self.terms:
                steps = max(term.time_steps or T, T)
                view = View(mine.cut(steps), theirs, y, logits[:steps], teacher_logits, progress, T, autocast)
                parts[term.name] = term(view)
                total = total + term.weight(progress) * parts[term.name]
        return Losses(total, {k: v.detach() for k, v in parts.items()}, logits[:T].mean(0).detach())


def _resolve(terms: Sequence[Objective], network: nn.Module, side: str, x: Tensor) -> dict[str, list[Tap]]:
    found: dict[str, list[Tap]] = {}
    for term in terms:
        for text in term.student_taps if side == "student" else term.teacher_taps:
            try:
                found[text] = taps.resolve(network, text, x)
            except SpikedistillError as error:
                raise SpikedistillError(f"objective {term.name!r}, {side}: {error}") from None
    return found
