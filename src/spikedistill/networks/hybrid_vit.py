"""HDKD's networks: a convolutional teacher and a hybrid student.

The student is convolutions, then a transformer with two tokens. El-Assiouti, Hamed, Khattab, Ebied, "HDKD:
hybrid data-efficient knowledge distillation network for medical image classification", Engineering
Applications of Artificial Intelligence 138, 2024; layers as in the official code. Stage widths of teacher and
student are equal, so that ``stage1`` to ``stage3`` match without an aligner. The student's two classifiers
are the paths ``head`` and ``distill_head``; ``forward`` averages them.

With time steps both become spiking networks of the same shape. The paper's student is an ANN; its spiking
form is ours: norm -> neuron -> convolution in place of norm -> convolution -> GELU, no attention module in
the convolutions, blocks of spiking self-attention (:class:`.spikformer.Block`), tokens and positions as
constant currents, and behind the last block the mean of the patches added to both tokens.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SpikedistillError
from ..neurons import NormNeuron
from .balanced import STREAM_GAIN
from .base import Common, Network, NeuronChoice
from .builder import Builder, initialise, scaled
from .spikformer import TRANSFORMER_NEURON, Block

CHANNELS = (64, 96, 192)
TEACHER_BLOCKS, STUDENT_BLOCKS = (6, 6, 9), (2, 2, 3)
TRANSFORMER_BLOCKS, HEADS, HEAD_CHANNELS = 3, 8, 32
EXPANSION = 4


def _norm_act(make: Builder, c: int, first: bool = False) -> NormNeuron:
    return make.norm_neuron(c, first) if make.network.spiking else NormNeuron(c, nn.GELU())


class CBAM(nn.Module):
    """Channel, then spatial attention, with an inner residual: ``x * ca * sa + x``.

    ``ca = sigmoid(MLP(avg) + MLP(max))`` over space, MLP: C -> C/16 -> C with GELU; ``sa =
    sigmoid(conv7x7([mean, max]))`` over channels. Woo et al., "CBAM: convolutional block attention module",
    ECCV 2018; the residual is HDKD's. Shape: (N, C, H, W) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        small = max(1, channels // 16)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, small, 1, bias=False), nn.GELU(), nn.Conv2d(small, channels, 1, bias=False)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        maps = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return y * torch.sigmoid(self.conv(maps)) + x


class MBCSA(nn.Module):
    """Inverted bottleneck with attention: norm, 1x1 to 4C, depth-wise 3x3, CBAM, 1x1, norm, and a residual.

    Shape: (N, C_in, H, W) to (N, C, H, W), or half the size (rounded up) with ``down``.
    """

    def __init__(self, make: Builder, c_in: int, c: int, down: bool) -> None:
        super().__init__()
        spiking, wide = make.network.spiking, EXPANSION * c_in
        self.norm = make.norm_neuron(c_in) if spiking else make.norm(c_in)
        self.expand = nn.Conv2d(c_in, wide, 1, 2 if down else 1, bias=False)
        self.expand_norm = _norm_act(make, wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False)
        self.depthwise_norm = _norm_act(make, wide)
        self.cbam = nn.Identity() if spiking else CBAM(wide)
        self.project = nn.Conv2d(wide, c, 1, bias=False)
        self.project_norm = make.norm(c, scale=0.5 if make.balance is not None and not down else None)
        self.shortcut = (
            nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(c_in, c, 1, bias=False)) if down else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_norm(self.expand(self.norm(x)))
        y = self.cbam(self.depthwise_norm(self.depthwise(y)))
        return self.shortcut(x) + self.project_norm(self.project(y))


