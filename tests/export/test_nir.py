import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_peers import PEERS, lively, neuron_layers, run_steps
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.export import from_nir, to_nir
from spikedistill.export import nir as nir_export
from spikedistill.export.nir import encoded, spikes_of
from spikedistill.networks.base import Network
from spikedistill.simulation import Simulation

nir = pytest.importorskip("nir")
DT = 1e-4


def assert_same(network: Network, path: Path, x: Tensor, peers: Any = PEERS, busy: float = 0.01) -> None:
    """Every spike of every neuron at every step, in each peer and in our own reader."""
    layers = neuron_layers(network, x)
    ours = spikes_of(network, x, [(layer.path, layer.call) for layer in layers])
    assert sum(float(s.mean()) > busy for s in ours) > len(ours) / 2, [float(s.mean()) for s in ours]
    logits = network(x).detach()
    for name in peers:
        seen, out = run_steps(PEERS[name](path), encoded(network, x))
        for layer, spikes in zip(layers, ours, strict=True):
            assert torch.equal(seen[layer.name], spikes), (
                name,
                layer.name,
                (seen[layer.name] != spikes).sum(),
            )
        torch.testing.assert_close(out, logits, atol=1e-4, rtol=1e-4)
    back = from_nir(path)
    assert back.time_steps == network.time_steps
    for mine, spikes in zip(
        spikes_of(back, x, [(f"nodes.{layer.name}", 0) for layer in layers]), ours, strict=True
    ):
        assert torch.equal(mine, spikes)
    torch.testing.assert_close(back(x).detach(), logits, atol=1e-4, rtol=1e-4)


NEURONS = {
    "lif": sd.LIF(threshold=0.5), "decay .25": sd.LIF(decay=0.25), "tau 3": sd.LIF(tau=3.0, threshold=0.3),
    "decay 0": sd.LIF(decay=0.0), "if": sd.IF(), "plif": sd.PLIF(init_tau=1.7, threshold=0.6),
    "gain": sd.LIF(decay=0.9, gain=0.3, threshold=0.7),
}  # fmt: skip


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_spike_alike_in_both_peers(name: str, tmp_path: Path) -> None:
    x = torch.rand(3, 3, 8, 8)
    network = sd.networks.create(
        "vgg5",
        width=0.1,
        pooling="avg",
        hidden=(12,),
        neuron=NEURONS[name],
        time_steps=8,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.1],
    )
    lively(network, x)
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x)


def test_frames_are_fed_one_a_step(tmp_path: Path) -> None:
    x = torch.poisson(torch.full((3, 8, 2, 8, 8), 0.5))
    network = sd.networks.create(
        "vgg5",
        width=0.1,
        pooling="avg",
        in_channels=2,
        input="frames",
        neuron=sd.LIF(threshold=0.3),
        head="spiking",
    )
    lively(network, x)
    to_nir(network, tmp_path / "a.nir", x)
    assert_same(network, tmp_path / "a.nir", x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # parameter-free shortcuts, spikes into a neuron with gain
        ("resnet20", {"neuron": sd.LIF(threshold=0.3)}),
        # norms in shortcuts, two edges into one neuron
        ("resnet18", {"neuron": sd.LIF(decay=0.5), "stem": "cifar"}),
        # sums of spikes into convolutions
        ("sew_resnet18", {"neuron": sd.IF(threshold=0.5), "stem": "cifar"}),
        ("ms_resnet20", {}),  # a real-valued stream
    ],
)
def test_residual_edges(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    network = lively(
        sd.networks.create(name, width=0.07 if "18" in name else 0.25, time_steps=3, **options), x
    )
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x)


class Odd(Network):
    """Grouped, oblong convolutions, pool between convolution and neuron, a map's mean, module used twice."""

    def __init__(self) -> None:
        super().__init__(4, 3, "image", 4)
        self.conv1 = nn.Conv2d(3, 6, (3, 5), padding=(1, 2), groups=3)
        self.pool1, self.neuron1 = nn.AvgPool2d(2), sd.LIF(threshold=0.2, encode=True)
        self.conv2, self.neuron2 = nn.Conv2d(6, 6, 3, padding="same", dilation=2), sd.LIF(threshold=0.1)
        self.sum, self.head = nn.AvgPool2d(2, divisor_override=3), nn.Linear(6, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.pool1(self.conv1(x)))
        x = self.neuron2((self.conv2(x) * 2).add_(0.5 * x))
        x = self.neuron2(self.conv2(x))
        return self.head(self.sum(x).mean((2, 3)))


