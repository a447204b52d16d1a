"""What one stage's training is told: how long, how, with which seed, where to write."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..recipe import Optimizer


@dataclass
class Settings:
    """What a stage's training needs beside the distiller and the data.

    Trackers know it as ``label``, its first epoch as ``first_epoch``.
    """

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
    keep_answers: bool = False
    time_inheritance: Mapping[int, float] = field(default_factory=dict)
    label: str = ""
    first_epoch: int = 0
