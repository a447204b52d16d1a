"""The whole price: memory-inclusive energy on paper, ANN twin, break-even, ratios, what is printed."""

import io
import json
from dataclasses import replace
from math import ceil, log2
from pathlib import Path

import pytest
import torch

import spikedistill.networks as networks
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import (
    Config,
    Layer,
    against,
    at_bits,
    at_rate,
    break_even,
    iso_accuracy,
    layers,
    memory,
    operations,
    price,
    price_file,
    spikesim,
    twin,
)  # fmt: skip
from spikedistill.hardware.ann import activation_bits
from spikedistill.hardware.costs import add_energy, multiply_energy
from spikedistill.hardware.events import expected, measure
from spikedistill.hardware.memory import MemoryConfig
from spikedistill.hardware.pricing import FIGURES
from spikedistill.hardware.show import show

SPIKING = Layer(
    name="c", in_channels=4, out_channels=6, kernel_size=3, stride=2, in_size=9, time_steps=3, spikes_in=50.0,
    spikes_out=20.0, neuron="lif", leaky=True, bias=True,
)  # fmt: skip


def test_memory_energy_of_a_spiking_convolution_on_paper() -> None:
    outputs = 6 * 5 * 5
    kernel, strided = 50 * 6 * 9, 50 * 6 * 2 * 2
    estimate = memory.estimate([SPIKING])
    adds, leaks = strided + 3 * outputs + 20, 3 * outputs
    assert estimate.operations_pj == pytest.approx(0.1 * adds + 3.2 * leaks)
    assert estimate.addressing_pj == pytest.approx(0.1 * kernel + 3.2 * 2 * 50)
    word = 10 / (8 * 1024)  # pJ a 32-bit word and byte of capacity, below 8 KiB
    assert estimate.messages_pj == pytest.approx((50 + 20) * word * 4000)
    assert estimate.parameters_pj == pytest.approx((kernel + 3 * outputs) * word * 4 * (4 * 6 * 9 + 6))
    assert estimate.potentials_pj == pytest.approx(2 * (kernel + 3 * outputs) * word * 4 * outputs)
    assert estimate.total_pj == pytest.approx(sum(layer.total_pj for layer in estimate.layers))


def test_memory_energy_of_dense_layers_on_paper() -> None:
    conv = replace(SPIKING, input_kind="real", executions=1, neuron=None, bias=False, spikes_out=None)
    head = Layer(name="h", kind="linear", in_channels=20, out_channels=5, input_kind="real", bias=True)
    macs = 6 * 4 * 9 * 25
    estimate = memory.estimate([conv, head])
    assert estimate.operations_pj == pytest.approx(3.2 * (macs + 100) + 0.1 * (150 + 5))
    assert estimate.addressing_pj == pytest.approx(0.1 * (4 * 81 + 150 + 6 * 9 + 100))
    assert estimate.counts["input_reads"] == macs + 20
    assert estimate.counts["output_writes"] == 155  # an ANN writes its activations


@pytest.mark.parametrize(
    ("law", "bytes_", "bits", "energy"),
    [
        ("interpolated", 8 * 1024, 32, 10), ("interpolated", 32 * 1024, 32, 20),
        ("interpolated", 20 * 1024, 32, 15),
        ("interpolated", 2**30, 32, 100), ("interpolated", 8 * 1024, 8, 2.5),
        ("linear", 1000, 8, 1.09e-5 * 8000 + 13.2),
        ("blocks", 1000, 32, 5), ("blocks", 1000, 8, 1.25), ("blocks", 9, 6, 1),
    ],
)  # fmt: skip
def test_sram_laws(law: str, bytes_: int, bits: int, energy: float) -> None:
    assert MemoryConfig(sram_law=law).access(8 * bytes_, bits) == pytest.approx(energy)


