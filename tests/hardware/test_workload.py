"""Layers read from networks, hand-counted; and against SpikingJelly's counters."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikedistill.networks as networks
from spikedistill.hardware import Config, layers, memory, operations, price, spikesim
from spikedistill.hardware.ann import twin
from spikedistill.hardware.layer import Layer
from spikedistill.networks.base import Network
from spikedistill.neurons import IF, LIF, NormNeuron


class Plain(Network):
    """Two convolutions and a head: T = 3, the stem runs once."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__(num_classes=5, in_channels=2, time_steps=3)
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, bias=False)
        self.first, self.second = neuron(encode=True), neuron()
        self.head = nn.Linear(6 * 3 * 3, 5)

    def body(self, x: Tensor) -> Tensor:
        x = self.second(self.conv2(self.first(self.conv1(x))))
        return self.head(x.flatten(1))


def plain() -> tuple[Plain, Tensor]:
    net = Plain(lambda encode=False: LIF(threshold=0.1, time_steps=3, encode=encode)).eval()
    return net, torch.rand(2, 2, 8, 8)


def by_name(found: list[Layer]) -> dict[str, Layer]:
    return {layer.name: layer for layer in found}


def test_plain_network_by_hand() -> None:
    net, x = plain()
    found = by_name(layers(net, x))
    assert list(found) == ["conv1", "first", "conv2", "second", "head"]
    stem, conv, head = found["conv1"], found["conv2"], found["head"]
    assert (stem.input_kind, stem.input_bits, stem.runs, stem.spikes_in) == ("real", 8, 1, None)
    assert stem.macs == 3 * 3 * 2 * 4 * 8 * 8
    assert (conv.input_kind, conv.runs, conv.positions, conv.bias) == ("spikes", 3, (3, 3), False)
    with torch.no_grad():
        spikes = net.first(net.conv1(x))
        assert conv.spikes_in == float(spikes.sum()) / 2 == found["first"].spikes_out
        later = net.second(net.conv2(spikes))
    assert (head.kind, head.in_channels, head.out_channels) == ("linear", 54, 5)
    assert head.spikes_in == float(later.sum()) / 2
    assert conv.inputs == ("first",)
    assert found["second"].inputs == ("conv2",)


def test_counts_of_the_plain_network_by_hand() -> None:
    net, x = plain()
    counted = operations.count(layers(net, x))
    with torch.no_grad():
        spikes = net.first(net.conv1(x))
        later = net.second(net.conv2(spikes))
        uses = nn.functional.conv2d(spikes, torch.ones(6, 4, 3, 3), stride=2).sum() / 2
        acs = float(uses + later.sum() * 5 / 2)
    macs = 3 * 3 * 2 * 4 * 8 * 8
    assert counted.macs == macs
    assert counted.acs == pytest.approx(acs)
    assert counted.energy_pj == pytest.approx(4.6 * macs + 0.9 * acs)
    assert counted.dense == macs + 3 * (3 * 3 * 4 * 6 * 3 * 3 + 54 * 5)
    assert counted.membrane_updates == 3 * (4 * 8 * 8 + 6 * 3 * 3)
    assert counted.neuron_pj == pytest.approx(4.6 * counted.membrane_updates)
    sparsity = 1 - float(spikes.sum() + later.sum()) / (2 * counted.membrane_updates)
    assert counted.activation_sparsity == pytest.approx(sparsity)
    assert counted.neurobench["synaptic_operations"]["Effective_ACs"] == counted.acs
    weights = 2 * 4 * 9 + 4 * 6 * 9 + 54 * 5
    assert counted.footprint_bytes == 4 * (weights + 4 + 5 + 4 * 8 * 8 + 6 * 3 * 3)


