"""Residual networks in three forms, SNN and ANN twin from one definition.

basic   neuron(norm(conv(.)) + shortcut): the ANN's own form; Zheng et al. (tdBN), AAAI 2021.
SEW     neuron(norm(conv(.))) joined with the shortcut's spikes by ADD, AND or IAND; Fang et al., "Deep
        residual learning in spiking neural networks", NeurIPS 2021.
MS      pre-activation, shortcuts between membranes: the stream carries real values; Hu et al., "Advancing
        spiking neural networks toward deep residual learning", IEEE TNNLS 2024.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SpikedistillError
from ..neurons import LIF, NormNeuron
from .balanced import SEW_GAIN
from .base import Common, Network, NeuronChoice
from .builder import Builder, initialise, scaled, usual_neuron

# depth -> (channels per stage, blocks per stage, bottleneck, stem)
DEPTHS: dict[int, tuple[tuple[int, ...], tuple[int, ...], bool, str]] = {
    18: ((64, 128, 256, 512), (2, 2, 2, 2), False, "imagenet"),
    19: ((128, 256, 512), (3, 3, 2), False, "cifar"),
    20: ((16, 32, 64), (3, 3, 3), False, "cifar"),
    34: ((64, 128, 256, 512), (3, 4, 6, 3), False, "imagenet"),
    50: ((64, 128, 256, 512), (3, 4, 6, 3), True, "imagenet"),
    56: ((16, 32, 64), (9, 9, 9), False, "cifar"),
}
CONNECT = ("add", "and", "iand")
MS_NEURON = LIF(decay=0.25, threshold=0.5, surrogate="rectangle")


class PadShortcut(nn.Module):
    """Shortcut without parameters (He et al. 2016, option A): every second pixel, padded channels.

    Half of the zero channels stand on each side.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H/s), ceil(W/s))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Join(nn.Module):
    """How SEW joins the branch's spikes s with the shortcut's x: ADD s + x, AND s * x, IAND (1 - s) * x."""

    def __init__(self, connect: str) -> None:
        super().__init__()
        self.connect = connect

    def forward(self, s: Tensor, x: Tensor) -> Tensor:
        """Two tensors of one shape."""
        if self.connect == "add":
            return s + x
        return s * x if self.connect == "and" else (1 - s) * x

    def extra_repr(self) -> str:
        return self.connect


