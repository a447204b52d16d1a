import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikedistill.data import Data, DataConfig, from_arrays, splits
from spikedistill.errors import SpikedistillError


def test_scramble_is_splitmix64() -> None:
    # First outputs of the reference generator for seed 1234567 (state advances by the golden gamma).
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + gamma * np.arange(5, dtype=np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splits.scramble(states).tolist() == expected


def test_key_depends_on_every_part_and_their_order() -> None:
    keys = {splits.key(*parts) for parts in [(0, 0), (0, 1), (1, 0), (0, 0, 0), (2,), (-1,)]}
    assert len(keys) == 6
    assert all(0 <= key < 2**63 for key in keys)


@given(st.lists(st.integers(0, 4), min_size=20, max_size=300), st.floats(0.05, 0.6))
def test_hold_out_is_a_stratified_partition(labels: list[int], part: float) -> None:
    y = np.asarray(labels)
    kept, held = splits.hold_out(y, part)
    assert sorted([*kept, *held]) == list(range(len(y)))
    assert len(held) == round(part * len(y))
    for c in np.unique(y):
        assert abs((y[held] == c).sum() - part * (y == c).sum()) < 1


def test_hold_out_never_moves_and_has_no_seed() -> None:
    y = np.arange(100) % 3
    assert splits.hold_out(y, 0.1)[1].tolist() == splits.hold_out(y, 10)[1].tolist()
    assert splits.hold_out(y, 0.1, salt=1)[1].tolist() != splits.hold_out(y, 0.1)[1].tolist()
    # frozen: a change here silently changes everybody's validation part
    assert splits.hold_out(np.zeros(20, np.int64), 4)[1].tolist() == [1, 4, 5, 18]


def test_groups_stay_whole_and_every_class_keeps_one() -> None:
    groups = np.repeat(np.arange(12), 5)
    labels = groups % 3
    kept, held = splits.hold_out(labels, 0.25, groups)
    assert not set(groups[kept]) & set(groups[held])
    assert set(labels[kept]) == set(labels[held]) == {0, 1, 2}
    assert len(held) == 15


def test_mixed_groups_are_held_out_whole() -> None:
    groups = np.repeat(np.arange(10), 6)
    labels = np.tile(np.arange(3), 20)
    kept, held = splits.hold_out(labels, 0.2, groups)
    assert not set(groups[kept]) & set(groups[held])
    assert len(held) == 12


def test_what_cannot_be_held_out_is_refused() -> None:
    y = np.asarray([0, 0, 1, 1])
    with pytest.raises(SpikedistillError, match="cannot hold out 4 of 4"):
        splits.hold_out(y, 4)
    with pytest.raises(SpikedistillError, match="every class has but one"):
        splits.hold_out(y, 0.25, np.asarray([7, 7, 8, 8]))
    with pytest.raises(SpikedistillError, match="one group"):
        splits.hold_out(y, 0.25, np.zeros(4, np.int64))


def test_digest_knows_names_and_rows() -> None:
    a = splits.digest({"train": np.arange(3), "test": np.arange(2)})
    assert a == splits.digest({"test": np.arange(2), "train": np.arange(3)})
    assert a != splits.digest({"train": np.arange(2), "test": np.arange(3)})


def test_train_samples_are_a_stratified_part_that_no_seed_moves() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    arrays = {"x_train": rng.integers(0, 255, (400, 4, 4), dtype=np.uint8), "y_train": y}
    arrays |= {"x_test": arrays["x_train"][:20], "y_test": y[:20]}

    def opened(**options: float) -> Data:
        return from_arrays(arrays, DataConfig(name="arrays", validation=0.1, **options))

    whole, few, part = opened(), opened(train_samples=40), opened(train_samples=0.25)
    assert (whole.info.sizes["train"], few.info.sizes["train"], part.info.sizes["train"]) == (360, 40, 90)
    assert whole.info.sizes["validation"] == few.info.sizes["validation"]
    rows = few.splits["train"].pieces[0][1]
    assert set(rows) < set(whole.splits["train"].pieces[0][1])
    counts = np.bincount(y[rows], minlength=4)
    assert np.abs(counts - 40 * np.bincount(y) / 400).max() <= 2
    assert few.info.split_hash == opened(train_samples=40).info.split_hash != whole.info.split_hash
    with pytest.raises(SpikedistillError, match=r"data\.train_samples: found 360, but there are 360"):
        opened(train_samples=360)
