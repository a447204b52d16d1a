"""Knowledge distillation for spiking neural networks, from an ANN teacher to an integer network and its price on a chip."""

from typing import TYPE_CHECKING, Any

from .interrupt import while_importing

while_importing()

from . import networks, objectives  # noqa: E402
from .distiller import Distiller, Losses  # noqa: E402
from .errors import SpikedistillError  # noqa: E402
from .neurons import IF, LIF, PLIF, NormNeuron, Repeat  # noqa: E402
from .neurons.compilation import eager  # noqa: E402
from .simulation import time_steps  # noqa: E402

if TYPE_CHECKING:
    from . import data, export, hardware
    from .bibliography import citations
    from .conversion import convert
    from .networks.adopt import adopt
    from .networks.balancing import balance
    from .networks.foreign import foreign
    from .networks.surgery import spiking
    from .optimizer_groups import parameter_groups
    from .quantization import IntegerNetwork, quantize, to_integer
    from .training.run import Run, train
    from .training.store import load

__version__ = "0.1.0"

# Names whose modules are imported at first use, so that `import spikedistill` is quick.
_LATER = {
    "data": "data",
    "export": "export",
    "hardware": "hardware",
    "citations": "bibliography",
    "convert": "conversion",
    "adopt": "networks.adopt",
    "balance": "networks.balancing",
    "foreign": "networks.foreign",
    "spiking": "networks.surgery",
    "parameter_groups": "optimizer_groups",
    "IntegerNetwork": "quantization",
    "quantize": "quantization",
    "to_integer": "quantization",
    "Run": "training.run",
    "train": "training.run",
    "load": "training.store",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'spikedistill' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{_LATER[name]}", __name__)
    value = module if name in ("data", "export", "hardware") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
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
    "convert",
    "data",
    "eager",
    "export",
    "foreign",
    "hardware",
    "load",
    "networks",
    "objectives",
    "parameter_groups",
    "quantize",
    "spiking",
    "time_steps",
    "to_integer",
    "train",
]
