"""Networks of one's own: a class or function is called, a module is copied.

What is called gets the options that the recipe gives; what its signature names of :data:`FILLED` and the
recipe leaves out comes from the stage and the data, as for the networks that have names here.
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import SpikedistillError
from ..neurons import build

FILLED = ("num_classes", "in_channels", "input", "time_steps", "mean", "std")
ATTRIBUTE = "spikedistill_own"


@dataclass(frozen=True)
class Own:
    """What a network's record says of own code: ``name`` (an address, or ``custom:NAME``), options as given.

    ``graph``: the network as a document (:mod:`.graph_file`), None where it has no such form, for the reason
    ``why``.
    """

    name: str
    options: dict[str, Any]
    graph: dict[str, Any] | None = None
    why: str = ""


def own_of(network: nn.Module) -> Own | None:
    """What is recorded of a network that comes from somebody's own code; None for every other."""
    return vars(network).get(ATTRIBUTE)


def mark(network: nn.Module, own: Own | None) -> None:
    """Hang the record on a network; copies of it keep it."""
    vars(network)[ATTRIBUTE] = own


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """What a class or function can be given by name; nothing for a module, which is copied."""
    if isinstance(target, nn.Module):
        return {}
    found = inspect.signature(target).parameters
    return {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def make(name: str, target: Any, given: Mapping[str, Any], known: Mapping[str, Any]) -> nn.Module:
    """The network of ``target``; ``known``: values of :data:`FILLED`.

    Raises: SpikedistillError for what gives no module.
    """
    if isinstance(target, nn.Module):
        # Each seed and stage begins with the module as it was given, not as an earlier one trained it.
        made: Any = copy.deepcopy(target)
    elif callable(target):
        allowed = parameters(target)
        whole = {**{key: value for key, value in known.items() if key in allowed}, **given}
        if whole.get("neuron") is not None:
            whole["neuron"] = build(whole["neuron"])
        made = target(**whole)
    else:
        made = target
    if not isinstance(made, nn.Module):
        raise SpikedistillError(
            f"network {name!r} is no network: found {type(made).__name__}; it takes a subclass of "
            "torch.nn.Module, a function that returns a module, or a module"
        )
    return made
