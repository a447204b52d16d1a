"""Which finished stages are equal, and which runs may go on."""

import json
import shutil

import pytest
import torch

import spikedistill as sd
from spikedistill.recipe import load
from spikedistill.training.reevaluate import open_stage
from spikedistill.training.reuse import stage_keys
from spikedistill.training.run import train

ABOUT = {"hash": "a", "split_hash": "b"}


@pytest.mark.parametrize("name", ["digits", "digits-lasnn", "digits-mdsnn"])
def test_stages_that_go_on_from_others_are_known(name):
    keys = stage_keys(load(name), ABOUT, 0, "float32")
    assert all(keys.values()), keys
    assert len(set(keys.values())) == len(keys)


def test_stages_of_another_number_of_processes_are_others():
    one, two, unknown = (
        stage_keys(load("digits"), ABOUT, 0, "float32", processes=n)["teacher"] for n in (1, 2, None)
    )
    assert len({one, two, unknown}) == 3


def test_another_number_of_processes_does_not_go_on(recipe, arrays, tmp_path):
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True, device="cpu")
    path = run.folder / "resolved.json"
    held = json.loads(path.read_text())
    assert held["processes"] == 1
    path.write_text(json.dumps(held | {"processes": 2}))
    with pytest.raises(sd.SpikedistillError, match="was begun by 2 processes and 1 would go on"):
        train(recipe, data=arrays, out=run.folder, quiet=True, device="cpu")


def test_a_run_in_float64_goes_on_in_float64(recipe, arrays, tmp_path):
    recipe |= {"precision": "float64"}
    later = [
        {"name": "more", "from": "student", "epochs": 1},
        {"name": "longer", "from": "student", "time_steps": 4, "epochs": 0},
        {"name": "quantized", "from": "student", "quantize": {}, "epochs": 0},
        {"name": "converted", "convert": {"from": "teacher"}},
    ]
    recipe["stages"] = [{**stage, "epochs": 1} for stage in recipe["stages"]] + later
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True, device="cpu")
    again = tmp_path / "again"
    shutil.copytree(run.folder, again)
    for stage in ("student", *(one["name"] for one in later)):
        shutil.rmtree(again / "stages" / stage)
    train(recipe, data=arrays, out=again, quiet=True, device="cpu")
    for stage in ("student", "more", "longer", "quantized"):
        weights = [folder / "stages" / stage / "model.safetensors" for folder in (run.folder, again)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), stage
    assert next(sd.load(again, "more").parameters()).dtype == torch.float64


def test_a_network_without_its_run_says_so(recipe, arrays, tmp_path, monkeypatch):
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True, device="cpu")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    shutil.copytree(run.folder / "stages" / "student", "net")
    with pytest.raises(sd.SpikedistillError, match="net is a network without its run"):
        open_stage("net")
    monkeypatch.chdir(run.folder / "stages")
    assert open_stage("student")[0].name == "student"


def test_an_aim_that_is_changed_is_the_objectives_too():
    recipe = load("digits-operations", ["aim-90k.operations=5000"])
    again = load(recipe, ["aim-90k.operations=7000"])
    stage = next(stage for stage in again.stages if stage.name == "aim-90k")
    aims = [o for o in stage.objectives if o.type == "operations_aim"]
    assert [aim.model_dump()["operations"] for aim in aims] == [7000]
