"""Every named network in a size that trains in a blink: options and an input of the right form."""

import torch
from torch import Tensor

from spikedistill import networks

NAMES = networks.names()
# One of each kind of block; the others differ from these in depth and width only.
KINDS = [
    *("conv6", "svgg11", "resnet18", "resnet19", "resnet20", "sew_resnet20", "ms_resnet18", "ms_resnet50"),
    *(
        "spikformer_4_256",
        "spikingformer_4_256",
        "spikingformer_2_256",
        "hdkd_teacher",
        "hdkd_student",
        "sresnet8",
    ),
    *("sew_7b_wide", "dvs_gesture_cnn", "spike_driven_2_256", "qkformer_4_384", "qkformer_2_256"),
]
EVENTS = ("sew_7b_wide", "dvs_gesture_cnn", "spikformer_2_256", "spikingformer_2_256", "qkformer_2_256")
FRAMES = 4


def options(name: str) -> dict[str, object]:
    if name == "sew_7b_wide":
        return {"width": 0.125, "pools": 3}
    if name == "dvs_gesture_cnn":
        return {"width": 0.5, "image_size": 16}
    if name == "sresnet8":
        return {"width": 0.125, "features": 5}
    if name.startswith("qkformer"):
        return {"width": 0.25, "depth": 4}
    if name.startswith("spike_driven"):
        return {"width": 0.125, "depth": 1, "pools": 2}
    if "former" in name:
        return {"width": 0.0834, "depth": 1, "pools": 2}
    return {"width": 0.25 if name.endswith("56") else 0.125}


def example(name: str, n: int = 2, size: int = 16) -> Tensor:
    if name in EVENTS:
        return torch.poisson(torch.full((n, FRAMES, 2, 16, 16), 0.5))
    if name == "sresnet8":
        return torch.rand(n, 1, 5, 12)
    return torch.rand(n, 3, size, size)


def make(name: str, **given: object) -> networks.Network:
    return networks.create(name, **{"num_classes": 5, **options(name), **given})
