"""Shipped recipes on real data: the splits are what they say, the spiking networks beat a linear model."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from spikedistill import data, recipe
from spikedistill.data.arrays import read_npz
from spikedistill.training.run import train

pytestmark = [pytest.mark.data, pytest.mark.slow]


@pytest.fixture(scope="session")
def unpacked(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the image sets as plain arrays, written by the data's own script."""
    spec = importlib.util.spec_from_file_location("unpack", shared_data / "unpack.py")
    assert spec is not None
    assert spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    folder = tmp_path_factory.mktemp("arrays")
    for name in ("pneumoniamnist", "tinyimagenet10", "cifar100"):
        np.savez(folder / f"{name}.npz", **unpack.arrays(name))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def opened(name: str, folder: Path) -> data.Data:
    found = recipe.load(name, [f"data.root={folder}"])
    return data.open(found.data, found.all_time_steps())


def test_nmnist_holds_out_300_of_1000_training_samples_by_class(shared_data):
    found = opened("nmnist", shared_data)
    assert found.info.sizes == {"train": 700, "validation": 0, "test": 400}
    whole = read_npz(shared_data / "nmnist_train.npz")["label"]
    held = found.labels("test")[100:].numpy()
    np.testing.assert_allclose(np.bincount(held), 0.3 * np.bincount(whole), atol=1)


def test_dvs128_objects_trains_and_tests_on_different_sessions(shared_data):
    found = opened("dvs128-objects", shared_data)
    assert found.info.sizes == {"train": 2472, "validation": 0, "test": 1128}
    sessions = [
        {str(file) for file in read_npz(shared_data / f"dvs128_objects_{role}.npz")["rec_file"]}
        for role in ("train", "test")
    ]
    assert not sessions[0] & sessions[1]


def test_a_finer_cut_of_the_same_events_sums_to_the_coarser(shared_data):
    frames = {}
    for steps in (4, 8):
        opened_at = data.open(recipe.load("nmnist", [f"data.root={shared_data}"]).data, [steps])
        frames[steps] = next(iter(opened_at.batches("test", 16)))[0]
    np.testing.assert_array_equal(frames[8].unflatten(1, (4, 2)).sum(2).numpy(), frames[4].numpy())


# A linear model's test accuracy on counts of events or log spectrograms of the same files.
@pytest.mark.parametrize(
    ("name", "stage", "linear"),
    [("nmnist", "student", 0.89), ("dvs128-objects", "student", 0.71), ("spoken-digits", "student", 0.95)],
)
def test_the_distilled_network_beats_a_linear_model(name, stage, linear, shared_data, tmp_path):
    run = train(name, out=tmp_path / "run", overrides=[f"data.root={shared_data}"], seed=0, quiet=True)
    accuracy = {row.name: row.accuracy for row in run.summary.stages}
    assert accuracy[stage] > linear


@pytest.mark.parametrize(
    ("name", "chance", "overrides"),
    [
        ("pneumonia", 390 / 624, []),
        ("tinyimagenet10", 0.1, []),
        ("cifar100-demo", 0.01, ["data.validation=0.9"]),
    ],
)
def test_image_recipes_run_to_their_end_and_learn(name, chance, overrides, unpacked, tmp_path):
    overrides = [f"data.root={unpacked}", *overrides]
    run = train(name, out=tmp_path / "run", overrides=overrides, seed=0, quiet=True)
    assert [row.name for row in run.summary.stages] == [stage.name for stage in recipe.load(name).stages]
    images = run.summary.data["sizes"]["test"]
    for row in run.summary.stages:
        assert row.accuracy > chance + 4 * (chance * (1 - chance) / images) ** 0.5, row.name
