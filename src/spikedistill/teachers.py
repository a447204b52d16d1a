"""One teacher or several, all frozen; a copy of a teacher's classifier may learn beside the student."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from .errors import SpikedistillError, nearest
from .objectives import Objective
from .objectives.heads import classifier_path

Teachers = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module] | None
Shares = Sequence[float] | Mapping[str, float] | None


class Lesson(NamedTuple):
    """One objective, the teacher it learns from (None: none), and the factor on its weight."""

    term: Objective
    teacher: str | None
    share: float


def named(teachers: Teachers) -> dict[str, nn.Module]:
    """Teachers by name: as given, else ``teacher``, or ``teacher1``, ``teacher2`` ..."""
    if teachers is None:
        return {}
    if isinstance(teachers, nn.Module):
        return {"teacher": teachers}
    if not isinstance(teachers, Mapping):
        teachers = {f"teacher{i}": t for i, t in enumerate(teachers, 1)}
    for name, teacher in teachers.items():
        if not isinstance(teacher, nn.Module):
            raise SpikedistillError(f"teacher {name!r} is no module, found {type(teacher).__name__}")
        if not isinstance(name, str) or not name or "." in name:
            raise SpikedistillError(f"a teacher's name is a word without dots, found {name!r}")
    if not teachers:
        raise SpikedistillError("the list of teachers is empty; give at least one, or None")
    return dict(teachers)


def shares(names: Sequence[str], weights: Shares) -> dict[str, float]:
    """The weight of each teacher: as given, else equal, summing to 1."""
    if weights is None:
        return {name: 1 / len(names) for name in names}
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise SpikedistillError(
                f"{len(weights)} teacher_weights for {len(names)} teachers; give one each"
            )
        weights = dict(zip(names, weights))
    for name in weights:
        if name not in names:
            raise SpikedistillError(f"teacher_weights: no teacher {name!r}; {nearest(name, names)}")
    if missing := [name for name in names if name not in weights]:
        raise SpikedistillError(f"teacher_weights: none for teacher {missing[0]!r}; give one each")
    if not all(0 <= weight < math.inf for weight in weights.values()):
        raise SpikedistillError(f"teacher_weights must be numbers of at least 0, found {dict(weights)}")
    return dict(weights)


def lessons(terms: Sequence[Objective], weights: Mapping[str, float]) -> list[Lesson]:
    """Every objective with its teacher.

    One that needs a teacher and names none learns from each, in a copy named after it.
    """
    out = []
    for term in terms:
        if term.teacher is not None and term.teacher not in weights:
            raise SpikedistillError(
                f"objective {term.name!r}: no teacher {term.teacher!r}; {nearest(term.teacher, weights)}"
            )
        if not term.needs_teacher:
            if term.teacher is not None:
                raise SpikedistillError(f"objective {term.name!r} takes no teacher; leave `teacher` out")
            out.append(Lesson(term, None, 1.0))
        elif term.teacher is not None:
            out.append(Lesson(term, term.teacher, 1.0))
        elif not weights:
            raise SpikedistillError(f"objective {term.name!r} needs a teacher, and none was given")
        # The term itself, under its own name: with one teacher nothing is to be told apart.
        elif len(weights) == 1:
            out += [Lesson(term, name, share) for name, share in weights.items()]
        else:
            for name, share in weights.items():
                # Adapters are made for one teacher's shapes, so each teacher needs a term of its own.
                one = copy.deepcopy(term)
                one.name = f"{term.name}_{name}"
                out.append(Lesson(one, name, share))
    _check_names([one.term.name for one in out])
    return out


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that hide one another, or that torch keeps for itself."""
    for name in names:
        if names.count(name) > 1:
            raise SpikedistillError(f"two objectives are named {name!r}; give one of them another `name`")
        if "." in name:
            raise SpikedistillError(f"an objective's name has no dots, found {name!r}")
        if hasattr(nn.ModuleDict(), name):
            raise SpikedistillError(
                f"an objective cannot be named {name!r}, a word of torch modules; choose another `name`"
            )


def check_head_names(teachers: Iterable[str]) -> None:
    """Refuse names under which torch keeps no module, where a copy of the teacher's head is to be one."""
    for name in teachers:
        if hasattr(nn.ModuleDict(), name):
            raise SpikedistillError(
                f"a teacher whose head learns cannot be named {name!r}, a word of torch modules; choose "
                "another name"
            )


def learning_head(teacher: nn.Module, classes: int) -> tuple[str, nn.Linear]:
    """The path of a teacher's classifier and what learns in its place.

    It is a copy, or a new one where it has other classes.
    """
    path = classifier_path(teacher)
    if path is None:
        raise SpikedistillError(
            f"the teacher, {type(teacher).__name__}, has no linear classifier that could learn"
        )
    head = teacher.get_submodule(path)
    assert isinstance(head, nn.Linear)
    if head.out_features == classes:
        # The teacher is frozen, and so is what was copied from it.
        return path, copy.deepcopy(head).requires_grad_(True)
    return path, nn.Linear(head.in_features, classes, head.bias is not None)
