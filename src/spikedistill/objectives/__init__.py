"""Objectives: one term of the training loss each; one paper, one file."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from ..errors import SpikedistillError, nearest
from ..typed import checked
from .activation_maps import ActivationMapDistillation, NoiseSmoothedDistillation
from .activity import ActivityRegularization, LogitsRegularization
from .attention import AttentionTransfer
from .attention_maps import AttentionMapDistillation
from .base import Objective, Schedule, Setup, View, type_name
from .blurred import BlurredFeature
from .cumulative_consistency import CumulativeConsistency
from .energy import EnergyRegularization
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
        SpikeCount,
        StableSpike,
        ActivationMapDistillation,
        NoiseSmoothedDistillation,
        SelectiveAlignment,
        CumulativeConsistency,
        AttentionMapDistillation,
    )
}
TYPES |= {entry.name: entry.load() for entry in entry_points(group="spikedistill.objectives")}


def build(options: "Mapping[str, Any] | Objective", where: str = "objective") -> Objective:
    """An objective from a recipe's mapping ``{type: ..., teacher: ..., ...}``; ``where`` begins every error.

    ``teacher``, the name of one of several teachers, is a key of every type.
    """
    if isinstance(options, Objective):
        return options
    given = dict(options)
    kind = given.pop("type", None)
    if kind not in TYPES:
        raise SpikedistillError(f"{where}: unknown objective type {kind!r}; {nearest(str(kind), TYPES)}")
    teacher = given.pop("teacher", None)
    if teacher is not None and not isinstance(teacher, str):
        raise SpikedistillError(f"{where}.teacher: a teacher's name is needed, found {teacher!r}")
    built = TYPES[kind](**checked(TYPES[kind], given, where))
    built.teacher = teacher
    return built


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
    "EntropyRegularization",
    "FeatureDistillation",
    "FullRangeDistillation",
    "LogitDistillation",
    "LogitsRegularization",
    "MembraneDistillation",
    "NoiseSmoothedDistillation",
    "Objective",
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
]
