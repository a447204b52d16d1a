"""Networks as documents: the same outputs, taps and keys; forged documents end in one line."""

import copy
import json

import pytest
import torch
from small_networks import KINDS, example, make
from torch import nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill import simulation, taps
from spikedistill.networks import Network
from spikedistill.networks.graph_file import NoFormError, describe
from spikedistill.networks.interpreter import network_of
from spikedistill.neurons import build
from spikedistill.training.standalone import difference


class Skip(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + F.relu(self.norm(self.conv(x)))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1, self.stage2 = nn.Conv2d(3, 4, 3, padding=1), Skip(), Skip()
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.head = nn.Linear(4 * 16, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.stage2(self.stage1(F.relu(self.stem(x)))) * self.scale
        n, c, h, w = x.shape
        return self.head(F.max_pool2d(x.view(n, c, h, w), 2).reshape(n, -1))


def again(network: nn.Module, size=(3, 8, 8), frames=None, alter=None) -> nn.Module:
    document = json.loads(json.dumps(describe(network, size, frames)))
    if alter is not None:
        alter(document)
    made = network_of(document, "graph.json", sum(t.numel() for t in network.state_dict().values()))
    made.load_state_dict(network.state_dict())
    return made.train(network.training)


def turned() -> nn.Module:
    torch.manual_seed(0)
    return sd.spiking(Whole(), 2, example=(2, 3, 8, 8)).eval()


def test_a_turned_network_has_the_same_logits_taps_and_gradients():
    network = turned()
    made = again(network)
    x = torch.rand(7, 3, 8, 8)
    for T in (1, 2, 3):
        with sd.time_steps(network, T), torch.no_grad():
            whole = network(x)
        with sd.time_steps(made, T), torch.no_grad():
            assert torch.equal(made(x), whole)
    for name in (
        "stage1",
        "stage2",
        "before_head",
        "model.stage1",
        "model.stage1.conv",
        "*@membrane",
        "stages",
    ):
        ours, theirs = (taps.captures(one, x, [name])[1] for one in (made, network))
        assert list(ours.all(name)) == list(theirs.all(name)), name
        assert all(torch.equal(ours.all(name)[k], v) for k, v in theirs.all(name).items()), name
    state = None
    for _ in range(2):
        out, state = made.step(x, state)
    assert out.shape == (7, 5)
    for one in (network, made):
        one.train()(x).sum().backward()
    wanted = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    assert {k for k, p in made.named_parameters() if p.grad is not None} == set(wanted)
    for k, p in made.named_parameters():
        if k in wanted:  # a stretched surrogate is described as the wider one: equal but for rounding
            torch.testing.assert_close(p.grad, wanted[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [k for k in KINDS if k != "hdkd_teacher"])
def test_our_own_families_have_such_a_form_too(name):
    network = make(name).eval()
    x = example(name, 3)
    frames = x.shape[1] if x.dim() == 5 else None
    made = again(network, tuple(x.shape[2:] if frames else x.shape[1:]), frames)
    with torch.no_grad():
        assert torch.equal(made(x), network(x))


class Over(nn.Module):
    """A plain module whose neuron gets the image T times."""

    def __init__(self, kind: str, steps: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.neuron = build({"type": kind})
        self.neuron.time_steps = self.steps = steps

    def forward(self, x):
        spikes = self.neuron(torch.cat([self.conv(x)] * self.steps))
        return self.head(spikes.mean((2, 3))).unflatten(0, (self.steps, len(x))).mean(0)


@pytest.mark.parametrize("steps", [2, 4, 6])
@pytest.mark.parametrize("kind", ["psn", "masked_psn", "sliding_psn", "lif"])
def test_a_plain_modules_neuron_has_its_own_steps(kind, steps):
    network, x = Over(kind, steps).eval(), torch.rand(4, 3, 8, 8)
    made = again(network)
    assert made.get_submodule("neuron").time_steps == steps
    assert torch.equal(made(x), network(x))
    assert difference(network, describe(network, (3, 8, 8)), lambda one: one) is None


class Timed(Network):
    """Its body asks for the number of time steps."""

    def __init__(self, kind: str) -> None:
        super().__init__(5, 3, time_steps=4)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.neuron, self.again = build({"type": kind}), build({"type": kind})
        self.neuron.encode = True

    def body(self, x):
        T = simulation.current().time_steps
        x = self.neuron(self.conv(x))
        x = x.view(T, x.shape[0] // T, *x.shape[1:]).flatten(0, 1)
        return self.head(self.again(x).mean((2, 3)))


@pytest.mark.parametrize("kind", ["psn", "masked_psn"])
@pytest.mark.parametrize("name", ["conv6", "timed"])
def test_a_network_whose_neurons_have_weights_for_one_T(name, kind):
    torch.manual_seed(0)
    network = Timed(kind) if name == "timed" else make(name, neuron={"type": kind})
    network.eval()
    weights, size, x = copy.deepcopy(network.state_dict()), (3, 16, 16), torch.rand(3, 3, 16, 16)
    made = again(network, size)
    assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    with torch.no_grad():
        assert torch.equal(made(x), network(x))
    with sd.time_steps(made, 5), pytest.raises(sd.SpikedistillError, match="weights for T = 4 time steps"):
        made(x)
    if kind == "masked_psn":
        ours = theirs = None
        for _ in range(4):
            out, ours = made.step(x, ours)
            expected, theirs = network.step(x, theirs)
            assert torch.equal(out, expected)


def test_weights_of_another_size_than_the_settings_are_named():
    network = Whole().eval()
    network.head.weight = nn.Parameter(torch.rand(7, 4 * 16))
    network.head.bias = nn.Parameter(torch.rand(7))
    said = difference(network, describe(network, (3, 8, 8)), lambda one: one)
    assert said == "of the graph the state dict has other sizes: head.weight, head.bias"


def test_the_comparison_is_of_networks_as_files_give_them_back():
    # convolutions of some processors (AVX-512) round otherwise channels last, as trained weights lie
    network = Whole().eval().to(memory_format=torch.channels_last)
    document, seen = describe(network, (3, 8, 8)), []
    network.stem.register_forward_pre_hook(lambda stem, _: seen.append(stem.weight.is_contiguous()))
    assert difference(network, document, lambda one: one) is None
    assert seen == [True, True]
    assert not network.stem.weight.is_contiguous()


def test_the_comparison_leaves_every_generator_alone(monkeypatch):
    network = make("vgg5", encoding="poisson").eval()  # draws
    document = describe(network, (3, 8, 8))
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert difference(network, document, lambda one: one) is None
    assert seeded == [7]
    assert torch.equal(torch.get_rng_state(), state)


class ByBatch(Whole):
    def forward(self, x):
        return super().forward(x) if len(x) < 3 else super().forward(x) * 2


class Constant(Whole):
    def forward(self, x):
        return super().forward(x) + torch.arange(5.0)


@pytest.mark.parametrize(
    "cls, words", [(ByBatch, "depends on the batch"), (Constant, "arange at .* is no function")]
)
def test_what_has_no_such_form_says_why(cls, words):
    with pytest.raises(NoFormError, match=words):
        describe(cls(), (3, 8, 8))


def _first_call(document, **values):
    steps = document["steps"]
    while "steps" in steps[0]:
        steps = steps[0]["steps"]
    steps[0].update(values)


FORGED = {
    "a layer that is none": (lambda d: d["modules"]["model.stem"].update(type="__import__"), "unknown layer "
"'__import__'"),
    "a function that is none": (lambda d: _first_call(d, module=None, function="os.system"),
    "calls 'os.system', which is"),
    "a module that is not there": (lambda d: _first_call(d, module="model.gone"), "calls 'model.gone', "
"which is unknown"),
    "itself": (lambda d: _first_call(d, module=""), "which is unknown"),
    "the future": (lambda d: _first_call(d, args=[{"ref": "model.head#0"}]), "reads what is not there yet"),
    "a text for a number": (lambda d: d["modules"]["model.stem"]["settings"].update(stride="x"), "stride"),
    "a huge layer": (lambda d: d["modules"]["model.head"]["settings"].update(in_features=10**9),
    "the weights' file holds"),
    "code for a neuron": (
        lambda d: d["modules"]["model.stage1.norm"]["settings"]["neuron"]["settings"].update(
            type="os:system"
        ),
        "unknown neuron 'os:system'",
    ),
    "an unknown key": (lambda d: d.update(pickle="x"), "unknown key 'pickle'"),
    "a name that modules have": (lambda d: d["modules"].update(forward=None), "graph.json: "),
    "a path without its parent": (lambda d: d["modules"].update({"a.b": None}), "graph.json: "),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_documents(name):
    alter, words = FORGED[name]
    network = turned()
    document = json.loads(json.dumps(describe(network, (3, 8, 8))))
    forged = copy.deepcopy(document)
    alter(forged)
    assert forged != document
    with pytest.raises(sd.SpikedistillError, match=words) as raised:
        network_of(forged, "graph.json", sum(t.numel() for t in network.state_dict().values()))
    assert str(raised.value).startswith("graph.json")
    assert "\n" not in str(raised.value)
