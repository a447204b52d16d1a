"""One's own chip models: by address and entry point, beside the shipped ones, for network and ANN twin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spikedistill as sd
from spikedistill import own_code
from spikedistill.cli import main
from spikedistill.hardware import chips
from spikedistill.hardware.pricing import settings
from spikedistill.report import table
from spikedistill.training.summary import StageSummary

MINE = '''
def adders(layers, adder_pj: float = 0.1, notes: bool = True):
    """An adder a synapse and step."""
    energy = sum(adder_pj * (layer.spikes_in or 0) + 1 for layer in layers)
    return {"energy_pj": energy, "notes": ["only adders"] if notes else []}


def nothing(layers):
    return {"joule": 1}


def infinite(layers):
    return {"energy_pj": float("inf")}


def broken(layers):
    return layers[0].no_such_thing


number = 3
'''


@pytest.fixture(scope="module")
def layers() -> list[sd.hardware.Layer]:
    network = sd.networks.create("vgg5", in_channels=1, time_steps=2, width=0.125, pools=1)
    return sd.hardware.layers(network, torch.rand(2, 1, 8, 8))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "minechip.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with own_code.search([tmp_path]):
        yield tmp_path
    sys.modules.pop("minechip", None)


def test_its_figures_stand_beside_the_others_and_the_twin_s(mine, layers, capsys) -> None:
    found = sd.hardware.price(layers, {"chips": {"minechip:adders": {"adder_pj": 0.5}}})
    spikes = sum(layer.spikes_in or 0 for layer in layers)
    assert found["chips"]["minechip:adders"]["energy_pj"] == pytest.approx(0.5 * spikes + len(layers))
    assert found["ann_twin"]["chips"]["minechip:adders"]["energy_pj"] > 0
    assert json.loads(json.dumps(found)) == found
    from spikedistill.hardware.show import show

    show(found)
    said = capsys.readouterr().out
    assert "minechip:adders" in said
    assert "minechip:adders: only adders" in said
    assert "minechip:adders" in found._repr_html_()
    del found["floorline"]
    stage = StageSummary(
        name="s",
        kind="snn",
        network={},
        parameters=1,
        epochs=1,
        seconds=1,
        accuracy=1,
        time_steps=2,
        hardware=found,
    )
    assert "minechip:adders" in [one.model for one in table.estimates(stage)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"minechip:adders": {"adder": 1}},
            r"chips.minechip:adders.adder: unknown key 'adder'; did you mean 'adder_pj'",
        ),
        ({"minechip:adders": {"adder_pj": "x"}}, "adder_pj: found 'x'"),
        ({"minechip:number": {}}, "'minechip:number' is no function of layers, found int"),
        ({"minechip:chip": {}}, "'minechip:chip' names nothing that can be imported"),
        ({"loihi": {}}, "unknown chip model 'loihi'; give module:function, or install its package"),
        (["minechip:adders"], "a mapping of chip models to their options is needed"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(mine, given, words) -> None:
    with pytest.raises(sd.SpikedistillError, match=words):
        settings(("hardware", {"chips": given}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "a number `energy_pj` of at least 0 is needed, .* found None"),
        ("infinite", "ValueError: Out of range float values"),
        ("broken", "AttributeError: 'Layer' object has no attribute 'no_such_thing'"),
    ],
)
def test_a_model_that_fails_is_named(mine, layers, name, words) -> None:
    with pytest.raises(sd.SpikedistillError, match=f"hardware.chips.minechip:{name}: {words}"):
        chips.evaluate(layers, {f"minechip:{name}": None})


def test_nothing_is_imported_to_read_a_run(mine) -> None:
    with own_code.closed():
        settings(
            ("hardware", {"chips": {"minechip:adders": {"whatever": 1}, "of_a_package_that_is_gone": {}}})
        )
        assert "minechip" not in sys.modules
        with pytest.raises(
            sd.SpikedistillError, match="not imported to read a run; name its file to allow it: --code FILE"
        ):
            chips.find("minechip:adders")


def test_a_run_is_priced_with_it(mine, capsys) -> None:
    recipe = {
        "data": {"name": "digits"}, "time_steps": 2,
        "hardware": {
            "chips": {"minechip:adders": {"notes": False}},
            "floorline": {"synop_ns": 1.0, "update_ns": 1.0, "message_ns": 1.0},
        },
        "stages": [{"name": "s", "network": {"name": "vgg5", "width": 0.125, "pools": 1}, "epochs": 0}],
    }  # fmt: skip
    (mine / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", "recipe.yaml", "--out", "run"]) == 0
    assert (
        "minechip:adders"
        in json.loads((mine / "run" / "summary.json").read_text())["stages"][0]["hardware"]["chips"]
    )
    assert "minechip:adders [µJ]" in (mine / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main(["hardware", "run", "--code", "minechip.py", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "minechip:adders" in found["chips"]
    assert found["floorline"]["step_ns"] > 0  # the recipe's own constants


def test_a_package_makes_its_chip_known(tmp_path: Path) -> None:
    (tmp_path / "minechip.py").write_text(MINE)
    info = tmp_path / "minechip-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: minechip\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spikedistill.chips]\nadders = minechip:adders\n")
    lines = [f"import sys; sys.path.insert(0, {str(tmp_path)!r})", "from spikedistill.hardware import chips"]
    code = "\n".join([*lines, "print(chips.find('adders'))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "function adders" in done.stdout
