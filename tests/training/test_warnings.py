"""A layer that died is named, and what to do stands beside it."""

import pytest

import spikedistill as sd


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
