import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill.training import loop, metrics, summary
from spikedistill.training.run import train
from spikedistill.training.settings import Settings
from spikedistill.training.store import load


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load(folder, stage).state_dict()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_a_run_learns_and_leaves_what_it_promises(tmp_path, recipe, arrays):
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True, seed=1)  # seed 0 has a poor teacher
    student = run.summary.stage("student")
    assert student.accuracy > 0.9
    assert run.summary.stage("teacher").kind == "ann"
    assert student.kind == "snn"
    assert 0 < student.firing_rate < 1
    for name in (
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "stages/student/model.safetensors",
    ):
        assert (run.folder / name).exists(), name
    network = sd.load(run.folder)
    assert network.time_steps == 2
    assert not network.training
    x = torch.as_tensor(arrays["x_test"]).permute(0, 3, 1, 2) / 255
    found = (network.predict(x).argmax(-1) == torch.as_tensor(arrays["y_test"])).float().mean()
    assert float(found) == pytest.approx(student.accuracy)
    lines = metrics.read(run.folder)
    assert [line["epoch"] for line in lines.epochs("student")] == [1, 2, 3, 4]


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Where uninterrupted runs lie: trained by the first that asks, found finished by the others."""
    return tmp_path_factory.mktemp("left_alone")


@pytest.mark.parametrize(
    ("at", "way"),
    [*((at, "through_time") for at in (1, 4, 7, 16, 19)), (7, "rate_based"), (19, "rate_based")],
)
def test_stopped_anywhere_and_continued_equals_uninterrupted(
    tmp_path, recipe, arrays, monkeypatch, left_alone, at, way
):
    recipe["stages"][1]["backpropagation"] = way
    recipe["optimizer"] |= {"ema": 0.9, "warm_up": 1}
    recipe["stages"][1]["time_inheritance"] = {1: 0.4}  # some of the stops lie before, some behind
    recipe["data"]["augment"] = {"crop": 1, "flip": True, "mixup": 0.2}
    whole = train(recipe, data=arrays, out=left_alone / way, quiet=True)
    monkeypatch.setattr(Settings, "checkpoint_seconds", 0.0, raising=False)
    steps = 0
    original = loop.Training.save

    def save(self: loop.Training) -> None:
        nonlocal steps
        original(self)
        steps += 1
        if steps == at:
            raise Stop

    monkeypatch.setattr(loop.Training, "save", save)
    monkeypatch.setattr(Settings, "__init__", _eager_checkpoints(Settings.__init__))
    with pytest.raises(Stop):
        train(recipe, data=arrays, out=tmp_path / "parts", quiet=True)
    monkeypatch.setattr(loop.Training, "save", original)
    parts = train(recipe, data=arrays, out=tmp_path / "parts", quiet=True)
    for stage in ("teacher", "student"):
        assert_equal(weights(whole.folder, stage), weights(parts.folder, stage))
    a, b = (metrics.read(r.folder).epochs("student") for r in (whole, parts))
    assert [line["train"] for line in a] == [line["train"] for line in b]
    assert [line["validation"] for line in a] == [line["validation"] for line in b]


def _eager_checkpoints(init):
    def patched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.checkpoint_seconds = 0.0

    return patched


def test_finished_stages_are_not_trained_again(tmp_path, recipe, arrays, monkeypatch):
    first = train(recipe, data=arrays, out=tmp_path / "run", quiet=True)
    monkeypatch.setattr(loop.Training, "run", lambda self: pytest.fail("trained again"))
    again = train(recipe, data=arrays, out=tmp_path / "run", quiet=True)
    assert again.summary.stage("student").accuracy == first.summary.stage("student").accuracy


def test_same_seed_same_weights_other_seed_others(tmp_path, recipe, arrays):
    recipe["stages"] = recipe["stages"][:1]
    a = train(recipe, data=arrays, out=tmp_path / "a", quiet=True)
    b = train(recipe, data=arrays, out=tmp_path / "b", quiet=True)
    c = train(recipe, data=arrays, out=tmp_path / "c", seed=1, quiet=True)
    assert_equal(weights(a.folder, "teacher"), weights(b.folder, "teacher"))
    assert not torch.equal(
        weights(a.folder, "teacher")["stage1.0.weight"], weights(c.folder, "teacher")["stage1.0.weight"]
    )


def test_seeds_are_summarised_together(tmp_path, recipe, arrays):
    recipe["stages"] = recipe["stages"][:1]
    run = train(recipe, data=arrays, out=tmp_path / "run", seeds=2, quiet=True)
    values = [summary.read(run.folder / f"seed-{s}").stage("teacher").accuracy for s in (0, 1)]
    assert run.summary.stage("teacher").figures["accuracy"].values == values


def test_another_recipes_folder_is_refused_and_the_difference_named(tmp_path, recipe, arrays):
    recipe["stages"] = recipe["stages"][:1]
    train(recipe, data=arrays, out=tmp_path / "run", quiet=True)
    recipe["stages"][0]["epochs"] = 5
    with pytest.raises(
        sd.SpikedistillError, match=r"another recipe \(stages\.teacher\.epochs: 3 there, 5 here\)"
    ):
        train(recipe, data=arrays, out=tmp_path / "run", quiet=True)


def test_a_foreign_folder_is_refused(tmp_path, recipe, arrays):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(sd.SpikedistillError, match="holds no run"):
        train(recipe, data=arrays, out=tmp_path / "mine", quiet=True)


def test_a_diverging_loss_stops_before_the_update(tmp_path, recipe, arrays):
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["optimizer"] = {"lr": 1e30}
    with pytest.raises(
        sd.SpikedistillError,
        match=r"stage 'teacher': the loss is (nan|inf) at step \d+ .*Lower the learning rate",
    ):
        train(recipe, data=arrays, out=tmp_path / "run", quiet=True)


def test_a_damaged_checkpoint_is_named(tmp_path, recipe, arrays, monkeypatch):
    original = loop.Training.finish_epoch

    def stop(self: loop.Training) -> None:
        original(self)
        self.save()
        raise Stop

    monkeypatch.setattr(loop.Training, "finish_epoch", stop)
    with pytest.raises(Stop):
        train(recipe, data=arrays, out=tmp_path / "run", quiet=True)
    monkeypatch.setattr(loop.Training, "finish_epoch", original)
    file = tmp_path / "run" / "checkpoints" / "teacher" / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(sd.SpikedistillError, match=r"tensors.safetensors is damaged"):
        train(recipe, data=arrays, out=tmp_path / "run", quiet=True)


def test_a_full_disk_loses_nothing(tmp_path, recipe, arrays, monkeypatch):
    from spikedistill.training import checkpoint

    tensors = {"w": torch.ones(3)}
    checkpoint.save(tmp_path / "state", tensors, {"position": 1})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        sd.SpikedistillError,
        match=r"cannot write .*No space left on device; what was there before is unchanged",
    ):
        checkpoint.save(tmp_path / "state", {"w": torch.zeros(3)}, {"position": 2})
    found, state = checkpoint.load(tmp_path / "state")
    assert state["position"] == 1
    assert torch.equal(found["w"], tensors["w"])
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_ones_own_network_and_data(tmp_path, arrays):
    def mine() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 4),
        )

    recipe = {
        "data": {"batch_size": 32},
        "compile": False,
        "stages": [{"name": "net", "network": {"name": "mine"}, "epochs": 3, "optimizer": {"lr": 0.05}}],
    }
    run = train(recipe, networks={"mine": mine}, data=arrays, out=tmp_path / "run", quiet=True)
    assert run.summary.stage("net").accuracy > 0.8
    x = torch.rand(3, 3, 8, 8)
    own = sd.load(run.folder, network=mine())
    assert torch.equal(sd.load(run.folder)(x), own(x))  # made of its graph
    assert isinstance(sd.load(run.folder, network=mine()), nn.Sequential)


def test_learning_rate_is_a_function_of_position():
    from spikedistill.recipe import Optimizer
    from spikedistill.training.optim import learning_rate

    cosine = Optimizer(lr=1.0, warm_up=2)
    assert learning_rate(cosine, 0, 100, 10) == pytest.approx(1 / 20)
    assert learning_rate(cosine, 19, 100, 10) == pytest.approx(1.0)
    assert learning_rate(cosine, 60, 100, 10) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    step = Optimizer(lr=1.0, schedule="step", step_epochs=2, gamma=0.1)
    assert [learning_rate(step, 10 * e, 60, 10) for e in range(5)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cycle = Optimizer(lr=1.0, schedule="one_cycle")
    assert max(learning_rate(cycle, s, 100, 10) for s in range(100)) == pytest.approx(1.0)
    assert learning_rate(cycle, 0, 100, 10) == pytest.approx(1 / 25)


@pytest.mark.slow
def test_killed_and_resumed_from_the_command_line(tmp_path):
    env = {**os.environ, "SPIKEDISTILL_EAGER": "1"}
    args = [
        sys.executable,
        "-m",
        "spikedistill.cli",
        "train",
        "digits",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    log = tmp_path / "run" / "metrics.jsonl"
    while time.time() < deadline and (not log.exists() or log.read_text().count('"epoch"') < 12):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        [sys.executable, "-m", "spikedistill.cli", "resume", str(tmp_path / "run")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]) == 4


@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_saving_memory_changes_no_bit(tmp_path, recipe, arrays, memory):
    recipe["stages"][0]["epochs"], recipe["stages"][1]["epochs"] = 1, 1
    whole = train(recipe, data=arrays, out=tmp_path / "default", quiet=True)
    saved = train({**recipe, "memory": memory}, data=arrays, out=tmp_path / memory, quiet=True)
    assert_equal(weights(whole.folder, "student"), weights(saved.folder, "student"))
    (default, less) = (
        next(e for e in metrics.read(r.folder).events if e["event"] == "start" and e["stage"] == "student")
        for r in (whole, saved)
    )
    assert less["step_mb"] < 0.95 * default["step_mb"], "said of how it is kept"