def test_memory_switches() -> None:
    base = memory.estimate([SPIKING])
    assert memory.estimate([replace(SPIKING, bias=False)], MemoryConfig(adds_without_bias=False)).counts[
        "adds"
    ] == (50 * 6 * 4 + 20)
    assert (
        memory.estimate([SPIKING], MemoryConfig(addresses_of_channels=False)).counts["address_adds"] == 50 * 9
    )
    assert memory.estimate([SPIKING], MemoryConfig(bias_each_step=False)).counts["bias_reads"] == 150
    assert (
        base.counts["adds"] - memory.estimate([SPIKING], MemoryConfig(reset_adds=False)).counts["adds"] == 20
    )
    (measured,) = at_rate([SPIKING], 0.1)
    exact = memory.estimate([measured], MemoryConfig(exact_synapses=True))
    assert exact.counts["weight_reads"] == pytest.approx(operations.synaptic_events(measured))
    fewer = memory.estimate([replace(SPIKING, weight_bits=4, membrane_bits=4)])
    assert fewer.parameters_pj < base.parameters_pj / 8
    assert fewer.operations_pj < base.operations_pj / 5


def test_unmeasured_spikes_are_said() -> None:
    assert any("not measured" in note for note in memory.estimate([replace(SPIKING, spikes_in=None)]).notes)
    counted = operations.count([replace(SPIKING, spikes_in=None)]).layers[0]
    assert not counted.measured
    assert counted.acs == 3 * SPIKING.connections


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8])
def test_activation_bits(steps: int) -> None:
    assert activation_bits(steps) == ceil(log2(steps + 1))


def test_twin_is_the_quantized_ann() -> None:
    stem = replace(SPIKING, name="stem", input_kind="real", input_bits=8, executions=1)
    ann = twin([stem, SPIKING])
    assert [layer.input_bits for layer in ann] == [8, 2]
    assert all(layer.runs == 1 and layer.input_kind == "real" and layer.neuron == "relu" for layer in ann)
    counted = operations.count(ann)
    assert counted.macs == 2 * SPIKING.macs
    assert counted.membrane_updates == 0
    report = spikesim.evaluate(ann)
    assert report.components["neuron"] == 0
    assert report.area is not None
    assert report.area["membrane_memory"] == 0


def test_break_even_is_where_the_energies_meet() -> None:
    net = [
        replace(SPIKING, weight_bits=8, membrane_bits=8),
        replace(SPIKING, name="d", weight_bits=8, membrane_bits=8),
    ]
    rates = break_even(net)
    ann = twin(net)
    event = Config(activity="event")
    for rate, price_of in (
        (rates.operations, lambda found: operations.count(found).total_pj),
        (rates.memory, lambda found: memory.estimate(found).total_pj),
        (rates.spikesim, lambda found: spikesim.evaluate(found, event).energy_pj),
    ):
        if 0 < rate < 1:
            assert price_of(at_rate(net, rate)) == pytest.approx(price_of(ann), rel=1e-3)
        else:
            cheaper = price_of(at_rate(net, 1.0)) <= price_of(ann)
            assert rate == float(cheaper)
    assert 0 < rates.operations < 1
    assert 0 < rates.memory < 1


def test_expected_events_are_the_mean_of_measured_ones() -> None:
    torch.manual_seed(1)
    layer = Layer(name="x", in_channels=20, out_channels=3, kernel_size=3, stride=2, in_size=7, time_steps=2)
    x = (torch.rand(4000, 20, 7, 7) < 0.01).float()
    seen, mean = measure(layer, x, images=2000), expected(layer, 0.01)
    assert seen.sites == pytest.approx(mean.sites, rel=0.02)
    assert sum(seen.rows) == pytest.approx(sum(mean.rows), rel=0.02)
    assert seen.patches.keys() == mean.patches.keys() == {8, 16}
    assert seen.patches[8] == pytest.approx(mean.patches[8], rel=0.02)
    full = measure(layer, torch.ones(2, 20, 7, 7), images=1)
    assert full == replace(expected(layer, 1.0), rows=full.rows)


