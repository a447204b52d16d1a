"""Somebody else's module in a :class:`Network`: normalised images of its own size in, logits out."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import SpikedistillError
from ...neurons.strided import guard
from ..base import Input, Network

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


class Wrapped(Network):
    """``model`` as a network: state-dict keys are the model's own behind ``model.``.

    ``input_size``: images are resized to (H, W) before they enter the model (None: as they come). ``aliases``
    maps the model's own paths to the network's; ``notes`` says in words what was changed.
    Shape: (N, C, H, W) in [0, 1] to (N, K); what the model returns beside its first tensor is dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        in_channels: int = 3,
        input: Input = "image",
        time_steps: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        input_size: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(num_classes, in_channels, input, time_steps, "direct", mean, std)
        if interpolation not in INTERPOLATIONS:
            raise SpikedistillError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, found {interpolation!r}"
            )
        self.model = guard(model)
        self.input_size = (
            (input_size, input_size) if isinstance(input_size, int) else tuple(input_size or ()) or None
        )
        self.interpolation = interpolation
        self.aliases: dict[str, str] = {name: f"model.{name}" for name, _ in model.named_modules() if name}
        self.notes: list[str] = []

    def stage_paths(self) -> list[str]:
        """The model's children named stageN or layerN, if any; else taps find stages by resolution."""
        return [
            f"model.{name}"
            for name, _ in self.model.named_children()
            if re.fullmatch(r"(stage|layer)\d+", name)
        ]

    def resize(self, x: Tensor) -> Tensor:
        """To the model's own input size."""
        if self.input_size is None or tuple(x.shape[-2:]) == self.input_size:
            return x
        # interpolate refuses align_corners and antialias with it.
        if self.interpolation == "nearest":
            return F.interpolate(x, self.input_size, mode="nearest")
        # antialias: as PIL and torchvision shrink images, so that the model sees what it was trained on.
        return F.interpolate(x, self.input_size, mode=self.interpolation, align_corners=False, antialias=True)

    def body(self, x: Tensor) -> Tensor:
        """Resize, then the model."""
        return first_tensor(self.model(self.resize(x)))


def first_tensor(out: Any) -> Tensor:
    """A model's logits: the first tensor of what it returns."""
    while not isinstance(out, Tensor):
        out = next(iter(out.values())) if isinstance(out, dict) else out[0]
    return out


def published(model: nn.Module) -> dict[str, Any]:
    """timm's data configuration of a model (mean, std, input_size ...), or nothing."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return dict(config) if isinstance(config, dict) else {}


def own_size(model: nn.Module) -> tuple[int, int] | None:
    """The one image size (H, W) that a model takes (some transformers of timm and torchvision); None: any."""
    if isinstance(side := getattr(model, "image_size", None), int):  # torchvision
        return side, side
    if not published(model).get("fixed_input_size"):
        return None
    height, width = (
        getattr(getattr(model, "patch_embed", None), "img_size", None) or published(model)["input_size"][-2:]
    )
    return int(height), int(width)


def statistics(
    model: nn.Module, channels: int, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[Any, Any]:
    """mean and std: as given, else timm's of the model (averaged where the channels differ), else 0 and 1."""
    config = published(model)

    def own(key: str, default: float) -> Any:
        values = config.get(key)
        if values is None:
            return default
        return tuple(values) if len(values) == channels else sum(values) / len(values)

    return (own("mean", 0.0) if mean is None else mean), (own("std", 1.0) if std is None else std)


def input_channels(model: nn.Module) -> int:
    """Channels of the first convolution, else 3."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3
