"""Small runs in forked children that can be killed, and what two runs must have in common."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spikedistill.training import metrics
from spikedistill.training.run import train

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
TIMES = ("seconds", "images_per_second", "peak_memory_mb", "step_time")


@pytest.fixture(scope="session")
def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (72, 8, 8, 1)).astype(np.uint8), np.arange(72) % 3
    return {"x_train": x[:56], "y_train": y[:56], "x_test": x[56:], "y_test": y[56:]}


NET = {"name": "conv6", "width": 0.0625, "neuron": {"type": "lif", "decay": 0.5, "threshold": 0.5}}


@pytest.fixture(scope="session")
def imported(images: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> None:
    """This process has gone through one run: its children need not import again what a first run imports."""
    run(two_stages(), images, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture
def small() -> dict[str, Any]:
    """A recipe of a test's own."""
    return two_stages()


def two_stages() -> dict[str, Any]:
    """Two stages of six updates each, a checkpoint every second one, averaged weights, augmentation."""
    return {
        "title": "small",
        "data": {"batch_size": 16, "validation": 0.125, "augment": {"crop": 1, "flip": True}},
        "time_steps": 2,
        "precision": "float32",
        "compile": False,
        "optimizer": {"lr": 0.05, "ema": 0.8},
        "checkpoint": {"steps": 2},
        "stages": [
            {"name": "teacher", "network": {**NET, "ann": True}, "epochs": 2},
            {
                "name": "student", "network": dict(NET), "init": {"from": "teacher"}, "teacher": "teacher",
                "epochs": 2,
                "objectives": [{"type": "cross_entropy"}, {"type": "logit_distillation"}],
            },
        ],
    }  # fmt: skip


def child(work: Callable[[], Any]) -> int:
    """Run ``work`` in a forked child; its exit status, negative for a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watch(folder: Path, kill_at: int, count: Path | None = None) -> None:
    """Count each file system change under ``folder`` from now on; the process dies before number ``kill_at``.

    What is not yet fsynced is half lost with it.
    """
    seen = 0

    def strike(fd: int | None = None) -> None:
        nonlocal seen
        seen += 1
        if count is not None:
            with open(count, "a") as file:
                file.write("x")
        if seen == kill_at:
            if fd is not None and (size := os.fstat(fd).st_size) and os.path.isfile(f"/proc/self/fd/{fd}"):
                os.ftruncate(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY), size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def mine(path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return text.startswith(str(folder)) or (bool(text) and not text.startswith("/"))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if (event in CHANGES and mine(args[0])) or (
            event == "open"
            and mine(args[0])
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            strike()

    fsync = os.fsync

    def watched(fd: int) -> None:
        strike(fd)
        fsync(fd)

    os.fsync = watched
    sys.addaudithook(hook)


def run(recipe: dict[str, Any], data: dict[str, np.ndarray], folder: Path) -> Any:
    torch.set_num_threads(1)
    return train(recipe, data=data, out=folder, quiet=True, device="cpu")


def outcome(folder: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on where it was stopped."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("stages/*/*")):
        if file.suffix in (".safetensors", ".md"):
            found[str(file.relative_to(folder))] = file.read_bytes()
    summary = json.loads((folder / "summary.json").read_text())
    for stage in summary["stages"]:
        for key in TIMES:
            stage.pop(key, None)
    summary.pop("environment")
    found["summary"] = summary
    for name in ("teacher", "student"):
        lines = metrics.read(folder).epochs(name)
        found[name] = [
            (line["epoch"], line["step"], line["train"], line.get("validation"), line["lr"]) for line in lines
        ]
    found["left"] = sorted(p.name for p in folder.rglob(".*") if p.name not in (".lock", ".recipe.json"))
    found["left"] += [p.name for p in folder.glob("checkpoints/*")]
    return found
