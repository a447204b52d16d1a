"""ANN to SNN conversion: a student's beginning, and the baseline that distillation has to beat."""

from .accuracy import accuracy_over_time, correct_over_time, time_steps_to_match
from .methods import balance_thresholds, convert, copy_weights, restore
from .ranges import measure
from .scales import rescale

__all__ = [
    "accuracy_over_time",
    "balance_thresholds",
    "convert",
    "copy_weights",
    "correct_over_time",
    "measure",
    "rescale",
    "restore",
    "time_steps_to_match",
]