def _stages(network: Network, make: Builder, blocks: Sequence[int], width: float) -> int:
    """Add ``stage1`` (stem), ``stage2`` and ``stage3``; returns the channels of the last."""
    c_in, c = network.in_channels, scaled(CHANNELS[0], width)
    stem = []
    for i in range(blocks[0]):
        # The spiking stem ends in a real-valued stream, as every later stage does.
        last = make.network.spiking and i == blocks[0] - 1
        parts = {
            "conv": nn.Conv2d(c_in, c, 3, 2 if i == 0 else 1, 1, bias=False),
            "norm": make.norm(c) if last else _norm_act(make, c, first=i == 0),
        }
        stem.append(nn.Sequential(OrderedDict(parts)))
        c_in = c
    network.add_module("stage1", nn.Sequential(*stem))
    for s in (2, 3):
        c = scaled(CHANNELS[s - 1], width)
        stage = [MBCSA(make, c_in if i == 0 else c, c, down=i == 0) for i in range(blocks[s - 1])]
        network.add_module(f"stage{s}", nn.Sequential(*stage))
        c_in = c
    return c


class _Stages(Network):
    """What teacher and student share: three convolutional stages, taught map by map."""

    stage1: nn.Module
    stage2: nn.Module
    stage3: nn.Module

    def maps(self, x: Tensor) -> Tensor:
        """What the three stages make of images: (N, C, H, W) to (N, C', H/8, W/8)."""
        return self.stage3(self.stage2(self.stage1(x)))


