"""VGG networks and the benchmark's plain six-convolution network.

``vggD`` counts layers as the SNN literature does: convolutions plus linear layers. vgg11 and vgg16 are
Simonyan and Zisserman's configurations A and D (ICLR 2015) with norms, 8 and 13 convolutions, and one linear
layer after global average pooling (as CIFAR implementations have it); vgg9 (7 convolutions + 2 linear in the
papers) and vgg5 follow that habit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import LIF, Neuron
from .balanced import DEEP, DEEP_GAIN
from .base import Common, Network, NeuronChoice
from .builder import Builder, initialise, scaled, usual_neuron

# A number is a convolution's channels, "M" a pooling by 2; a pair is (channels, stride).
CONFIGURATIONS: dict[str, tuple[Any, ...]] = {
    "conv6": (32, 32, (64, 2), 64, (128, 2), 128),
    "vgg5": (64, "M", 128, 128, "M"),
    "vgg9": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    # Louis et al., ICANN 2024 (official configuration): strides, no pooling, two hidden layers, soft reset.
    "svgg11": ((64, 2), (128, 2), 256, (256, 2), 512, (512, 2), 512, (512, 2)),
}
HIDDEN: dict[str, tuple[int, ...]] = {"svgg11": (512, 512)}
NEURONS: dict[str, Neuron] = {"svgg11": LIF(tau=2.0, reset="soft")}


class Stage(nn.Sequential):
    """Convolutions of one resolution; its output is the tap ``stageK``."""


class VGG(Network):
    """Plain convolutional network: conv -> norm -> neuron, grouped in stages of one resolution.

    ``pools``: only the first that many poolings are kept (small images). ``pooling``: "max" or "avg".
    ``dropout``: before the head. ``hidden``: widths of linear layers with a neuron each before the head
    (None: the network's own; 0: none).
    """

    def __init__(
        self,
        layers: Sequence[Any],
        own_hidden: Sequence[int],
        default: Neuron | None,
        /,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        pools: int | None = None,
        pooling: str = "max",
        dropout: float = 0.0,
        hidden: int | Sequence[int] | None = None,
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        hidden = own_hidden if hidden is None else hidden
        if pooling not in ("max", "avg"):
            raise SpikedistillError(f"pooling must be 'max' or 'avg', found {pooling!r}")
        if pools is not None and (not isinstance(pools, int) or pools < 0):
            raise SpikedistillError(f"pools must be a whole number from 0, found {pools!r}")
        if pools is not None and pools > (most := layers.count("M")):
            raise SpikedistillError(f"pools must be at most {most}, so many has this network; found {pools}")
        deep = sum(layer != "M" for layer in layers) > DEEP
        make = Builder(self, neuron, default or usual_neuron(head), gain=DEEP_GAIN if deep else None)
        blocks: list[nn.Module] = []
        stages: list[list[nn.Module]] = [[]]
        c, pooled = self.in_channels, 0
        for layer in layers:
            if layer == "M":
                if stages[-1]:
                    # A pooling left out ends its stage too: stageK is the same layers at any ``pools``.
                    stages.append([])
                if pools is None or pooled < pools:
                    stages[-1].append(nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
                pooled += 1
                continue
            out, stride = layer if isinstance(layer, tuple) else (layer, 1)
            out = scaled(out, width)
            if stride > 1 and stages[-1] and c != self.in_channels:
                stages.append([])
            first = not blocks
            conv = nn.Conv2d(c, out, 3, stride, 1, bias=False)
            norm = make.norm_neuron(out, first=first, scale=1.0)
            blocks.append(conv)
            stages[-1] += [conv, norm]
            c = out
        # A last pooling alone is no stage: it belongs to the convolutions before it.
        tail = (
            stages.pop()
            if stages and all(isinstance(m, nn.MaxPool2d | nn.AvgPool2d) for m in stages[-1])
            else []
        )
        if tail:
            stages[-1] += tail
        for i, stage in enumerate(stages, 1):
            self.add_module(f"stage{i}", Stage(*stage))
        self.depth = len(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        linear: list[nn.Module] = []
        for features in (hidden,) if isinstance(hidden, int) else hidden:
            if features:
                linear += [make.linear(c, scaled(features, width)), make.activation()]
                c = scaled(features, width)
        self.hidden = nn.Sequential(*linear) if linear else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = make.head(c, head, pooled=not linear)
        initialise(self)

    def body(self, x: Tensor) -> Tensor:
        for i in range(1, self.depth + 1):
            x = getattr(self, f"stage{i}")(x)
        x = self.hidden(self.flatten(self.pool(x)))
        return self.head(self.dropout(x))


NAMES: dict[str, Callable[..., Network]] = {
    name: partial(VGG, layers, HIDDEN.get(name, ()), NEURONS.get(name))
    for name, layers in CONFIGURATIONS.items()
}
