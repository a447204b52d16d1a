"""Floorline: loads of the busiest core on paper, times, partitioning, real networks."""

from dataclasses import replace

import pytest
import torch

import spikedistill as sd
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import Layer, floorline, layers, operations, price
from spikedistill.hardware.floorline import FloorlineConfig

TIMES = {"synop_ns": 2.0, "update_ns": 5.0, "message_ns": 30.0}
STEM = Layer(
    name="stem", in_channels=1, out_channels=4, kernel_size=3, in_size=4, time_steps=2, executions=1,
    input_kind="real", input_bits=8, neuron="lif", spikes_out=24.0,
)  # fmt: skip
NEXT = Layer(
    name="next", in_channels=4, out_channels=8, kernel_size=3, in_size=4, time_steps=2, neuron="lif",
    spikes_in=24.0, spikes_out=10.0, inputs=("stem",),
)  # fmt: skip
HEAD = Layer(
    name="head",
    kind="linear",
    in_channels=128,
    out_channels=10,
    time_steps=2,
    spikes_in=10.0,
    inputs=("next",),
)
NET = [STEM, NEXT, HEAD]


def test_loads_of_one_core_a_layer_on_paper():
    found = floorline.evaluate(NET)
    stem, second, head = found.layers
    # 10x10 pairs of a 4x4 map and a 3x3 kernel
    assert (stem.synops, stem.updates, stem.messages) == (100 * 4 / 2, 4 * 16, 12)
    assert second.synops == pytest.approx(24 * NEXT.fan_out / 2)
    assert (second.updates, second.messages) == (8 * 16, 5)
    assert (head.synops, head.updates, head.messages) == (10 * 10 / 2, 10, 10)
    assert found.synops == max(stem.synops, second.synops)
    assert found.busiest["updates"] == "next"
    assert found.step_ns is None
    assert found.bound is None
    assert any("no public source" in note for note in found.notes)


def test_a_step_lasts_as_long_as_its_slowest_core():
    found = floorline.evaluate(NET, FloorlineConfig(**TIMES))
    want = max(2 * max(row.synops for row in found.layers), 5 * 128, 30 * 12)
    assert found.step_ns == pytest.approx(want)
    assert found.inference_ns == pytest.approx(2 * want)
    for change, bound in (
        ({"synop_ns": 1e3}, "memory"),
        ({"update_ns": 1e3}, "compute"),
        ({"message_ns": 1e4}, "traffic"),
    ):
        assert floorline.evaluate(NET, FloorlineConfig(**TIMES | change)).bound == bound


def test_cores_divide_a_layer_and_each_gets_the_message():
    one = floorline.evaluate(NET).layers
    more = floorline.evaluate(NET, FloorlineConfig(cores={"next": 4})).layers
    assert more[1].synops == pytest.approx(one[1].synops / 4)
    assert more[1].updates == one[1].updates / 4
    assert more[0].messages == 4 * one[0].messages
    cast = floorline.evaluate(NET, FloorlineConfig(cores={"next": 4}, multicast=True))
    assert cast.layers[0].messages == one[0].messages
    assert cast.cores == 6
    # of 128
    assert floorline.evaluate(NET, FloorlineConfig(cores={"next": 3})).layers[1].updates == pytest.approx(43)
    assert [row.cores for row in floorline.evaluate(NET, FloorlineConfig(neurons_per_core=50)).layers] == [
        2,
        3,
        1,
    ]


def test_partitioning_shortens_the_step():
    config = FloorlineConfig(**TIMES)
    before = floorline.evaluate(NET, config).step_ns
    cores = floorline.partition(NET, 12, config)
    after = floorline.evaluate(NET, config.model_copy(update={"cores": cores})).step_ns
    assert sum(cores.values()) <= 12
    assert after < 0.6 * before


def test_wrong_settings_are_refused_in_words():
    with pytest.raises(SpikedistillError, match="no weight layer 'nest'; did you mean 'next'"):
        floorline.evaluate(NET, FloorlineConfig(cores={"nest": 2}))
    with pytest.raises(SpikedistillError, match="head has 10 outputs, found 11 cores"):
        floorline.evaluate(NET, FloorlineConfig(cores={"head": 11}))
    with pytest.raises(SpikedistillError, match="give synop_ns"):
        floorline.partition(NET, 12, FloorlineConfig())
    with pytest.raises(SpikedistillError, match="3 layers need at least 3 cores, found 2"):
        floorline.partition(NET, 2, FloorlineConfig(**TIMES))
    with pytest.raises(SpikedistillError, match="nothing to price"):
        floorline.evaluate([])


@pytest.mark.parametrize("name", ["vgg5", "resnet20", "ms_resnet20", "spikformer_2_384"])
def test_real_networks_count_what_operations_count(name):
    torch.manual_seed(0)
    network = sd.networks.create(name, in_channels=1, width=0.125, time_steps=3).eval()
    found = layers(network, torch.rand(2, 1, 16, 16))
    report = floorline.evaluate(found)
    counted = operations.count(found)
    spiking = {
        layer.name for layer in found if layer.kind in ("conv", "linear") and layer.input_kind != "real"
    }
    assert 3 * sum(row.synops for row in report.layers if row.name in spiking) == pytest.approx(counted.acs)
    dense = sum(layer.outputs_per_run * layer.runs for layer in found if layer.name == report.layers[-1].name)
    charged = 3 * sum(row.updates for row in report.layers)
    assert charged >= counted.membrane_updates
    assert charged - counted.membrane_updates >= dense
    assert not any("left out" in note for note in report.notes)


def test_the_price_has_it():
    tree = price(NET, {"floorline": TIMES | {"cores": {"next": 2}}})
    assert tree["floorline"]["step_ns"] > 0
    assert tree["floorline"]["layers"][1]["cores"] == 2
    assert price(NET)["floorline"]["step_ns"] is None
    with pytest.raises(SpikedistillError, match=r"floorline: unknown key 'synop'; did you mean 'synop_ns'"):
        price(NET, {"floorline": {"synop": 1}})


def test_two_layers_as_slow_as_each_other_both_get_a_core():
    twin = [replace(NEXT, name="a", inputs=("stem",)), replace(NEXT, name="b", inputs=("a",))]
    config = FloorlineConfig(**TIMES)
    net = [STEM, *twin, replace(HEAD, inputs=("b",))]
    before = floorline.evaluate(net, config)
    cores = floorline.partition(net, 6, config)
    assert cores["a"] == cores["b"] == 2
    after = floorline.evaluate(net, config.model_copy(update={"cores": cores}))
    assert after.step_ns < 0.75 * before.step_ns
