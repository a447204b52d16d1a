"""Runs of an older version keep the defaults of their time; runs of today write every value in force."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import spikedistill as sd
from spikedistill import cli, networks
from spikedistill.neurons import LIF, modules, surrogate
from spikedistill.recipe import load as load_recipe
from spikedistill.training import records, summary
from spikedistill.training.run_folder import claim, read_whole_claim, seed_folders
from spikedistill.training.store import find_stage

# digits, conv6 of width 1/16; stopped three steps before its end
OLD = Path(__file__).parent / "data" / "record_1"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another default of neurons, of a network's option, of the optimizer, of an objective."""
    for kind in (modules.IF, modules.LIF, modules.PLIF, modules.Neuron):
        defaults = tuple("triangle" if d == "atan" else d for d in kind.__init__.__defaults__)
        monkeypatch.setattr(kind.__init__, "__defaults__", defaults)
    monkeypatch.setitem(surrogate.SURROGATES, "atan", (*surrogate.SURROGATES["atan"][:2], 7.0))


def surrogates(network: torch.nn.Module) -> set[tuple[str, float]]:
    return {(m.surrogate.name, m.surrogate.alpha) for m in network.modules() if isinstance(m, modules.Neuron)}


def test_a_run_of_record_1_is_resumed_and_ends_as_it_would_have(old):
    assert cli.main(["resume", str(old), "--device", "cpu"]) == 0
    expected = load_file(OLD / "student.safetensors")
    found = sd.load(old, "student").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    run = summary.read(old)
    assert [stage.name for stage in run.stages] == ["teacher", "student"]
    assert run.stage("student").accuracy == pytest.approx(0.2774, abs=0.003)
    assert cli.main(["evaluate", f"{old}:teacher"]) == 0


def test_defaults_that_change_later_change_no_old_run(old, other_defaults):
    assert surrogates(
        networks.create("conv6", width=0.0625, initialisation="plain", neuron={"type": "lif"})
    ) == {("atan", 7.0)}
    claimed = read_whole_claim(old)
    neuron = claimed.recipe.stage("student").network["neuron"]
    assert neuron["surrogate"] == {"name": "atan", "alpha": 2.0}
    assert neuron["threshold"] == 0.5
    assert cli.main(["resume", str(old), "--device", "cpu"]) == 0
    network = sd.load(old, "student")
    assert surrogates(network) == {("atan", 2.0)}
    for name, value in load_file(OLD / "student.safetensors").items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_same_recipe_given_again_goes_on_with_the_old_defaults(old, other_defaults):
    given = yaml.safe_load((old / "recipe.yaml").read_text())["recipe"]
    claimed = claim(old, load_recipe(given), "old")
    assert claimed.recipe.stage("student").network["neuron"]["surrogate"]["name"] == "atan"
    given["stages"][1]["network"]["neuron"]["surrogate"] = "triangle"
    with pytest.raises(sd.SpikedistillError, match=r"another recipe .*surrogate"):
        claim(old, load_recipe(given), "old")


def test_todays_record_holds_every_value_and_outlives_other_defaults(tmp_path, monkeypatch, other_defaults):
    monkeypatch.undo()
    recipe = load_recipe(
        {
            "stages": [
                {"name": "ann", "network": {"name": "vgg9", "ann": True}},
                {
                    "name": "snn",
                    "network": {"name": "svgg11", "width": 0.125},
                    "teacher": "ann",
                    "optimizer": {"name": "adamw"},
                    "objectives": [{"type": "logit_distillation"}],
                },
                {"name": "four", "from": "snn", "quantize": {"weight_bits": 3}},
            ]
        }
    )
    whole = claim(tmp_path / "run", recipe, "x")
    ann, snn, four = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["recipe"]["stages"]
    assert set(snn["optimizer"]) == set(type(recipe.optimizer).model_fields)
    assert "temperature" in snn["objectives"][0]
    neuron = snn["network"]["neuron"]
    assert {**neuron, "surrogate": None} == {**LIF(tau=2.0, reset="soft").spec(), "surrogate": None}
    assert neuron["surrogate"]["name"] == "rectangle", "what a balanced network chose"
    assert snn["network"]["initialisation"] == "balanced"
    assert snn["network"]["pooling"] == "max"
    assert "mean" not in snn["network"], "the data say it"
    assert four["quantize"]["weight_bits"] == 3
    assert four["quantize"]["membrane_bits"] == 4
    assert whole.given == recipe
    again = read_whole_claim(tmp_path / "run")
    assert again.recipe == whole.recipe
    assert records.complete(again.recipe) == records.complete(whole.recipe)
    assert claim(tmp_path / "run", recipe, "x").recipe == whole.recipe


def test_a_networks_config_is_whole(other_defaults, monkeypatch):
    monkeypatch.undo()
    options = networks.create("ms_resnet18", width=0.125, initialisation="plain").config["options"]
    assert options["neuron"]["surrogate"] == {"name": "rectangle", "alpha": 1.0}
    assert options["encoding"] == "direct"
    assert set(options) == set(networks.options("ms_resnet18"))


def test_a_config_of_record_1_keeps_the_neurons_of_its_time(other_defaults):
    spiking = {"spiking": {"neuron": {"type": "if"}, "time_steps": 2}}
    assert records.upgraded_config(spiking, 1)["spiking"]["neuron"]["surrogate"] == {
        "name": "atan",
        "alpha": 2.0,
    }
    named = {"name": "ms_resnet18", "options": {"time_steps": 4}}
    assert records.upgraded_config(named, 1)["options"]["neuron"]["surrogate"]["name"] == "rectangle"
    given = {"name": "conv6", "options": {"neuron": {"type": "lif", "surrogate": "sigmoid"}}}
    assert records.upgraded_config(given, 1)["options"]["neuron"]["surrogate"] == {
        "name": "sigmoid",
        "alpha": 4.0,
    }
    ann = {"name": "conv6", "options": {"time_steps": None}}
    assert "neuron" not in records.upgraded_config(ann, 1)["options"]
    assert records.upgraded_config(named, records.RECORD) == named


def test_keys_added_later_stand_in_older_records_as_runs_were_then(monkeypatch):
    monkeypatch.setitem(records.ADDED_TO_NETWORKS, "pooling", "avg")
    monkeypatch.setitem(records.ADDED_TO_STAGES, "recalibrate", False)
    old = {"stages": [{"name": "a", "network": {"name": "conv6"}}]}
    (stage,) = records.upgraded_recipe(old, 1)["stages"]
    assert stage["network"]["pooling"] == "avg"
    assert stage["recalibrate"] is False
    assert records.upgraded_recipe(old, records.RECORD) == json.loads(json.dumps(old))


def test_the_first_seed_of_a_run_is_the_least(tmp_path):
    for seed in (9, 10, 11):
        stage = tmp_path / f"seed-{seed}" / "stages" / "student"
        stage.mkdir(parents=True)
        (stage / "config.json").write_text("{}")
    (tmp_path / "seed-1").write_text("a file")
    assert [place.name for place in seed_folders(tmp_path)] == ["seed-9", "seed-10", "seed-11"]
    assert find_stage(tmp_path, None) == tmp_path / "seed-9" / "stages" / "student"
