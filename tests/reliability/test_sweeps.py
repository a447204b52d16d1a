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
