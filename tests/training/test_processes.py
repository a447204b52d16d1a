import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import two_processes
from spikedistill.errors import SpikedistillError
from spikedistill.training import metrics
from spikedistill.training.run import train
from spikedistill.training.store import load
from spikedistill.training.tracking import accelerator

WORKER = """
import sys, numpy, yaml
from spikedistill.training.run import train
folder = sys.argv[1]
arrays = dict(numpy.load(f"{folder}/arrays.npz"))
train(yaml.safe_load(open(f"{folder}/tiny.yaml")), data=arrays, out=f"{folder}/two", device="cpu", quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "way"), [("default", "through_time"), ("lean", "through_time"), ("default", "rate_based")]
)
def test_two_processes_train_what_one_trains(
    tmp_path: Path, recipe: dict, arrays: dict, memory: str, way: str
) -> None:
    """Gradients accumulated over 2 batches, clipped, averaged weights: the same network from batch halves."""
    recipe |= {"precision": "float64", "memory": memory}
    recipe["optimizer"] |= {"accumulate": 2, "ema": 0.8, "clip": 0.5, "warm_up": 1}
    recipe["stages"][1] |= {"epochs": 2, "backpropagation": way}
    one = train(recipe, data=arrays, out=tmp_path / "one", device="cpu", quiet=True)
    recipe["data"]["batch_size"] //= 2  # of each process
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    np.savez(tmp_path / "arrays.npz", **arrays)
    two_processes.run(WORKER, str(tmp_path))
    for stage in ("teacher", "student"):
        mine, theirs = load(tmp_path / "one", stage).state_dict(), load(tmp_path / "two", stage).state_dict()
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(
                theirs[name], value, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
    events = [line["event"] for line in metrics.read(tmp_path / "two").events]
    assert events == [line["event"] for line in metrics.read(one.folder).events]
    for a, b in zip(
        metrics.read(one.folder).epochs("student"), metrics.read(tmp_path / "two").epochs("student")
    ):
        assert b["train"]["accuracy"] == a["train"]["accuracy"], "of all processes, not the first's alone"
        assert b["train"]["loss"] == pytest.approx(a["train"]["loss"], rel=1e-6)
        assert b["train"]["parts"] == pytest.approx(a["train"]["parts"], rel=1e-6)


MACHINES = """
title: Two machines
data: {name: digits, batch_size: 16}
time_steps: 2
precision: float64
compile: false
optimizer: {name: sgd, lr: 0.05}
stages:
  - name: teacher
    network: {name: vgg5, width: 0.125, pools: 2, ann: true}
    epochs: 1
  - name: student
    network: {name: vgg5, width: 0.125, pools: 2}
    teacher: teacher
    epochs: 2
    objectives: [{type: cross_entropy}, {type: logit_distillation}]
"""


@pytest.mark.slow
def test_two_machines_train_one_run(tmp_path: Path) -> None:
    """As torchrun starts them on two hosts: one network, one page, and one of them speaks."""
    (tmp_path / "two.yaml").write_text(MACHINES)
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    node += ["--master_addr", "127.0.0.1", "--master_port", str(two_processes.free_port()), "--node_rank"]
    command = ["-m", "spikedistill", "train", "two.yaml", "--seed", "0", "--out", "two"]
    machines = [
        subprocess.Popen(
            [*node, str(rank), *command], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [machine.communicate(timeout=600) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert "report: two/report.html" in told[0][0]
    assert told[1][0] == ""
    whole = yaml.safe_load(MACHINES)
    whole["data"]["batch_size"] *= 2  # each process has had its own 16
    train(whole, out=tmp_path / "one", device="cpu", seed=0, quiet=True)
    for stage in ("teacher", "student"):
        mine, theirs = load(tmp_path / "one", stage).state_dict(), load(tmp_path / "two", stage).state_dict()
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-7)


def test_processes_that_would_not_work_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    class Alone:  # accelerate's own would look for the others
        num_processes, device, trackers = 1, torch.device("cpu"), ()

        def __init__(self, **_: object) -> None: ...

    monkeypatch.setattr(accelerate, "Accelerator", Alone)
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = pytest.raises(
        SpikedistillError, match="4 processes were started together, and on cpu each would"
    )
    with refused, accelerator(None, None, tmp_path):
        raise AssertionError("not reached")
