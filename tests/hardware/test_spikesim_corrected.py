"""Corrected mode, by hand; each switch does what its sentence says."""

from dataclasses import replace
from math import log2

import pytest

from spikedistill.hardware import Config, Layer, at_rate, spikesim
from spikedistill.hardware.config import RELEASED, Switches
from spikedistill.hardware.costs import add_energy, multiply_energy
from spikedistill.hardware.layer import Events
from spikedistill.hardware.spikesim_mapping import place

CONV = Layer(
    name="c",
    in_channels=100,
    out_channels=70,
    kernel_size=3,
    in_size=8,
    out_size=4,
    time_steps=2,
    neuron="lif",
)


def only(*names: str, **given: object) -> Config:
    """Released, with some switches on."""
    return Config(switches=RELEASED.model_copy(update=dict.fromkeys(names, True)), **given)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12)


def released(layer: Layer = CONV) -> spikesim.HardwareReport:
    return spikesim.evaluate([layer], only())


def test_bit_slicing() -> None:
    for bits, cell, columns in ((4, 1, 280), (4, 2, 140), (5, 2, 210), (32, 1, 2240)):
        placed = place(replace(CONV, weight_bits=bits), only("bit_slicing", cell_bits=cell))
        assert placed.pes == 2 * -(-columns // 64)


@pytest.mark.parametrize(
    ("size", "cell", "bits"), [(64, 1, 7), (63, 1, 6), (64, 2, 8), (128, 1, 8), (256, 4, 12)]
)
def test_lossless_adc_bits(size: int, cell: int, bits: int) -> None:
    assert Config(crossbar_size=size, cell_bits=cell).lossless_adc_bits == bits


@pytest.mark.parametrize(("law", "factor"), [("walden", 16), ("linear", 2), ("constant", 1)])
def test_adc_law(law: str, factor: float) -> None:
    base, report = released(), spikesim.evaluate([CONV], only("adc_bits", adc_law=law, adc_bits=8))
    assert report.components["adc"] == close(factor * base.components["adc"])
    assert report.area is not None
    assert base.area is not None
    assert report.area["adc"] == close(factor * base.area["adc"])
    assert report.components["mux"] == base.components["mux"]


def test_lossy_adcs_are_said() -> None:
    assert not any("lose" in note for note in spikesim.evaluate([CONV], Config(adc_bits=7)).notes)
    assert any("lossless: 7" in note for note in spikesim.evaluate([CONV], Config(adc_bits=6)).notes)


def test_positions_are_those_of_the_convolution() -> None:
    base, report = released(), spikesim.evaluate([CONV], only("conv_positions"))
    assert report.energy_pj == close(4 * base.energy_pj)
    assert report.dense_operations == 4 * base.dense_operations == 2 * 2 * 9 * 100 * 70 * 64


def test_a_real_input_is_fed_bit_by_bit_and_an_integer_pulse_by_pulse() -> None:
    base = released()
    for change, planes in (
        ({"input_kind": "real", "input_bits": 5}, 5),
        ({"input_kind": "integers", "input_max": 3}, 3),
    ):
        report = spikesim.evaluate([replace(CONV, **change)], only("bit_serial_inputs", "latency_cycles"))
        assert report.components["crossbar"] == close(planes * base.components["crossbar"])
        assert report.latency_ns == close(planes * 16 * 2 * 104)
        assert report.dense_operations == base.dense_operations


def test_a_layer_that_runs_once() -> None:
    report = spikesim.evaluate([replace(CONV, executions=1)], only("run_once"))
    base = released()
    assert report.energy_pj == close(base.energy_pj / 2)
    assert report.latency_ns == close((base.latency_ns or 0) / 2)


def test_the_inference_ends_with_the_latest_layer() -> None:
    small = Layer(
        name="d", in_channels=128, out_channels=128, kernel_size=3, in_size=4, out_size=1, time_steps=2
    )
    big = replace(CONV, out_size=(8, 8))
    last, latest = (spikesim.evaluate([big, small], only(*on)).latency_ns for on in ([], ["latest_end"]))
    assert last == (int(0.75 * 64 * 70) * 2 + 128 * 2) * 104
    assert latest == 64 * 70 * 2 * 104


def test_tiles_of_one_layer_each() -> None:
    layers = [replace(CONV, name=f"c{i}") for i in range(3)]
    assert spikesim.evaluate(layers, only()).tiles == 2
    report = spikesim.evaluate(layers, only("tile_sharing"))
    assert report.tiles == 3
    assert [layer.tiles for layer in report.layers] == [1, 1, 1]


def test_tile_charge_counts_tiles_at_work() -> None:
    report = spikesim.evaluate([CONV], only("tile_charge"))
    assert report.components["htree"] == close(157.12 * 16 * 2)
    wide = replace(CONV, in_channels=600, out_channels=200)  # 10 x 4 PEs: two input tiles share a tile
    assert spikesim.evaluate([wide], only("tile_charge")).components["htree"] == close(157.12 * 5 * 16 * 2)


def test_linear_and_grouped_layers() -> None:
    head = Layer(
        name="h", kind="linear", in_channels=512, out_channels=10, time_steps=4, executions=4, weight_bits=4
    )
    report = spikesim.evaluate([head], Config())
    assert report.pes == 8
    assert report.dense_operations == 2 * 4 * 5120
    depthwise = Layer(
        name="d", in_channels=96, out_channels=96, groups=96, kernel_size=3, in_size=8, weight_bits=4
    )
    assert place(depthwise, Config()).pes == 6  # 16 groups by 4 slices fill the columns of a PE
    assert place(depthwise, Config()).tile_rows == 16


def test_memories() -> None:
    conv = replace(CONV, weight_bits=4, membrane_bits=6, input_kind="real", input_bits=3)
    norm = Layer(name="n", kind="norm", in_channels=70, out_channels=70, in_size=8, norm_bits=5, time_steps=2)
    add = Layer(
        name="a", kind="add", in_channels=70, out_channels=70, in_size=8, input_kind="real", input_bits=16
    )
    area = spikesim.evaluate([conv, norm, add], Config()).area
    assert area is not None
    assert area["input_memory"] == close(0.7391 * 3 * 100 * 64)
    assert area["membrane_memory"] == close(0.7391 * 6 * 70 * 64)
    assert area["norm_memory"] == close(0.7391 * 5 * 2 * 70)
    assert area["residual_memory"] == close(0.7391 * 16 * 70 * 64)


def test_membranes_beyond_the_fifth_layer() -> None:
    layers = [replace(CONV, name=f"c{i}") for i in range(7)]
    five, seven = (spikesim.evaluate(layers, only(*on)).area for on in ([], ["membrane_all_layers"]))
    assert five is not None
    assert seven is not None
    assert seven["membrane_memory"] == close(five["membrane_memory"] * 7 / 5)


def test_norm_and_residual_energy() -> None:
    stream = Layer(name="n", kind="norm", in_channels=4, out_channels=4, in_size=8, time_steps=2)
    norm = replace(stream, norm_bits=8, membrane_bits=8)
    add = replace(stream, name="a", kind="add", input_kind="real", input_bits=8)
    components = spikesim.evaluate([CONV, norm, add], Config()).components
    assert components["norm"] == close((0.2 + 0.03) * 4 * 64 * 2)
    assert components["residual"] == close(0.03 * 4 * 64 * 2)


def test_costs_pass_through_the_published_points() -> None:
    assert [add_energy(8), add_energy(32)] == close([0.03, 0.1])
    assert [multiply_energy(8, 8), multiply_energy(32, 32)] == close([0.2, 3.1])
    assert multiply_energy(4, 16) == close(multiply_energy(8, 8))
    assert add_energy(4, floating=True) + multiply_energy(4, 4, floating=True) == close(4.6)


def test_sram_has_no_published_energy() -> None:
    energy = {on: spikesim.evaluate([CONV], only(*on, device="sram")) for on in ((), ("sram_energy",))}
    assert energy["sram_energy",].components["crossbar"] == close(released().components["crossbar"])
    assert energy[()].components["crossbar"] == close(released().components["crossbar"] * 671.089 / 1.76423)
    assert all(any("SRAM" in note for note in report.notes) for report in energy.values())


def test_size_enters_as_cells_and_turns() -> None:
    a, b = (spikesim.evaluate([replace(CONV, in_channels=64, out_channels=64)],
            only("array_scaling", "adc_turns", crossbar_size=size)) for size in (64, 128))  # fmt: skip
    assert b.components["crossbar"] == close(4 * a.components["crossbar"])
    assert b.components["adc"] == close(2 * a.components["adc"])


def test_events_of_a_full_input_cost_as_much_as_dense() -> None:
    config = Config(activity="event")
    layer = replace(CONV, kernel_size=(1, 1), weight_bits=4, in_channels=128)
    (full,) = at_rate([layer], 1.0)
    assert full.events is not None
    event, dense = spikesim.evaluate([full], config), spikesim.evaluate([layer], Config())
    assert event.energy_pj == pytest.approx(dense.energy_pj, rel=1e-9)
    assert event.latency_ns == dense.latency_ns
    (silent,) = at_rate([layer], 0.0)
    assert {k for k, v in spikesim.evaluate([silent], config).components.items() if v} == {"neuron"}


def test_event_energy_by_hand() -> None:
    """Patch control per active patch, arrays per active row: not a rate times a total."""
    layer = replace(
        CONV,
        out_size=None,
        events=Events(block=8, rows=(5.0,) + (0.0,) * 11 + (2.0,), patches={64: 6.0}, sites=5.0),
    )
    report = spikesim.evaluate([layer], only("conv_positions", activity="event"))
    q = 2
    assert report.components["crossbar"] == close(q * 1.76423 * 8 * (5 / 64 + 2 / 36))
    assert report.components["adc"] == close(q * 6 * 64 * 2.03084)
    assert report.components["neuron"] == close(2 * q * 5 * 5.096)
    unmeasured = spikesim.evaluate([layer], only("conv_positions", activity="event", crossbar_size=32))
    assert any("no events measured" in note for note in unmeasured.notes)


@pytest.mark.parametrize("name", list(Switches.model_fields))
def test_each_switch_changes_something(name: str) -> None:
    layers = [
        Layer(name="stem", in_channels=3, out_channels=200, kernel_size=3, in_size=16, out_size=8,
        time_steps=4,
              executions=1, input_kind="real", input_bits=8, neuron="lif", weight_bits=4, membrane_bits=4,
              potential_bits=11),
        Layer(name="dw", in_channels=64, out_channels=64, kernel_size=3, groups=64, in_size=8, time_steps=4),
        *(Layer(name=f"c{i}", in_channels=200, out_channels=16, kernel_size=3, in_size=8, out_size=4 - i % 4,
        time_steps=4,
                neuron="lif", input_kind="integers", input_max=2) for i in range(12)),
        Layer(name="short", in_channels=200, out_channels=16, kernel_size=1, in_size=8, time_steps=4),
        Layer(name="n", kind="norm", in_channels=16, out_channels=16, in_size=8, time_steps=4),
        Layer(name="a", kind="add", in_channels=16, out_channels=16, in_size=8, time_steps=4,
        input_kind="real"),
        Layer(name="head", kind="linear", in_channels=16, out_channels=10, time_steps=4),
    ]  # fmt: skip
    default = Switches()
    device = {"device": "sram"} if name == "sram_energy" else {}
    if name == "adc_turns":
        device = {"crossbar_size": 128}
    if name == "array_scaling":
        device = {"crossbar_size": 32}
    if name == "latest_end":  # the last layer must be short
        layers = [*layers[:-1], replace(layers[-1], executions=1)]
    flipped = default.model_copy(update={name: not getattr(default, name)})
    a, b = (spikesim.evaluate(layers, Config(switches=s, **device)) for s in (default, flipped))
    figures = ("pes", "tiles", "energy_pj", "latency_ns", "area_um2")
    assert [getattr(a, f) for f in figures] != [getattr(b, f) for f in figures]


def test_more_bits_never_cost_less() -> None:
    prices = []
    for bits in (1, 2, 4, 8, 32):
        layer = replace(CONV, weight_bits=bits, membrane_bits=bits)
        prices.append(spikesim.evaluate([layer], Config()).edap or 0)
    assert prices == sorted(prices)
    assert log2(prices[-1] / prices[0]) > 5
