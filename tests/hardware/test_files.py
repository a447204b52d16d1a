"""Layer files, settings and their errors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import spikedistill.networks as networks
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import (
    Config,
    Layer,
    layers,
    read_config,
    read_layers,
    resolve,
    spikesim,
    write_layers,
)
from spikedistill.hardware.config import RELEASED, Switches, Technology
from spikedistill.hardware.pricing import price_file, settings

CONV = "{name: a, kind: conv, in_channels: 3, out_channels: 8, kernel_size: 3, in_size: 8, out_size: 8%s}"


def file(tmp_path: Path, entry: str = CONV % "", rest: str = "") -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(f"layers:\n  - {entry}\n{rest}")
    return path


def test_short_keys(tmp_path: Path) -> None:
    entry = CONV % ", bits: {weight: 4, membrane: 6, norm: 8}, input: {kind: real, bits: 5}, stride: [2, 1]"
    (layer,), chip = read_layers(file(tmp_path, entry, "time_steps: 3\nspikesim: {cell_bits: 2}"))
    assert (layer.weight_bits, layer.membrane_bits, layer.norm_bits) == (4, 6, 8)
    assert (layer.input_kind, layer.input_bits, layer.stride, layer.runs) == ("real", 5, (2, 1), 3)
    assert (layer.neuron, layer.leaky) == ("lif", True)
    assert chip == {"cell_bits": 2}
    (layer,), _ = read_layers(file(tmp_path, CONV % ", bits: 4, input: integers, neuron: if"))
    assert (layer.weight_bits, layer.membrane_bits, layer.input_kind, layer.leaky) == (
        4,
        32,
        "integers",
        False,
    )


@pytest.mark.parametrize(
    ("entry", "rest", "words"),
    [
        (CONV % ", kernal_size: 3", "", ["layers.0 (a)", "kernal_size", "kernel_size"]),
        (CONV % ", bits: {wieght: 4}", "", ["bits", "wieght", "weight"]),
        (CONV % ", input: spike", "", ["input", "spikes", "spike"]),
        (CONV % ", groups: 2", "", ["groups=2", "divide"]),
        (CONV % ", stride: 0", "", ["stride must be at least 1"]),
        ("{name: a, out_channels: 8}", "", ["in_channels"]),
        (CONV % "", "timesteps: 3", ["timesteps", "time_steps"]),
        (CONV % "", "spikesim: {crossbarsize: 3}", ["crossbarsize", "crossbar_size"]),
        (CONV % "", "spikesim: {switches: {tile_share: true}}", ["tile_share", "tile_sharing"]),
        (CONV % "", "spikesim: {mode: fixed}", ["mode", "released", "fixed"]),
        (CONV % "" + "\n  - " + CONV % "", "", ["names must differ", "a"]),
    ],
)
def test_errors_say_what_and_where(tmp_path: Path, entry: str, rest: str, words: list[str]) -> None:
    with pytest.raises(SpikedistillError) as error:
        read_layers(file(tmp_path, entry, rest))
    for word in ["net.yaml", *words]:
        assert word in str(error.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(SpikedistillError, match="cannot be read"):
        read_layers(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("layers: [")
    with pytest.raises(SpikedistillError, match="not YAML"):
        read_layers(broken)
    broken.write_text("spikesim: {device: dram}")
    with pytest.raises(SpikedistillError, match="rram"):
        read_config(broken)


def test_sizes_are_checked_in_corrected_mode_only(tmp_path: Path) -> None:
    wrong = (CONV % "").replace("out_size: 8", "out_size: 9")
    with pytest.raises(SpikedistillError, match="out_size"):
        price_file(file(tmp_path, wrong))
    assert price_file(file(tmp_path, wrong, "spikesim: {mode: released}"))["energy_pj"] > 0


def test_precedence(tmp_path: Path) -> None:
    recipe = {"crossbar_size": 32, "clock_mhz": 100, "switches": {"norm": False, "tile_charge": False}}
    chip = {"crossbar_size": 128, "switches": {"norm": True}}
    config = resolve(("recipe", recipe), ("file", chip))
    assert (config.crossbar_size, config.clock_mhz) == (128, 100)
    assert (config.switches.norm, config.switches.tile_charge) == (True, False)
    over = tmp_path / "chip.yaml"
    over.write_text("spikesim: {crossbar_size: 16}")
    assert (
        price_file(file(tmp_path, rest="spikesim: {crossbar_size: 32}"), over)["config"]["crossbar_size"]
        == 16
    )
    with pytest.raises(SpikedistillError, match="spikesim"):
        settings(("recipe", {"spikesm": {}}))
    assert settings(("recipe", {"memory": {"sram_law": "linear"}}))[1].sram_law == "linear"


def test_modes_set_switches() -> None:
    assert Config(mode="released").switches == RELEASED
    assert Config().switches == Switches()
    mixed = Config.model_validate({"mode": "released", "switches": {"norm": True}}).switches
    assert mixed == RELEASED.model_copy(update={"norm": True})


def test_every_switch_and_constant_is_explained() -> None:
    for model in (Switches, Technology):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert len(field.description) > 20, name


def test_written_layers_read_back_equal_and_cost_the_same(tmp_path: Path) -> None:
    neuron = {"type": "if", "threshold": 0.05}
    net = networks.create("sew_resnet18", num_classes=3, width=0.125, time_steps=2, neuron=neuron)
    found = layers(net, torch.rand(1, 3, 32, 32) * 5)
    path = tmp_path / "sew.yaml"
    config = Config(activity="event", crossbar_size=16)
    write_layers(found, path, config)
    again, chip = read_layers(path)
    assert again == found
    assert (
        spikesim.evaluate(again, resolve((str(path), chip))).energy_pj
        == spikesim.evaluate(found, config).energy_pj
    )
    alone = Layer(name="x", in_channels=1, out_channels=1, in_size=3, kernel_size=3)
    write_layers([alone, replace(alone, name="y", neuron="lif", leaky=True)], path)
    assert [layer.neuron for layer in read_layers(path)[0]] == [None, "lif"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "a mapping of keys is needed, layers, time_steps, spikesim; found ['a']"),
        ("", "a mapping of keys is needed"),
        ("layers: [{kind: conv, in_channels: 3}]", "layers.0 (no name): name is missing"),
        ("time_steps: 5", "layers is missing"),
        ("layers:\n  - {name: a\n", "not YAML: while parsing a flow mapping (line 3)"),
    ],
)
def test_what_a_layer_file_lacks(text, words, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SpikedistillError) as raised:
        read_layers(tmp_path / "a.yaml")
    assert words in str(raised.value)
