"""Distillation for spiking neural networks: from an ANN to an integer network and its price on a chip."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .drawn import DRAWERS
from .errors import SpikedistillError
from .interrupt import while_importing

# Before anything slow is imported: Ctrl-C meanwhile must not show a traceback of an import.
while_importing()

if TYPE_CHECKING:
    from . import data, export, hardware, networks, objectives
    from .bibliography import citations
    from .conversion import convert
    from .distiller import Distiller, Losses
    from .networks.balancing import balance
    from .networks.outside.adopt import adopt
    from .networks.outside.foreign import foreign
    from .networks.outside.spiking import spiking
    from .neurons import IF, LIF, PLIF, NormNeuron, Repeat
    from .neurons.compilation import eager
    from .neurons.event_driven import equip
    from .optimizer_groups import clip_gradients, parameter_groups
    from .quantization import IntegerNetwork, quantize, to_integer
    from .simulation import time_steps
    from .training.calibration import settle
    from .training.comparison import compare
    from .training.run import Run, train
    from .training.store import load, save

__version__ = "0.1.0"

# Names whose modules are imported at first use: `spikedistill --help` must not wait for torch.
_MODULES = ("data", "export", "hardware", "networks", "objectives")
_LATER = {
    **{name: name for name in _MODULES},
    "IF": "neurons",
    "LIF": "neurons",
    "PLIF": "neurons",
    "NormNeuron": "neurons",
    "Repeat": "neurons",
    "Distiller": "distiller",
    "Losses": "distiller",
    "eager": "neurons.compilation",
    "time_steps": "simulation",
    "citations": "bibliography",
    "convert": "conversion",
    "adopt": "networks.outside.adopt",
    "balance": "networks.balancing",
    "equip": "neurons.event_driven",
    "foreign": "networks.outside.foreign",
    "spiking": "networks.outside.spiking",
    "clip_gradients": "optimizer_groups",
    "parameter_groups": "optimizer_groups",
    "IntegerNetwork": "quantization",
    "quantize": "quantization",
    "to_integer": "quantization",
    "compare": "training.comparison",
    "settle": "training.calibration",
    "Run": "training.run",
    "train": "training.run",
    "load": "training.store",
    "save": "training.store",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'spikedistill' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{_LATER[name]}", __name__)
    value = module if name in _MODULES else getattr(module, name)
    # Kept: python asks a module's __getattr__ only for names that it does not find.
    globals()[name] = value
    return value


def _drawer(kind: str) -> Callable[[Any], str]:
    def html(thing: Any) -> str:
        from importlib import import_module

        found: str = getattr(import_module(".report.notebook", __name__), kind)(thing)
        return found

    return html


# Handed down as functions that import late: no module below the report may import it.
DRAWERS.update({kind: _drawer(kind) for kind in ("run", "losses", "network", "evaluation", "price")})


def __dir__() -> list[str]:
    # Names that come late are not in globals() yet, and completion in a shell would miss them.
    return sorted(__all__)


__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Distiller",
    "IntegerNetwork",
    "Losses",
    "NormNeuron",
    "Repeat",
    "Run",
    "SpikedistillError",
    "adopt",
    "balance",
    "citations",
    "clip_gradients",
    "compare",
    "convert",
    "data",
    "eager",
    "equip",
    "export",
    "foreign",
    "hardware",
    "load",
    "networks",
    "objectives",
    "parameter_groups",
    "quantize",
    "save",
    "settle",
    "spiking",
    "time_steps",
    "to_integer",
    "train",
]
