"""What an objective is: one term of the training loss, over captures, not networks."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..numerics import at_least_float32, keep_layout
from ..taps import Captures
from ..typed import checked


@dataclass(frozen=True)
class Schedule:
    """A weight over training progress p in 0..1: ``start`` to ``end`` by ``shape``, after ``warm_up`` from 0.

    ``linear``: start + (end - start) p; ``cosine``: end + (start - end)(1 + cos(pi p))/2; ``step``: start
    before ``at``, end from there; ``constant``: start. ``warm_up`` is the fraction of training over which the
    weight first rises from 0.
    """

    start: float
    end: float | None = None
    shape: Literal["constant", "linear", "cosine", "step"] = "constant"
    warm_up: float = 0.0
    at: float = 0.5

    def __call__(self, p: float) -> float:
        end = self.start if self.end is None else self.end
        if self.shape == "linear":
            value = self.start + (end - self.start) * p
        elif self.shape == "cosine":
            value = end + (self.start - end) * (1 + math.cos(math.pi * p)) / 2
        elif self.shape == "step":
            value = self.start if p < self.at else end
        else:
            value = self.start
        return value * min(1.0, p / self.warm_up) if self.warm_up > 0 else value


Weight = float | Schedule | Mapping[str, Any]


def schedule(weight: Weight) -> Schedule:
    """A number, a :class:`Schedule`, or a recipe's mapping of one."""
    if isinstance(weight, Schedule):
        return weight
    if isinstance(weight, Mapping):
        return Schedule(**checked(Schedule, weight, "weight"))
    return Schedule(float(weight))


@dataclass
class Setup:
    """What an objective is given once, before training, to build its adapters.

    ``student`` and ``teacher`` hold captures of two samples at their shapes; the networks themselves are
    there for objectives that price a network's structure. ``batch_size``: of the batch that training uses.
    ``time_steps``: the student's own T.
    """

    x: Tensor
    student_network: nn.Module
    teacher_network: nn.Module | None
    student: Captures
    teacher: Captures | None
    logits: Tensor
    teacher_logits: Tensor | None
    batch_size: int
    time_steps: int


@dataclass
class View:
    """What an objective sees at each step.

    Shape: ``logits`` (T, N, K) of the student, ``teacher_logits`` (T', N, K), ``target`` (N,) class numbers
    or (N, K) probabilities; captures ``(T, N, ...)``. ``progress``: 0 at the start of training, 1 at its end.
    ``time_steps``: the student's own T, less than the T of ``logits`` only for an objective that asked for a
    longer simulation. ``autocast``: the reduced precision that the networks ran in, or None.
    """

    student: Captures
    teacher: Captures | None
    target: Tensor
    logits: Tensor
    teacher_logits: Tensor | None
    progress: float = 0.0
    time_steps: int | None = None
    autocast: torch.dtype | None = None

    def adapted(self, adapter: nn.Module, x: Tensor) -> Tensor:
        """What an adapter, a network itself, makes of ``x``, in at least float32.

        It runs in the networks' precision.
        """
        # Objectives are computed outside of autocast; the convolutions of an adapter go back into it.
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            return at_least_float32(keep_layout(adapter(x)))

    @property
    def mean_logits(self) -> Tensor:
        """Student logits averaged over T: (N, K)."""
        return self.logits.mean(0)

    @property
    def teacher_mean_logits(self) -> Tensor:
        """Teacher logits averaged over its T: (N, K)."""
        assert self.teacher_logits is not None
        return self.teacher_logits.mean(0)


class Objective(nn.Module):
    """One term of the loss. Subclasses declare what they read and give a scalar.

    ``student_taps``, ``teacher_taps``: taps as text. ``needs_teacher``: whether it cannot do without.
    ``time_steps``: a longer simulation than the network's own, of which it then sees all steps.
    ``least_steps``: how many time steps it must see. ``of_rates``: whether it is a function of averages over
    time alone, so that it can be learned from rates (:mod:`spikedistill.neurons.rates`); an option may
    decide, then the constructor sets it. ``teacher``: the one of several that it learns from (a recipe's key
    of each objective); None: each of them. ``cites``: keys of the papers in ``citations.bib``. Adapters are
    built in ``setup``; they train with the student and are gone at inference.
    """

    cites: tuple[str, ...] = ()
    needs_teacher: bool = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    time_steps: int | None = None
    least_steps: int = 1
    of_rates: bool = False
    teacher: str | None = None

    def __init__(self, weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__()
        self.weight = schedule(weight)
        self.name = name or type_name(type(self))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A constructor's ``Literal`` s are its choices: others are refused before it begins."""
        super().__init_subclass__(**kwargs)
        # Only its own: an inherited constructor has been wrapped in the class that defines it.
        if "__init__" in vars(cls):
            cls.__init__ = _within_choices(cls.__init__)  # type: ignore[method-assign]

    def check_steps(self, T: int) -> None:
        """Refuse fewer time steps than it needs."""
        if self.least_steps > T:
            raise refuse(
                self,
                f"found {T} time step and nothing to compare it with; give it at least {self.least_steps}",
            )

    def setup(self, setup: Setup) -> None:
        """Build adapters from the captured shapes; raises for captures that cannot be matched."""

    def forward(self, view: View) -> Tensor:
        """The unweighted loss, a float32 (or float64) scalar."""
        raise NotImplementedError


def _within_choices(constructor: Callable[..., None]) -> Callable[..., None]:
    parameters = inspect.signature(constructor)

    @functools.wraps(constructor)
    def checked_constructor(self: Objective, *args: Any, **kwargs: Any) -> None:
        # Bound here, since choices may come by position too.
        given = parameters.bind(self, *args, **kwargs).arguments
        try:
            hints = get_type_hints(constructor)
        except NameError:  # names that only a type checker imports; a recipe would refuse them
            hints = {}
        for key, hint in hints.items():
            allowed = get_args(hint) if get_origin(hint) is Literal else ()
            if allowed and key in given and given[key] not in allowed:
                name = given.get("name") or type_name(type(self))
                few = (
                    " or ".join(map(repr, allowed))
                    if len(allowed) < 3
                    else f"one of {', '.join(map(str, allowed))}"
                )
                raise SpikedistillError(f"objective {name!r}: {key} must be {few}, found {given[key]!r}")
        constructor(self, *args, **kwargs)

    return checked_constructor


def type_name(cls: type) -> str:
    """``BlurredFeature`` -> ``blurred_feature``: how recipes call it."""
    return "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")


def refuse(objective: Objective, words: str) -> SpikedistillError:
    """An error that begins with the objective's name."""
    return SpikedistillError(f"objective {objective.name!r}: {words}")
