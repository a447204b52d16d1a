"""All is checked before anything runs: each of these once trained a stage first, or ran on without a word."""

import time

import numpy as np
import pytest
import torch
import yaml

import spikedistill as sd
from spikedistill import cli, data
from spikedistill.recipe import load
from spikedistill.training import loop
from spikedistill.training.machine import compiling
from spikedistill.training.rehearsal import rehearse

from .conftest import NET, run

STUDENT = {"name": "student", "network": dict(NET), "epochs": 1}


def student(**keys):
    return {**STUDENT, **keys}


@pytest.fixture
def never(monkeypatch):
    monkeypatch.setattr(loop.Training, "run", lambda self: pytest.fail("a stage was trained"))


@pytest.mark.parametrize("stage, words", [
    (student(network={**NET, "pretrained": True}), r"pretrained"),
    (student(network={**NET, "input_size": 16}), r"input_size"),
    (student(network={**NET, "weights": "nowhere.pt"}), r"nowhere\.pt does not exist"),
    (student(network={**NET, "width": 10000}), r"GB are free; lower its width"),
    (student(network={**NET, "width": -1}),
     r"stages\.student: .*width must be a finite number above 0, found -1"),
    (student(network={**NET, "dropout": 1.5}),
     r"stages\.student: .*dropout must be a number from 0 to 1, found 1\.5"),
    (student(network={**NET, "num_classes": 2}), r"(2 classes|out of bounds)"),
    (student(network={"name": "vgg16", "width": 0.0625}), r"stages\.student: two images do not pass"),
    (student(network={"name": "mine"}), r"unknown network 'mine'"),
    (student(teacher="teacher", objectives=[{"type": "feature_distillation", "taps": ["stage9x@out"]}]),
    r"stages\.student"),
    (student(quantize={"weight_bits": 99}), r"weight_bits"),
    (student(optimizer={"lr": float("inf")}), r"lr"),
    (student(optimizer={"clip": float("nan")}), r"clip"),
    (student(epochs=True), r"epochs"),
    (student(objectives=[{"type": "cross_entropy", "weight": float("nan")}]), r"weight"),
])  # fmt: skip
def test_a_stage_that_cannot_run_is_refused_before_its_teacher_trains(
    small, images, tmp_path, never, stage, words
):
    small["stages"] = [{"name": "teacher", "network": {**NET, "ann": True}, "epochs": 1}, stage]
    with pytest.raises(sd.SpikedistillError, match=words):
        run(small, images, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize("keys, words", [
    ({"validation": True}, "validation"), ({"mean": [float("nan")]}, "mean"),
    ({"std": [float("inf")]}, "std"),
    ({"augment": {"randaugment": "nonsense"}}, "randaugment"), ({"augment": {"crop": True}}, "crop"),
    ({"augment": {"crop": 9, "crop_fill": "reflect"}}, "augment.crop: a padding of 9"),
    ({"augment": {"crop": 8}}, "augment.crop: a padding of 8 pixels would move images of 8x8"),
    ({"augment": {"blur": 31}}, "blur"),
    ({"batch_size": True}, "batch_size"),
])  # fmt: skip
def test_data_that_cannot_be_read_so_are_refused(small, images, tmp_path, never, keys, words):
    small["data"] |= keys
    with pytest.raises(sd.SpikedistillError, match=words):
        run(small, images, tmp_path / "run")


def test_labels_beyond_the_classes(small, images, tmp_path, never):
    opened = data.from_arrays(images)
    opened.splits["test"].pieces[0][0].labels[0] = 7
    with pytest.raises(sd.SpikedistillError, match="test part has the label 7; there are 3 classes"):
        run(small, opened, tmp_path / "run")


def test_a_seed_beyond_what_a_summary_holds(small, images, tmp_path, capsys):
    assert cli.main(["train", "digits", "--seed", str(1 << 64), "--out", str(tmp_path / "run")]) == 2
    assert f"--seed must be at most {1 << 62}, found {1 << 64}" in capsys.readouterr().err
    with pytest.raises(sd.SpikedistillError, match="seed: found"):
        load({**small, "seed": 1 << 64})


def test_a_seed_below_zero(tmp_path, capsys):
    assert cli.main(["train", "digits", "--seed", "-1", "--out", str(tmp_path / "run")]) == 2
    assert "--seed must be at least 0, found -1" in capsys.readouterr().err


def test_it_leaves_no_trace_and_is_skipped_on_resume(small, images, tmp_path, monkeypatch):
    recipe = load(small)
    opened = data.from_arrays(images, recipe.data)
    before, threads = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    rehearse(recipe, opened, {})
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == threads).all()  # noqa: NPY002
    calls = []
    monkeypatch.setattr("spikedistill.training.run.rehearse", lambda *a, **k: calls.append(a))
    small["stages"] = small["stages"][:1]
    run(small, images, tmp_path / "run")
    run(small, images, tmp_path / "run")
    assert len(calls) == 1


def test_digits_takes_seconds():
    recipe = load("digits")
    opened = data.open(recipe.data, recipe.all_time_steps())
    with compiling(False):
        rehearse(recipe, opened, {})
        start = time.process_time()
        rehearse(recipe, opened, {})
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["lr: true", "lr: .inf", "betas: [.nan, 0.9]"])
def test_numbers_of_a_recipe_are_numbers(text):
    tree = {"optimizer": yaml.safe_load(text), "stages": [STUDENT]}
    with pytest.raises(sd.SpikedistillError, match=r"optimizer.*(no number|finite)"):
        load(tree)
