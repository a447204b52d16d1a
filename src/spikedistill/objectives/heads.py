"""The classifier of a network, for objectives that use its weights."""

from torch import nn

from ..networks.base import SpikingHead
from .base import Objective, refuse


def classifier(objective: Objective, network: nn.Module | None) -> nn.Linear:
    """The network's last linear layer: its ``head_path``, else the last one it defines.

    Raises: SpikedistillError where there is none.
    """
    path = getattr(network, "head_path", "")
    modules = dict(network.named_modules()) if network is not None else {}
    found = modules.get(path) if path else None
    if isinstance(found, SpikingHead):
        found = found.linear
    if not isinstance(found, nn.Linear):
        linear = [m for m in modules.values() if isinstance(m, nn.Linear)]
        found = linear[-1] if linear and not path else None
    if found is None:
        raise refuse(objective, f"{type(network).__name__} has no linear classifier, whose weights it uses")
    return found