def test_membrane_shortcut_network_by_hand() -> None:
    """Real values never count as spikes: the stem runs once, the shortcut convolution multiplies."""
    net = networks.create("ms_resnet18", num_classes=3, width=0.0625, time_steps=2).eval()
    found = layers(net, torch.rand(1, 3, 16, 16) * 5)
    named = by_name(found)
    down = [layer for layer in found if layer.kind == "conv" and layer.kernel_size == (1, 1)]
    assert [layer.in_channels for layer in down] == [4, 8, 16]
    assert all(layer.input_kind == "real" and layer.shortcut and layer.runs == 2 for layer in down)
    assert named["conv1"].runs == 1
    assert named["bn1"].runs == 1
    main = [
        layer
        for layer in found
        if layer.kind == "conv" and layer.kernel_size == (3, 3) and layer.name != "conv1"
    ]
    assert len(main) == 16
    assert all(layer.input_kind == "spikes" and not layer.shortcut for layer in main)
    counted = operations.count(found)
    stem = 27 * 4 * 16 * 16
    shortcuts = 2 * (4 * 8 * 8 * 8 + 8 * 16 * 4 * 4 + 16 * 32 * 2 * 2)
    head = 2 * 32 * 3  # the mean of the last map is no spike
    assert counted.macs == stem + shortcuts + head
    assert counted.acs == sum(operations.synaptic_events(layer) or 0 for layer in main)
    additions = [layer for layer in found if layer.kind == "add"]
    assert len(additions) == 8
    assert all(layer.input_kind == "real" for layer in additions)


def test_spike_element_wise_network_by_hand() -> None:
    """SEW's sums of spikes are small integers that cost as many accumulates as their value."""
    neuron = {"type": "if", "threshold": 0.05}
    net = networks.create("sew_resnet18", num_classes=3, width=0.0625, time_steps=2, neuron=neuron).eval()
    found = by_name(layers(net, torch.rand(1, 3, 32, 32) * 5))
    first, summed = found["layer1.0.conv1"], found["layer1.1.conv1"]
    assert first.input_kind == "spikes"
    assert found["layer1.0.join/add#0"].input_kind == "spikes"
    assert summed.spikes_in is not None
    assert summed.nonzero_in is not None
    if summed.input_kind == "integers":
        assert summed.input_max == 2
        assert summed.spikes_in > summed.nonzero_in
    seen = {}
    handle = net.get_submodule("layer1.1.conv1").register_forward_hook(
        lambda m, args, out: seen.update(x=args[0])
    )
    with torch.no_grad():
        torch.manual_seed(0)
        x = torch.rand(1, 3, 32, 32) * 5
        again = by_name(layers(net, x))["layer1.1.conv1"]
    handle.remove()
    value = seen["x"]
    assert value.max() == again.input_max >= 1
    assert again.spikes_in == float(value.sum())
    conv = net.get_submodule("layer1.1.conv1")
    uses = float(nn.functional.conv2d(value, torch.ones_like(conv.weight), padding=1).sum())
    assert operations.synaptic_events(again) == pytest.approx(uses)


def test_fan_out_counts_edges_exactly() -> None:
    layer = Layer(name="c", in_channels=2, out_channels=3, kernel_size=3, stride=2, padding=1, in_size=(7, 6))
    ones = torch.ones(1, 2, 7, 6)
    assert layer.connections == nn.functional.conv2d(ones, torch.ones(3, 2, 3, 3), stride=2, padding=1).sum()
    assert layer.fan_out == layer.connections / (2 * 7 * 6)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1}, {"kernel_size": 2, "padding": "same"},
        {"kernel_size": (4, 3), "padding": "same", "groups": 2}, {"kernel_size": 3, "padding": (2, 0)},
        {"kernel_size": 3, "padding": "valid", "stride": 2},
        {"kernel_size": 2, "padding": "same", "dilation": (3, 1)},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_is_counted_as_the_module_pads(mode: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, bias=False, padding_mode=mode, **options)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), IF(threshold=0.1, time_steps=1), conv).eval()
    x = torch.rand(4, 3, 7, 6)
    with torch.no_grad():
        spikes = net[:2](x)
        nn.init.ones_(conv.weight)
        uses = conv(spikes)
    assert spikes.sum() > 0
    found = by_name(layers(net, x))["2"]
    assert operations.synaptic_events(found) == pytest.approx(float(uses.sum()) / 4)


