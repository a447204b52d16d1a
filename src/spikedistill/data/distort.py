"""Distortions of photographs: rotation, light, sharpness, blur; whole batches in [0, 1], one draw per image.

Each function takes its draws and is torchvision's function of the same purpose, image by image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SpikedistillError
from .config import AugmentConfig
from .draws import drawn
from .events_augment import affine

GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def distort(x: Tensor, config: AugmentConfig) -> Tensor:
    """The distortions that ``config`` asks for, in the order of HDKD's code; the CPU's generator draws.

    Shape: (N, C, H, W) -> same.
    """
    n = len(x)
    if config.rotate:
        x = rotate(x, _spread(n, config.rotate))
    if config.vertical_flip:
        x = torch.where(_column(drawn(torch.rand, n) < 0.5, x), x.flip(-2), x)
    if config.brightness or config.contrast:
        light, range_of_grey = 1 + _spread(n, config.brightness), 1 + _spread(n, config.contrast)
        light_first = drawn(torch.rand, n) < 0.5
        # Either order, by image, without splitting the batch: a factor of 1 changes nothing.
        x = brightness(x, torch.where(light_first, light, 1.0))
        x = contrast(x, range_of_grey)
        x = brightness(x, torch.where(light_first, 1.0, light))
    if config.sharpness != 1:
        x = sharpness(x, torch.where(drawn(torch.rand, n) < 0.5, config.sharpness, 1.0))
    if config.blur:
        x = blur(x, config.blur, drawn(lambda n: torch.empty(n).uniform_(0.1, 2.0), n))
    return x


def _spread(n: int, limit: float) -> Tensor:
    return (drawn(torch.rand, n) * 2 - 1) * limit


def _column(draws: Tensor, x: Tensor) -> Tensor:
    """One number an image, (N, 1, 1, 1), where ``x`` is."""
    return draws.view(-1, 1, 1, 1).to(x.device)


def _blend(x: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    """``factor x + (1 - factor) other``, cut to [0, 1]."""
    return torch.lerp(other, x, _column(factors, x)).clamp(0, 1)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Image i turned about its centre by ``degrees[i]``, against the clock; nearest pixel, zeros enter."""
    return affine(x[:, None], degrees, torch.zeros(len(x)))[:, 0]


def brightness(x: Tensor, factors: Tensor) -> Tensor:
    """Image i times ``factors[i]``, cut to [0, 1]."""
    return _blend(x, torch.zeros_like(x), factors)


def contrast(x: Tensor, factors: Tensor) -> Tensor:
    """Distances from the image's mean grey times ``factors[i]``, cut to [0, 1]."""
    grey = (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x
    return _blend(x, grey.mean((1, 2, 3), keepdim=True).expand_as(x), factors)


def sharpness(x: Tensor, factors: Tensor) -> Tensor:
    """Distances from a slightly smoothed image times ``factors[i]``, cut to [0, 1]; the border stays."""
    if min(x.shape[-2:]) < 3:
        return x
    # torchvision's kernel, which is Pillow's: eight neighbours of 1 and a middle of 5, over 13.
    kernel = x.new_ones(1, 1, 3, 3) / 13
    kernel[..., 1, 1] *= 5
    inner = F.conv2d(x.flatten(0, 1)[:, None], kernel)[:, 0]
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = inner.unflatten(0, x.shape[:2])
    return _blend(x, smooth, factors)


def blur(x: Tensor, side: int, sigmas: Tensor) -> Tensor:
    """Image i smoothed by a Gaussian of deviation ``sigmas[i]`` on a square of ``side``, edges reflected."""
    reach = side // 2
    if reach >= min(x.shape[-2:]):
        raise SpikedistillError(
            f"data.augment.blur: {side} pixels on images of {tuple(x.shape[-2:])}; give a smaller side"
        )
    # Each image has a kernel of its own: sums of shifted views instead of a convolution, rows then columns.
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigmas[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(x.device)
    taps = kernel.view(*kernel.shape, 1, 1, 1).unbind(1)
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = torch.stack([row * tap for row, tap in zip(_windows(x, -2, side), taps)]).sum(0)
    return torch.stack([column * tap for column, tap in zip(_windows(x, -1, side), taps)]).sum(0)


def _windows(x: Tensor, dim: int, side: int) -> list[Tensor]:
    """``side`` views of ``x``, each a pixel further along ``dim``."""
    return [x.narrow(dim, i, x.shape[dim] - side + 1) for i in range(side)]