def test_unusual_layers(tmp_path: Path) -> None:
    x, network = torch.rand(2, 3, 8, 8), Odd().eval()
    nn.init.uniform_(network.conv2.bias, 0.1, 0.3)
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x)


class Joined(Network):
    """Concatenated spikes behind a norm and alone, pools called as functions, one of a pool's spikes."""

    def __init__(self) -> None:
        super().__init__(4, 3, "image", 4)
        self.conv1, self.neuron1 = nn.Conv2d(3, 6, 3, padding=1), sd.LIF(threshold=0.2, encode=True)
        self.conv2, self.neuron2 = nn.Conv2d(6, 4, 3, padding=1), sd.LIF(threshold=0.1)
        self.norm3, self.conv3, self.neuron3 = (
            sd.NormNeuron(10, sd.LIF(threshold=0.3)),
            nn.Conv2d(20, 5, 1),
            sd.IF(),
        )
        self.head = nn.Linear(80, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.conv1(x))
        both = torch.cat([x, self.neuron2(self.conv2(x))], 1)
        both = torch.cat((both, self.norm3(both)), dim=1)
        x = self.neuron3(nn.functional.avg_pool2d(self.conv3(both), 2))
        x = nn.functional.max_pool2d(nn.functional.max_pool2d(x, 2, stride=1), 2, stride=1, padding=1)
        return self.head(torch.cat([x.flatten(1)], -1))


def test_concatenation_and_pools_as_functions(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    network = lively(Joined(), x)
    nn.init.uniform_(network.conv2.bias, 0.1, 0.3)
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x)


class Twice(Network):
    """A convolution whose output a norm reads, and the neuron behind the norm as its residual."""

    def __init__(self) -> None:
        super().__init__(5, 3, "frames")
        self.conv, self.norm = nn.Conv2d(3, 4, 3), sd.NormNeuron(4, sd.IF())
        self.head = nn.Linear(4 * 6 * 6, 5)

    def body(self, x: Tensor) -> Tensor:
        current = self.conv(x)
        return self.head(self.norm(current, current).flatten(1))


def test_a_layer_read_by_a_norm_and_as_its_residual(tmp_path: Path) -> None:
    network, x = Twice().eval(), torch.rand(2, 4, 3, 8, 8)
    with torch.no_grad():
        network.conv.weight.mul_(4)
        network.norm.running_mean.fill_(0.3)
        network.norm.weight.fill_(2.0)
    to_nir(network, tmp_path / "a.nir", x)
    assert_same(network, tmp_path / "a.nir", x)


class Sequence(Network):
    """Convolutions over one dimension."""

    dims = 1

    def __init__(self) -> None:
        super().__init__(4, 5, "image", 4, mean=0.3)
        self.conv1, self.norm1 = (
            nn.Conv1d(5, 6, 4, stride=2),
            sd.NormNeuron(6, sd.LIF(threshold=0.3, encode=True)),
        )
        self.conv2, self.norm2 = nn.Conv1d(6, 6, 3, padding="same", groups=2), nn.BatchNorm1d(6)
        self.neuron2, self.head = sd.LIF(threshold=0.4), nn.Linear(36, 4)

    def body(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        return self.head(self.neuron2(self.norm2(self.conv2(x)) + x).flatten(1))


def test_one_dimension(tmp_path: Path) -> None:
    x = torch.rand(2, 5, 14)
    network = lively(Sequence(), x)
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x, peers=["spikingjelly"])  # snnTorch's reader has no Conv1d


def on_a_grid(neuron: nn.Module, steps: int, unit: float) -> Network:
    """Currents in multiples of a unit, whose membranes often meet the threshold exactly."""
    network = sd.networks.create(
        "vgg5", pooling="avg", width=0.1, time_steps=steps, neuron=neuron, initialisation="plain"
    ).eval()
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.copy_(torch.randint(-3, 6, m.weight.shape) * unit)
            elif hasattr(m, "running_mean"):
                m.running_var.fill_(1 - m.eps)
                m.bias.copy_(torch.randint(-2, 2, m.bias.shape) / 8)
    return network


