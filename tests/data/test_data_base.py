from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spikedistill import data
from spikedistill.data import AudioConfig, AugmentConfig, Data, DataConfig, FramesConfig
from spikedistill.errors import SpikedistillError


def arrays(n: int = 50, size: int = 8, **more: Any) -> dict[str, Any]:
    """Image i is all i, so a batch says which samples it holds."""
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, size, size)).copy()
    y = np.arange(n) % 5
    return {"x_train": x, "y_train": y, "x_test": x[:10] + 100, "y_test": y[:10], **more}


def opened(**words: Any) -> Data:
    return data.from_arrays(arrays(), DataConfig(**{"name": "arrays", "validation": 0.0, **words}))


def ids(batch: torch.Tensor) -> list[int]:
    return (batch[:, 0, 0, 0] * 255).round().int().tolist()


def test_scattered_batches_mix_what_lies_sorted_by_class_the_same_for_every_seed() -> None:
    x, y = arrays(500)["x_train"] // 2, np.arange(500) // 100
    d = data.from_arrays(
        {"x_train": x, "y_train": y, "x_test": x[:10], "y_test": y[:10]}, DataConfig(validation=0.0)
    )
    batches = list(d.batches("train", 50, scattered=True))
    assert all(torch.bincount(y, minlength=5).min() >= 2 for _, y in batches)
    assert torch.equal(torch.cat([y for _, y in batches]).sort().values, d.labels("train"))
    again = list(d.batches("train", 50, scattered=True, seed=3, epoch=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again))


def test_evaluation_reads_everything_once_in_order() -> None:
    d = opened()
    batches = list(d.batches("train", 16))
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    assert d.num_batches("train", 16) == 4
    x, y = (torch.cat(parts) for parts in zip(*batches))
    assert x.shape == (50, 1, 8, 8)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert ids(x) == list(range(50))
    assert torch.equal(y, torch.arange(50) % 5)
    assert torch.equal(y, d.labels("train"))


def test_training_shuffles_by_seed_and_epoch_alone_and_drops_the_rest() -> None:
    d = opened()
    assert d.num_batches("train", 16, train=True) == 3

    def order(**at: int) -> list[int]:
        torch.rand(1)  # the global generator has no say
        return [i for x, _ in d.batches("train", 16, train=True, **at) for i in ids(x)]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len(set(order())) == 48
    assert len({tuple(order(seed=s, epoch=e)) for s in range(3) for e in range(3)}) == 9
    assert d.num_batches("train", 64, train=True) == 1
    assert len(next(d.batches("train", 64, train=True))[1]) == 50


