"""What a finished network, or a run, is asked for and cannot give is said in a line."""

import subprocess
from pathlib import Path

import pytest

import spikedistill as sd
from spikedistill.data import from_arrays
from spikedistill.training import run_folder
from spikedistill.training.reevaluate import _rebinned, reevaluate
from spikedistill.training.run import train
from spikedistill.training.run_folder import read_claim
from spikedistill.training.store import load_network, save_network


def conv6(width, **options):
    return sd.networks.create("conv6", width=width, in_channels=1, **options)


def test_a_network_of_another_width_is_refused_by_its_tensor_and_both_shapes(tmp_path):
    save_network(tmp_path / "net", conv6(0.0625), {}, "")
    with pytest.raises(sd.SpikedistillError) as error:
        sd.load(tmp_path / "net", network=conv6(0.125))
    first = next(iter(conv6(0.0625).named_parameters()))[0]
    shapes = [tuple(conv6(width).get_parameter(first).shape) for width in (0.0625, 0.125)]
    assert (
        f"the weights do not fit the network: {first} has shape {shapes[0]}, the network's is {shapes[1]}"
        in str(error.value)
    )
    assert "give a network of the same width" in str(error.value)
    assert load_network(tmp_path / "net", conv6(0.0625)).get_parameter(first).shape == shapes[0]


def test_an_ann_cannot_be_cut_anew_into_frames(tmp_path, recipe, arrays):
    recipe["stages"] = [{**recipe["stages"][0], "epochs": 1}]
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True, device="cpu")
    _, claimed = read_claim(run.folder)
    refused = "--rebin is for full-precision spiking networks on event frames; stage 'teacher' is none"
    with pytest.raises(sd.SpikedistillError, match=refused):
        reevaluate(f"{run.folder}:teacher", rebin=True, data=from_arrays(arrays, claimed.data))
    seeing_frames = conv6(0.0625, time_steps=None, input="frames")
    with pytest.raises(sd.SpikedistillError, match=refused):
        _rebinned(seeing_frames, claimed, None, "cpu", "teacher")


def test_the_commit_of_a_repository_around_the_package_is_not_its_own(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    file = tmp_path / "venv" / "spikedistill" / "run_folder.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    (tmp_path / "theirs.txt").write_text("")
    git("init")
    git("add", "theirs.txt")
    git("commit", "-m", "theirs")
    monkeypatch.setattr(run_folder, "__file__", str(file))
    assert run_folder.environment()["commit"] is None
    git("add", str(Path("venv")))
    git("commit", "-m", "ours")
    assert run_folder.environment()["commit"] == git("rev-parse", "HEAD")