@pytest.mark.parametrize(
    ("neuron", "steps", "unit"),
    [(sd.IF(), 16, 1 / 16), (sd.LIF(decay=0.5), 4, 0.25), (sd.LIF(decay=0.75), 4, 0.25)],
)
def test_ties(
    neuron: nn.Module, steps: int, unit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randint(0, 4, (4, 3, 8, 8)) * unit
    network = on_a_grid(neuron, steps, unit)
    layers = neuron_layers(network, x)
    inside = [(layer.path, layer.call, "membrane") for layer in layers]
    with torch.no_grad(), Simulation(network, steps, insides=inside) as sim:
        network(x)
    to_nir(network, tmp_path / "a.nir", x)
    assert_same(network, tmp_path / "a.nir", x)
    assert sum(int((h == 1).sum()) for h in sim.captured.values()) > 10
    if isinstance(neuron, sd.IF):
        # without the nudge snnTorch, which fires above only, differs
        monkeypatch.setattr(nir_export, "BELOW", 1.0)
        to_nir(network, tmp_path / "b.nir", x)
        with pytest.raises(AssertionError, match="snntorch"):
            assert_same(network, tmp_path / "b.nir", x, ["snntorch"])


def test_what_stands_in_the_file(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    network = lively(
        sd.networks.create("vgg5", width=0.05, pooling="avg", neuron=sd.LIF(tau=4.0, threshold=0.7)), x
    )
    to_nir(network, tmp_path / "a.nir", x)
    graph = nir.read(tmp_path / "a.nir")
    assert {type(n).__name__ for n in graph.nodes.values()} == {
        "Input", "Output", "Conv2d", "LIF", "AvgPool2d", "Flatten", "Affine",
    }  # fmt: skip
    lif = graph.nodes["stage1_1"]
    np.testing.assert_allclose(lif.tau, 4 * DT, rtol=1e-12)
    np.testing.assert_allclose(lif.r, lif.tau / DT, rtol=1e-12)
    np.testing.assert_allclose(lif.v_threshold, 0.7 * (1 - 2.0**-20), rtol=1e-12)
    assert not lif.v_leak.any()
    assert not lif.v_reset.any()
    assert (graph.nodes["flatten"].start_dim, graph.nodes["flatten"].end_dim) == (-3, -1)
    conv, norm = network.stage1[0], network.stage1[1]
    a, b = norm.affine(norm.running_mean, norm.running_var)
    folded = (conv.weight * a.view(-1, 1, 1, 1) / 4, b / 4)
    torch.testing.assert_close(torch.from_numpy(graph.nodes["stage1_0"].weight), folded[0].detach())
    torch.testing.assert_close(torch.from_numpy(graph.nodes["stage1_0"].bias), folded[1].detach())


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"neuron": sd.LIF(reset="soft")}, "stage1.1"), ({"neuron": sd.LIF(reset=None)}, "stage2.4"),
        ({"neuron": sd.IF(initial=0.5)}, "stage2.2"),
    ],
)  # fmt: skip
def test_refused_by_path_before_writing(options: dict[str, Any], path: str, tmp_path: Path) -> None:
    network = sd.networks.create("vgg5", width=0.05, **{"pooling": "avg", **options})
    with pytest.raises(sd.SpikedistillError, match=path.replace(".", r"\.")):
        to_nir(network, tmp_path / "a.nir", torch.rand(2, 3, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_never_expressible(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    both = sd.networks.create("sew_resnet18", width=0.05, stem="cifar", connect="and")
    with pytest.raises(sd.SpikedistillError, match=r"layer1\.0\.join: mul of two tensors"):
        to_nir(both, tmp_path / "a.nir", x, allow_lossy=True)
    with pytest.raises(sd.SpikedistillError, match="ANN"):
        to_nir(sd.networks.create("vgg5", width=0.05, time_steps=None), tmp_path / "a.nir", x)
    with pytest.raises(sd.SpikedistillError, match="there is no folder"):
        to_nir(sd.networks.create("vgg5", width=0.05, pooling="avg"), tmp_path / "no" / "a.nir", x)
    odd = Odd()
    odd.sum = nn.AdaptiveAvgPool2d(3)
    with pytest.raises(
        sd.SpikedistillError, match="sum: adaptive pooling from 4x4 to 3x3: its windows overlap"
    ):
        to_nir(odd, tmp_path / "a.nir", x)
    odd.sum = nn.GELU()
    with pytest.raises(sd.SpikedistillError, match="sum: GELU"):
        to_nir(odd, tmp_path / "a.nir", x, allow_lossy=True)
    assert list(tmp_path.iterdir()) == []


def test_max_pooling_of_spikes_loses_nothing(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 16, 16)
    network = lively(
        sd.networks.create("resnet18", width=0.07, stem="imagenet", neuron=sd.LIF(threshold=0.3)), x
    )
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x, busy=0.001)


def test_max_pooling_of_sums_is_lossy_and_comes_back(tmp_path: Path) -> None:
    x = torch.rand(2, 6, 1, 9)
    network = lively(
        sd.networks.create("sresnet8", in_channels=6, width=0.1, num_classes=4), x
    )  # kernels of 1x3 and 1x7
    with pytest.raises(sd.SpikedistillError, match="pool: max pooling of what are no single spikes"):
        to_nir(network, tmp_path / "a.nir", x)
    # there are no neurons behind it
    with pytest.warns(UserWarning, match="0.00% of spikes differ .*max pooling"):
        to_nir(network, tmp_path / "a.nir", x, allow_lossy=True)
    assert_same(network, tmp_path / "a.nir", x, peers=[])
    assert not torch.allclose(
        from_nir(tmp_path / "a.nir", metadata=False)(encoded(network, x)), network(x), atol=1e-3
    )


def test_lossy_share_is_what_a_peer_changes(tmp_path: Path) -> None:
    x = torch.rand(3, 3, 8, 8)
    soft = sd.LIF(decay=0.8, reset="soft", initial=0.25)
    network = lively(sd.networks.create("vgg5", width=0.1, pooling="avg", neuron=soft, time_steps=6), x)
    path = tmp_path / "a.nir"
    with pytest.warns(UserWarning, match="of spikes differ") as seen:
        lost = to_nir(network, path, x, allow_lossy=True)
    assert len(lost) == 6
    layers = neuron_layers(network, x)
    ours = spikes_of(network, x, [(layer.path, layer.call) for layer in layers])
    theirs, _ = run_steps(PEERS["snntorch"](path), encoded(network, x))
    share = sum(int((theirs[layer.name] != s).sum()) for layer, s in zip(layers, ours)) / sum(
        s.numel() for s in ours
    )
    assert share > 0.01
    assert f"{share:.2%} of spikes differ" in str(seen[0].message)
    assert_same(network, path, x, peers=[])  # our own reader knows better


def gesture(**options: Any) -> tuple[Network, Tensor]:
    x = torch.poisson(torch.full((2, 6, 2, 32, 32), 0.3))
    return sd.networks.create("dvs_gesture_cnn", time_steps=6, **options).eval(), x


def test_sum_pools_mean_sums_in_both_peers(tmp_path: Path) -> None:
    network, x = gesture(neuron=sd.LIF(decay=0.93, threshold=0.4))
    assert to_nir(network, tmp_path / "a.nir", x) == []
    assert_same(network, tmp_path / "a.nir", x)


def test_gesture_network_with_integer_weights(tmp_path: Path) -> None:
    network, x = gesture()
    path = tmp_path / "a.nir"
    with pytest.warns(UserWarning, match="reset .*weights rounded to 8 bits"):
        lost = to_nir(network, path, x, allow_lossy=True, weight_bits=8)
    assert len(lost) == 6
    graph = nir.read(path)
    allowed = {
        "Conv1d",
        "Conv2d",
        "Flatten",
        "Affine",
        "Linear",
        "CubaLIF",
        "IF",
        "LIF",
        "SumPool2d",
        "Input",
        "Output",
    }
    assert {type(n).__name__ for n in graph.nodes.values()} <= allowed
    rounded = copy.deepcopy(network)
    for layer, neuron in (
        ("conv1", "neuron1"),
        ("conv3", "neuron3"),
        ("fc1", "fc1_neuron"),
        ("head.linear", "head.neuron"),
    ):
        weight = network.get_submodule(layer).weight.detach()
        scale = 127 / float(weight.abs().max())
        written = graph.nodes[layer.replace(".", "_")].weight
        np.testing.assert_array_equal(written, np.floor(weight.numpy().astype(np.float64) * scale + 0.5))
        threshold = graph.nodes[neuron.replace(".", "_")].v_threshold
        own = network.get_submodule(neuron).threshold  # the classifier's is not 1
        np.testing.assert_allclose(threshold, own * scale * (1 - 2.0**-20), rtol=1e-9)
    for m in rounded.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            scale = 127 / m.weight.detach().double().abs().max()
            m.weight.data = (m.weight.double() * scale + 0.5).floor().float()
            m.threshold_scale = float(scale)
    for layer, neuron in (
        ("conv1", "neuron1"), ("conv2", "neuron2"), ("conv3", "neuron3"), ("fc1", "fc1_neuron"),
        ("head.linear", "head.neuron"),
    ):  # fmt: skip
        rounded.get_submodule(neuron).threshold *= rounded.get_submodule(layer).threshold_scale
    assert_same(rounded, path, x, peers=[])


def test_integer_weights_fold_means_and_scale_logits(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    network = lively(sd.networks.create("resnet20", width=0.25, neuron=sd.LIF(decay=0.5), time_steps=2), x)
    with pytest.warns(UserWarning, match="rounded to 8 bits"):
        to_nir(network, tmp_path / "a.nir", x, weight_bits=8)
    graph = nir.read(tmp_path / "a.nir")
    for node in graph.nodes.values():
        if hasattr(node, "weight"):
            assert np.abs(node.weight).max() <= 127
            np.testing.assert_array_equal(node.weight, np.round(node.weight))
    assert "AvgPool2d" not in {type(n).__name__ for n in graph.nodes.values()}
    with pytest.warns(UserWarning, match="rounded to 16 bits"):
        to_nir(network, tmp_path / "a.nir", x, weight_bits=16)  # fine enough that no spike changes
    torch.testing.assert_close(
        from_nir(tmp_path / "a.nir")(x).detach(), network(x).detach(), atol=1e-4, rtol=1e-4
    )
    stream = sd.networks.create("ms_resnet20", width=0.1, time_steps=2)
    with pytest.raises(sd.SpikedistillError, match="reads real values from another weighted layer"):
        to_nir(stream, tmp_path / "b.nir", x, weight_bits=8)


def test_a_file_of_another_tool(tmp_path: Path) -> None:
    """IF neurons with NIR's own constants: two inputs of 0.6 cross a threshold of 1 at every second step."""
    graph = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([1])}),
            "w": nir.Linear(np.array([[0.6], [1.0]], np.float32)),
            "if": nir.IF(np.full(2, 1 / DT), np.ones(2)),
            "output": nir.Output({"output": np.array([2])}),
        },
        [("input", "w"), ("w", "if"), ("if", "output")],
    )
    nir.write(tmp_path / "a.nir", graph)
    network = from_nir(tmp_path / "a.nir", time_steps=4)
    out = network(torch.ones(1, 4, 1))
    assert out[:, 0].tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.nir").write_bytes(b"no such thing")
    with pytest.raises(sd.SpikedistillError, match="cannot read"):
        from_nir(tmp_path / "a.nir")
    one = np.ones(1)
    graph = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([1])}),
            "d": nir.Delay(one),
            "output": nir.Output({"output": np.array([1])}),
        },
        [("input", "d"), ("d", "output")],
    )
    nir.write(tmp_path / "b.nir", graph)
    with pytest.raises(sd.SpikedistillError, match="'d' is a Delay"):
        from_nir(tmp_path / "b.nir")


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("resnet20", {}),
        ("resnet20", {"unit": "weights", "weight_bits": 8}),
        ("resnet18", {"norm_bits": None}),  # norms in shortcuts: two roundings before one neuron
        ("ms_resnet20", {"weight_bits": 8, "first_last_bits": 8}),
    ],
)
def test_quantized_networks_are_lossy_and_come_back(name: str, bits: dict[str, Any], tmp_path: Path) -> None:
    from spikedistill.quantization import quantize

    x = torch.rand(4, 3, 8, 8)
    network = sd.networks.create(
        name, width=0.07 if name == "resnet18" else 0.25, time_steps=3, stem="cifar",
        neuron=sd.LIF(decay=0.75, reset="soft"), mean=0.4, std=0.3,
    )  # fmt: skip
    network = quantize(lively(network, x), calibration=x, **bits).eval()
    with pytest.raises(sd.SpikedistillError, match=r"layer1\.0\.bn1, .*: a quantized membrane"):
        to_nir(network, tmp_path / "a.nir", x)
    with pytest.warns(UserWarning, match="of spikes differ"):
        to_nir(network, tmp_path / "a.nir", x, allow_lossy=True)
    if "unit" in bits:  # thresholds scaled with the weights: integers in the file
        weight = nir.read(tmp_path / "a.nir").nodes["layer1_0_conv1"].weight
        np.testing.assert_array_equal(weight, np.round(weight))
        assert 1 < np.abs(weight).max() <= 127
    layers = neuron_layers(network, x)
    ours = spikes_of(network, x, [(layer.path, layer.call) for layer in layers])
    back = from_nir(tmp_path / "a.nir")
    theirs = spikes_of(back, x, [(f"nodes.{layer.name}", 0) for layer in layers])
    assert sum(float(s.mean()) > 0.01 for s in ours) > len(ours) / 2
    for layer, a, b in zip(layers, ours, theirs, strict=True):
        assert torch.equal(a, b), layer.name
    torch.testing.assert_close(back(x), network(x))


