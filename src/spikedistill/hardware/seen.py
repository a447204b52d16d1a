"""What is seen of a network's tensors while a real batch passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons import Neuron, NormNeuron


@dataclass(frozen=True)
class Seen:
    """Facts about one input tensor of a real batch."""

    integers: bool
    low: float
    high: float
    total: float
    nonzero: float


def look(x: Tensor) -> Seen:
    """The facts about ``x``."""
    return Seen(
        integers=bool((x == x.floor()).all()),
        low=float(x.min()),
        high=float(x.max()),
        # float32 counts ones only up to 2^24
        total=float(x.sum(dtype=torch.float64)),
        nonzero=float(x.count_nonzero()),
    )


@contextmanager
def watch(network: nn.Module, see: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, module, input, output)`` at each call of a weight layer or neuron, by graph name."""
    counts: dict[str, int] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def seen(module: nn.Module, args: Any, out: Tensor) -> None:
            k = counts.get(path, 0)
            counts[path] = k + 1
            with torch._C.DisableTorchFunction():  # the recorder of the graph must not see our own operations
                see(f"{path}#{k}", module, args[0], out)

        return seen

    watched = (nn.Conv1d, nn.Conv2d, nn.Linear, Neuron, NormNeuron)
    # in the graph a norm and its neuron are one node, named after the norm
    inside = {id(m.neuron) for m in network.modules() if isinstance(m, NormNeuron)}
    handles = [
        module.register_forward_hook(hook(path))
        for path, module in network.named_modules()
        if isinstance(module, watched) and id(module) not in inside
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
