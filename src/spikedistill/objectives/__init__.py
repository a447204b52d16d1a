"""Objectives: one term of the training loss each; one paper, one file."""

from collections.abc import Mapping
from typing import Any

from ..errors import SpikedistillError, nearest
from ..typed import checked
from .base import Objective, Schedule, Setup, View, type_name
from .logits import CrossEntropy, LogitDistillation, TemporalEfficientTraining
from .membrane import MembraneDistillation

TYPES: dict[str, type[Objective]] = {
    type_name(cls): cls for cls in (CrossEntropy, TemporalEfficientTraining, LogitDistillation, MembraneDistillation)
}


def build(options: "Mapping[str, Any] | Objective", where: str = "objective") -> Objective:
    """An objective from a recipe's mapping ``{type: ..., ...}``; ``where`` begins every error."""
    if isinstance(options, Objective):
        return options
    given = dict(options)
    kind = given.pop("type", None)
    if kind not in TYPES:
        raise SpikedistillError(f"{where}: unknown objective type {kind!r}; {nearest(str(kind), TYPES)}")
    return TYPES[kind](**checked(TYPES[kind], given, where))


__all__ = ["TYPES", "Objective", "Schedule", "Setup", "View", "build", *(cls.__name__ for cls in TYPES.values())]