class HDKDTeacher(_Stages):
    """The convolutional teacher: stem x6 (64), MBCSA x6 (96), x9 (192), global average, 128, K.

    It has 3.95 M parameters at K = 7.
    """

    def __init__(
        self,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        make = Builder(self, neuron, TRANSFORMER_NEURON, gain=STREAM_GAIN)
        c = _stages(self, make, TEACHER_BLOCKS, width)
        self.norm = make.norm_neuron(c) if self.spiking else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(c, scaled(128, width))
        self.fc_neuron = make.norm_neuron(scaled(128, width)) if self.spiking else nn.Identity()
        self.head = make.head(scaled(128, width), head)
        initialise(self)

    def body(self, x: Tensor) -> Tensor:
        x = self.norm(self.maps(x))
        return self.head(self.fc_neuron(self.fc(self.flatten(self.pool(x)))))


def _positions(grid: nn.Parameter, size: tuple[int, int]) -> Tensor:
    """Learned positions (1, C, G, G), bilinearly resized where the map has another size."""
    if tuple(grid.shape[2:]) == size:
        return grid
    return F.interpolate(grid, size, mode="bilinear", align_corners=False)


def _even(x: Tensor) -> Tensor:
    """Zeros at the right and bottom of a map of odd size, so that 2x2 patches fit."""
    h, w = x.shape[-2:]
    return F.pad(x, (0, w % 2, 0, h % 2)) if h % 2 or w % 2 else x


class _Tokens(nn.Module):
    """What both transformers share: class token, distillation token, positions."""

    def __init__(self, channels: int, grid: int, std: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, channels, 2))
        self.token_positions = nn.Parameter(torch.randn(1, channels, 2) * std)
        self.positions = nn.Parameter(torch.randn(1, channels, grid, grid) * std)

    def add(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Patches (N, C, L) to (N, C, 2 + L): both tokens in front, positions added."""
        # In the map's dtype: ``cat`` would take a bfloat16 map to the parameters' float32.
        tokens = (self.tokens + self.token_positions).expand(x.shape[0], -1, -1).to(x.dtype)
        return torch.cat([tokens, x + _positions(self.positions, size).flatten(2)], 2)


class Attention(nn.Module):
    """Multi-head attention behind a layer norm. Shape: (N, L, C) to the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * HEAD_CHANNELS
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(_Tokens):
    """The ANN's: 2x2 patches, LN, linear, LN; blocks with LN before attention only; final LN.

    Shape: (N, C, H, W) to (N, 2 + L, C').
    """

    def __init__(self, c_in: int, channels: int, heads: int, grid: int) -> None:
        super().__init__(channels, grid, std=1.0)
        self.embed = nn.Sequential(
            nn.LayerNorm(4 * c_in), nn.Linear(4 * c_in, channels), nn.LayerNorm(channels)
        )
        hidden = EXPANSION * channels
        self.attn = nn.ModuleList(Attention(channels, heads) for _ in range(TRANSFORMER_BLOCKS))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
            for _ in range(TRANSFORMER_BLOCKS)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(_even(x), 2)
        size = (patches.shape[2], patches.shape[3])
        x = self.embed(patches.flatten(2).transpose(1, 2)).transpose(1, 2)
        x = self.add(x, size).transpose(1, 2)
        for attn, mlp in zip(self.attn, self.mlp):
            x = x + attn(x)
            x = x + mlp(x)
        return self.norm(x)


class SpikingTransformer(_Tokens):
    """The SNN's: norm -> neuron -> 2x2/2 convolution -> norm, spiking self-attention, norm and neuron.

    Attention's neuron has a norm in front: with few patches it would be silent. Spiking attention weighs
    values by chance coincidences of spikes in a fresh network, and what it brings to the tokens says nothing
    of an image's class. So both tokens are given the mean of the patches before the last norm and neuron
    (Spikformer's heads read that mean alone); the classifiers read spikes.

    Shape: (T*N, C, H, W) to spikes (T*N, 2 + L, C').
    """

    def __init__(self, make: Builder, c_in: int, channels: int, heads: int, grid: int) -> None:
        super().__init__(channels, grid, std=0.02)
        parts = {
            "neuron": make.norm_neuron(c_in),
            "conv": nn.Conv2d(c_in, channels, 2, 2, bias=False),
            "norm": make.norm(channels),
        }
        self.embed = nn.Sequential(OrderedDict(parts))
        self.blocks = nn.Sequential(
            *[
                Block(make, channels, heads, EXPANSION, attn_norm=True, branches=2 * TRANSFORMER_BLOCKS)
                for _ in range(TRANSFORMER_BLOCKS)
            ]
        )
        self.norm = make.norm_neuron(channels)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(_even(x))
        tokens = self.add(patches.flatten(2), (patches.shape[2], patches.shape[3]))
        # Blocks read maps: the tokens are one of width 1.
        x = self.blocks(tokens.unsqueeze(3))
        tokens, patches = x[:, :, :2], x[:, :, 2:]
        x = torch.cat([tokens + patches.mean(2, keepdim=True), patches], 2)
        return self.norm(x).squeeze(3).transpose(1, 2)


class HDKDStudent(_Stages):
    """Hybrid student: stem x2 (64), MBCSA x2 (96), x3 (192), three transformer blocks (256), two heads.

    The transformer stands on 2x2 patches. 3.73 M parameters at K = 7 and 224x224 (``time_steps=None``). Other
    image sizes work: an odd map is padded by zeros, and positions, learned for ``image_size``, are resized
    bilinearly.
    """

    def __init__(
        self,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        image_size: int = 224,
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if image_size < 1:
            raise SpikedistillError(f"image_size must be at least 1, found {image_size}")
        make = Builder(self, neuron, TRANSFORMER_NEURON, gain=STREAM_GAIN)
        c = _stages(self, make, STUDENT_BLOCKS, width)
        heads = max(1, round(HEADS * width))
        # Rounded up, as strided convolutions and ``_even`` do at each halving.
        channels, grid = heads * HEAD_CHANNELS, -(-image_size // 16)
        self.transformer: nn.Module = (
            SpikingTransformer(make, c, channels, heads, grid)
            if self.spiking
            else Transformer(c, channels, heads, grid)
        )
        self.head, self.distill_head = make.head(channels, head), make.head(channels, head)
        initialise(self)

    # Attention modules pool globally inside the stages; what the heads read are the transformer's tokens, the
    # class token first.
    aliases = {"before_head": "transformer", "pooled": "head@input"}

    def body(self, x: Tensor) -> Tensor:
        tokens = self.transformer(self.maps(x))
        return (self.head(tokens[:, 0]) + self.distill_head(tokens[:, 1])) / 2


NAMES: dict[str, Callable[..., Network]] = {
    "hdkd_teacher": partial(HDKDTeacher, num_classes=7, time_steps=None),
    "hdkd_student": partial(HDKDStudent, num_classes=7),
}
