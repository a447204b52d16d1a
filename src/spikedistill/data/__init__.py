"""Images, events and sound as batches: ``open`` what a recipe names, or ``from_arrays``."""

from .base import Data, DataInfo
from .config import AudioConfig, AugmentConfig, DataConfig, FramesConfig
from .opening import NAMES, elsewhere, from_arrays, from_events, moved, open

__all__ = [
    "NAMES",
    "AudioConfig",
    "AugmentConfig",
    "Data",
    "DataConfig",
    "DataInfo",
    "FramesConfig",
    "elsewhere",
    "from_arrays",
    "from_events",
    "moved",
    "open",
]
