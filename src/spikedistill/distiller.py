"""Student, teacher and objectives in one module: ``(x, y) -> losses``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import finite, taps
from .answers import Answers
from .drawn import DRAWERS
from .errors import SpikedistillError
from .networks.base import Network
from .neurons.strided import guard
from .numerics import at_least_float32
from .objectives import Objective, Setup, View, build
from .randomness import apart, seed_everything
from .rate_based import Backpropagation, check_student, check_terms
from .taps import Captures, Tap
from .teachers import Shares, Teachers, check_head_names, learning_head, lessons, named, shares


class Losses(NamedTuple):
    """``total``: weighted sum; ``parts``: unweighted scalars by name; ``logits``: (N, K), the mean over T."""

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {value.item():.6g}" for name, value in self.parts.items())
        form = " x ".join(map(str, self.logits.shape))
        return f"Losses(total: {self.total.item():.6g}, parts: {{{parts}}}, logits: {form})"

    def _repr_html_(self) -> str:
        return DRAWERS["losses"](self)


class Taught(NamedTuple):
    """What one teacher gave for a batch: logits (T', N, K), captures, and, if its head learns, its loss."""

    logits: Tensor
    captures: Captures
    loss: Tensor | None = None


class Distiller(nn.Module):
    """Computes the weighted sum of objectives for a student and its frozen teachers, none, one or several.

    Call ``setup(batch)`` once, before the optimizer is made: it resolves taps and builds the objectives'
    adapters without touching norm statistics or random state. Teachers are frozen, in eval mode, without
    gradients, and are not part of ``state_dict``. The student runs once per step, at the largest number of
    time steps any objective asks for; objectives, prediction and cross-entropy otherwise see the network's
    own T.

    Several teachers: a list (``teacher1``, ``teacher2`` ...) or a mapping by name. An objective that needs a
    teacher learns from each, in a copy with adapters of its own that is named after it
    (``logit_distillation_teacher1``), its weight times the teacher's in ``teacher_weights`` (None: equal,
    summing to 1); with ``teacher: NAME`` it learns from that one, at its weight.

    ``teacher_heads``: a copy of each teacher's classifier learns beside the student, by cross-entropy on the
    teacher's frozen features (part ``teacher_head``, weight 1), and its logits, without gradient, are the
    teacher's. Where the teacher has other classes than the student the copy begins anew. The teachers
    themselves do not change.

    ``backpropagation``: "through_time", or "rate_based" (:mod:`spikedistill.neurons.rates`): the student's
    steps run without a graph and its firing rates are learned from, at a memory and a time for backward that
    do not grow with T. Captures and logits of the student then have one step, their average. For networks
    whose layers between neurons are linear (or max pooling), and objectives of averages; others are refused.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teachers = None,
        objectives: Sequence[Objective | Mapping[str, Any]] = (),
        teacher_weights: Shares = None,
        teacher_heads: bool = False,
        backpropagation: Backpropagation = "through_time",
    ) -> None:
        super().__init__()
        self.student = student
        built = [
            build(o, f"objectives[{i}]") for i, o in enumerate(objectives or [{"type": "cross_entropy"}])
        ]
        self._teachers = named(teacher)  # a plain mapping: not submodules, not in the state dict
        if any(t is student for t in self._teachers.values()):
            raise SpikedistillError(
                "student and teacher are the same module; give the teacher as copy.deepcopy(student)"
            )
        self._lessons = {
            one.term.name: one for one in lessons(built, shares(list(self._teachers), teacher_weights))
        }
        self.objectives = nn.ModuleDict({name: one.term for name, one in self._lessons.items()})
        for one in self._teachers.values():
            one.eval().requires_grad_(False)
        self.clock: Callable[[str], None] | None = None  # books the time that passed, split by who used it
        self._student_taps: dict[str, list[Tap]] | None = None
        self._teacher_taps: dict[str, dict[str, list[Tap]]] = {}
        self._learning: dict[str, str] = {}  # teacher -> the tap of what its classifier reads
        self._answers: dict[str, Answers] = {}
        self._asks_heads = teacher_heads
        if backpropagation not in get_args(Backpropagation):
            allowed = " or ".join(map(repr, get_args(Backpropagation)))
            raise SpikedistillError(f"backpropagation must be {allowed}, found {backpropagation!r}")
        self.rate_based = backpropagation == "rate_based"
        if self.rate_based:
            check_terms(self.terms)
        if teacher_heads:
            check_head_names(self._teachers)
            self.teacher_heads = nn.ModuleDict()

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher; of several the first."""
        return next(iter(self._teachers.values()), None)

    @property
    def teachers(self) -> dict[str, nn.Module]:
        """All frozen teachers by name."""
        return dict(self._teachers)

    def _asked(self) -> dict[str, nn.Module]:
        """Teachers that some objective learns from."""
        used = {one.teacher for one in self._lessons.values()}
        return {name: t for name, t in self._teachers.items() if name in used}

    @property
    def terms(self) -> list[Objective]:
        """The objectives in order."""
        return list(self.objectives.values())  # type: ignore[arg-type]

    @property
    def time_steps(self) -> int | None:
        """Steps of one student simulation in training: its own T, or more if an objective asks for it."""
        own = self.student.time_steps if isinstance(self.student, Network) else None
        asked = [o.time_steps for o in self.terms if o.time_steps]
        return max([own, *asked]) if own is not None else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)
        # No submodules, so that .to(), .cuda() and .double() would leave them behind.
        for teacher in self._teachers.values():
            teacher._apply(fn)
        return self

    def setup(self, batch: "Tensor | Sequence[Tensor]", seed: int = 0) -> "Distiller":
        """Resolve taps and build adapters from the shapes of a training batch (x or (x, y)); returns self.

        Norm statistics, training flags and random state stay as they are. An adapter's initial weights are a
        function of ``seed`` and the objective's name alone.
        """
        x = batch if isinstance(batch, Tensor) else batch[0]
        # Not for NaN: the loop that meets it can say of which epoch and image it is.
        finite.check_filled([x], "Distiller.setup")
        # Two samples tell all shapes, at a fraction of a batch's time and memory.
        batch_size, x = x.shape[0], x[:2]
        student = self.student
        if self.rate_based:
            check_student(student, x)
        self._student_taps = _resolve(self.terms, student, "student", x)
        for asked, teacher in self._asked().items():
            theirs = [one.term for one in self._lessons.values() if one.teacher == asked]
            with _takes_frames(asked, teacher, x):
                self._teacher_taps[asked] = _resolve(theirs, teacher, "teacher", x)
        # Module by module, not one flag for all: a user may have frozen a part of the student.
        flags = {m: m.training for m in student.modules()}
        student.eval()
        # norms stand still, and a quantized student may run longer than its T, as in training
        student.training = True
        try:
            with apart(), torch.no_grad():
                logits, mine = taps.run_resolved(student, x, self._student_taps, self.time_steps)
                if self._asks_heads:
                    self._make_heads(logits.shape[-1], at_least_float32(logits), seed)
                lesson = {}
                for asked in self._teacher_taps:
                    with _takes_frames(asked, self._teachers[asked], x):
                        lesson[asked] = self._taught(asked, x)
        finally:
            for module, flag in flags.items():
                module.training = flag
        own = self._own_steps(logits)
        for term, name, _ in self._lessons.values():
            steps, taught = max(term.time_steps or own, own), lesson[name] if name else None
            given = Setup(
                x=x, student_network=student, teacher_network=self._teachers[name] if name else None,
                student=mine.cut(steps), teacher=taught.captures if taught else None, logits=logits[:steps],
                teacher_logits=taught.logits if taught else None, batch_size=batch_size, time_steps=own,
            )  # fmt: skip
            term.check_steps(len(given.logits))
            with apart():
                # Seeded for each: an objective more or less leaves the adapters of the others as they were.
                seed_everything(seed, "adapters", term.name)
                term.setup(given)
            term.to(x.device, at_least_float32(logits).dtype)
        return guard(self)  # student and adapters

    def remember(self, samples: int) -> None:
        """Keep what the teachers give for each of ``samples`` inputs, for when the same ones come again.

        For teachers that stay as they are to the end, on data without augmentation; see :class:`.Answers`.
        """
        self._answers = {name: Answers(samples) for name in self._teachers}

    def _make_heads(self, classes: int, like: Tensor, seed: int) -> None:
        """A learning classifier for each teacher that is asked."""
        for name, teacher in self._asked().items():
            seed_everything(seed, "teacher_head", name)
            path, head = learning_head(teacher, classes)
            tap = self._learning[name] = f"{path}@input"
            self._teacher_taps[name][tap] = [Tap(path, 0, "input")]
            # In the type that losses are formed in, whatever the frozen teacher computes in.
            self.teacher_heads[name] = head.to(like)

    def _taught(self, name: str, x: Tensor, y: Tensor | None = None) -> Taught:
        """One teacher on a batch, without gradient but for a head that learns."""

        def ask() -> tuple[Tensor, Captures]:
            return taps.run_resolved(self._teachers[name], x, self._teacher_taps[name])

        with torch.no_grad():
            kept = None if y is None else self._answers.get(name)
            logits, captures = ask() if kept is None else kept(x, ask)
        if name not in self._learning:
            return Taught(logits, captures)
        # Outside of no_grad: the head learns, from features that carry no gradient back to the teacher.
        with torch.autocast(x.device.type, enabled=False):
            own = self.teacher_heads[name](at_least_float32(captures[self._learning[name]]))
            loss = None if y is None else F.cross_entropy(own.mean(0), _labels(y, own))
        return Taught(own.detach(), captures, loss)

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

        Shape: ``x`` as the student takes it, ``y`` (N,) class numbers or (N, K) probabilities; ``progress``
        in 0..1 drives the weights' schedules.
        """
        finite.check_filled([x], "Distiller")
        if self._student_taps is None:
            self.setup(x)
        assert self._student_taps is not None
        # Of one step both ways give the same gradients, and one pass is cheaper than two.
        on_rates = self.rate_based and self.time_steps != 1
        logits, mine = taps.run_resolved(self.student, x, self._student_taps, self.time_steps, on_rates)
        taught = {}
        if self._teacher_taps:
            # The student's forward ends here: without this the teacher's time would be booked with it.
            if self.clock is not None:
                self.clock("forward")
            taught = {name: self._taught(name, x, y) for name in self._teacher_taps}
            if self.clock is not None:
                self.clock("teacher")
        return self.losses(logits, mine, taught, y, progress)

    def losses(
        self, logits: Tensor, mine: Captures, taught: Mapping[str, Taught], y: Tensor, progress: float
    ) -> Losses:
        """Objectives over captures, in float32 or float64; adapters run in the student's precision."""
        T, kind = self._own_steps(logits), logits.device.type
        # Asked before autocast is switched off below: adapters are networks and run as the student does.
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        parts: dict[str, Tensor] = {}
        total = logits.new_zeros((), dtype=at_least_float32(logits).dtype)
        with torch.autocast(kind, enabled=False):
            logits, mine = at_least_float32(logits), replace(mine, widen=True)
            y = _labels(y, logits)
            for key in self.objectives:  # what the diagnosis of a step takes out of here is not in the total
                term, name, share = self._lessons[key]
                steps, theirs = max(term.time_steps or T, T), taught[name] if name else None
                view = View(
                    mine.cut(steps), replace(theirs.captures, widen=True) if theirs else None, y,
                    logits[:steps],
                    at_least_float32(theirs.logits) if theirs else None, progress, T, autocast,
                )  # fmt: skip
                term.check_steps(len(view.logits))  # the student's T may have been set anew
                parts[term.name] = term(view)
                total = total + term.weight(progress) * share * parts[term.name]
            for name, one in taught.items():
                if one.loss is not None:
                    parts["teacher_head" if len(taught) == 1 else f"teacher_head_{name}"] = one.loss
                    total = total + one.loss
        # Detached: whoever keeps parts or logits for a log would keep the graph of the whole step.
        # The first T steps: prediction is of the network's own T, however long an objective asked it to run.
        return Losses(total, {k: v.detach() for k, v in parts.items()}, logits[:T].mean(0).detach())


