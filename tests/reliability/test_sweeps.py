"""A sweep outlives a trial that diverges and a trial that is killed."""

import os
import signal

import numpy as np
import pytest
import yaml

import spikedistill as sd
from spikedistill.training import sweep as module

from .conftest import NET, child

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning", "ignore::UserWarning"
)


@pytest.fixture
def recipe(small, images, tmp_path):
    np.savez(tmp_path / "arrays.npz", **images)
    small["data"] |= {"name": "arrays", "root": str(tmp_path)}
    small["stages"] = [{"name": "student", "network": dict(NET), "epochs": 1}]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    return str(tmp_path / "small.yaml")


def test_a_diverging_trial_is_marked_and_the_sweep_goes_on(recipe, tmp_path, monkeypatch):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"student.optimizer.lr": [0.01, 0.02]}))
    train, calls = module.train, []

    def sometimes(*given, **keys):
        calls.append(keys)
        if len(calls) == 1:
            raise sd.SpikedistillError("the loss is nan")
        return train(*given, **keys, quiet=True)

    monkeypatch.setattr(module, "train", sometimes)
    rows = module.sweep(recipe, space, 3, tmp_path / "sweep", device="cpu")
    assert [row["trial"] for row in sorted(rows, key=lambda row: row["trial"])] == [1, 2]
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert study.trials[0].state.name == "PRUNED"
    assert study.trials[0].user_attrs["error"] == "the loss is nan"


def test_where_all_trials_fail_the_reason_is_said(recipe, tmp_path, monkeypatch):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"student.optimizer.lr": [0.01]}))
    monkeypatch.setattr(
        module, "train", lambda *a, **k: (_ for _ in ()).throw(sd.SpikedistillError("broken"))
    )
    with pytest.raises(sd.SpikedistillError, match="broken"):
        module.sweep(recipe, space, 2, tmp_path / "sweep", device="cpu")


def test_a_killed_trial_is_tried_again_in_its_folder(recipe, tmp_path, monkeypatch):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"student.optimizer.lr": [0.01, 0.02]}))

    def killed() -> None:
        from spikedistill.training import loop

        loop.Training.finish_epoch = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        module.sweep(recipe, space, 1, tmp_path / "sweep", device="cpu")

    assert child(killed) == -9
    folders = []
    train = module.train
    monkeypatch.setattr(
        module, "train", lambda *a, **k: (folders.append(k["out"].name), train(*a, **k, quiet=True))[1]
    )
    rows = module.sweep(recipe, space, 2, tmp_path / "sweep", device="cpu")
    assert folders[0] == "trial-0"
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"student.network.width": {"low": 0.1, "high": 0.01}}, "low not above high"),
        ({"student.network.width": {"low": "1e-4", "high": "1e-2"}}, "YAML takes 1e-4 for a text"),
        ({"student.optimizer.lr": {"low": 0.0, "high": 0.1, "log": True}}, "with log above 0"),
        ({"data.validation": [0.1, 0]}, "set data.validation above 0"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched_is_refused_before_the_first_trial(recipe, space, words, tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    with pytest.raises(sd.SpikedistillError, match=words):
        module.sweep(recipe, tmp_path / "space.yaml", 1, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_nothing_to_try_and_no_place_for_the_study_are_said(recipe, tmp_path):
    (tmp_path / "space.yaml").write_text("student.optimizer.lr: [0.01]")
    with pytest.raises(sd.SpikedistillError, match="--trials must be at least 1, found 0"):
        module.sweep(recipe, tmp_path / "space.yaml", 0, tmp_path / "sweep")
    with pytest.raises(sd.SpikedistillError, match="the storage of the study: "):
        module.sweep(recipe, tmp_path / "space.yaml", 1, tmp_path / "sweep", "sqlite:////no/such/x.db")


@pytest.mark.parametrize("value", [None, 1e-05, 1e20, 0.1, 3, True, "sgd", [8, 8]])
def test_a_trial_trains_what_optuna_suggests(value):
    path, text = module._override("a.b", value).split("=", 1)
    found = yaml.safe_load(text)
    assert path == "a.b"
    assert found == value
    assert type(found) is type(value)


def test_another_space_in_the_same_folder_is_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: (_ for _ in ()).throw(sd.SpikedistillError("stop")))
    for values in ([0.01], [0.02, 0.03]):
        (tmp_path / "space.yaml").write_text(yaml.safe_dump({"student.optimizer.lr": values}))
        with pytest.raises(sd.SpikedistillError) as error:
            module.sweep(recipe, tmp_path / "space.yaml", 1, tmp_path / "sweep")
    assert "holds a study of another space" in str(error.value)