def test_ratios_and_iso_accuracy() -> None:
    small, large = (spikesim.evaluate([replace(SPIKING, weight_bits=bits)]).as_dict() for bits in (4, 32))
    ratios = against(large, small)
    assert ratios["energy_pj"] == large["energy_pj"] / small["energy_pj"]
    assert set(ratios) == set(FIGURES)
    assert against({"edap": None}, small)["edap"] is None
    runs = [("cheap", 0.7, small), ("good", 0.9, large), ("dear", 0.95, {**large, "energy_pj": 1e99})]
    assert iso_accuracy(0.8, runs)[0] == "good"
    assert iso_accuracy(0.6, runs)[0] == "cheap"
    with pytest.raises(SpikedistillError, match=r"none of 3 runs .*0\.9500"):
        iso_accuracy(0.99, runs)


def test_everything_is_there_and_json_able(tmp_path: Path) -> None:
    net = networks.create("ms_resnet18", num_classes=3, width=0.125, time_steps=2)
    tree = json.loads(json.dumps(price(layers(net, torch.rand(1, 3, 16, 16) * 8))))
    assert set(tree["spikesim"]) == {"dense", "event"}
    assert tree["ann_twin"]["activation_bits"] == 2
    assert set(tree["break_even"]) == {"operations", "memory", "spikesim"}
    assert tree["spikesim"]["event"]["energy_pj"] <= tree["spikesim"]["dense"]["energy_pj"]
    out = io.StringIO()
    from rich.console import Console

    show(tree, Console(file=out, width=160))
    for word in ("edap", "uJ ms mm2", "Lemaire", "break-even", "layer1.0.conv1", "not priced: avgpool"):
        assert word in out.getvalue()


def test_layer_file_object_has_the_promised_keys(tmp_path: Path) -> None:
    path = tmp_path / "l.yaml"
    path.write_text(
        "layers:\n  - {name: a, in_channels: 64, out_channels: 64, kernel_size: 3, in_size: 8, out_size: 8}\n"
        "  - {name: b, in_channels: 3, out_channels: 64, kernel_size: 3, in_size: 8, out_size: 8}\n"
        "time_steps: 2\nspikesim: {mode: released}\n"
    )
    found = price_file(path)
    assert set(FIGURES) <= set(found)
    assert found["latency_ns"] is None
    assert "latency_ns" in found["reasons"]
    assert found["pes"] == 2
    assert {"name", "pes", "energy_pj", "latency_ns"} <= set(found["layers"][0])
    assert "ann_twin" not in found
    assert found["memory"]["total_pj"] > 0
    assert found["operations"]["acs"] > 0


def test_other_bit_widths() -> None:
    layers_ = [replace(SPIKING, name=name) for name in "abc"]
    layers_.append(replace(SPIKING, name="short", input_kind="real", input_bits=32))
    layers_.append(replace(SPIKING, name="head", input_kind="real", input_bits=5))
    low = at_bits(layers_)
    assert [layer.weight_bits for layer in low] == [8, 4, 4, 4, 8]
    assert [layer.input_bits for layer in low[3:]] == [16, 5]
    assert {(layer.membrane_bits, layer.norm_bits) for layer in low} == {(4, 8)}
    assert [layer.weight_bits for layer in at_bits(layers_, first_last_bits=None)] == [4] * 5
    assert at_bits(layers_, None, None, None, residual_bits=32) == layers_


def test_integer_operations_have_the_width_of_their_sums() -> None:
    conv = replace(SPIKING, weight_bits=4, in_channels=64)  # fan-in 576: 10 bits
    assert operations.accumulate_energy(conv) == add_energy(14)
    assert operations.mac_energy(replace(conv, input_bits=8)) == pytest.approx(
        multiply_energy(4, 8) + add_energy(22)
    )
    assert operations.accumulate_energy(SPIKING) == 0.9
    assert operations.energy_per_spike(conv) == conv.fan_out * operations.accumulate_energy(conv)


def test_released_figures_are_printed_to_the_last_digit() -> None:
    path = Path(__file__).parents[2] / "examples" / "spikesim_vgg9.yaml"
    out = io.StringIO()
    from rich.console import Console

    show(price_file(path), Console(file=out))
    for word in ("48", "6", "8425528.755834", "15906934.02624", "62832640"):
        assert f" {word} " in out.getvalue()