class Skip(torch.nn.Module):
    """An identity shortcut that joins in front of a ReLU, with or without a norm in the branch."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.branch = torch.nn.BatchNorm2d(8) if norm else torch.nn.Identity()
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.branch(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("norm", [True, False])
def test_quantized_own_networks_with_identity_shortcuts_come_back(norm: bool, tmp_path: Path) -> None:
    from spikedistill.quantization import quantize

    x = torch.rand(4, 3, 8, 8)
    network = lively(sd.spiking(Skip(norm), time_steps=3, example=x), x)
    network = quantize(network, calibration=x, norm_bits=None, fraction_bits=12).eval()
    with pytest.warns(UserWarning, match="of spikes differ"):
        to_nir(network, tmp_path / "a.nir", x, allow_lossy=True)
    torch.testing.assert_close(from_nir(tmp_path / "a.nir")(x), network(x))


def test_quantized_learned_leaks_are_written_with_gradients_on(tmp_path: Path) -> None:
    from spikedistill.quantization import quantize

    x = torch.rand(4, 3, 8, 8)
    network = sd.networks.create("vgg5", width=0.25, pools=0, time_steps=2, neuron={"type": "plif"})
    network = quantize(lively(network, x), calibration=x).eval()
    assert torch.is_grad_enabled()
    with pytest.warns(UserWarning, match="of spikes differ"):
        to_nir(network, tmp_path / "a.nir", x, allow_lossy=True)
    torch.testing.assert_close(from_nir(tmp_path / "a.nir")(x), network(x))


def test_rounded_weights_scale_what_a_membrane_starts_with(tmp_path: Path) -> None:
    x = torch.rand(3, 3, 8, 8)
    soft = sd.LIF(decay=0.8, reset="soft", initial=0.75)
    network = lively(sd.networks.create("vgg5", width=0.1, pooling="avg", neuron=soft, time_steps=6), x)
    with pytest.warns(UserWarning, match="weights rounded to 16 bits"):
        to_nir(network, tmp_path / "a.nir", x, allow_lossy=True, weight_bits=16)
    wanted = [(layer.path, layer.call) for layer in neuron_layers(network, x)]
    first = spikes_of(network, x, wanted)[0]
    assert float(first.mean()) > 0.02  # a start near the threshold tells
    torch.testing.assert_close(from_nir(tmp_path / "a.nir")(x), network(x), rtol=0.02, atol=0.02)


def test_rounded_weights_behind_real_maxima_are_not_divided(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 5),
    )  # fmt: skip
    x = torch.rand(4, 3, 8, 8)
    network = lively(sd.spiking(ann, example=x, time_steps=4), x)
    with pytest.warns(UserWarning, match="max pooling"):
        to_nir(network, tmp_path / "a.nir", x, allow_lossy=True, weight_bits=16)
    metadata = json.loads(nir.read(tmp_path / "a.nir").metadata["spikedistill"])
    assert any(node.get("max") for node in metadata["nodes"].values())
    torch.testing.assert_close(from_nir(tmp_path / "a.nir")(x), network(x), rtol=0.02, atol=0.02)


def test_the_codes_of_a_network_read_back_move_with_it(tmp_path: Path) -> None:
    x = torch.rand(4, 3, 8, 8)
    network = lively(sd.networks.create("vgg5", width=0.1, pooling="avg", time_steps=4), x)
    quantized = sd.quantize(network, calibration=x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to_nir(quantized, tmp_path / "a.nir", x, allow_lossy=True)
    moved = from_nir(tmp_path / "a.nir").to("meta")
    assert all(t.device.type == "meta" for t in (*moved.parameters(), *moved.buffers()))
    tables = [m.table for m in moved.modules() if getattr(m, "table", None) is not None]
    assert len(tables) == 1
    assert tables[0].device.type == "meta"
