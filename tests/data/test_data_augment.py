import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from spikedistill.data import augment
from spikedistill.data.config import AugmentConfig, DataConfig, EventAugmentConfig, augmentation
from spikedistill.data.events_augment import affine, augment_events, roll
from spikedistill.errors import SpikedistillError


def picture(n: int = 64, size: int = 8) -> Tensor:
    """Every pixel of every image has its own value, so positions can be read back."""
    return (
        torch.arange(1, size * size + 1, dtype=torch.uint8)
        .view(1, 1, size, size)
        .expand(n, 2, -1, -1)
        .clone()
    )


def test_crop_takes_a_window_of_the_padded_image_per_image() -> None:
    x = picture()
    out = augment.crop(x, 2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    shifts = set()
    for image, big in zip(out, padded):
        here = [
            (a, b) for a in range(5) for b in range(5) if torch.equal(image, big[:, a : a + 8, b : b + 8])
        ]
        assert len(here) == 1
        shifts.add(here[0])
    assert len(shifts) > 15
    assert out.dtype == torch.uint8


def test_reflecting_crop_invents_no_zeros() -> None:
    assert augment.crop(picture(), 3, "reflect").min() >= 1


def test_flip_mirrors_about_half_of_the_images_whole() -> None:
    x = picture(1000)
    out = augment.flip(x)
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(same.sum()) - 500) < 5 * math.sqrt(250)


def test_cutout_empties_one_square_cut_at_the_border() -> None:
    x = torch.ones(500, 3, 16, 16)
    empty = augment.cutout(x, 6) == 0
    assert (empty.any(1) == empty.all(1)).all()
    counts = empty[:, 0].flatten(1).sum(1)
    assert counts.max() == 36
    assert counts.min() >= 9
    for mask in empty[:, 0]:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns


def test_erasing_replaces_a_rectangle_in_the_asked_part_of_images() -> None:
    x = torch.full((2000, 1, 32, 32), 2.0)
    out = augment.erase(x, 0.25)
    hit = (out != 2).flatten(1).any(1).float().mean()
    assert abs(hit - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)
    part = (out != 2).flatten(1).float().mean(1)
    assert part.max() < 0.4
    assert out[out != 2].max() <= 1
    torch.manual_seed(2)
    grey = augment.erase(x, 0.25, torch.tensor([0.4]))
    torch.manual_seed(2)
    noise = augment.erase(x, 0.25)
    assert torch.equal(grey == 0.4, noise != 2)
    assert set(grey.unique().tolist()) == {float(torch.tensor(0.4)), 2.0}


@pytest.mark.parametrize("mixup", [0.8, 0.0])
def test_mixed_labels_weigh_what_the_pixels_hold(mixup: float) -> None:
    # image k is constant k, so the mean over pixels tells which parts it was made of
    y = torch.arange(10)
    x = y.float().view(10, 1, 1, 1).expand(10, 1, 32, 32).clone()
    out, target = augment.mix(x, y, 10, mixup, 1.0 - mixup, 1.0)
    assert target.shape == (10, 10)
    torch.testing.assert_close(target.sum(1), torch.ones(10))
    torch.testing.assert_close(out.mean((1, 2, 3)), target @ y.float(), atol=1e-4, rtol=1e-4)
    assert (target > 0).sum() > 10


def test_mix_with_probability_zero_gives_one_hot_floats() -> None:
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 2, 1, 2])
    out, target = augment.mix(x, y, 3, 1.0, 0.0, 0.0)
    assert torch.equal(out, x)
    assert torch.equal(target, torch.eye(3)[y])


def test_resized_crop_of_the_whole_area_with_square_sides_keeps_the_mean() -> None:
    x = torch.rand(64, 1, 16, 16)
    out = augment.resized_crop(x, (0.5, 1.0))
    assert out.shape == x.shape
    assert out.min() >= x.min()
    assert out.max() <= x.max()
    # a ramp along x stays a ramp whose slope is the part of the width that was kept
    ramp = torch.arange(16.0).expand(200, 1, 16, 16)
    slope = augment.resized_crop(ramp, (0.25, 0.25))[:, 0, 8].diff(dim=1)[:, 4:12].mean(1)
    low, high = math.sqrt(0.25 * 3 / 4), math.sqrt(0.25 * 4 / 3)
    assert slope.min() >= low - 1e-4
    assert slope.max() <= high + 1e-4


