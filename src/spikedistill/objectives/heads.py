"""The classifier of a network, for objectives that use its weights."""

from torch import nn

from ..networks.builder import SpikingHead
from .base import Objective, refuse


def classifier_path(network: nn.Module) -> str | None:
    """Path of the network's last linear layer: its ``head_path``, else the last it defines, or None."""
    path: str = getattr(network, "head_path", "")
    modules = dict(network.named_modules())
    if path:
        path = f"{path}.linear" if isinstance(modules.get(path), SpikingHead) else path
        return path if isinstance(modules.get(path), nn.Linear) else None
    return next((p for p, m in reversed(modules.items()) if isinstance(m, nn.Linear)), None)


def classifier(objective: Objective, network: nn.Module | None) -> nn.Linear:
    """The layer at `classifier_path`.

    Raises: SpikedistillError where there is none.
    """
    path = None if network is None else classifier_path(network)
    if network is None or path is None:
        raise refuse(objective, f"{type(network).__name__} has no linear classifier, whose weights it uses")
    found = network.get_submodule(path)
    assert isinstance(found, nn.Linear)
    return found
