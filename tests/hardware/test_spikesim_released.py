"""The published evaluator, figure by figure."""

import json
from pathlib import Path

import pytest

from spikedistill.hardware import Config, Layer, read_layers, resolve, spikesim

REFERENCE = json.loads((Path(__file__).parent / "spikesim_reference.json").read_text())["runs"]
RUNS = {run["id"]: run for run in REFERENCE}


def layers_of(inputs: dict) -> list[Layer]:
    sizes = zip(inputs["in_ch_list"], inputs["out_ch_list"], inputs["in_dim_list"], inputs["out_dim_list"])
    return [
        Layer(
            name=f"conv{i}", in_channels=c_in, out_channels=c_out, kernel_size=inputs["kernel_size"],
            in_size=h_in,
            out_size=h_out, time_steps=inputs["time_steps"]
        )
        for i, (c_in, c_out, h_in, h_out) in enumerate(sizes)
    ]  # fmt: skip


def config_of(inputs: dict, **other: object) -> Config:
    return Config(
        mode="released", crossbar_size=inputs["xbar_size"], pe_per_tile=inputs["pe_per_tile"],
        clock_mhz=inputs["clk_freq_MHz"], device=inputs["device"], **other,
    )  # fmt: skip


def price(inputs: dict) -> spikesim.HardwareReport:
    return spikesim.evaluate(layers_of(inputs), config_of(inputs))


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=0)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "R11_unordered"])
def test_published_runs(name: str) -> None:
    run = RUNS[name]
    report = price(run["inputs"])
    summary, derived = run["summary"], run["derived_by_us_not_from_code"]
    assert (report.pes, report.tiles) == (summary["n_PE"], summary["n_tiles"])
    assert report.area_um2 == close(summary["total_area_um2"])
    assert report.energy_pj == close(summary["total_energy_pJ"])
    assert report.latency_ns == close(summary["final_latency_ns"])
    assert report.dense_operations == derived["ops"]
    assert report.tops == close(derived["TOPS"])
    assert report.tops_per_w == close(derived["TOPS_per_W"])
    assert report.tops_per_mm2 == close(derived["TOPS_per_mm2"])
    assert report.edap == close(derived["EDAP_uJ_ms_mm2"])
    outputs = run["outputs"]
    assert [layer.pes for layer in report.layers] == outputs["pe_tile_count"]["locals"]["pe_list"]
    assert [layer.energy_pj for layer in report.layers] == close(
        outputs["compute_energy"]["return_layerwise_pJ"]
    )
    assert report.area is not None
    assert report.area["membrane_memory"] == close(outputs["compute_area"]["return"][0])
    times = outputs["latency_gen"]["locals"]
    cycle = run["inputs"]["PE_cycle_ns"]
    assert [layer.start_ns for layer in report.layers] == close(
        [(start - 1) * cycle for start in times["starts"]]
    )
    assert [layer.end_ns for layer in report.layers] == close([halt * cycle for halt in times["halts"]])
    assert report.complete


def test_parts_add_up() -> None:
    report = price(RUNS["R01_vgg9_default"]["inputs"])
    assert sum(report.components.values()) == close(report.energy_pj)
    assert report.area is not None
    assert sum(report.area.values()) == close(report.area_um2 or 0)
    for layer in report.layers:
        assert sum(layer.components.values()) == close(layer.energy_pj)


def test_decreasing_pe_counts_leave_only_the_energy() -> None:
    run = RUNS["R11_unordered"]
    report = price(run["inputs"])
    assert report.energy_pj == close(run["summary"]["total_energy_pJ"])
    assert report.tops_per_w == close(report.dense_operations / report.energy_pj)
    for figure in ("pes", "tiles", "area_um2", "latency_ns", "edap", "tops", "tops_per_mm2"):
        assert getattr(report, figure) is None
        assert figure in report.reasons
    assert not report.complete


