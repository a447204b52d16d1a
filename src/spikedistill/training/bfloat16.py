"""Where bfloat16 cannot train: convolutions whose weight gradients CPUs get wrong."""

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks import graph


def wide_strides(network: nn.Module, x: Tensor) -> list[str]:
    """Paths of convolutions whose stride exceeds their input map.

    There oneDNN's bfloat16 weight gradients are whatever the memory held (seen in torch 2.14: of a 3x3 kernel
    of stride 2 on a 1x1 map; 1x1 kernels are right).
    """
    found = []
    for node in graph.trace(network, x[:2]):
        if node.op == "conv":
            axes = zip(node.settings["kernel"], node.settings["stride"], node.in_shapes[0][2:], strict=True)
            if any(k > 1 and s > n for k, s, n in axes):
                found.append(str(node.path))
    return found


def trainable_precision(
    precision: str, chosen: str, network: nn.Module, x: Tensor, stage: str
) -> tuple[str, str]:
    """The precision that ``stage`` trains in, and a note where it is not the ``precision`` of the run.

    ``chosen``: as the recipe says it. Raises :class:`SpikedistillError` where that is bfloat16 and cannot be.
    """
    if precision != "bfloat16" or x.device.type != "cpu":
        return precision, ""
    with torch.no_grad():
        paths = wide_strides(network, x)
    if not paths:
        return precision, ""
    why = (
        f"the stride of {', '.join(paths)} exceeds its input map, and a CPU's bfloat16 gradients are wrong "
        "there"
    )
    # Asked for by name it is refused, never replaced without a word; "auto" gives way with a note.
    if chosen == "bfloat16":
        raise SpikedistillError(f"stage {stage!r}: {why}; use precision: float32 (or auto), or larger inputs")
    return "float32", f"{stage}: float32, since {why}"
