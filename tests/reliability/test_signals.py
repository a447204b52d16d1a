"""Signals, exit codes, locks: with real processes where it matters."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import spikedistill as sd
from spikedistill import cli
from spikedistill.interrupt import going
from spikedistill.training import checkpoint, loop, signals
from spikedistill.training.lock import locked

from .conftest import child, outcome, run

forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def ask(number: int, at: int) -> None:
    """The process is asked by ``number`` in the data of step ``at`` of the student."""
    original = loop.Training.next_batch

    def asked(self, batches, step, k):
        if self.settings.name == "student" and step == at:
            os.kill(os.getpid(), number)
        return original(self, batches, step, k)

    loop.Training.next_batch = asked


@forks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_a_run_writes_its_state_and_ends_with_75(small, images, tmp_path, number):
    small["checkpoint"] = {"seconds": 1000.0}

    def work() -> None:
        ask(number, 4)
        run(small, images, tmp_path / "run")

    assert child(work) == 75
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "student")[1]["position"]["step"] == 5
    run(small, images, tmp_path / "run")
    run(small, images, tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@forks
def test_asked_while_a_stage_is_tested_it_ends_at_once(small, images, tmp_path):
    from spikedistill.training import one_seed as module

    def work() -> None:
        module.stage_summary = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        run(small, images, tmp_path / "run")

    assert child(work) == 75
    run(small, images, tmp_path / "run")


def test_handlers_are_put_back(small, images, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    small["stages"] = small["stages"][:1]
    run(small, images, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_stopped_is_known_by_its_folder(small, images, tmp_path, monkeypatch):
    small["stages"] = small["stages"][:1]
    run(small, images, tmp_path / "a")
    assert going.folder is None

    def stop(*_, **__):
        raise signals.Stopped(signal.SIGTERM)

    monkeypatch.setattr("spikedistill.training.run.OneSeed.run", stop)
    with pytest.raises(signals.Stopped):
        run(small, images, tmp_path / "b")
    assert going.folder == str(tmp_path / "b")


def test_the_command_says_how_it_was_stopped(monkeypatch, capsys, tmp_path):
    def stop(*_, **__):
        raise signals.Stopped(signal.SIGTERM)

    monkeypatch.setattr("spikedistill.training.run.train", stop)
    assert cli.main(["train", "digits", "--out", str(tmp_path / "a")]) == 75
    assert (
        capsys.readouterr().err
        == "stopped by SIGTERM; the state is kept: `spikedistill resume RUN` goes on\n"
    )

    def stop_going(*_, **__):
        going.folder = "my runs/a"
        raise signals.Stopped(signal.SIGTERM)

    monkeypatch.setattr("spikedistill.training.run.train", stop_going)
    assert cli.main(["train", "digits", "--out", "my runs/a"]) == 75
    assert "the state is kept: `spikedistill resume 'my runs/a'` goes on\n" in capsys.readouterr().err

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("spikedistill.training.run.train", interrupt)
    assert cli.main(["train", "digits", "--out", str(tmp_path / "a")]) == 130
    assert (
        capsys.readouterr().err == "stopped; what was finished is kept: `spikedistill resume RUN` goes on\n"
    )


@forks
def test_a_folder_is_one_processes_at_a_time(small, images, tmp_path, capfd):
    small["stages"] = small["stages"][:1]
    run(small, images, tmp_path / "run")
    with locked(tmp_path / "run"):
        assert child(lambda: run(small, images, tmp_path / "run")) == 1
        assert f"is being trained by process {os.getpid()} on" in capfd.readouterr().err
        with pytest.raises(sd.SpikedistillError, match="by this process already"):
            run(small, images, tmp_path / "run")
    dead = child(lambda: (locked(tmp_path / "run").__enter__(), os.kill(os.getpid(), signal.SIGKILL)))
    assert dead == -9
    run(small, images, tmp_path / "run")


def test_where_a_file_system_has_no_locks_it_is_said(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", none)
    said = []
    with locked(tmp_path, said.append):
        pass
    assert said == [
        f"{tmp_path}: the file system has no locks (Operation not supported); see that no other process "
        "trains there"
    ]


# Real processes


@pytest.fixture
def command(small, images, tmp_path):
    """A process of the command line in a folder with a recipe that takes long."""
    np.savez(tmp_path / "arrays.npz", **images)
    small["data"] |= {"name": "arrays", "root": str(tmp_path)}
    small["stages"][1]["epochs"] = 400
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))

    def start(*arguments: str) -> subprocess.Popen:
        environment = {**os.environ, "SPIKEDISTILL_EAGER": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "spikedistill.cli", *arguments], env=environment, stderr=subprocess.PIPE,
            text=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    return start


def wait_for(path: Path, words: str) -> None:
    deadline = time.time() + 100
    while time.time() < deadline and not (path.exists() and words in path.read_text()):
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number, status, words", [
    (signal.SIGTERM, 75, "stopped by SIGTERM; the state is kept"),
    (signal.SIGUSR1, 75, "stopped by SIGUSR1; the state is kept"),
    (signal.SIGINT, 130, "stopped; what was finished is kept"),
])  # fmt: skip
def test_a_real_process_ends_in_one_line(command, tmp_path, number, status, words):
    process = command("train", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run"))
    wait_for(tmp_path / "run" / "metrics.jsonl", '"stage": "student", "epoch": 3,')
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err.splitlines()[-1].startswith(words)
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, 0.7, 1.5])
def test_interrupted_while_importing_and_twice(command, tmp_path, after):
    process = command("train", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run"))
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -2)
    # before a line of ours has run, the interpreter itself answers
    assert "Traceback" not in err or after < 0.3


# Devices


@pytest.mark.parametrize("device", ["banana", "cuda", "cuda:7", "cpu:x", "meta"])
@pytest.mark.parametrize("command", ["train", "evaluate", "resume"])
def test_a_device_that_is_not_there_is_an_error(
    device, command, small, images, tmp_path, capsys, monkeypatch
):
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    if command == "train":
        arguments = ["train", "digits", "--out", str(tmp_path / "run"), "--device", device]
    else:
        folder = tmp_path / "run"
        np.savez(tmp_path / "arrays.npz", **images)
        small["data"] |= {"name": "arrays", "root": str(tmp_path)}
        small["stages"] = [{**small["stages"][0], "epochs": 0}]
        if device == "banana":
            run(small, None, folder)
        else:
            folder.mkdir()
            (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "x", "recipe": small}))
        arguments = [command, str(folder), "--device", device]
    assert cli.main(arguments) == 2
    assert f"device {device!r}" in capsys.readouterr().err
