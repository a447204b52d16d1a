"""Processes that share a batch see what one process would."""

import numpy as np
import pytest
import torch

from spikedistill import data as sets
from spikedistill.data import AudioConfig, AugmentConfig, DataConfig, from_arrays
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


SOUND = {
    "plain": ({}, {}),
    "shifted": ({"shift_ms": 40.0}, {}),
    "noisy": ({"noise": 0.5}, {}),
    "mixup": ({"shift_ms": 40.0, "noise": 0.5}, {"mixup": 0.4}),
    "cutmix": ({"shift_ms": 40.0, "noise": 0.5}, {"cutmix": 1.0, "crop": 1, "flip": True}),
    "policy": ({"shift_ms": 40.0, "noise": 0.5}, {"mixup": 0.4, "randaugment": {"n": 1, "m": 5}}),
}


def recordings(folder, name, **more):
    """30 recordings of a quarter of a second of noise, each louder than the one before."""
    rng = np.random.default_rng(0)
    waves = (rng.normal(size=(30, 2000)) * np.linspace(300, 3000, 30)[:, None]).astype(np.int16)
    off, label = np.arange(31) * 2000, np.arange(30) % 3
    np.savez(folder / "a.npz", audio=waves.reshape(-1), off=off, label=label, rate=8000)
    sound, others = SOUND[name]
    return DataConfig(
        name="audio", train=folder / "a.npz", test=folder / "a.npz", validation=0.0,
        augment=AugmentConfig(audio=sound, **others), **more,
    )  # fmt: skip


def whole_and_parts(data, split, size, world):
    """Per batch of one process: x, y, the generator's end; and the same of each of ``world``."""

    def read(shard):
        torch.manual_seed(3)
        found = []
        for x, y in data.batches(split, size, train=True, epoch=1, seed=2, shard=shard):
            found.append((x, y, torch.get_rng_state()))
            torch.manual_seed(4 + len(found))
        return found

    return read((0, 1)), [read((rank, world)) for rank in range(world)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("name", "output"), [*((name, "image") for name in SOUND), ("shifted", "frames"), ("mixup", "frames")]
)
def test_sound_too(name, output, world, tmp_path):
    audio = AudioConfig(seconds=0.25, mels=16, output=output)
    data = sets.open(recordings(tmp_path, name, audio=audio), (2,))
    whole, parts = whole_and_parts(data, "train", 12, world)
    assert len(whole) == 2
    # A transform of fewer rows may round otherwise: a feature then lies one level higher or lower.
    level = 1 / 255 if output == "image" else 1.0
    for rank, part in enumerate(parts):
        for (x, y, end), (mine, labels, own) in zip(whole, part, strict=True):
            assert (mine - x[rank::world]).abs().max() <= 1.01 * level
            assert (mine != x[rank::world]).float().mean() < 0.01
            assert torch.equal(labels, y[rank::world])
            assert torch.equal(own, end)


def test_sound_of_two_stores_is_drawn_as_one_batch(tmp_path):
    config = recordings(tmp_path, "mixup", audio=AudioConfig(seconds=0.25, mels=16), test_from_train=6)
    whole, parts = whole_and_parts(sets.open(config), "test", 9, 3)
    assert len(whole) == 4
    for rank, part in enumerate(parts):
        for (x, y, end), (mine, labels, own) in zip(whole, part, strict=True):
            assert (mine - x[rank::3]).abs().max() <= 1.01 / 255
            assert torch.equal(labels, y[rank::3])
            assert torch.equal(own, end)


def test_a_process_without_a_row_of_a_small_batch_of_sound_gets_none(tmp_path):
    for output, shape in (("image", (0, 1, 16, 14)), ("frames", (0, 2, 1, 16, 7))):
        audio = AudioConfig(seconds=0.25, mels=16, output=output)
        data = sets.open(recordings(tmp_path, "noisy", audio=audio), (2,))
        *_, (x, y) = data.batches("test", 29, shard=(1, 2))
        assert tuple(x.shape) == shape
        assert len(y) == 0


def test_only_the_own_samples_are_read(monkeypatch):
    x, y = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 4
    data = from_arrays({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, DataConfig())
    read = []
    take = module.Split.take
    monkeypatch.setattr(module.Split, "take", lambda self, p, *a: (read.append(len(p)), take(self, p, *a))[1])
    for _ in data.batches("train", 12, train=True, shard=(1, 3)):
        pass
    assert set(read) == {4}
