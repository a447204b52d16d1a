"""Distortions against torchvision's functions, image by image, on the same draws."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as T

from spikedistill import data as datasets
from spikedistill.data import distort
from spikedistill.data.config import AugmentConfig, DataConfig
from spikedistill.errors import SpikedistillError


def pictures(n=6, channels=3, size=(11, 15)):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, channels, *size, generator=generator)


def one_by_one(x, function, draws):
    return torch.stack([function(image, draw) for image, draw in zip(x, draws.tolist())])


@pytest.mark.parametrize("channels", [1, 3])
def test_each_is_torchvisions(channels):
    x = pictures(channels=channels)
    factors = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.3, 2.0])
    close = {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(
        distort.brightness(x, factors), one_by_one(x, T.adjust_brightness, factors), **close
    )
    torch.testing.assert_close(
        distort.contrast(x, factors), one_by_one(x, T.adjust_contrast, factors), **close
    )
    torch.testing.assert_close(
        distort.sharpness(x, factors), one_by_one(x, T.adjust_sharpness, factors), **close
    )
    sigmas = torch.tensor([0.1, 0.4, 0.8, 1.1, 1.6, 2.0])
    for side in (3, 5):
        want = one_by_one(
            x, lambda image, sigma, side=side: T.gaussian_blur(image, [side, side], [sigma, sigma]), sigmas
        )
        torch.testing.assert_close(distort.blur(x, side, sigmas), want, **close)
    angles = torch.tensor([-170.0, -33.0, 0.0, 21.0, 90.0, 180.0])
    torch.testing.assert_close(distort.rotate(x, angles), one_by_one(x, T.rotate, angles), **close)


def test_a_quarter_turn_is_against_the_clock():
    x = pictures(size=(8, 8))
    torch.testing.assert_close(distort.rotate(x, torch.full((6,), 90.0)), torch.rot90(x, 1, (2, 3)))


def test_images_too_small_to_sharpen_stay():
    x = pictures(size=(2, 9))
    assert torch.equal(distort.sharpness(x, torch.full((6,), 2.0)), x)


def test_draws_cover_their_range_one_for_each_image():
    x = torch.full((4000, 1, 4, 4), 0.5)
    config = AugmentConfig(brightness=0.3)
    torch.manual_seed(0)
    factors = distort.distort(x, config)[:, 0, 0, 0] / 0.5
    assert 0.7 <= factors.min() < 0.702
    assert 1.298 < factors.max() <= 1.3
    assert abs(float(factors.mean()) - 1) < 5 * 0.3 / 3**0.5 / 4000**0.5
    half = x.clone()
    half[:, :, :2] = 1
    flipped = (distort.distort(half, AugmentConfig(vertical_flip=True))[:, 0, 0, 0] == 0.5).sum()
    assert abs(int(flipped) - 2000) < 5 * 1000**0.5
    edge = torch.zeros(4000, 1, 4, 4)
    edge[:, :, :, 2:] = 0.5
    sharp = (distort.distort(edge, AugmentConfig(sharpness=2.0)) != edge).flatten(1).any(1).sum()
    assert abs(int(sharp) - 2000) < 5 * 1000**0.5


def test_brightness_and_contrast_come_in_either_order():
    x = torch.full((2000, 1, 4, 4), 0.9)
    x[:, :, :2] = 0.1
    torch.manual_seed(1)
    out = distort.distort(x, AugmentConfig(brightness=0.3, contrast=0.3))
    torch.manual_seed(1)
    light, grey = (1 + (torch.rand(2000) * 2 - 1) * 0.3 for _ in range(2))
    first = torch.rand(2000) < 0.5
    for image, a, b, light_first, got in zip(x, light.tolist(), grey.tolist(), first.tolist(), out):
        want = T.adjust_contrast(T.adjust_brightness(image, a), b)
        if not light_first:
            want = T.adjust_brightness(T.adjust_contrast(image, b), a)
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_nothing_is_drawn_or_changed_unasked():
    x = pictures()
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    assert distort.distort(x, AugmentConfig()) is x
    assert torch.equal(torch.rand(1), want)


def test_training_images_are_distorted_and_test_images_are_not():
    rng = np.random.default_rng(0)
    arrays = {f"{k}_{s}": v for s in ("train", "test") for k, v in (
        ("x", rng.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)), ("y", np.arange(40) % 2)
    )}  # fmt: skip
    options = {
        "rotate": 180,
        "vertical_flip": True,
        "brightness": 0.3,
        "contrast": 0.3,
        "sharpness": 2,
        "blur": 3,
    }
    found = datasets.from_arrays(arrays, DataConfig(name="arrays", augment=options), [1])
    for split, train in (("train", True), ("test", False)):
        torch.manual_seed(0)
        x = next(found.batches(split, 8, train=train))[0]
        raw = {
            tuple(v.flatten().tolist()) for v in torch.from_numpy(arrays[f"x_{split}"]).permute(0, 3, 1, 2)
        }
        kept = sum(tuple((image * 255).round().int().flatten().tolist()) in raw for image in x)
        assert kept == (0 if train else 8)
        assert 0 <= float(x.min()) <= float(x.max()) <= 1


def test_a_blur_without_a_middle_or_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="must be odd"):
        AugmentConfig(blur=4)
    with pytest.raises(SpikedistillError, match=r"blur: 9 pixels on images of \(4, 4\)"):
        distort.blur(torch.rand(1, 1, 4, 4), 9, torch.ones(1))