class BasicForm(nn.Module):
    """Basic block or bottleneck: the last norm adds the shortcut; ``pooled``: spikes from a max-pool."""

    def __init__(
        self, make: Builder, c_in: int, c: int, stride: int, bottleneck: bool, shortcut: nn.Module | None,
        connect: str, pooled: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.pooled = pooled
        self.depth = _convs(self, c_in, c, stride, bottleneck)
        for i in range(1, self.depth + 1):
            self.add_module(f"bn{i}", self.norm_neuron(make, i, shortcut))
        self.downsample = shortcut

    def channels(self, i: int) -> int:
        """What the i-th convolution gives."""
        return self.get_submodule(f"conv{i}").out_channels  # type: ignore[return-value]

    def norm_neuron(self, make: Builder, i: int, shortcut: nn.Module | None) -> NormNeuron:
        """The norm and neuron behind the i-th convolution; the last one's current is a sum."""
        channels, last = self.channels(i), i == self.depth
        # The norm in a convolutional shortcut adds as much as this one: together they charge as one does.
        half = last and isinstance(shortcut, nn.Sequential) and make.balance is not None
        out = make.norm_neuron(
            channels,
            scale=0.5**0.5 if half else 1.0,
            residual=last and not half,
            pooled=self.pooled,
        )
        if last and isinstance(shortcut, PadShortcut):
            # To the channels that it pads nothing comes which the norm's shift could take back.
            with torch.no_grad():
                out.bias[: shortcut.before] = out.bias[channels - shortcut.after :] = 0.0
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, C, H, W) to (T*N, C', H', W')."""
        identity = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
        return getattr(self, f"bn{self.depth}")(getattr(self, f"conv{self.depth}")(x), identity)


class SEWForm(BasicForm):
    """Spike-element-wise block: the branch ends in its own neuron and joins the shortcut's spikes."""

    def norm_neuron(self, make: Builder, i: int, shortcut: nn.Module | None) -> NormNeuron:
        return make.norm_neuron(self.channels(i), scale=1.0)

    def __init__(
        self, make: Builder, c_in: int, c: int, stride: int, bottleneck: bool, shortcut: nn.Module | None,
        connect: str, pooled: bool = False,
    ):  # fmt: skip
        super().__init__(make, c_in, c, stride, bottleneck, shortcut, connect)
        self.join = Join(connect)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
        return self.join(x, identity)


class MSForm(nn.Module):
    """Membrane-shortcut block: neuron -> conv -> norm, twice (thrice), plus the real-valued stream."""

    def __init__(
        self, make: Builder, c_in: int, c: int, stride: int, bottleneck: bool, shortcut: nn.Module | None,
        connect: str, pooled: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.neuron = make.activation()
        self.depth = _convs(self, c_in, c, stride, bottleneck)
        # The public code starts all norms at the threshold but the branch's last, which it starts at 0. Ours
        # starts that one at 0.2 thresholds: still close to the identity, and every layer of a fresh network
        # has a gradient. In bottlenecks at 0.3: with 0.2 the gradients of their three layers are 13 times
        # smaller than those of the convolution in the shortcut.
        widths = [conv.out_channels for conv in self.children() if isinstance(conv, nn.Conv2d)]
        for i, channels in enumerate(widths[:-1], 1):
            self.add_module(f"bn{i}", make.norm_neuron(channels, scale=1.0))
        self.add_module(f"bn{self.depth}", make.norm(widths[-1], scale=0.3 if bottleneck else 0.2))
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, C, H, W) to (T*N, C', H', W'), both real valued."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.neuron(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
        return x + identity


def _convs(block: nn.Module, c_in: int, c: int, stride: int, bottleneck: bool) -> int:
    if bottleneck:
        block.add_module("conv1", nn.Conv2d(c_in, c, 1, bias=False))
        block.add_module("conv2", nn.Conv2d(c, c, 3, stride, 1, bias=False))
        block.add_module("conv3", nn.Conv2d(c, 4 * c, 1, bias=False))
        return 3
    block.add_module("conv1", nn.Conv2d(c_in, c, 3, stride, 1, bias=False))
    block.add_module("conv2", nn.Conv2d(c, c, 3, 1, 1, bias=False))
    return 2


FORMS: dict[str, Any] = {"basic": BasicForm, "sew": SEWForm, "ms": MSForm}


class ResNet(Network):
    """A residual network; parameter names are torchvision's (18, 34, 50) or the usual CIFAR ones.

    The latter (20, 56) have the head ``linear``.

    ``stem``: "cifar" | "imagenet". ``shortcut``: "conv" | "pad" (parameter-free). ``connect`` (SEW): "add" |
    "and" | "iand".
    """

    def __init__(
        self,
        form: str,
        depth: int,
        /,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        stem: str | None = None,
        shortcut: str | None = None,
        connect: str = "add",
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        channels, blocks, bottleneck, own_stem = DEPTHS[depth]
        stem = stem or ("cifar" if form == "ms" else own_stem)
        shortcut = shortcut or ("pad" if form == "basic" and depth in (20, 56) else "conv")
        connect = connect.lower()
        check_options(form, stem, shortcut, connect, bottleneck, spiking=self.spiking)
        self.form = form
        make = Builder(
            self,
            neuron,
            MS_NEURON if form == "ms" else usual_neuron(head),
            residual=form == "basic",
            gain=SEW_GAIN if form == "sew" else None,
        )
        c = scaled(channels[0], width)
        self.conv1 = (
            nn.Conv2d(self.in_channels, c, 7, 2, 3, bias=False)
            if stem == "imagenet"
            else nn.Conv2d(self.in_channels, c, 3, 1, 1, bias=False)
        )
        if form == "ms":
            # No neuron dominates the stream that begins here: the stem's result is repeated, see ``body``.
            self.bn1: nn.Module = make.norm(c, scale=1.0)
            self.repeat = make.repeat()
        else:
            self.bn1 = make.norm_neuron(c, first=True, scale=1.0)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.depth = len(channels)
        for s, (wide, count) in enumerate(zip(channels, blocks), 1):
            stage = []
            for b in range(count):
                c_out = scaled(wide, width)
                stride = 2 if b == 0 and s > 1 else 1
                out = 4 * c_out if bottleneck else c_out
                short = None if stride == 1 and c == out else _shortcut(make, form, shortcut, c, out, stride)
                # Only the block right behind the max-pool reads its spikes as a shortcut.
                pooled = stem == "imagenet" and s == 1 and b == 0
                stage.append(FORMS[form](make, c, c_out, stride, bottleneck, short, connect, pooled))
                c = out
            self.add_module(f"layer{s}", nn.Sequential(*stage))
        if form == "ms":
            self.neuron = make.activation()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        if depth == 19:
            hidden = scaled(256, width)
            self.fc1, self.fc1_neuron = make.linear(c, hidden), make.activation()
            c = hidden
        self.head_path = "linear" if depth in (20, 56) else "fc"
        # SEW's last stage sums the spikes of its shortcut and of each of its blocks.
        summed = 1.0 + blocks[-1] if form == "sew" and connect == "add" and depth != 19 else 1.0
        self.add_module(self.head_path, make.head(c, head, spikes=summed))
        initialise(self)

    def body(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        if self.form == "ms":
            x = self.repeat(self.maxpool(x))
        else:
            x = self.maxpool(x)
        for s in range(1, self.depth + 1):
            x = getattr(self, f"layer{s}")(x)
        if self.form == "ms":
            x = self.neuron(x)
        x = self.flatten(self.avgpool(x))
        if hasattr(self, "fc1"):
            x = self.fc1_neuron(self.fc1(x))
        return getattr(self, self.head_path)(x)


def _shortcut(make: Builder, form: str, kind: str, c_in: int, c_out: int, stride: int) -> nn.Module:
    if kind == "pad":
        return PadShortcut(c_in, c_out, stride)
    conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
    scale = 0.5**0.5 if form == "basic" and make.balance is not None else 1.0  # see BasicForm
    norm = make.norm_neuron(c_out, scale=1.0) if form == "sew" else make.norm(c_out, scale=scale)
    return nn.Sequential(conv, norm)


def check_options(form: str, stem: str, shortcut: str, connect: str, bottleneck: bool, spiking: bool) -> None:
    """Refuse options that do not go together."""
    if stem not in ("cifar", "imagenet"):
        raise SpikedistillError(
            f"stem must be 'cifar' (3x3) or 'imagenet' (7x7, stride 2, max-pool), found {stem!r}"
        )
    if shortcut not in ("conv", "pad"):
        raise SpikedistillError(f"shortcut must be 'conv' or 'pad', found {shortcut!r}")
    if shortcut == "pad" and bottleneck:
        raise SpikedistillError("bottlenecks have no parameter-free shortcut; use shortcut='conv'")
    if connect not in CONNECT:
        raise SpikedistillError(f"connect must be one of {', '.join(CONNECT)}, found {connect!r}")
    if connect != "add" and form != "sew":
        raise SpikedistillError(f"connect={connect!r} is SEW's way to join; {form} networks add")
    if connect != "add" and not spiking:
        raise SpikedistillError(
            f"connect={connect!r} has no ANN twin (it is logic on spikes); use connect='add' for a twin"
        )


NAMES: dict[str, Callable[..., Network]] = {
    f"{prefix}resnet{depth}": partial(ResNet, form, depth)
    for prefix, form in (("", "basic"), ("sew_", "sew"), ("ms_", "ms"))
    for depth in DEPTHS
}
