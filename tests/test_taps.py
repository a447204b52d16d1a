"""Taps: paths, calls, insides, aliases and wildcards, on SNNs, ANNs and other people's networks."""

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(name="vgg5", T=2, **given):
    torch.manual_seed(0)
    return sd.networks.create(name, **({"in_channels": 1, "width": 0.125, "time_steps": T} | given)).eval()


def captured(net, *texts, x=X, **given):
    with torch.no_grad():
        logits, found = taps.captures(net, x, texts, **given)
    return logits, found


def test_outputs_inputs_and_insides_fit_together():
    net = network(pools=1, neuron=sd.LIF())
    logits, found = captured(
        net,
        "stage1.1",
        "stage1.1@spikes",
        "stage1.1@membrane",
        "stage1.1@current",
        "stage2.0@input",
        "stage1",
    )
    spikes, membrane = found["stage1.1@spikes"], found["stage1.1@membrane"]
    assert spikes.shape == (2, 3, 8, 8, 8)
    assert torch.equal(found["stage1.1"], spikes)
    assert torch.equal(spikes, (membrane >= 1).float())
    first = found["stage1.1@current"][0] / 2  # LIF, tau = 2: H_0 = I_0 / tau
    torch.testing.assert_close(membrane[0], first)
    pooled = nn.functional.max_pool2d(spikes.flatten(0, 1), 2).unflatten(0, (2, 3))
    assert torch.equal(found["stage2.0@input"], found["stage1"]) or torch.equal(
        found["stage2.0@input"], pooled
    )
    assert torch.equal(logits, net(X).detach())


def test_captures_do_not_change_the_result():
    net = network("ms_resnet20", width=0.25)
    plain = net(X).detach()
    logits, _ = captured(net, "*@membrane", "*@spikes", "stages", "before_head", "pooled")
    assert torch.equal(logits, plain)


@pytest.mark.parametrize("name", ["vgg5", "resnet20", "sew_resnet20", "ms_resnet20"])
def test_aliases(name):
    net = network(name, **({} if name == "vgg5" else {"width": 0.25}))
    logits, found = captured(net, "logits", "stages", "before_head", "pooled", "stage1")
    assert torch.equal(found["logits"], logits)
    sizes = [tuple(x.shape[-2:]) for x in found.all("stages").values()]
    assert sizes == sorted(sizes, reverse=True)
    assert torch.equal(found["stage1"], next(iter(found.all("stages").values())))
    head = found["before_head"]
    assert head.dim() == 5
    torch.testing.assert_close(head.mean((3, 4), keepdim=True), found["pooled"])


def test_what_runs_once_for_all_steps_is_the_same_at_each():
    net = network()
    _, found = captured(net, "stage1.0")
    conv = found["stage1.0"]
    assert conv.shape[:2] == (2, 3)
    assert torch.equal(conv[0], conv[1])
    _, longer = captured(net, "stage1.1@spikes", time_steps=5)
    assert longer["stage1.1@spikes"].shape[0] == 5


def test_wildcards_name_every_layer():
    net = network()
    _, found = captured(net, "*@membrane", "*", "*@input")
    assert [n.removesuffix("@membrane") for n in found.all("*@membrane")] == list(found.all("*"))
    inputs = found.all("*@input")
    weights = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert list(inputs) == [f"{n}@input" for n in weights]
    assert torch.equal(inputs["stage1.0@input"][0], X)
    assert found.thresholds[next(iter(found.all("*@membrane")))] == 1.0


def test_wildcards_of_the_ann_twin_have_equal_names():
    _, snn = captured(network(), "*")
    _, ann = captured(network(T=None), "*")
    assert list(snn.all("*")) == list(ann.all("*"))
    assert all(x.shape[0] == 1 for x in ann.all("*").values())
    with pytest.raises(SpikedistillError, match="no spiking neuron layers"):
        captured(network(T=None), "*@membrane")


class Twice(nn.Module):
    """One neuron and one ReLU, each called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.neuron, self.relu = sd.LIF(time_steps=2, threshold=0.1), nn.ReLU()

    def forward(self, x):
        x = self.neuron(self.a(x).repeat(2, 1, 1, 1))
        x = self.neuron(self.relu(self.b(x)))
        return self.relu(x.mean((2, 3))).unflatten(0, (2, -1))


def test_calls_of_a_reused_module():
    torch.manual_seed(1)
    net = Twice()
    logits, found = captured(net, "neuron", "neuron#1", "neuron#1@membrane", "*@spikes", "relu#1")
    assert not torch.equal(found["neuron"], found["neuron#1"])
    assert torch.equal(found["neuron#1"], (found["neuron#1@membrane"] >= 0.1).float())
    assert list(found.all("*@spikes")) == ["neuron@spikes", "neuron#1@spikes"]
    assert torch.equal(found["relu#1"], logits)
    with pytest.raises(SpikedistillError, match=r"'neuron#2@membrane' was not reached"):
        captured(net, "neuron#2@membrane")


class Plain(nn.Module):
    """Somebody's ANN."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_somebody_elses_ann():
    logits, found = captured(Plain(), "stages", "before_head", "body.1", "*")
    assert logits.shape == (1, 3, 5)
    assert [tuple(x.shape[2:]) for x in found.all("stages").values()] == [(4, 8, 8), (6, 4, 4)]
    assert found["before_head"].shape == (1, 3, 6, 4, 4)
    assert list(found.all("*")) == ["body.1"]


