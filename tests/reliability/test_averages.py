"""Averaged weights have their own statistics, and the best epoch's file is the network that was measured."""

import numpy as np
import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import cli
from spikedistill.data import from_arrays
from spikedistill.training import evaluate, metrics
from spikedistill.training.calibration import CALIBRATION_IMAGES, calibration_batches, recalibrated
from spikedistill.training.reevaluate import reevaluate
from spikedistill.training.run_folder import read_claim

from .conftest import NET, run


@pytest.fixture(scope="module")
def easy() -> dict[str, np.ndarray]:
    """Four classes, a bright quarter each."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    x = rng.integers(0, 120, (400, 8, 8, 1))
    for i, label in enumerate(y):
        r, c = divmod(int(label), 2)
        x[i, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] += 120
    x = x.astype(np.uint8)
    return {"x_train": x[:300], "y_train": y[:300], "x_test": x[300:], "y_test": y[300:]}


@pytest.fixture
def trained(small, easy, tmp_path):
    small["optimizer"] = {"lr": 0.1, "ema": 0.9}
    small["data"] = {"batch_size": 16, "validation": 0.2}
    small["stages"] = [{"name": "student", "network": {**NET, "width": 0.25}, "epochs": 4}]
    return run(small, easy, tmp_path / "run")


def measured(run_, easy, network, split="validation") -> float:
    _, recipe = read_claim(run_.folder)
    data = from_arrays(easy, recipe.data)
    position = ("validation", 0) if split == "validation" else ("test", 0)
    batches = data.batches(split, 128)
    return evaluate.evaluate(network, batches, data.info.num_classes, rates=False, position=position).accuracy


def test_the_best_file_is_the_network_whose_accuracy_is_recorded(trained, easy):
    row = trained.summary.stage("student")
    lines = metrics.read(trained.folder).epochs("student")
    each = [line["validation"]["accuracy"] for line in lines]
    assert row.best.validation_accuracy == max(each)
    assert (
        measured(trained, easy, sd.load(trained.folder, "student", best=True)) == row.best.validation_accuracy
    )
    assert measured(trained, easy, sd.load(trained.folder, "student@best")) == row.best.validation_accuracy
    assert measured(trained, easy, sd.load(trained.folder, "student")) == row.validation_accuracy == each[-1]
    found = reevaluate(
        f"{trained.folder}:student@best", data=from_arrays(easy, read_claim(trained.folder)[1].data)
    )
    network = sd.load(trained.folder, best=True)
    assert found.columns["accuracy"][2] == measured(trained, easy, network, "test")


def test_averaged_weights_have_statistics_of_their_own(trained, easy):
    network = sd.load(trained.folder, "student")
    _, recipe = read_claim(trained.folder)
    batches = calibration_batches(
        from_arrays(easy, recipe.data), recipe.data.batch_size, CALIBRATION_IMAGES, "cpu"
    )
    again = recalibrated(network, batches)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(again.state_dict()[name], value, rtol=0.15, atol=0.02)
    assert trained.summary.stage("student").accuracy > 0.5


def test_an_anns_own_class_can_be_averaged(small, easy, tmp_path):
    from spikedistill.training.run import train

    small["optimizer"] = {"lr": 0.1, "ema": 0.5}
    small["stages"] = [{"name": "net", "network": {"name": "mine"}, "epochs": 1}]
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pooled, nn.Linear(4, 4)
    found = train(
        small, {"mine": lambda: nn.Sequential(*layers)}, easy, out=tmp_path / "run", quiet=True, device="cpu"
    )
    assert found.summary.stage("net").epochs == 1


def test_a_stage_without_validation_has_no_best(small, easy, tmp_path, capsys):
    small["data"] = {"batch_size": 16, "validation": 0.0}
    small["stages"] = [{"name": "student", "network": dict(NET), "epochs": 1}]
    folder = run(small, easy, tmp_path / "run").folder
    with pytest.raises(sd.SpikedistillError, match="keeps no best epoch"):
        sd.load(folder, best=True)
    assert (
        cli.main(["export", f"{folder}:student@best", "--to", "nir", "--out", str(tmp_path / "x.nir")]) == 2
    )


@pytest.mark.parametrize("accumulate, updates, dropped", [(2, 1, 1), (3, 1, 0), (50, 1, 0)])
def test_an_incomplete_window_is_dropped_and_counted_unless_it_is_the_only_one(
    small, images, tmp_path, accumulate, updates, dropped
):
    small["optimizer"] = {"lr": 0.01, "accumulate": accumulate}
    small["stages"] = small["stages"][:1]
    found = run(small, images, tmp_path / "run")
    (start,) = [line for line in metrics.read(found.folder).events if line["event"] == "start"]
    assert start["updates_per_epoch"] == updates
    assert start["dropped_batches_per_epoch"] == dropped
    assert metrics.read(found.folder).epochs("teacher")[-1]["step"] == 2 * updates
