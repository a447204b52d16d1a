"""The Spike-driven Transformer: attention by masks and additions, shortcuts between membranes.

Yao, Hu, Zhou, Yuan, Tian, Xu, Li, "Spike-driven transformer", NeurIPS 2023; layers as in the official code,
the first version of three. Every convolution and linear layer reads 0/1 spikes, and nothing but spikes is
multiplied by spikes. Its head reads spikes too: the stream is averaged over space and charges a neuron.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Unpack

from torch import Tensor, nn

from .balanced import STREAM_GAIN
from .base import Common, Network, NeuronChoice
from .builder import Builder, initialise
from .spikformer import TRANSFORMER_NEURON, Block, Size, add_heads, pools_of, scaled_heads, split_heads

# ImageNet (map / 16) and CIFAR (map / 4), eight heads each.
SIZES: dict[str, Size] = {
    "8_384": Size(8, 384, 8, 4, 196),
    "6_512": Size(6, 512, 8, 4, 196),
    "8_512": Size(8, 512, 8, 4, 196),
    "10_512": Size(10, 512, 8, 4, 196),
    "8_768": Size(8, 768, 8, 4, 196),
    "2_256": Size(2, 256, 8, 2),
    "2_512": Size(2, 512, 8, 2),
}


class SpikeDrivenSelfAttention(nn.Module):
    """Spike-driven self-attention: ``q * neuron(sum over tokens of k * v)``, elementwise, then a projection.

    Queries, keys and values are spikes; the sum counts, channel by channel, where key and value fire
    together, and its neuron decides which channels of the query pass. Linear in tokens and in channels; heads
    change nothing (they say how queries and keys are compared where attention maps are distilled). Its neuron
    as for :class:`.spikformer.SpikingSelfAttention`.
    Shape: (T*N, C, H, W) to (T*N, C, H, W).
    """

    def __init__(self, make: Builder, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        add_heads(self, make, channels, heads, "qkv")
        self.neuron = make.summing_neuron(tokens * make.rate**2)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(self.get_submodule(name)(x), self.heads) for name in "qkv")
        mask = self.neuron((k * v).sum(3, keepdim=True))
        return self.proj((q * mask).flatten(1, 2).unflatten(2, x.shape[2:]))


class Tokenizer(nn.Module):
    """Spiking patch splitting into a real-valued stream: convolutions to C/8, C/4, C/2, C channels, a fifth.

    The first three end in a neuron, and those among the last ``pools`` in a 3/2 max-pool of its spikes; the
    fourth ends in its norm (and pool), which begins the stream. A neuron, the fifth convolution and a norm
    add positions to it. In a balanced network they add what one of ``branches`` adds.
    Shape: (N, C_in, H, W), or (T*N, C_in, H, W), to (T*N, C, H / 2^pools, W / 2^pools).
    """

    def __init__(self, make: Builder, c_in: int, channels: int, pools: int, branches: int) -> None:
        super().__init__()
        units: list[nn.Module] = []
        for i, c in enumerate((channels // 8, channels // 4, channels // 2, channels)):
            pool = i >= 4 - pools
            parts: dict[str, nn.Module] = {"conv": nn.Conv2d(c_in, c, 3, 1, 1, bias=False)}
            parts["norm"] = make.norm_neuron(c, first=i == 0) if i < 3 else make.norm(c, pooled=pool)
            units.append(
                nn.Sequential(OrderedDict(parts | ({"pool": nn.MaxPool2d(3, 2, 1)} if pool else {})))
            )
            c_in = c
        self.units = nn.Sequential(*units)
        self.neuron = make.activation()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = make.norm(channels, scale=branches**-0.5 if make.balance is not None else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(x)
        return x + self.norm(self.conv(self.neuron(x)))


class SpikeDrivenTransformer(Network):
    """Tokenizer, blocks, global average, neuron, head; ``stage1``: the tokenizer, ``stage2`` ...: the blocks.

    ``spike_driven_D_C`` has D blocks and C channels. ``pools``: how often the tokenizer halves the map (None:
    the network's own, 2 for CIFAR's sizes, 4 for ImageNet's). ``depth``: number of blocks. ``width`` scales
    the number of heads. The official event networks pool keys, values and their products in 3x3 windows
    besides; that is not here.
    """

    def __init__(
        self,
        size: Size,
        /,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        pools: int | None = None,
        depth: int | None = None,
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        pools = pools_of(size, pools)
        make = Builder(self, neuron, TRANSFORMER_NEURON, gain=STREAM_GAIN)
        channels, heads = scaled_heads(size.channels, size.heads, width)
        depth = depth or size.depth
        branches = 2 * depth + 1
        self.tokenizer = Tokenizer(make, self.in_channels, channels, pools, branches)
        self.blocks = nn.Sequential(
            *[
                Block(
                    make, channels, heads, branches=branches,
                    attention=SpikeDrivenSelfAttention(make, channels, heads, size.tokens),
                )
                for _ in range(depth)
            ]
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        # An average over L tokens, alike in part, varies less than they do: by about the fourth root of L.
        self.neuron = make.activation(threshold=size.tokens**-0.25 if make.balance is not None else 1.0)
        self.head = make.head(channels, head, pooled=False)
        initialise(self)

    balanced_by = "data"  # sums over tokens depend on how many there are and how alike

    def stage_paths(self) -> list[str]:
        return ["tokenizer", *(f"blocks.{i}" for i in range(len(self.blocks)))]

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.neuron(self.flatten(self.pool(self.blocks(self.tokenizer(x))))))


NAMES: dict[str, Callable[..., Network]] = {
    f"spike_driven_{name}": partial(SpikeDrivenTransformer, size) for name, size in SIZES.items()
}
