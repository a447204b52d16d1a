"""A layer that died is named, and what to do stands beside it."""

import json

import numpy as np
import pytest

import spikedistill as sd
from spikedistill.training import loop
from spikedistill.training.calibration import UNEVEN
from spikedistill.training.diagnosis import FALLEN, has_fallen


@pytest.mark.parametrize(
    ("initialisation", "advice"), [("balanced", "raise network.firing_rate"), ("plain", "start balanced")]
)
def test_a_dead_layer_comes_with_advice(tmp_path, initialisation: str, advice: str) -> None:
    recipe = {
        "data": {"name": "digits", "batch_size": 64, "train_samples": 128},
        "precision": "float32",
        "time_steps": 1,
        "optimizer": {"name": "sgd", "lr": 0.5},
        "stages": [
            {
                "name": "silent",
                "network": {
                    "name": "vgg5",
                    "width": 0.125,
                    "pools": 1,
                    "initialisation": initialisation,
                    "neuron": {"type": "lif"},
                },
                "epochs": 2,
                "objectives": [
                    {"type": "cross_entropy"},
                    {"type": "activity_regularization", "weight": 1000.0},
                ],
            }
        ],
    }
    (stage,) = sd.train(recipe, out=tmp_path / "run").summary.stages
    dead = [line for line in stage.warnings if line.startswith("layer")]
    assert dead
    assert all("is dead: it fires at 0.0" in line for line in dead)
    assert [line for line in stage.warnings if line not in dead] == [
        line for line in stage.warnings if advice in line
    ]
    assert advice in stage.warnings[-1]


def test_a_few_strong_inputs_are_said_once(tmp_path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, (320, 8, 8, 1)).astype(np.uint8)
    x[::80] = rng.integers(0, 2, (4, 8, 8, 1)) * 255
    y = np.arange(320) % 4
    recipe = {
        "data": {"batch_size": 32, "validation": 0.2},
        "precision": "float32",
        "time_steps": 1,
        "stages": [{"name": "one", "network": {"name": "vgg5", "width": 0.125, "pools": 1}, "epochs": 2}],
    }
    arrays = {"x_train": x, "y_train": y, "x_test": x[:32], "y_test": y[:32]}
    (stage,) = sd.train(recipe, data=arrays, out=tmp_path / "run").summary.stages
    assert UNEVEN in stage.warnings
    events = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert warnings.count(UNEVEN) == 1


def test_a_training_that_forgets_is_said_once(tmp_path) -> None:
    recipe = {
        "data": {"name": "digits", "batch_size": 32},
        "precision": "float32",
        "time_steps": 2,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "schedule": "cosine"},
        "stages": [
            {"name": "one", "network": {"name": "vgg5", "width": 0.25, "pools": 2}, "epochs": 4},
            {
                "name": "far",
                "from": "one",
                "epochs": 3,
                "optimizer": {"lr": 3.0, "schedule": "constant", "warm_up": 2},
            },
        ],
    }
    one, far = sd.train(recipe, out=tmp_path / "run").summary.stages
    assert FALLEN not in one.warnings
    assert FALLEN in far.warnings
    events = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [e["text"] for e in events if e["event"] == "warning"].count(FALLEN) == 1


def test_what_was_said_outlives_a_stop(tmp_path, monkeypatch) -> None:
    """The fall lies before the stop: the epochs after it show none."""
    recipe = {
        "data": {"name": "digits", "batch_size": 32, "train_samples": 128},
        "precision": "float32",
        "time_steps": 2,
        "checkpoint": {"seconds": 1e-6},
        "stages": [
            {"name": "one", "network": {"name": "vgg5", "width": 0.125, "pools": 2}, "epochs": 3},
        ],
    }
    epochs = []

    def stopped(peak: float, accuracy: float) -> bool:
        epochs.append(accuracy)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return len(epochs) == 1

    monkeypatch.setattr(loop, "has_fallen", stopped)
    with pytest.raises(KeyboardInterrupt):
        sd.train(recipe, out=tmp_path / "run")
    (stage,) = sd.train(recipe, out=tmp_path / "run").summary.stages
    assert len(epochs) == 4
    assert FALLEN in stage.warnings


@pytest.mark.parametrize(
    ("peak", "accuracy", "fell"), [(0.64, 0.5, False), (0.64, 0.39, True), (0.12, 0.05, False)]
)
def test_chance_and_a_bad_epoch_are_no_fall(peak: float, accuracy: float, fell: bool) -> None:
    assert has_fallen(peak, accuracy) is fell


def test_operations_far_from_their_aim_are_said(tmp_path) -> None:
    recipe = {
        "data": {"name": "digits", "batch_size": 64, "train_samples": 256},
        "precision": "float32",
        "time_steps": 2,
        "stages": [
            {
                "name": name,
                "network": {"name": "vgg5", "width": 0.125, "pools": 2},
                "epochs": 1,
                "operations": operations,
            }
            for name, operations in (("far", 100), ("near", 10_000_000))
        ],
    }
    far, near = sd.train(recipe, out=tmp_path / "run").summary.stages
    (line,) = [line for line in far.warnings if "aimed at 100" in line]
    assert f"{far.synaptic_operations:,.0f} operations" in line
    assert not [line for line in near.warnings if "aimed at" in line]
