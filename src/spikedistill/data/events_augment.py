"""Augmentation of event frames: one draw per sample, the same movement for all of its frames."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .augment import boxes, flip
from .config import EventAugmentConfig
from .draws import drawn

# After Li, Kim, Park, Geller, Panda, "Neuromorphic data augmentation for training spiking neural networks",
# ECCV 2022: flip, then one of rolling, rotation, shear, cutout. Sizes: our reading of the weaker setting.
NDA = EventAugmentConfig(roll=5, rotate=30.0, shear=16.7, cutout=8, flip=True, pick="one")


def augment_events(x: Tensor, config: EventAugmentConfig) -> Tensor:
    """Roll, rotate, shear, cut out and flip samples at random; counts stay whole (nearest pixel taken).

    Shape: (N, F, C, H, W) -> same.
    """
    if config.nda:
        config = NDA
    given = [name for name in ("roll", "rotate", "shear", "cutout") if getattr(config, name)]
    if given:
        n = len(x)
        chosen = drawn(lambda n: torch.randint(len(given), (n,)), n) if config.pick == "one" else None
        active = {
            name: torch.ones(n) if chosen is None else (chosen == i).float() for i, name in enumerate(given)
        }
        amount = {
            name: (drawn(torch.rand, n) * 2 - 1) * active[name] * getattr(config, name) for name in given
        }
        if "rotate" in amount or "shear" in amount:
            x = affine(x, amount.get("rotate", torch.zeros(n)), amount.get("shear", torch.zeros(n)))
        if "roll" in amount:
            limit = config.roll
            steps = drawn(lambda n: torch.randint(-limit, limit + 1, (2, n)), n, 1) * active["roll"].long()
            x = roll(x, steps[0], steps[1])
        if "cutout" in amount:
            # Side 0, where cutout is not the one chosen, masks nothing.
            sides = drawn(lambda n: torch.randint(1, config.cutout + 1, (n,)), n) * active["cutout"].long()
            x = x.masked_fill(boxes(x, sides, sides)[:, None], 0)
    return flip(x) if config.flip else x


def roll(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Sample i moved ``down[i]`` rows and ``right[i]`` columns; what leaves on one side enters on the other.

    Shape: (N, F, C, H, W), (N,), (N,) -> (N, F, C, H, W).
    """
    n, h, w = len(x), x.shape[-2], x.shape[-1]
    rows = (torch.arange(h) - down[:, None]) % h
    columns = (torch.arange(w) - right[:, None]) % w
    # One gather, since torch.roll moves all samples alike.
    index = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, 1, h * w).to(x.device)
    return x.flatten(3).gather(3, index.expand(*x.shape[:3], h * w)).view_as(x)


def affine(x: Tensor, degrees: Tensor, shear: Tensor) -> Tensor:
    """Sample i turned by ``degrees[i]`` about the centre, then sheared along x by ``shear[i]``; zeros enter.

    Output pixel p shows input pixel ``R S p`` in coordinates about the centre (nearest).

    Shape: (N, F, C, H, W), (N,), (N,) -> (N, F, C, H, W).
    """
    n, h, w = len(x), x.shape[-2], x.shape[-1]
    angle, slope = degrees * (math.pi / 180), torch.tan(shear * (math.pi / 180))
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros(n, 2, 3)
    # affine_grid's axes both run from -1 to 1: the ratio of sides keeps turns free of distortion
    matrix[:, 0, 0], matrix[:, 0, 1] = cos, (cos * slope - sin) * (h / w)
    matrix[:, 1, 0], matrix[:, 1, 1] = sin * (w / h), sin * slope + cos
    grid = F.affine_grid(matrix, [n, 1, h, w], align_corners=False).to(x.device)
    return F.grid_sample(x.flatten(1, 2), grid, mode="nearest", align_corners=False).view_as(x)
