from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import two_processes
from spikedistill.training import metrics
from spikedistill.training.run import train
from spikedistill.training.store import load

WORKER = """
import sys, numpy, yaml
from spikedistill.training.run import train
folder = sys.argv[1]
arrays = dict(numpy.load(f"{folder}/arrays.npz"))
train(yaml.safe_load(open(f"{folder}/tiny.yaml")), data=arrays, out=f"{folder}/two", device="cpu", quiet=True)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path, recipe: dict, arrays: dict) -> None:
    """Gradients accumulated over 2 batches, clipped, averaged weights: the same network from batch halves."""
    recipe["precision"] = "float64"
    recipe["optimizer"] |= {"accumulate": 2, "ema": 0.8, "clip": 0.5, "warm_up": 1}
    recipe["stages"][1]["epochs"] = 2
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
