"""Augmentation of whole batches of images, one draw per image.

All draws are made on the CPU from torch's global generator, so they do not depend on the device and a
training loop that seeds it before every step gets the same batch again.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SpikedistillError
from .config import AugmentConfig, RandAugmentConfig
from .draws import drawn


def crop(x: Tensor, padding: int, fill: str = "zero") -> Tensor:
    """Each image (N, C, H, W) moved by a draw from -padding..padding in both directions, at its old size."""
    n, _, h, w = x.shape
    if padding >= min(h, w):
        raise SpikedistillError(
            f"augment.crop: a padding of {padding} pixels would move images of {h}x{w} out of sight; give "
            f"less than {min(h, w)}"
        )
    if fill == "reflect":
        # torch reflects no bytes; float32 holds them exactly on the way.
        padded = F.pad(x.float(), (padding,) * 4, mode="reflect").to(x.dtype)
    else:
        padded = F.pad(x, (padding,) * 4)
    down, right = drawn(lambda n: torch.randint(0, 2 * padding + 1, (2, n)), n, 1).to(x.device)
    # A view of every window: only those that were drawn are copied.
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)
    return windows[torch.arange(n, device=x.device), :, down, right]


def resized_crop(x: Tensor, area: tuple[float, float]) -> Tensor:
    """Each image (N, C, H, W): a random part of its area, sides 3:4 to 4:3, bilinear to the old size."""
    n, _, h, w = x.shape
    part = drawn(lambda n: torch.empty(n).uniform_(*area), n)
    aspect = drawn(lambda n: torch.empty(n).uniform_(float(np.log(3 / 4)), float(np.log(4 / 3))), n).exp()
    high, wide = (part / aspect).sqrt().clamp_max(1), (part * aspect).sqrt().clamp_max(1)
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = wide, high
    matrix[:, 0, 2] = (drawn(torch.rand, n) * 2 - 1) * (1 - wide)
    matrix[:, 1, 2] = (drawn(torch.rand, n) * 2 - 1) * (1 - high)
    grid = F.affine_grid(matrix, [n, 1, h, w], align_corners=False).to(x.device)
    out = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    # Rounded: the cast alone would cut, and darken every image by half a level.
    return out.round().to(torch.uint8) if x.dtype == torch.uint8 else out


def flip(x: Tensor) -> Tensor:
    """Each image (N, ..., W) mirrored left to right with probability 1/2."""
    # nonzero on the CPU, where the draws are: on a GPU its size would have to be waited for.
    chosen = torch.nonzero(drawn(torch.rand, len(x)) < 0.5).flatten().to(x.device)
    return x.index_copy(0, chosen, x[chosen].flip(-1))


def boxes(x: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Mask (N, 1, H, W), true inside a box of the given sides around a uniform centre, cut at the border."""
    h, w = x.shape[-2:]
    n = len(x)
    centre_y, centre_x = (drawn(torch.rand, n) * h).long(), (drawn(torch.rand, n) * w).long()
    top, left = centre_y - heights // 2, centre_x - widths // 2
    rows, columns = torch.arange(h), torch.arange(w)
    inside_y = (rows >= top[:, None]) & (rows < (top + heights)[:, None])
    inside_x = (columns >= left[:, None]) & (columns < (left + widths)[:, None])
    return (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(x.device)


def cutout(x: Tensor, side: int) -> Tensor:
    """Each image (N, C, H, W) with a square of zeros around a uniform centre.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.
    """
    sides = torch.full((len(x),), side)
    return x.masked_fill(boxes(x, sides, sides), 0)


def erase(x: Tensor, probability: float, fill: Tensor | None = None) -> Tensor:
    """Some images (N, C, H, W) with a rectangle of ``fill`` (C,) or uniform noise.

    It takes 2 to 33 % of the area, sides 3:10 to 10:3. Zhong, Zheng, Kang, Li, Yang, "Random erasing data
    augmentation", AAAI 2020; area and sides from there.
    """
    n, _, h, w = x.shape
    area = drawn(lambda n: torch.empty(n).uniform_(0.02, 1 / 3), n) * h * w
    aspect = drawn(lambda n: torch.empty(n).uniform_(float(np.log(0.3)), float(np.log(1 / 0.3))), n).exp()
    heights = (area * aspect).sqrt().round().clamp(1, h).long()
    widths = (area / aspect).sqrt().round().clamp(1, w).long()
    hit = (drawn(torch.rand, n) < probability).to(x.device)
    mask = boxes(x, heights, widths) & hit.view(-1, 1, 1, 1)
    # Noise for all, hit or not: processes that share a batch have to draw alike.
    if fill is None:
        return torch.where(mask, drawn(lambda n: torch.rand(n, *x.shape[1:]), n).to(x.device), x)
    return torch.where(mask, fill.view(-1, 1, 1), x)


def mix(
    x: Tensor, y: Tensor, classes: int, mixup: float, cutmix: float, probability: float
) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself in another order; labels become (N, K) floats that sum to one.

    mixup: ``lam x + (1 - lam) x'``; cutmix: a box of the part ``1 - lam`` of the area from ``x'``;
    ``lam ~ Beta(alpha, alpha)``, one a batch; where both are on, each has probability 1/2.
    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond empirical risk minimization", ICLR 2018;
    Yun, Han, Oh, Chun, Choe, Yoo, "CutMix", ICCV 2019.

    Shape: x (N, C, H, W) or (N, F, C, H, W), y (N,) -> x, (N, K).
    """
    target = F.one_hot(y, classes).float()
    plan = mixing(len(x), (x.shape[-2], x.shape[-1]), mixup, cutmix, probability)
    if plan is None:
        return x, target
    other = plan.other.to(x.device)
    return plan(x, x[other], target, target[other])


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed: ``other`` samples (N,), ``keep`` of its own; ``box`` (H, W): what cutmix cuts."""

    keep: float
    other: Tensor
    box: Tensor | None

    def __call__(self, x: Tensor, other: Tensor, target: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and labels (N, K) with those of their partners."""
        labels = torch.lerp(others, target, self.keep)
        if self.box is None:
            return torch.lerp(other, x, self.keep), labels
        return torch.where(self.box.to(x.device), other, x), labels


def mixing(n: int, size: tuple[int, int], mixup: float, cutmix: float, probability: float) -> Mixing | None:
    """The draws of :func:`mix` for a batch of ``n``; None where it stays as it is."""
    if torch.rand(()) >= probability:
        return None
    use_mixup = mixup > 0 and (cutmix == 0 or bool(torch.rand(()) < 0.5))
    alpha = mixup if use_mixup else cutmix
    keep = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(n)
    if use_mixup:
        return Mixing(keep, other, None)
    h, w = size
    side = (1 - keep) ** 0.5
    box = boxes(torch.empty(1, 1, h, w), torch.tensor([round(h * side)]), torch.tensor([round(w * side)]))
    return Mixing(1 - float(box.float().mean()), other, box.view(h, w))  # the border may have cut the box


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All three global generators (torch's, numpy's, Python's) start from ``seed`` and are put back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from the legacy generator
    # No devices: a loader's worker must not touch the GPU, and nothing is drawn there.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU too
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def policy(config: AugmentConfig) -> Callable[[Tensor], Tensor] | None:
    """RandAugment or AutoAugment as a function of one uint8 image (C, H, W), or None.

    A string is timm's notation (its operations, their probability and magnitude noise); numbers are
    torchvision's RandAugment. Cubuk, Zoph, Shlens, Le, "RandAugment", 2020; Cubuk, Zoph, Mane, Vasudevan, Le,
    "AutoAugment", 2019.
    """
    if config.autoaugment and config.randaugment:
        raise SpikedistillError("data.augment: autoaugment and randaugment are both given; keep one")
    if config.autoaugment:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        return AutoAugment(AutoAugmentPolicy(config.autoaugment))
    if isinstance(config.randaugment, RandAugmentConfig):
        from torchvision.transforms import RandAugment

        return RandAugment(config.randaugment.n, config.randaugment.m)
    if config.randaugment:
        return _timm(config.randaugment)
    return None


class _timm:
    """timm's RandAugment on a uint8 tensor (C, H, W); shifts up to 45 % of the side, as in its loader."""

    def __init__(self, words: str) -> None:
        self.words = words if words.startswith("rand") else f"rand-{words}"
        word = r"((mstd|mmax|inc|m|n|p|w)[\d.]+|t\w+)"
        if not re.fullmatch(rf"rand(-{word})*", self.words):  # timm passes over what it does not know
            raise SpikedistillError(
                f"data.augment.randaugment: cannot read {self.words!r}; write it as in 'rand-m9-mstd0.5-inc1'"
            )
        self.operations: dict[int, Any] = {}
        # Made now, for some side: what timm refuses is said here, not by a worker at the first batch.
        self._of(32)

    def _of(self, side: int) -> Any:
        from timm.data.auto_augment import rand_augment_transform

        if side not in self.operations:
            # img_mean fills what moves in: ImageNet's mean in 0..255, as timm's loader has it.
            settings = {"translate_const": int(side * 0.45), "img_mean": (124, 116, 104)}
            try:
                made = rand_augment_transform(self.words, settings)
            except (AssertionError, ValueError, KeyError) as error:
                raise SpikedistillError(
                    f"data.augment.randaugment: cannot read {self.words!r}; "
                    "write it as in 'rand-m9-mstd0.5-inc1'"
                ) from error
            for operation in made.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
            self.operations[side] = made
        return self.operations[side]

    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms.functional import pil_to_tensor, to_pil_image

        grey = len(image) == 1  # timm fills with three colours
        picture = to_pil_image(image.expand(3, -1, -1) if grey else image)
        out = pil_to_tensor(self._of(min(image.shape[1:]))(picture))
        return out[:1] if grey else out


def _posterize(image: Any, bits: int, **_: Any) -> Any:
    """timm asks for 0 bits at the strongest setting, which newer Pillow refuses: it means black."""
    from PIL import ImageOps

    return image.point(lambda _: 0) if bits < 1 else ImageOps.posterize(image, min(bits, 8))
