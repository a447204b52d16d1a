"""Processes that share a batch see what one process would."""

import numpy as np
import pytest
import torch

from spikedistill.data import AugmentConfig, DataConfig, from_arrays
from spikedistill.data import base as module

IMAGES = {
    "plain": {},
    "moves": {"crop": 2, "flip": True, "resized_crop": (0.5, 1.0), "cutout": 3, "erasing": 0.5},
    "distorted": {
        "rotate": 20.0, "vertical_flip": True, "brightness": 0.3, "contrast": 0.3, "sharpness": 2.0,
        "blur": 3,
    },
    "mixup": {"crop": 1, "mixup": 0.4},
    "cutmix": {"flip": True, "cutmix": 1.0, "erasing": 0.5},
    "both": {"crop": 1, "mixup": 0.4, "cutmix": 1.0, "mix_probability": 0.7, "randaugment": {"n": 1, "m": 5}},
}  # fmt: skip


def batches(data, shard=(0, 1)):
    found = []
    torch.manual_seed(3)
    for x, y in data.batches("train", 12, train=True, epoch=1, seed=2, shard=shard):
        found.append((x, y))
        torch.manual_seed(4 + len(found))
    return found


def check(data, world):
    whole = batches(data)
    for rank in range(world):
        for (x, y), (mine, labels) in zip(whole, batches(data, (rank, world)), strict=True):
            assert torch.equal(mine, x[rank::world])
            assert torch.equal(labels, y[rank::world])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_parts_of_a_batch_are_parts_of_the_whole(name, world):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8), np.arange(40) % 4
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    check(from_arrays(arrays, DataConfig(augment=AugmentConfig(**IMAGES[name]))), world)


@pytest.mark.parametrize("pick", ["one", "all"])
def test_frames_too(pick):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (40, 2, 2, 8, 8)).astype(np.uint8), np.arange(40) % 4
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    events = {"roll": 2, "rotate": 20.0, "shear": 10.0, "cutout": 3, "flip": True, "pick": pick}
    check(from_arrays(arrays, DataConfig(augment=AugmentConfig(events=events, mixup=0.5))), 2)


def test_only_the_own_samples_are_read(monkeypatch):
    x, y = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 4
    data = from_arrays({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, DataConfig())
    read = []
    take = module.Split.take
    monkeypatch.setattr(module.Split, "take", lambda self, p, *a: (read.append(len(p)), take(self, p, *a))[1])
    for _ in data.batches("train", 12, train=True, shard=(1, 3)):
        pass
    assert set(read) == {4}
