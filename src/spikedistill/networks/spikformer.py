"""Spiking transformers: Spikformer and Spikingformer.

Spikformer      every branch ends in a neuron, residuals add spikes (small integers flow); Zhou et
                al., "Spikformer: when spiking neural network meets transformer", ICLR 2023.
Spikingformer   pre-activation: neuron -> convolution -> norm, residuals add real values (MS form); Zhou et
                al., "Spikingformer: spike-driven residual learning for transformer-based spiking neural
                network", 2023.

Tokens stay a map ``(T*N, C, H, W)``; linear layers on tokens are 1x1 convolutions. In the ANN twin ReLU
stands for every neuron, also those of queries, keys and values: attention without softmax.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Unpack

from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import LIF
from .balanced import STREAM_GAIN, SUMMED_GAIN
from .base import EVENT_FRAMES, Common, Network, NeuronChoice
from .builder import Builder, initialise

TRANSFORMER_NEURON = LIF(tau=2.0)  # of all papers with spiking attention here
STREAM_RATE = 0.22  # what a balanced Spikingformer aims at: at the usual 0.16 it learns less well


class Size(NamedTuple):
    """Blocks, channels, heads, and how often the tokenizer halves the map; tokens at its own image size."""

    depth: int
    channels: int
    heads: int
    pools: int
    tokens: int = 64


# CIFAR (map / 4), ImageNet (map / 16), event frames of 128x128 (map / 16). Heads as in the official
# configurations; those of the 256-channel networks are the event network's 16 (CIFAR's is unknown: 12 is
# given there, which does not divide 256).
SIZES: dict[str, Size] = {
    "4_256": Size(4, 256, 16, 2),
    "2_384": Size(2, 384, 12, 2),
    "4_384": Size(4, 384, 12, 2),
    "8_384": Size(8, 384, 8, 4, 196),
    "8_512": Size(8, 512, 8, 4, 196),
    "8_768": Size(8, 768, 8, 4, 196),
    "2_256": Size(2, 256, 16, 4),
}
EVENTS = "2_256"
DOWNSAMPLING = ("cml", "original")
SCALE, TOKENS = 0.125, 64


def pools_of(size: Size, pools: int | None) -> int:
    """How many of a tokenizer's four convolutions have a max-pool behind: as asked, or the size's own."""
    pools = size.pools if pools is None else pools
    if not 0 <= pools <= 4:
        raise SpikedistillError(
            f"pools must be from 0 to 4 (one a convolution of the tokenizer), found {pools}"
        )
    return pools


def scaled_heads(channels: int, heads: int, width: float) -> tuple[int, int]:
    """Channels and heads at a width factor: it scales the heads, channels a head stay as they are.

    Tokenizers start with an eighth of the channels, so these are rounded up to a multiple of 8.
    """
    scaled = max(1, round(heads * width))
    total = -(-scaled * (channels // heads) // 8) * 8
    if total % scaled:
        raise SpikedistillError(f"width {width} gives {scaled} heads that do not divide {total} channels")
    return total, scaled


def add_heads(block: nn.Module, make: Builder, channels: int, heads: int, names: Sequence[str]) -> None:
    """Give an attention module its branches (``q``, ``k``, ``v``): 1x1 convolution, norm and neuron each."""
    if channels % heads:
        raise SpikedistillError(f"{channels} channels cannot be divided among {heads} heads")
    for name in names:
        parts = {"conv": nn.Conv2d(channels, channels, 1, bias=False), "norm": make.norm_neuron(channels)}
        block.add_module(name, nn.Sequential(OrderedDict(parts)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """A map (N, C, H, W) as (N, heads, d, L): d channels a head, L = H W tokens."""
    return x.flatten(2).unflatten(1, (heads, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = SCALE) -> Tensor:
    """Attention without softmax: ``out_i = scale * sum_j (q_i . k_j) v_j`` over tokens i, j.

    The cheaper of the two orders is taken, ``(q k^T) v`` or ``q (k^T v)``; on spikes both give the same
    integers. Shape: each (N, heads, d, L), d channels a head and L tokens; returns (N, heads, d, L).
    """
    d, tokens = q.shape[-2:]
    kt = k.transpose(-2, -1)
    # The scale comes last: until then all sums are whole numbers.
    return ((v @ kt) @ q if tokens > d else v @ (kt @ q)) * scale


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention: queries, keys and values are spikes, ``attend`` charges one, a projection ends.

    Zhou et al., ICLR 2023. That neuron's threshold is half the others' (official code), in a balanced network
    the one that suits the sum over ``tokens`` (of the family's own image size; at others
    :func:`spikedistill.balance` finds it). With ``norm`` it has a norm in front and its own threshold instead
    (ours: the sum grows with the number of tokens, and with few of them no neuron fires). The norm behind the
    projection is the block's.
    Shape: (T*N, C, H, W) to (T*N, C, H, W).
    """

    def __init__(
        self, make: Builder, channels: int, heads: int, norm: bool = False, tokens: int = TOKENS
    ) -> None:
        super().__init__()
        self.heads = heads
        add_heads(self, make, channels, heads, "qkv")
        self.neuron = (
            make.norm_neuron(channels) if norm else make.attention_neuron(tokens, channels // heads, SCALE)
        )
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(self.get_submodule(name)(x), self.heads) for name in "qkv")
        out = attend(q, k, v).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.proj(self.neuron(out))