def test_padding_along_one_axis_is_counted_as_the_module_pads() -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular")
    net = nn.Sequential(nn.Conv1d(3, 4, 1), IF(threshold=0.1, time_steps=1), conv).eval()
    x = torch.rand(4, 3, 9)
    with torch.no_grad():
        spikes = float(net[:2](x).sum())
    # on a ring every spike meets every tap
    events = operations.synaptic_events(by_name(layers(net, x))["2"])
    assert events == pytest.approx(spikes * 4 * 6 / 4)
    assert spikes > 0


class Enlarged(Network):
    """Spikes, and the image, enlarged by a function and by a module."""

    def __init__(self, mode: str) -> None:
        super().__init__(num_classes=5, in_channels=2, time_steps=3)
        self.mode, self.conv, self.neuron = mode, nn.Conv2d(2, 4, 1), IF(threshold=0.1, encode=True)
        self.larger, self.second = nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3 * 16 * 16, 5)

    def body(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(x, None, 2.0, self.mode)
        return self.head(self.second(self.larger(self.neuron(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
def test_interpolation_is_listed_and_repetition_is_a_move(mode: str) -> None:
    found = layers(Enlarged(mode).eval(), torch.rand(2, 2, 4, 4))
    named = by_name(found)
    arithmetic = mode.startswith("bi")
    others = [layer.operator for layer in found if layer.kind == "other"]
    assert others == (["interpolate", "Upsample"] if arithmetic else [])
    assert named["second"].input_kind == ("real" if arithmetic else "spikes")
    assert (named["conv"].input_kind, named["conv"].input_bits) == ("real", 8)
    assert len(operations.count(found).unpriced) == len(others)


class Same(Network):
    """Even kernels that keep the map's size: their far sides are padded by one more."""

    def __init__(self) -> None:
        super().__init__(num_classes=3, in_channels=2, time_steps=2)
        self.conv, self.neuron = nn.Conv2d(2, 4, (2, 3), padding="same"), IF(threshold=0.1, encode=True)
        self.second = nn.Conv2d(4, 4, (4, 2), padding="same", dilation=(1, 3))
        self.head = nn.Linear(4 * 6 * 5, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.neuron(self.conv(x))).flatten(1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_an_even_kernel_that_keeps_the_size_is_counted_at_every_place() -> None:
    named = by_name(layers(Same().eval(), torch.rand(2, 2, 6, 5)))
    for name, rows, columns in (("conv", (2, 0), (3, 1)), ("second", (4, 1), (2, 1))):
        layer = named[name]
        assert layer.positions == layer.out_size == (6, 5)
        assert layer.macs == 6 * 5 * layer.weights
        dilation = layer.dilation[1]
        pairs = [
            sum(0 <= o + k * d - before < n for o in range(n) for k in range(kernel))
            for n, d, (kernel, before) in ((6, 1, rows), (5, dilation, columns))
        ]
        assert layer.connections == pairs[0] * pairs[1] * layer.in_channels * layer.out_channels


def test_what_is_not_supported_is_listed() -> None:
    class Odd(Plain):
        def body(self, x: Tensor) -> Tensor:
            x = self.second(self.conv2(torch.sigmoid(self.first(self.conv1(x)))))
            return self.head(torch.softmax(x.flatten(1), -1))

    found = layers(Odd(lambda encode=False: IF(encode=encode)).eval(), torch.rand(1, 2, 8, 8))
    assert [layer.operator for layer in found if layer.kind == "other"] == ["sigmoid", "softmax"]
    report = spikesim.evaluate(found)
    assert [item.reason for item in report.unpriced] == [
        "sigmoid is not supported by the hardware models",
        "softmax is not supported by the hardware models",
    ]
    assert len(operations.count(found).unpriced) == 2
    assert by_name(found)["conv2"].input_kind == "real"


def test_image_of_zeros_and_ones_is_no_spike_train() -> None:
    net, x = plain()
    assert by_name(layers(net, x.round()))["conv1"].input_kind == "real"


def test_event_frames_are_integers() -> None:
    net = networks.create("vgg5", num_classes=2, in_channels=2, input="frames", width=0.125, time_steps=2)
    frames = torch.randint(0, 4, (2, 2, 2, 16, 16)).float()
    stem = layers(net, frames)[0]
    assert (stem.input_kind, stem.input_max, stem.runs) == ("integers", 3, 2)
    assert stem.spikes_in == float(frames.sum()) / 2
    counts = torch.randint(0, 40, (2, 2, 2, 16, 16)).float()
    counts[0, 0, 0, 0, 0] = 39
    many = layers(net, counts)[0]
    assert (many.input_kind, many.input_bits) == ("real", 6)


def _spikingjelly(net: Plain, x: Tensor, neuron: str) -> nn.Module:
    """The same network in SpikingJelly: single steps, called once a step."""
    sj = pytest.importorskip("spikingjelly.activation_based.neuron")
    kind = getattr(sj, neuron)
    options = {"v_threshold": net.first.threshold}
    modules = nn.Sequential(net.conv1, kind(**options), net.conv2, kind(**options), nn.Flatten(), net.head)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = modules

        def forward(self, image: Tensor) -> Tensor:
            return torch.stack([self.step(image) for _ in range(3)])

    return Steps().eval()


@pytest.mark.parametrize(("kind", "peer"), [(LIF, "LIFNode"), (IF, "IFNode")])
@pytest.mark.filterwarnings("ignore:Lemaire formulas")
def test_equal_to_spikingjelly(kind: type, peer: str) -> None:
    counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    net = Plain(lambda encode=False: kind(threshold=0.1, time_steps=3, encode=encode)).eval()
    x = torch.rand(1, 2, 8, 8)
    theirs = _spikingjelly(net, x, peer)
    # SpikingJelly runs the stem at each step, on 32-bit pixels.
    mine = [replace(layer, executions=3) for layer in layers(net, x, image_bits=32)]

    synops = counter.SynOpCounter()
    with torch.no_grad(), counter.DispatchCounterMode([synops]):
        theirs(x)
    functional.reset_net(theirs)
    counted = operations.count(mine)
    assert counted.acs == pytest.approx(synops.get_total(), rel=1e-9)

    config = counter.LemaireEnergyConfig(strict=False)
    report = counter.estimate_lemaire_energy(theirs, x, config=config)
    functional.reset_net(theirs)
    estimate = memory.estimate(mine, memory.SPIKINGJELLY)
    breakdown = report.breakdown_pj
    assert estimate.operations_pj == pytest.approx(breakdown["ops_pj"], rel=1e-9)
    assert estimate.addressing_pj == pytest.approx(breakdown["addressing_pj"], rel=1e-9)
    assert estimate.messages_pj == pytest.approx(breakdown["inout_pj"], rel=1e-9)
    assert estimate.parameters_pj == pytest.approx(breakdown["params_pj"], rel=1e-9)
    assert estimate.potentials_pj == pytest.approx(breakdown["potential_pj"], rel=1e-9)
    assert estimate.total_pj == pytest.approx(report.total_pj, rel=1e-9)
    assert counted.macs == 3 * 3 * 3 * 2 * 4 * 8 * 8


@pytest.mark.parametrize("size", [64, 128, 32, 16])
@pytest.mark.parametrize("channels", [(3, 20, 70), (64, 130, 65)])
@pytest.mark.parametrize("mode", ["event", "dense"])
def test_event_energy_equals_spikingjelly(size: int, channels: tuple[int, int, int], mode: str) -> None:
    counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    a, b, c = channels
    net = nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1), IF(time_steps=1, threshold=0.5), nn.Conv2d(b, c, 3, stride=2),
        IF(time_steps=1, threshold=0.3), nn.Conv2d(c, 8, 1),
    ).eval()  # fmt: skip
    x = (torch.rand(3, a, 9, 9) < 0.02).float()
    config = counter.SpikeSimEnergyConfig(xbar_size=size, activity_mode=mode)
    with torch.no_grad():
        theirs = counter.estimate_spikesim_energy(net, x, config=config, strict=False)
    found = layers(net, x)
    switches = {"layer_kernels": True, "any_order": True}
    released = Config(mode="released", activity=mode, crossbar_size=size, switches=switches)
    report = spikesim.evaluate(found, released)
    assert 3 * report.energy_pj == pytest.approx(theirs.energy_total_pj, rel=1e-9)
    parts = {layer.name: 3 * layer.energy_pj for layer in report.layers}
    for name, energy in theirs.energy_by_stage.items():
        assert parts[name.removeprefix("Sequential.")] == pytest.approx(energy, rel=1e-9)


def test_quantized_network_tells_its_bits() -> None:
    quantization = pytest.importorskip("spikedistill.quantization")
    net = networks.create("ms_resnet18", num_classes=3, width=0.125, time_steps=2).eval()
    low = quantization.quantize(
        net, weight_bits=3, membrane_bits=5, norm_bits=6, residual_bits=14, input_size=(3, 16, 16)
    )
    found = layers(low.eval(), torch.rand(1, 3, 16, 16) * 5)
    named = by_name(found)
    assert [
        named[name].weight_bits for name in ("conv1", "layer2.0.conv1", "layer2.0.downsample.0", "fc")
    ] == [
        8,
        3,
        3,
        8,
    ]
    assert {layer.membrane_bits for layer in found if layer.kind == "neuron"} == {5}
    assert {layer.norm_bits for layer in found if layer.kind == "norm"} == {6}
    assert {layer.input_bits for layer in found if layer.kind == "add"} == {14}
    down, conv = named["layer2.0.downsample.0"], named["layer2.0.conv1"]
    assert (down.input_kind, down.input_bits, conv.input_kind) == ("real", 14, "spikes")
    assert [layer.name for layer in found] == [layer.name for layer in layers(net, torch.rand(1, 3, 16, 16))]


def test_turned_network() -> None:
    """Other people's blocks: in-place residual additions, grouped convolutions, pools that do not divide."""
    surgery = pytest.importorskip("spikedistill.networks.outside.spiking")

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
            self.grouped, self.norm2, self.relu2 = (
                nn.Conv2d(8, 8, 3, padding=1, groups=4),
                nn.BatchNorm2d(8),
                nn.ReLU(),
            )
            self.pool, self.head = nn.AdaptiveAvgPool2d(3), nn.Linear(8 * 9, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.norm(self.stem(x)))
            y = self.norm2(self.grouped(x))
            y += x
            return self.head(self.pool(self.relu2(y)).flatten(1))

    net = surgery.spiking(
        Block(), time_steps=2, neuron=IF(threshold=0.3), example=torch.rand(1, 3, 8, 8), mean=0.0, std=1.0
    )
    found = layers(net.eval(), torch.rand(2, 3, 8, 8))
    kinds = [layer.kind for layer in found]
    assert kinds.count("add") == 1
    assert "other" not in kinds
    grouped = next(layer for layer in found if layer.groups == 4)
    assert grouped.input_kind == "spikes"
    assert grouped.events is not None
    assert grouped.events.block == 2
    head = found[-1]
    assert (head.input_kind, head.input_bits) == ("real", 5)  # means of up to 4 x 4 spikes
    dense, event = (spikesim.evaluate(found, Config(activity=mode)).energy_pj for mode in ("dense", "event"))
    assert event < dense


def test_a_neuron_with_equations_of_its_own_is_named_as_not_priced() -> None:
    class Doubled(LIF):
        def simulate(self, current, state, T, membrane):  # type: ignore[no-untyped-def]
            return super().simulate(2 * current, state, T, membrane)

    network = networks.create("vgg5", width=0.125)
    network.stage2[2].neuron = Doubled()
    counted = operations.count(layers(network, torch.rand(2, 3, 16, 16))).as_dict()
    assert counted["unpriced"] == ["stage2.2.neuron (Doubled)"]

    every = networks.create("vgg5", width=0.125, time_steps=1).eval()
    for module in [m for m in every.modules() if isinstance(m, NormNeuron)]:
        module.neuron = Doubled(time_steps=1, encode=module.neuron.encode)
    found = layers(every, torch.rand(2, 3, 16, 16))
    tree = price(found)  # a spiking network all the same: with the ANN beside it, and its neurons named
    assert tree["ann_twin"]["operations"]["energy_pj"] > 0
    assert all(layer.kind != "other" for layer in twin(found))
    assert len(tree["operations"]["unpriced"]) == sum(isinstance(m, Doubled) for m in every.modules())
    assert memory.estimate(found).operations_pj < memory.estimate(twin(found)).operations_pj
