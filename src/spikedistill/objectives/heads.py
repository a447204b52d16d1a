"""The classifier of a network, for objectives that use its weights."""

from torch import Tensor, nn

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


def check_reads(
    objective: Objective, network: nn.Module | None, tap: str, made: Tensor, logits: Tensor
) -> None:
    """Refuse a tap whose average the classifier does not read.

    ``made``: the classifier's logits of that average, ``logits``: the network's, both (N, K), in eval mode.
    Half of the logits' size is far more than rounded weights change, and less than wrong features give.
    """
    runs = network is not None and type(network).forward is not nn.Module.forward
    if runs and (made - logits).norm() > 0.5 * logits.norm():
        raise refuse(
            objective,
            f"the classifier's weights do not read the average of tap {tap!r}: on it they give other logits "
            "than the network's; name the layer whose global average the classifier reads",
        )


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
