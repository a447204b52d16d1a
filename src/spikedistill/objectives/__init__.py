"""Objectives: one term of the training loss each; one paper, one file."""

import builtins  # in ObjectiveOptions `type` is a field
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from .. import own_code
from ..errors import SpikedistillError, nearest
from ..typed import Choice, model_of, read
from .activation_maps import ActivationMapDistillation, NoiseSmoothedDistillation
from .activity import ActivityRegularization, LogitsRegularization
from .attention import AttentionTransfer
from .attention_maps import AttentionMapDistillation
from .base import Objective, Schedule, Setup, View, type_name
from .blurred import BlurredFeature
from .cumulative_consistency import CumulativeConsistency
from .energy import EnergyRegularization, OperationsAim
from .enhanced_self_distillation import EnhancedSelfDistillation
from .entropy import EntropyRegularization
from .features import FeatureDistillation
from .full_range import FullRangeDistillation
from .logits import CrossEntropy, LogitDistillation
from .membrane import MembraneDistillation
from .sastc import SpatioTemporalCalibration
from .selective_alignment import SelectiveAlignment
from .self_distillation import SpatialSelfDistillation, TemporalSelfDistillation
from .spike_count import SpikeCount
from .stable_spike import StableSpike
from .strong_weak import StrongWeakDistillation
from .temporal_consistency import TemporalConsistency
from .temporal_knowledge_sharing import TemporalKnowledgeSharing
from .tet import TemporalEfficientTraining
from .weighted_soft_labels import WeightedSoftLabels

TYPES: dict[str, type[Objective]] = {
    type_name(cls): cls
    for cls in (
        CrossEntropy,
        TemporalEfficientTraining,
        LogitDistillation,
        WeightedSoftLabels,
        FullRangeDistillation,
        EntropyRegularization,
        TemporalConsistency,
        TemporalKnowledgeSharing,
        AttentionTransfer,
        BlurredFeature,
        FeatureDistillation,
        SpatioTemporalCalibration,
        MembraneDistillation,
        TemporalSelfDistillation,
        SpatialSelfDistillation,
        StrongWeakDistillation,
        ActivityRegularization,
        LogitsRegularization,
        EnergyRegularization,
        OperationsAim,
        SpikeCount,
        StableSpike,
        ActivationMapDistillation,
        NoiseSmoothedDistillation,
        SelectiveAlignment,
        CumulativeConsistency,
        AttentionMapDistillation,
        EnhancedSelfDistillation,
    )
}
TYPES |= own_code.installed("objectives")


class ObjectiveOptions(Choice):
    """A recipe's mapping ``{type: ..., teacher: ..., ...}``, checked against the type's signature.

    ``type``: a name of ``TYPES``, packages' entry points among them, or ``module:Class``. ``teacher``, the
    name of one of several teachers, is a key of every type.
    """

    type: str
    teacher: str | None = None

    @classmethod
    def chosen(cls, given: Mapping[str, Any], info: ValidationInfo) -> "builtins.type[ObjectiveOptions]":
        if own_code.is_shut() and given.get("type") not in TYPES and own_code.is_address(given.get("type")):
            return UnseenObjective
        return cls._of(str(given.get("type")), find(given.get("type")))

    @classmethod
    def examples(cls) -> "list[builtins.type[ObjectiveOptions]]":
        return [cls._of(kind, target) for kind, target in TYPES.items()]

    @classmethod
    def _of(cls, kind: str, target: Any) -> "builtins.type[ObjectiveOptions]":
        return model_of(target, base=cls, title=f"objective_{kind}", type=Literal[kind])

    @field_validator("teacher", mode="before")
    @classmethod
    def _a_name(cls, teacher: Any) -> Any:
        if teacher is not None and not isinstance(teacher, str):
            raise SpikedistillError(f"a teacher's name is needed, found {teacher!r}")
        return teacher

    @model_validator(mode="after")
    def _constructible(self) -> Self:
        # Built on reading: what a constructor refuses is said of the recipe, before anything runs.
        if not isinstance(self, UnseenObjective):
            _ = self.untrained
        return self

    @cached_property
    def untrained(self) -> Objective:
        """The objective to look at: its names, needs and papers. Built anew to train: it gets adapters."""
        return self.build()

    def build(self) -> Objective:
        """A new objective."""
        built = find(self.type)(
            **{key: value for key, value in self.items() if key not in ("type", "teacher")}
        )
        # Not through the constructor, so that every class, somebody's own too, has this key.
        built.teacher = self.teacher
        return built


class UnseenObjective(ObjectiveOptions, extra="allow"):
    """An objective of somebody's own where no own code is imported: read from a record, not for training."""


def find(kind: Any) -> type[Objective]:
    """The class of a type: a name of ``TYPES`` or ``module:Class``."""
    if kind in TYPES:
        return TYPES[kind]
    if not isinstance(kind, str) or ":" not in kind:
        raise SpikedistillError(f"unknown objective type {kind!r}; {nearest(str(kind), TYPES)}")
    found = own_code.find(kind, "objective type")
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise SpikedistillError(
            f"objective type {kind!r} is no subclass of spikedistill.objectives.Objective"
        )
    return found


def build(options: "Mapping[str, Any] | Objective", where: str = "objective") -> Objective:
    """An objective from a recipe's mapping ``{type: ..., teacher: ..., ...}``; ``where`` begins errors."""
    if isinstance(options, ObjectiveOptions):
        # Options of a recipe serve every seed: each gets an objective with adapters of its own.
        return options.build()
    return options if isinstance(options, Objective) else read(ObjectiveOptions, options, where).untrained


__all__ = [
    "TYPES",
    "ActivationMapDistillation",
    "ActivityRegularization",
    "AttentionMapDistillation",
    "AttentionTransfer",
    "BlurredFeature",
    "CrossEntropy",
    "CumulativeConsistency",
    "EnergyRegularization",
    "EnhancedSelfDistillation",
    "EntropyRegularization",
    "FeatureDistillation",
    "FullRangeDistillation",
    "LogitDistillation",
    "LogitsRegularization",
    "MembraneDistillation",
    "NoiseSmoothedDistillation",
    "Objective",
    "ObjectiveOptions",
    "OperationsAim",
    "Schedule",
    "SelectiveAlignment",
    "Setup",
    "SpatialSelfDistillation",
    "SpatioTemporalCalibration",
    "SpikeCount",
    "StableSpike",
    "StrongWeakDistillation",
    "TemporalConsistency",
    "TemporalEfficientTraining",
    "TemporalKnowledgeSharing",
    "TemporalSelfDistillation",
    "View",
    "WeightedSoftLabels",
    "build",
    "find",
]
