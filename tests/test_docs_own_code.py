"""The page on own code: its file and its recipe, as they stand there."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import spikedistill as sd
from spikedistill.cli import main

TEXT = (Path(__file__).parents[1] / "docs" / "own_code.md").read_text()


def block(kind: str, which: int = 0) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)[which]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(block("python"))
    (folder / "recipe.yaml").write_text(block("yaml"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield folder
    sys.modules.pop("mine", None)


def test_its_recipe_trains_and_what_it_says_of_the_run_is_true(project, capsys):
    run = project / "run"
    assert main(["train", str(project / "recipe.yaml"), "--out", str(run)]) == 0
    sys.modules.pop("mine")
    assert isinstance(sd.load(run, "teacher")(torch.rand(1, 1, 8, 8)), torch.Tensor)
    with pytest.raises(
        sd.SpikedistillError, match=r"'mine:Net' is your own; pass it as sd.load\(..., network=...\)"
    ):
        sd.load(run, "student")
    assert main(["evaluate", f"{run}:teacher"]) == 2
    assert (
        "'mine:stripes' is code of your own, which is not imported to read a run" in capsys.readouterr().err
    )
    assert "mine" not in sys.modules
    assert main(["evaluate", f"{run}:student", "--code", str(project / "mine.py")]) == 0


def test_unknown_options_are_refused_with_the_nearest(project):
    from spikedistill.recipe import load

    for override, words in (
        ("student.network.widht=2", r"'mine:Net' has no option 'widht'; did you mean 'width'"),
        (
            "student.network.width=many",
            r"stages.student.network.width: found 'many'; input should be a valid integer",
        ),
        ("student.network.time_steps=2", "time steps belong to the stage"),
        ("teacher.network.neuron={type: lif}", "'mine:Net' has no option 'neuron' without `spiking: true`"),
        ("student.network.name=mine:Nett", "'mine:Nett' names nothing that can be imported"),
        ("student.network.name=mynet:Net", "'mynet:Net' names nothing that can be imported"),
    ):
        with pytest.raises(sd.SpikedistillError, match=words):
            load(project / "recipe.yaml", [override])


def test_its_chip_model_prices_the_network_and_its_twin(monkeypatch):
    names = {}
    exec(block("py"), names)
    monkeypatch.setitem(sd.hardware.chips.TYPES, "adders", names["adders"])
    network = sd.networks.create("vgg5", in_channels=1, time_steps=2, width=0.125, pools=1)
    found = sd.hardware.price(
        sd.hardware.layers(network, torch.rand(2, 1, 8, 8)), chips={"adders": {"adder_pj": 0.2}}
    )
    macs, acs = found["operations"]["macs"], found["operations"]["acs"]
    assert found["chips"]["adders"]["energy_pj"] == pytest.approx(0.2 * acs + macs)
    assert found["ann_twin"]["chips"]["adders"]["energy_pj"] == pytest.approx(
        found["ann_twin"]["operations"]["macs"]
    )


def test_its_neuron_with_two_states_runs_trains_and_says_which_state_is_missing(monkeypatch):
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # its neuron has an address then
    exec(block("python", 1), vars(page))  # streams as it runs
    network, tired = page.network, page.Tired
    network.train()(torch.rand(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    spec = tired(rise=0.25, threshold=2.0).spec()
    assert (spec["rise"], spec["threshold"]) == (0.25, 2.0)
    with pytest.raises(sd.SpikedistillError, match="computes by simulate"):
        sd.quantize(network, calibration=torch.rand(4, 1, 8, 8))
    del tired.state_shape
    _, state = network.eval().step(torch.rand(2, 1, 8, 8))
    with pytest.raises(sd.SpikedistillError, match="state_shape has to say its shape"):
        network.step(torch.rand(2, 1, 8, 8), state)
