"""``sresnet8`` for audio features: Louis, Miramond, Pegatoquet, Girard, ICANN 2024.

From the authors' public configuration for Google speech commands: 64 filters, a 7-wide stem, three blocks of
two 3-wide convolutions whose spikes are added to the shortcut's, stride 1 throughout, global max-pooling; LIF
with tau = 2, threshold 1, hard reset. That configuration is 1-D over 49 frames of 10 MFCC.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Unpack

from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import LIF
from .base import Common, Network, NeuronChoice
from .builder import Builder, initialise, scaled
from .resnet import Join

FILTERS, STEM_KERNEL, KERNEL, BLOCKS = 64, 7, 3, 3
# A map's largest value says nothing where somewhere in it a spike is sure, and its gradient reaches one place
# alone, which a narrow surrogate does not see. So neurons start rare, under a surrogate of several
# thresholds (on spoken digits, T = 2, 8 epochs: 72 to 80 % of the training digits known, with the usual start
# 42 %, with a plain one 70 to 81 %, the ANN 89 to 93 %).
RARE, WIDE = 0.05, 0.8


def _conv(c_in: int, c: int, kernel: int, dims: int) -> nn.Conv2d:
    pad = kernel // 2
    if dims == 1:
        return nn.Conv2d(c_in, c, (1, kernel), padding=(0, pad), bias=False)
    return nn.Conv2d(c_in, c, kernel, padding=pad, bias=False)


class Block(nn.Module):
    """conv -> norm -> neuron, twice, plus the shortcut's spikes."""

    def __init__(self, make: Builder, c: int, dims: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c, c, KERNEL, dims), make.norm_neuron(c)
        self.conv2, self.bn2 = _conv(c, c, KERNEL, dims), make.norm_neuron(c)
        self.join = Join("add")

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, C, H, W) to the same."""
        return self.join(self.bn2(self.conv2(self.bn1(self.conv1(x)))), x)


class SResNet(Network):
    """Residual network for spectrograms and MFCC: stem, blocks, global pooling, head.

    ``dims=1``: kernels run over the last axis only; the input is (N, C, 1, L), channels are the features; or,
    with ``features=F``, it is (N, 1, F, L) and the F rows become channels. ``dims=2``: an image (N, 1, F, L),
    square kernels (our reading: the public configuration is 1-D). ``pooling``: "max" | "avg"; with "max" a
    balanced start aims at a firing rate of 0.05.
    """

    def __init__(
        self,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        dims: int = 1,
        features: int | None = None,
        pooling: str = "max",
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if dims not in (1, 2):
            raise SpikedistillError(f"dims must be 1 or 2, found {dims}")
        if features is not None and dims == 2:
            raise SpikedistillError("features (rows that become channels) belongs to dims=1")
        if pooling not in ("max", "avg"):
            raise SpikedistillError(f"pooling must be 'max' or 'avg', found {pooling!r}")
        largest = pooling == "max"
        gain, rate = (WIDE, RARE) if largest else (None, None)
        make = Builder(self, neuron, LIF(tau=2.0), gain=gain, firing_rate=rate)
        c = scaled(FILTERS, width)
        self.rows = nn.Identity() if features is None else RowsToChannels()
        self.conv1 = _conv(self.in_channels * (features or 1), c, STEM_KERNEL, dims)
        self.bn1 = make.norm_neuron(c, first=True)
        self.layer1 = nn.Sequential(*[Block(make, c, dims) for _ in range(BLOCKS)])
        self.pool = nn.AdaptiveMaxPool2d(1) if largest else nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        # Spikes of the stem and all blocks are summed; a whole map's largest is as large as an ANN's feature.
        self.head = make.head(c, head, spikes=math.inf if largest else 1.0 + BLOCKS)
        initialise(self)

    aliases = {"before_head": "layer1", "pooled": "pool"}

    def body(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.rows(x)))
        return self.head(self.flatten(self.pool(self.layer1(x))))


class RowsToChannels(nn.Module):
    """(N, C, F, L) to (N, C*F, 1, L)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).unsqueeze(2)


NAMES: dict[str, Callable[..., Network]] = {"sresnet8": partial(SResNet, num_classes=35, in_channels=1)}
