"""A run with one's own code: begun in a process, read in another without the code, continued where it is."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import spikedistill as sd
from spikedistill import own_code

MODULE = '''
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x))) + x


class Net(nn.Module):
    """A skip connection, a function for a ReLU, a view that needs the batch's size."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 1):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 8 * width, 3, 2, 1), nn.BatchNorm2d(8 * width), nn.ReLU()
        )
        self.stage1 = Block(8 * width)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(32 * width, num_classes)

    def forward(self, x):
        x = self.pool(self.stage1(self.stem(x)))
        return self.head(x.view(x.size(0), -1))
'''


@pytest.fixture
def place(tmp_path, arrays, monkeypatch) -> Path:
    """A folder of data, code and recipe; the process is elsewhere, and may import nothing of it by itself."""
    folder = tmp_path / "project"
    folder.mkdir()
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "mynet.py").write_text(MODULE)
    net = {"name": "mynet:Net", "width": 2, "spiking": True, "neuron": {"type": "lif", "tau": 2.0}}
    recipe = {
        "data": {"name": "arrays", "root": str(folder / "arrays.npz"), "batch_size": 32},
        "time_steps": 2,
        "precision": "float32",
        "compile": False,
        "optimizer": {"lr": 0.05},
        "stages": [
            {"name": "teacher", "network": {"name": "mynet:Net", "width": 2}, "epochs": 1},
            {"name": "student", "network": net, "teacher": "teacher", "epochs": 2,
             "objectives": [{"type": "cross_entropy"}, {"type": "logit_distillation"}]},
            {"name": "quantized", "from": "student", "quantize": {"weight_bits": 4}, "epochs": 1},
        ],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield folder
    sys.modules.pop("mynet", None)


def fresh(code: str, *args: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Code in a process of its own, without the folders that this process looks into."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {
        "PYTHONPATH": str(Path(sd.__file__).parents[1]),
        "SPIKEDISTILL_EAGER": "1",
        "OMP_NUM_THREADS": "1",
    }
    head = "import sys; from spikedistill.cli import main\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", head + code, *args], cwd=cwd, env=env, capture_output=True, text=True
    )


def cli(*args: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own."""
    return fresh("sys.exit(main(sys.argv[1:]))", *args, cwd=cwd)


def own_logits(project: Path, run: Path, x: torch.Tensor, stage: str) -> torch.Tensor:
    """By the network's own code: what the stage's weights say in it."""
    with own_code.search([project]):
        made = own_code.find("mynet:Net", "network")(num_classes=4, width=2)
    with torch.no_grad():
        return sd.load(run, stage, network=made)(x)


def test_from_one_process_to_the_next(place, tmp_path, monkeypatch):
    run = place / "run"
    done = cli("train", "recipe.yaml", "--out", str(run), cwd=place)
    assert done.returncode == 0, done.stderr
    held = yaml.safe_load((run / "recipe.yaml").read_text())
    digest = hashlib.sha256((place / "mynet.py").read_bytes()).hexdigest()
    assert held["code"] == {"mynet:Net": {"file": "mynet.py", "sha256": digest}}
    config = json.loads((run / "stages" / "quantized" / "config.json").read_text())
    assert config["code"] == {"name": "mynet:Net", "file": "mynet.py", "sha256": digest, "needed": None}

    away = tmp_path / "away"  # the run, and nothing of the code but a planted file that tells when it runs
    away.mkdir()
    moved = away / "run"
    shutil.copytree(run, moved)
    (moved / "mynet.py").write_text("raise SystemExit('planted code ran')")
    data = place / "arrays.npz"
    assert data.exists()
    # one process for all: none of them may bring the code in
    commands = [
        ["evaluate", "run:student", "--time-steps", "1,2"],
        ["evaluate", "run:quantized", "--integer"],
        ["hardware", "run:quantized"],
        ["report", "run"],
        ["export", "run:student", "--to", "nir", "--out", "net.nir"],
        ["export", "run:student", "--to", "onnx", "--out", "net.onnx"],
        ["export", "run:quantized", "--to", "integer", "--out", "net.int"],
    ]
    done = fresh(
        f"for command in {commands}:\n    assert main(command) == 0 and 'mynet' not in sys.modules, command",
        cwd=away,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    # inside of the run's folder as well
    done = cli("evaluate", ".:quantized", cwd=moved)
    assert done.returncode == 0, done.stderr

    assert "mynet" not in sys.modules
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = {stage: sd.load(moved, stage) for stage in ("teacher", "student", "quantized")}
    assert "mynet" not in sys.modules
    for stage in loaded:
        with torch.no_grad():
            assert torch.equal(loaded[stage](x), own_logits(place, run, x, stage)), stage
    readme = (moved / "stages" / "student" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    names = {"images": x}
    exec(code.replace("this folder", str(moved / "stages" / "student")), names)
    assert names["logits"].shape == (5, 4)
    assert {"mean", "std", "model.stem.0.weight", "model.head.bias"} <= set(loaded["student"].state_dict())
    # what loads is a network like any other
    twice = sd.quantize(loaded["student"], weight_bits=2, calibration=x)
    assert twice(x).shape == (2, 5, 4)
    with pytest.raises(sd.SpikedistillError, match=r"holds for inputs of \(3, 8, 8\); found \(3, 16, 16\)"):
        loaded["student"](torch.rand(1, 3, 16, 16))


def test_resume_continues_with_the_code_and_refuses_another(place, tmp_path):
    run = place / "run"
    done = cli("train", "recipe.yaml", "--out", str(run), cwd=place)
    assert done.returncode == 0, done.stderr
    before = torch.stack([p.sum() for p in sd.load(run, "quantized").parameters()])
    shutil.rmtree(run / "stages" / "quantized")
    (run / "mynet.py").write_text("raise SystemExit('planted code ran')")

    done = cli("resume", ".", cwd=run)  # the run's folder is the current one
    assert done.returncode == 2
    assert "mynet" in done.stderr
    assert "planted" not in done.stderr

    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "mynet.py").write_text(MODULE + "\n# a word more\n")
    done = cli("resume", str(run), cwd=changed)
    assert done.returncode == 2
    assert re.search(r"mynet.py is not the code this run was begun with .* --code .*mynet.py", done.stderr)

    done = cli("resume", str(run), "--code", str(run / "mynet.py"), cwd=place)
    assert done.returncode == 2
    assert "it lies in a run's folder" in done.stderr

    done = cli("resume", str(run), "--code", str(changed / "mynet.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(before, torch.stack([p.sum() for p in sd.load(run, "quantized").parameters()]))
    held = yaml.safe_load((run / "recipe.yaml").read_text())
    assert held["changes"][-1]["before"]["mynet:Net"]["sha256"] != held["code"]["mynet:Net"]["sha256"]
    done = cli("resume", str(run), cwd=changed)  # now it is the record's
    assert done.returncode == 0, done.stderr


class Small(torch.nn.Sequential):
    def __init__(self, num_classes: int, channels: int = 4) -> None:
        pool = torch.nn.AdaptiveAvgPool2d(2)
        linear = torch.nn.Linear(4 * channels, num_classes)
        super().__init__(torch.nn.Conv2d(3, channels, 3), torch.nn.ReLU(), pool, torch.nn.Flatten(), linear)


def test_classes_functions_and_modules_by_one_rule(tmp_path, arrays):
    instance = Small(4)
    stages = [
        {"name": "called", "network": {"name": "cls", "channels": 6}, "epochs": 0},
        {"name": "made", "network": {"name": "function"}, "epochs": 0},
        {"name": "copied", "network": {"name": "module"}, "epochs": 0},
    ]
    mine = {"cls": Small, "function": lambda num_classes: Small(num_classes, 5), "module": instance}
    recipe = {"data": {"batch_size": 32}, "compile": False, "stages": stages}
    run = sd.train(recipe, networks=mine, data=arrays, out=tmp_path / "run", quiet=True)
    found = {stage: run.network(stage).state_dict() for stage in ("called", "made", "copied")}
    assert [len(state["0.bias"]) for state in found.values()] == [6, 5, 4]  # num_classes came from the data
    assert all(torch.equal(found["copied"][k], v) for k, v in instance.state_dict().items())
    held = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert held["networks"] == {"cls": f"{__name__}:Small"}  # the others have no address
    stages[0]["network"]["chanels"] = 3
    with pytest.raises(
        sd.SpikedistillError, match="network 'cls' has no option 'chanels'; did you mean 'channels'"
    ):
        sd.train(recipe, networks=mine, data=arrays, out=tmp_path / "other", quiet=True)
    del stages[0]["network"]["chanels"]
    with pytest.raises(sd.SpikedistillError, match="network 'module' has no option 'width'"):
        sd.train(
            recipe, mine, arrays, out=tmp_path / "other", overrides=["copied.network.width=2"], quiet=True
        )
    with pytest.raises(sd.SpikedistillError, match="network 'cls' is no network: found str"):
        sd.train(recipe, {**mine, "cls": lambda channels: "x"}, arrays, out=tmp_path / "other", quiet=True)
