"""A run that has begun: what may change in it, what may not, and whose data it goes on with."""

import numpy as np
import pytest
import yaml

import spikedistill as sd
from spikedistill import cli
from spikedistill.training import loop, metrics

from .conftest import run
from .test_checkpoints import stopped


@pytest.fixture
def begun(small, images, tmp_path, monkeypatch):
    """A run of the command line, its first stage finished, stopped in the second."""
    np.savez(tmp_path / "arrays.npz", **images)
    small["data"] |= {"name": "arrays", "root": str(tmp_path)}
    small["optimizer"] = {"lr": 0.05, "schedule": "constant"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    original = loop.Training.save

    def save(self):
        original(self)
        if self.settings.name == "student" and self.position.step >= 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", save)
        assert (
            cli.main(
                ["train", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
            )
            == 130
        )
    return tmp_path / "run"


def record(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


@pytest.mark.parametrize("change", ["optimizer.lr=0.01", "student.optimizer.lr=0.01"])
def test_the_learning_rate_of_a_run_may_change_and_the_record_says_from_where(begun, change, capsys):
    assert (
        cli.main(["resume", str(begun), change, "checkpoint.steps=3", "data.workers=0", "--device", "cpu"])
        == 0
    )
    found = record(begun)
    assert found["changes"] == [
        {
            "set": [change, "checkpoint.steps=3", "data.workers=0"],
            "from": [{"seed": 0, "stage": "student", "step": 4}],
        }
    ]
    teacher, student = found["recipe"]["stages"]
    assert (teacher["optimizer"]["lr"], student["optimizer"]["lr"]) == (0.05, 0.01)
    assert metrics.read(begun).epochs("student")[-1]["lr"] == 0.01
    assert metrics.read(begun).epochs("teacher")[-1]["lr"] == 0.05
    assert cli.main(["resume", str(begun)]) == 0
    whole = (begun / "recipe.yaml").read_bytes()
    assert cli.main(["resume", str(begun), "optimizer.lr=0.5"]) == 2
    assert "all stages of" in capsys.readouterr().err
    assert (begun / "recipe.yaml").read_bytes() == whole


@pytest.mark.parametrize("change, words", [
    ("student.epochs=9", "cannot be changed"), ("data.batch_size=8", "cannot be changed"),
    ("seed=3", "cannot be changed"),
    ("student.optimizer.momentum=0.5", "cannot be changed"), ("teacher.optimizer.lr=0.5", "is finished"),
    ("nobody.optimizer.lr=0.5", "no stage"), ("optimizer.lr=-1", "optimizer.lr"),
    ("optimizer.lr", "not of the form"),
])  # fmt: skip
def test_all_else_is_refused(begun, change, words, capsys):
    before = (begun / "recipe.yaml").read_bytes()
    assert cli.main(["resume", str(begun), change]) == 2
    assert words in capsys.readouterr().err
    assert (begun / "recipe.yaml").read_bytes() == before


def test_the_same_rule_for_a_change_by_hand(begun, capsys):
    held = record(begun)
    held["recipe"]["stages"][1]["optimizer"]["lr"] = 0.02
    (begun / "recipe.yaml").write_text(yaml.safe_dump(held))
    assert cli.main(["resume", str(begun)]) == 0
    (note,) = record(begun)["changes"]
    assert note["by"] == "hand"
    assert note["set"] == ["student.optimizer.lr=0.02"]
    assert note["from"] == [{"seed": 0, "stage": "student", "step": 4}]
    held = record(begun)
    held["recipe"]["stages"][1]["network"]["width"] = 0.25
    (begun / "recipe.yaml").write_text(yaml.safe_dump(held))
    assert cli.main(["resume", str(begun)]) == 2
    assert "changed by hand at student.network.width" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "name: x", "name: x\nrecipe: 3", "\xff{", "name: x\nrecipe: {stages: 1}", "a: [1"]
)
def test_a_damaged_record_ends_in_words(begun, text, capsys):
    (begun / "recipe.yaml").write_bytes(text.encode("latin-1"))
    assert cli.main(["resume", str(begun)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_damaged_twin_of_the_record_harms_nothing_that_cannot_be_mended(begun, capsys):
    twin = begun / ".recipe.json"
    for text in ("{", "[]", "{}"):
        twin.write_text(text)
        assert cli.main(["resume", str(begun)]) == 2
        assert f"remove {twin}, then resume" in capsys.readouterr().err
    twin.unlink()
    assert cli.main(["resume", str(begun)]) == 0


def test_other_data_are_refused(begun, images, capsys):
    changed = {**images, "x_train": images["x_train"].copy()}
    changed["x_train"][0, 0, 0, 0] ^= 1
    np.savez(begun.parent / "arrays.npz", **changed)
    assert cli.main(["resume", str(begun)]) == 2
    assert "the data changed" in capsys.readouterr().err
    np.savez(begun.parent / "arrays.npz", **images)
    assert cli.main(["resume", str(begun)]) == 0


def test_data_given_by_the_caller_are_not_taken_for_the_recipes(small, images, tmp_path, monkeypatch, capsys):
    stopped(small, images, tmp_path / "run", monkeypatch)
    assert cli.main(["resume", str(tmp_path / "run")]) == 2
    assert "were given by the caller" in capsys.readouterr().err
    run(small, images, tmp_path / "run")


def test_arrays_obey_the_recipes_data_keys(small, images, tmp_path, monkeypatch):
    small["stages"] = small["stages"][:1]
    small["data"] = {
        "batch_size": 16,
        "validation": 8,
        "mean": [0.25],
        "std": [0.5],
        "augment": {"cutout": 4},
    }
    seen = []
    original = loop.Training.__init__
    monkeypatch.setattr(
        loop.Training,
        "__init__",
        lambda self, d, data, *a: (seen.append(data), original(self, d, data, *a))[1],
    )
    found = run(small, images, tmp_path / "run")
    (data,) = seen
    assert data.info.sizes == {"train": 48, "validation": 8, "test": 16}
    assert data.augment.cutout == 4
    assert sd.load(found.folder).mean.tolist() == [0.25]