class Functional(nn.Module):
    """Residual blocks whose ReLUs are functions, one stem whose ReLU is a module."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            h = nn.functional.relu(self.a(x))
            return torch.relu(x + self.b(h).relu_())

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.gate = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.blocks(self.stem(x)) * self.gate.relu()
        return self.head(nn.functional.relu(x.mean((2, 3))))


RELUS = ["stem.1", *[f"blocks.{i}/{name}" for i in (0, 1) for name in ("relu", "relu_", "relu#1")], "relu#1"]


def test_relus_that_are_functions_are_places_too():
    torch.manual_seed(0)
    net = Functional().eval()
    logits, found = captured(net, "*", "blocks.0", "blocks.1/relu#1", "blocks.1")
    relus = found.all("*")
    assert list(relus) == RELUS  # in the order of execution; the gate's is of no input
    assert torch.equal(relus["blocks.0/relu#1"], found["blocks.0"])
    assert torch.equal(found["blocks.1/relu#1"], found["blocks.1"])
    assert torch.equal(net.head(relus["relu#1"][0]), logits[0])
    assert all(x.shape[:2] == (1, 3) and (x >= 0).all() for x in relus.values())
    with pytest.raises(SpikedistillError, match="has only its output"):
        captured(net, "blocks.1/relu@spikes")
    with pytest.raises(SpikedistillError, match=r"has no 'blocks\.1/relu'"):
        captured(net, "blocks.1/relu#7")


def test_an_ann_with_functions_alone_has_places():
    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.b(nn.functional.relu(self.a(x.flatten(1))))

    _, found = captured(Only(), "*")
    assert list(found.all("*")) == ["relu"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage1.1@potential", "unknown '@potential'"),
        ("stge1", "did you mean 'stage1'"),
        ("stage9", "stages 1 to 2"),
        ("stage1.0@spikes", "Conv2d is not a spiking neuron layer"),
        ("a@b@c", "not of the form"),
        ("head#3", "was not reached"),
    ],
)
def test_wrong_taps_are_refused_in_words(text, words):
    with pytest.raises(SpikedistillError, match=words):
        captured(network(), text)


def test_an_ann_on_frames_sees_each_frame():
    frames = torch.rand(3, 4, 1, 8, 8)
    ann = network(T=None)
    logits, found = captured(ann, "stage1", x=frames)
    assert logits.shape == (4, 3, 10)
    torch.testing.assert_close(logits[2], ann(frames[:, 2]).detach())
    assert found["stage1"].shape[:2] == (4, 3)
    snn = network(T=2, input="frames")
    _, found = captured(snn, "stage1.0@input", x=frames)
    torch.testing.assert_close(found["stage1.0@input"][1], frames[:, 2] + frames[:, 3])


def test_hooks_are_gone_afterwards():
    net = network()
    captured(net, "stage1.1", "*@input")
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("name", ["ms_resnet20", "sew_resnet20"])
def test_captures_of_a_quantized_network_are_real_values(name):
    quantization = pytest.importorskip("spikedistill.quantization")
    net = network(name, width=0.25, initialisation="plain")
    for module in net.modules():
        if isinstance(module, sd.NormNeuron):
            nn.init.constant_(module.bias, 0.5)
    quantized = quantization.quantize(net, weight_bits=8, membrane_bits=None, calibration=[X]).eval()
    _, real = captured(net, "stages", "stage1", "before_head", "pooled")
    _, codes = captured(quantized, "stages", "stage1", "before_head", "pooled")
    for tap, value in real.tensors.items():
        assert (codes[tap] - value).abs().mean() <= 0.25 * value.abs().mean(), tap
    torch.testing.assert_close(codes["before_head"].mean((3, 4), keepdim=True), codes["pooled"])
    assert not torch.equal(codes["stage1"], codes["stage1"].round()) or name == "sew_resnet20"


class Windows(nn.Module):
    """Patches behind the batch, an input by name, logits in a mapping."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x):
        n = x.shape[0]
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(4 * n, 1, 4, 4)
        features = self.conv(patches).mean((2, 3)).reshape(n, 4, 4).mean(1)
        return {"logits": self.head(input=features)}


def test_rows_that_are_no_images_are_refused():
    with pytest.raises(sd.SpikedistillError, match=r"tap 'conv' gives 16 rows for 4 images: .*windows"):
        taps.captures(Windows(), torch.rand(4, 1, 8, 8), ["conv"])


def test_inputs_by_name_and_logits_in_a_mapping_are_found():
    network, x = Windows(), torch.rand(4, 1, 8, 8)
    logits, found = taps.captures(network, x, ["head@input", "head"])
    assert logits.shape == (1, 4, 10)
    assert found.tensors["head@input"].shape == (1, 4, 4)
    assert torch.equal(network.head(found.tensors["head@input"]), logits)