class Block(nn.Module):
    """Attention and MLP, each with a residual; ``ms``: neuron first and norm last, else norm and neuron last.

    ``attn_norm``: a norm between attention and its neuron. ``branches``: of all blocks together.
    ``attention``: in place of :class:`SpikingSelfAttention`.
    Shape: (T*N, C, H, W) to (T*N, C, H, W).
    """

    def __init__(
        self,
        make: Builder,
        channels: int,
        heads: int,
        mlp_ratio: float = 4.0,
        ms: bool = True,
        attn_norm: bool = False,
        branches: int = 1,
        tokens: int = TOKENS,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        # All branches of a balanced network together add as much to its stream as stood there before.
        share = branches**-0.5 if ms and make.balance is not None else None
        last = partial(make.norm, scale=share) if ms else make.norm_neuron
        # A norm behind attention makes its common part small and its gradient large: it begins smaller.
        attended = partial(make.norm, scale=share / 3) if share and attn_norm else last
        self.attn_neuron = make.activation() if ms else nn.Identity()
        self.attn = attention or SpikingSelfAttention(make, channels, heads, attn_norm, tokens)
        self.attn_norm = attended(channels)
        self.mlp_neuron = make.activation() if ms else nn.Identity()
        self.fc1, self.fc1_norm = nn.Conv2d(channels, hidden, 1), make.norm_neuron(hidden)
        self.fc2, self.fc2_norm = nn.Conv2d(hidden, channels, 1), last(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn_norm(self.attn(self.attn_neuron(x)))
        return x + self.fc2_norm(self.fc2(self.fc1_norm(self.fc1(self.mlp_neuron(x)))))


class Tokenizer(nn.Module):
    """Spiking patch splitting: four convolutions to C/8, C/4, C/2, C channels.

    A 3/2 max-pool follows each of the last ``pools``. ``cml``: conv -> norm -> pool -> neuron (Zhou et al.,
    "Enhancing the performance of transformer-based spiking neural networks by SNN-optimized downsampling with
    precise gradient backpropagation", 2023); ``original``: conv -> norm -> neuron -> pool. A fifth
    convolution gives the real-valued stream (``ms``), or adds its spikes as relative position. Shape: (N,
    C_in, H, W), or (T*N, C_in, H, W), to (T*N, C, H / 2^pools, W / 2^pools).
    """

    def __init__(self, make: Builder, c_in: int, channels: int, pools: int, cml: bool, ms: bool) -> None:
        super().__init__()
        units = []
        for i, c in enumerate((channels // 8, channels // 4, channels // 2, channels)):
            pool = [nn.MaxPool2d(3, 2, 1)] if i >= 4 - pools else []
            units.append(_unit(make, c_in, c, pool, cml, first=i == 0))
            c_in = c
        self.units = nn.Sequential(*units)
        self.ms = ms
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = make.norm(channels) if ms else make.norm_neuron(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(x)
        y = self.norm(self.conv(x))
        return y if self.ms else x + y


def _unit(
    make: Builder, c_in: int, c: int, pool: Sequence[nn.Module], cml: bool, first: bool
) -> nn.Sequential:
    parts: dict[str, nn.Module] = {"conv": nn.Conv2d(c_in, c, 3, 1, 1, bias=False)}
    if pool and cml:
        parts |= {"norm": make.norm(c, pooled=True), "pool": pool[0], "neuron": make.activation(first)}
    else:
        parts |= {"norm": make.norm_neuron(c, first), **({"pool": pool[0]} if pool else {})}
    return nn.Sequential(OrderedDict(parts))


class Spikformer(Network):
    """Tokenizer, blocks, global average, head; ``stage1``: the tokenizer's output, ``stage2`` on the blocks'.

    ``spikformer_D_C`` and ``spikingformer_D_C`` have D blocks and C channels; those of ``2_256`` are the
    event versions, for frames of 128x128 with two polarities. ``downsampling``: "cml" | "original".
    ``pools``: how often the tokenizer halves the map (None: the network's own, 2 for CIFAR's sizes, 4 for
    ImageNet's). ``depth``: number of blocks. ``width`` scales the number of heads.
    """

    def __init__(
        self,
        size: Size,
        ms: bool,
        /,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        downsampling: str = "cml",
        pools: int | None = None,
        depth: int | None = None,
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if downsampling not in DOWNSAMPLING:
            raise SpikedistillError(f"downsampling must be 'cml' or 'original', found {downsampling!r}")
        pools = pools_of(size, pools)
        gain, rate = (STREAM_GAIN, STREAM_RATE) if ms else (SUMMED_GAIN, None)
        make = Builder(self, neuron, TRANSFORMER_NEURON, gain=gain, firing_rate=rate)
        channels, heads = scaled_heads(size.channels, size.heads, width)
        self.tokenizer = Tokenizer(make, self.in_channels, channels, pools, downsampling == "cml", ms)
        depth = depth or size.depth
        self.blocks = nn.Sequential(
            *[
                Block(make, channels, heads, ms=ms, branches=2 * depth, tokens=size.tokens)
                for _ in range(depth)
            ]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        # The head of Spikingformer reads the stream itself, an ANN's size; Spikformer's sums a neuron's
        # spikes a branch.
        self.head = make.head(channels, head, spikes=math.inf if ms else 2.0 + 2 * depth)
        initialise(self)

    balanced_by = "data"  # attention's sums depend on the number of tokens and on how alike they are

    def stage_paths(self) -> list[str]:
        return ["tokenizer", *(f"blocks.{i}" for i in range(len(self.blocks)))]

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.pool(self.blocks(self.tokenizer(x)))))


NAMES: dict[str, Callable[..., Network]] = {
    f"{family}_{name}": partial(Spikformer, size, ms, **(EVENT_FRAMES if name == EVENTS else {}))
    for family, ms in (("spikformer", False), ("spikingformer", True))
    for name, size in SIZES.items()
}