@pytest.mark.parametrize(
    ("change", "cycle_pj"),
    [({}, 828.4861472), ({"kernel_size": 1}, 715.5754272), ({"xbar_size": 128}, 1365.1271744),
     ({"xbar_size": 32}, 662.1697136), ({"device": "sram"}, 49019.8695872)],
)  # fmt: skip
def test_energy_of_a_pe_cycle(change: dict, cycle_pj: float) -> None:
    inputs = {**RUNS["R01_vgg9_default"]["inputs"], **change}
    inputs |= {
        "in_ch_list": [3],
        "out_ch_list": [32],
        "in_dim_list": [1],
        "out_dim_list": [1],
        "time_steps": 1,
    }
    assert price(inputs).energy_pj == close(cycle_pj)


def test_full_arrays_reach_the_bound_on_tops_per_watt() -> None:
    inputs = {
        **RUNS["R01_vgg9_default"]["inputs"],
        "in_ch_list": [64],
        "out_ch_list": [64],
        "in_dim_list": [8],
    }
    assert price({**inputs, "out_dim_list": [8]}).tops_per_w == close(2 * 9 * 64 * 64 / 828.4861472)


def test_order_is_asked_of_rounded_counts_for_tiles_and_of_fractions_for_latency() -> None:
    inputs = {**RUNS["R01_vgg9_default"]["inputs"], "in_ch_list": [64, 3], "out_ch_list": [64, 64]}
    report = price({**inputs, "in_dim_list": [8, 8], "out_dim_list": [8, 8]})
    assert report.tiles == 1
    assert report.area_um2 is not None
    assert report.latency_ns is None
    assert "fraction" in report.reasons["latency_ns"] or "without rounding" in report.reasons["latency_ns"]


def test_latency_stops_after_twelve_layers_and_never_returns_for_a_fraction_of_a_pe() -> None:
    base = RUNS["R01_vgg9_default"]["inputs"]
    for depth in (12, 13):
        deep = {
            key: [value] * depth
            for key, value in {
                "in_ch_list": 64,
                "out_ch_list": 64,
                "in_dim_list": 8,
                "out_dim_list": 8,
            }.items()
        }
        report = price({**base, **deep})
        assert (report.latency_ns is None) == (depth == 13)
        assert report.area_um2 is not None
    tiny = price({**base, "in_ch_list": [3], "out_ch_list": [32], "in_dim_list": [8], "out_dim_list": [8]})
    assert tiny.latency_ns is None
    assert tiny.area_um2 is not None


def test_what_the_published_code_has_not_is_listed() -> None:
    layers = layers_of(RUNS["R01_vgg9_default"]["inputs"])
    extra = [
        Layer(name="shortcut", kernel_size=1, in_channels=64, out_channels=64, in_size=8, time_steps=5),
        Layer(name="head", kind="linear", in_channels=256, out_channels=10, time_steps=5),
        Layer(name="pool", kind="pool", in_channels=256, out_channels=256, in_size=4, time_steps=5),
        Layer(
            name="depthwise",
            kernel_size=3,
            groups=64,
            in_channels=64,
            out_channels=64,
            in_size=8,
            time_steps=5,
        ),
    ]
    report = spikesim.evaluate([*layers, *extra], Config(mode="released"))
    assert report.energy_pj == close(15906934.02624)
    assert [item.name for item in report.unpriced] == [layer.name for layer in extra]
    assert all(item.reason for item in report.unpriced)


def test_layer_file_of_the_published_example() -> None:
    path = Path(__file__).parents[2] / "examples" / "spikesim_vgg9.yaml"
    layers, settings = read_layers(path)
    report = spikesim.evaluate(layers, resolve((str(path), settings)))
    assert (report.pes, report.tiles) == (48, 6)
    assert report.area_um2 == close(8425528.755833998)
    assert report.energy_pj == close(15906934.02624)
    assert report.latency_ns == close(62832640)
    assert report.edap == pytest.approx(8421.1, abs=0.05)