def _labels(y: Tensor, logits: Tensor) -> Tensor:
    """Class numbers (N,) or probabilities (N, K) for logits (T, N, K).

    Raises: SpikedistillError for other shapes and types; on a CPU, where looking costs nothing, for numbers
    that are no classes.
    """
    N, K = logits.shape[-2:]
    whole = not y.is_floating_point()
    if tuple(y.shape) != ((N,) if whole else (N, K)) or (whole and y.dtype != torch.int64):
        raise SpikedistillError(
            f"labels are class numbers ({N},), int64, or probabilities ({N}, {K}) for this batch; found "
            f"{tuple(y.shape)}, {str(y.dtype).removeprefix('torch.')}"
        )
    if whole and y.device.type == "cpu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < K:
        raise SpikedistillError(f"labels lie in 0..{K - 1}, found {int(y.min())}..{int(y.max())}")
    return y if whole else y.to(logits.dtype)


@contextmanager
def _takes_frames(name: str, teacher: nn.Module, x: Tensor) -> Iterator[None]:
    """Say what to do where a module that knows images alone is to teach from event frames."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        if x.dim() != 5 or isinstance(teacher, Network) or isinstance(error, SpikedistillError):
            raise
        raise SpikedistillError(
            f"{name} ({type(teacher).__name__}) does not take event frames {tuple(x.shape)}: {error}; an ANN "
            "of images sees each frame by itself as sd.foreign(teacher, layout='NCHW', input='frames', "
            "time_steps=None)"
        ) from error


def _resolve(terms: Sequence[Objective], network: nn.Module, side: str, x: Tensor) -> dict[str, list[Tap]]:
    found: dict[str, list[Tap]] = {}
    for term in terms:
        for text in term.student_taps if side == "student" else term.teacher_taps:
            try:
                found[text] = taps.resolve(network, text, x)
            except SpikedistillError as error:
                raise SpikedistillError(f"objective {term.name!r}, {side}: {error}") from None
    return found