def test_start_skips_to_the_same_batches() -> None:
    d = opened(augment=AugmentConfig(crop=2, flip=True, mixup=0.5))

    def run(start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        stream = d.batches("train", 8, train=True, seed=3, start=start)
        for step in range(start, d.num_batches("train", 8, train=True)):
            torch.manual_seed(step)
            found.append(next(stream))
        return found

    for (x, y), (again, labels) in zip(run(0)[2:], run(2), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)


def test_shards_share_out_every_batch() -> None:
    d = opened()
    whole = [ids(x) for x, _ in d.batches("train", 16, train=True)]
    parts = [[ids(x) for x, _ in d.batches("train", 16, train=True, shard=(rank, 3))] for rank in range(3)]
    for batch, *own in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(i for part in own for i in part)


def test_workers_change_nothing() -> None:
    words = AugmentConfig(crop=2, flip=True, autoaugment="cifar10", cutout=3)
    runs = []
    for workers in (0, 2):
        d = opened(augment=words, workers=workers)
        torch.manual_seed(7)
        runs.append([x for x, _ in d.batches("train", 16, train=True, epoch=1)])
        after = torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    torch.manual_seed(7)
    d = opened(augment=words)
    list(d.batches("train", 16, train=True, epoch=1))
    assert torch.equal(after, torch.rand(1))


def test_epochs_augment_differently_and_evaluation_not_at_all() -> None:
    d = opened(augment=AugmentConfig(crop=2, autoaugment="cifar10"))
    assert ids(torch.cat([x for x, _ in d.batches("train", 16)])) == list(range(50))
    first, second = (next(d.batches("train", 50, train=True, epoch=e))[0] for e in (0, 1))
    assert not torch.equal(first.flatten().sort().values, second.flatten().sort().values)


def test_mixing_gives_soft_labels_until_its_last_epoch() -> None:
    d = opened(augment=AugmentConfig(mixup=0.5, mix_until=2))
    assert next(d.batches("train", 16, train=True, epoch=1))[1].shape == (16, 5)
    assert next(d.batches("train", 16, train=True, epoch=2))[1].dtype == torch.int64
    assert next(d.batches("train", 16))[1].dtype == torch.int64


def test_splits_are_disjoint_stratified_and_free_of_the_seed() -> None:
    d = data.from_arrays(arrays(), DataConfig(validation=0.2, test_from_train=10))
    assert d.info.sizes == {"train": 32, "validation": 8, "test": 20}
    found = {s: [i for x, _ in d.batches(s, 7) for i in ids(x)] for s in d.splits}
    assert sorted(found["train"] + found["validation"] + found["test"][10:]) == list(range(50))
    assert found["test"][:10] == list(range(100, 110))
    assert d.labels("test")[10:].bincount().tolist() == [2] * 5
    again = data.from_arrays(arrays(), DataConfig(validation=0.2, test_from_train=10)).info
    assert again == d.info
    other = data.from_arrays(arrays(), DataConfig(validation=0.1, test_from_train=10)).info
    assert other.hash == d.info.hash
    assert other.split_hash != d.info.split_hash


def test_statistics_are_those_of_the_training_part_in_zero_to_one() -> None:
    x = torch.rand(40, 3, 4, 4) * torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    y = np.arange(40) % 2
    d = data.from_arrays({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, DataConfig(validation=0.25))
    seen = torch.cat([batch for batch, _ in d.batches("train", 8)])
    torch.testing.assert_close(torch.tensor(d.info.mean), seen.mean((0, 2, 3)), atol=1e-5, rtol=0)
    expected = seen.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(d.info.std[:2]), expected[:2], atol=1e-5, rtol=0)
    assert d.info.std[2] == 1
    own = DataConfig(validation=0.25, mean=(0.5, 0.5, 0.5), std=(1.0, 2.0, 3.0))
    info = data.from_arrays({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, own).info
    assert (info.mean, info.std) == ((0.5, 0.5, 0.5), (1.0, 2.0, 3.0))
    with pytest.raises(SpikedistillError, match=r"data.mean: 1 values for 3 channels"):
        data.from_arrays({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, DataConfig(mean=(0.5,)))


def test_size_resizes_and_frames_are_counts() -> None:
    assert opened(size=16).info.size == (16, 16)
    assert ids(next(opened(size=16).batches("train", 50))[0]) == list(range(50))
    x = np.random.default_rng(0).integers(0, 7, (20, 4, 2, 5, 6))
    d = data.from_arrays(
        {"x_train": x, "y_train": np.arange(20) % 2, "x_test": x, "y_test": np.arange(20) % 2}
    )
    assert (d.info.input, d.info.frames, d.info.in_channels, d.info.size) == ("frames", 4, 2, (5, 6))
    assert (d.info.mean, d.info.std) == ((0.0, 0.0), (1.0, 1.0))
    seen, _ = next(d.batches("test", 20))
    assert torch.equal(seen, torch.from_numpy(x).float())
    assert torch.equal(
        next(d.batches("train", 18, train=True))[0].round(), next(d.batches("train", 18, train=True))[0]
    )


def test_frames_have_to_fit_the_time_steps() -> None:
    x, y = np.zeros((4, 4, 2, 5, 6), np.uint8), np.arange(4) % 2
    found = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    assert data.from_arrays(found, DataConfig(validation=0.0), (2, 4)).info.frames == 4
    with pytest.raises(SpikedistillError, match="has 4 frames; the time steps need a multiple of 6"):
        data.from_arrays(found, DataConfig(validation=0.0), (2, 3))


def test_recordings_are_never_cut() -> None:
    rec = np.repeat(np.arange(10), 5)
    x = {**arrays(), "y_train": rec % 2, "y_test": np.arange(10) % 2, "group_train": rec}
    d = data.from_arrays(SimpleNamespace(**x), DataConfig(validation=0.2, test_from_train=10))
    groups = {s: {rec[i] for x, _ in d.batches(s, 9) for i in ids(x) if i < 100} for s in d.splits}
    assert not groups["train"] & groups["validation"]
    assert not groups["train"] & groups["test"]
    assert not groups["validation"] & groups["test"]


def test_unknown_names_are_answered() -> None:
    with pytest.raises(SpikedistillError, match=r"did you mean 'validation'"):
        next(opened().batches("validatoin", 4))
    with pytest.raises(SpikedistillError, match=r"did you mean 'cifar10'"):
        data.open(DataConfig(name="cifar-10"))
    with pytest.raises(SpikedistillError, match=r"/nowhere does not exist"):
        data.open(DataConfig(name="cifar10", root="/nowhere"))
    with pytest.raises(SpikedistillError, match="not known of data set"):
        data.from_arrays(arrays(), DataConfig(group="rec"))
    with pytest.raises(SpikedistillError, match=r"data.frames is for events; 'digits' has none"):
        data.open(DataConfig(frames=FramesConfig()))
    with pytest.raises(SpikedistillError, match=r"data.audio is for sound"):
        data.open(DataConfig(audio=AudioConfig()))
    frames = {"x_train": np.zeros((4, 1, 2, 5, 6)), "y_train": np.arange(4) % 2}
    with pytest.raises(SpikedistillError, match=r"stay \(5, 6\)"):
        data.from_arrays(
            {**frames, "x_test": frames["x_train"], "y_test": frames["y_train"]}, DataConfig(size=8)
        )
    with pytest.raises(ValueError, match="unknown key 'nmae'; did you mean 'name'"):
        DataConfig(nmae="digits")  # type: ignore[call-arg]


def test_digits_split_is_fixed() -> None:
    info = data.open().info
    assert info.sizes == {"train": 540, "validation": 60, "test": 1197}
    assert info.split_hash == "3277feef12359baeed199f5b25787bfa6871d50ab9c26b3462234580a9d44ddf"
    assert (info.num_classes, info.in_channels, info.size, info.input) == (10, 1, (8, 8), "image")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_give_the_same_batches() -> None:
    d = opened(augment=AugmentConfig(crop=2, flip=True, cutout=3, cutmix=1.0))
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        found.append(next(d.batches("train", 32, train=True, device=device)))
    assert torch.equal(found[0][0], found[1][0].cpu())
    assert torch.equal(found[0][1], found[1][1].cpu())
