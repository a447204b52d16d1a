"""Networks for event cameras: the wide SEW network of CIFAR10-DVS and a small network for DVS Gesture."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Unpack

from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import LIF, PLIF
from ..simulation import Simulation
from .base import EVENT_FRAMES, Common, Network, NeuronChoice
from .builder import Builder, initialise, scaled
from .resnet import SEWForm, check_options

WIDE = (64, 64, 64, 64, 128, 128, 128)
PLIF_NEURON = PLIF(init_tau=2.0)
# Arfa et al.: beta 0.93, reset by subtraction; gain 1 is snnTorch's form.
GESTURE_NEURON = LIF(decay=0.93, reset="soft")


class SEW7B(Network):
    """Seven SEW blocks with a max-pool behind each; a 1x1 convolution (``stageK.up``) where channels change.

    Fang et al., "Deep residual learning in spiking neural networks", NeurIPS 2021 (7B-Net); the wide form, 64
    channels in four blocks and 128 in three, with PLIF neurons, is that of BKDSNN's CIFAR10-DVS row (Xu et
    al., ECCV 2024), whose code distils the map of ``stage5.up``. At other sizes than 128x128 what is left of
    the map is averaged (ours).
    """

    def __init__(
        self,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        connect: str = "add",
        pools: int = 7,
        head: str = "linear",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        connect = connect.lower()
        check_options("sew", "cifar", "conv", connect, bottleneck=False, spiking=self.spiking)
        make = Builder(self, neuron, PLIF_NEURON)
        self.pools, c = pools, self.in_channels
        for i, wide in enumerate(WIDE, 1):
            parts: dict[str, nn.Module] = {}
            wide = scaled(wide, width)
            if wide != c:
                up = {"conv": nn.Conv2d(c, wide, 1, bias=False), "norm": make.norm_neuron(wide, first=i == 1)}
                parts["up"] = nn.Sequential(OrderedDict(up))
                c = wide
            elif i == 1 and self.once:
                # No neuron stands before the first sum that could give the image its time steps.
                parts["repeat"] = make.repeat()
            parts["block"] = SEWForm(make, c, c, 1, False, None, connect)
            if i <= pools:
                parts["pool"] = nn.MaxPool2d(2)
            self.add_module(f"stage{i}", nn.Sequential(OrderedDict(parts)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        # sums behind max-pools are as large as an ANN's features
        self.head = make.head(c, head, spikes=math.inf)
        initialise(self)

    def check(self, x: Tensor, sim: Simulation) -> None:
        super().check(x, sim)
        if min(x.shape[-2:]) < 2**self.pools:
            raise SpikedistillError(
                f"sew_7b_wide halves the map {self.pools} times; frames of {x.shape[-2]}x{x.shape[-1]} are "
                f"too small: set pools to at most {min(x.shape[-2:]).bit_length() - 1}"
            )

    def body(self, x: Tensor) -> Tensor:
        for path in self.stage_paths():
            x = self.get_submodule(path)(x)
        return self.head(self.flatten(self.pool(x)))


class DVSGestureCNN(Network):
    """Five layers without bias or norm, sum-pooling, spiking output: 25,504 parameters (11 classes, 32x32).

    conv 5x5/2 16 -> conv 3x3 16 -> sum-pool -> conv 3x3 8 -> sum-pool -> linear 256 -> linear K, a neuron
    behind each. Arfa, Vogginger, Liu, Partzsch, Schöne, Mayr, "Efficient deployment of spiking neural
    networks on SpiNNaker2 for DVS gesture recognition using neuromorphic intermediate representation", NICE
    2025; layers and neuron second hand.
    """

    def __init__(
        self,
        width: float = 1.0,
        neuron: NeuronChoice = None,
        image_size: int = 32,
        head: str = "spiking",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        make = Builder(self, neuron, GESTURE_NEURON)
        c1, c2, hidden = scaled(16, width), scaled(8, width), scaled(256, width)
        self.image_size = image_size
        side = ((image_size - 3) // 2 + 1) // 2 // 2
        if side < 1:
            raise SpikedistillError(f"image_size must be at least 9, found {image_size}")
        self.conv1, self.neuron1 = (
            nn.Conv2d(self.in_channels, c1, 5, 2, 1, bias=False),
            make.activation(first=True),
        )
        self.conv2, self.neuron2 = nn.Conv2d(c1, c1, 3, 1, 1, bias=False), make.activation()
        # A sum: an average that is divided by 1.
        self.pool1 = nn.AvgPool2d(2, divisor_override=1)
        self.conv3, self.neuron3 = nn.Conv2d(c1, c2, 3, 1, 1, bias=False), make.activation()
        self.pool2 = nn.AvgPool2d(2, divisor_override=1)
        self.flatten = nn.Flatten()
        self.fc1, self.fc1_neuron = nn.Linear(c2 * side * side, hidden, bias=False), make.activation()
        self.head = make.head(hidden, head, bias=False, pooled=False)
        initialise(self)
        # Behind ``initialise``, which would draw the convolutions anew.
        make.start_without_norm(self.conv1, 1.0)  # event counts; sd.balance finds what the data have
        make.start_without_norm(self.conv2, make.rate)
        pooled = 4 * make.rate + 12 * make.rate**2  # mean square of a sum of four spikes
        make.start_without_norm(self.conv3, pooled)
        make.start_without_norm(self.fc1, pooled)

    def check(self, x: Tensor, sim: Simulation) -> None:
        super().check(x, sim)
        if tuple(x.shape[-2:]) != (self.image_size, self.image_size):
            raise SpikedistillError(
                f"dvs_gesture_cnn was made for {self.image_size}x{self.image_size}, found "
                f"{x.shape[-2]}x{x.shape[-1]}; set image_size, or resize the frames"
            )

    balanced_by = "data"  # event counts, no norms

    def stage_paths(self) -> list[str]:
        return ["neuron1", "neuron2", "neuron3"]

    def body(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.conv1(x))
        x = self.pool1(self.neuron2(self.conv2(x)))
        x = self.pool2(self.neuron3(self.conv3(x)))
        return self.head(self.fc1_neuron(self.fc1(self.flatten(x))))


GESTURES: Common = {**EVENT_FRAMES, "num_classes": 11}
NAMES: dict[str, Callable[..., Network]] = {
    "sew_7b_wide": partial(SEW7B, **EVENT_FRAMES),
    "dvs_gesture_cnn": partial(DVSGestureCNN, **GESTURES),
}