def test_seeded_repeats_and_puts_every_generator_back() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002

    with augment.seeded(5):
        first = draw()
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    outside = draw()
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    with augment.seeded(5):
        assert draw() == first
    assert draw() == outside


@pytest.mark.parametrize(
    "words",
    [{"randaugment": "rand-m9-mstd0.5-inc1"}, {"randaugment": {"n": 2, "m": 9}}, {"autoaugment": "cifar10"}],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_shape_and_type(words: dict[str, object], channels: int) -> None:
    policy = augment.policy(AugmentConfig.model_validate(words))
    assert policy is not None
    x = torch.randint(0, 256, (channels, 16, 16), dtype=torch.uint8)
    changed = 0
    for seed in range(30):
        with augment.seeded(seed):
            out = policy(x)
        assert out.shape == x.shape
        assert out.dtype == torch.uint8
        changed += not torch.equal(out, x)
    assert changed > 10


def test_timm_strings_are_checked_and_strongest_posterize_is_black() -> None:
    with pytest.raises(SpikedistillError, match="cannot read 'rand-q7'"):
        augment.policy(AugmentConfig(randaugment="q7"))
    with pytest.raises(SpikedistillError, match="keep one"):
        augment.policy(AugmentConfig(randaugment="m9", autoaugment="cifar10"))
    from PIL import Image

    image = Image.fromarray(np.full((4, 4, 3), 255, np.uint8))
    assert np.asarray(augment._posterize(image, 0)).max() == 0
    assert np.asarray(augment._posterize(image, 1)).max() == 128


def test_names_bring_defaults_that_words_override_one_by_one() -> None:
    assert augmentation(DataConfig(name="cifar10")) == AugmentConfig(crop=4, flip=True)
    assert augmentation(DataConfig(name="digits")) == AugmentConfig()
    over = augmentation(DataConfig(name="cifar10", augment=AugmentConfig(flip=False, cutout=16)))
    assert over == AugmentConfig(crop=4, cutout=16)


def test_roll_moves_each_sample_by_its_own_amount() -> None:
    x = torch.randint(0, 9, (3, 2, 2, 5, 7)).float()
    down, right = torch.tensor([1, -2, 0]), torch.tensor([0, 3, -1])
    out = roll(x, down, right)
    for i in range(3):
        assert torch.equal(out[i], x[i].roll((int(down[i]), int(right[i])), (-2, -1)))


def test_quarter_turns_are_exact() -> None:
    x = torch.randint(0, 9, (2, 3, 2, 6, 6)).float()
    turned = affine(x, torch.tensor([90.0, 180.0]), torch.zeros(2))
    assert torch.equal(turned[1], x[1].flip(-1, -2))
    assert torch.equal(turned[0], x[0].rot90(-1, (-2, -1))) or torch.equal(turned[0], x[0].rot90(1, (-2, -1)))


def test_shear_slides_rows_in_proportion_to_their_height() -> None:
    x = torch.zeros(1, 1, 1, 9, 9)
    x[..., 4] = 1
    out = affine(x, torch.zeros(1), torch.tensor([45.0]))[0, 0, 0]
    columns = out.argmax(1)
    assert columns.tolist() in (list(range(9)), list(range(8, -1, -1)))


def test_event_augmentation_is_one_draw_for_all_frames_and_keeps_whole_counts() -> None:
    frame = torch.randint(0, 5, (32, 1, 2, 12, 12)).float()
    x = frame.expand(-1, 4, -1, -1, -1).clone()
    out = augment_events(x, EventAugmentConfig(nda=True))
    assert (out == out[:, :1]).all()
    assert (out == out.round()).all()
    assert not torch.equal(out, x)
    assert torch.equal(augment_events(x, EventAugmentConfig()), x)


def test_all_applies_what_one_chooses_from() -> None:
    x = torch.ones(400, 1, 1, 8, 8)
    cut = {
        pick: augment_events(x, EventAugmentConfig(roll=1, cutout=4, pick=pick)) for pick in ("one", "all")
    }
    part = {pick: float((out == 0).flatten(1).any(1).float().mean()) for pick, out in cut.items()}
    assert part["all"] == 1
    assert abs(part["one"] - 0.5) < 0.13
