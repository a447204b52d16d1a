import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedistill import simulation, taps
from spikedistill.conversion import convert
from spikedistill.errors import SpikedistillError
from spikedistill.networks import create, spiking
from spikedistill.networks.graph import trace
from spikedistill.networks.outside.adapter import first_tensor
from spikedistill.neurons import IF, LIF, PLIF, Neuron, NormNeuron

timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision").models


def make(name: str) -> nn.Module:
    library, name = name.split(":")
    if library == "timm":
        return timm.create_model(name, num_classes=10)
    options: dict[str, bool] = {"init_weights": False} if name in ("googlenet", "vgg11_bn") else {}
    return getattr(models, name)(num_classes=10, weights=None, **options)


class Rectifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)


def with_relu(network: nn.Module) -> nn.Module:
    """The turned network with ReLU in each neuron's place: at T = 1 it must compute what the model did."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, Neuron):
                setattr(parent, key, Rectifier())
    return network


def randomise(model: nn.Module) -> None:
    """Norms with statistics and scales of their own, so that a swapped norm would be seen."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.3, 0.3)
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 1.5)


# name, image size, neurons, how time enters
CASES = [
    ("timm:resnet18", 32, 17, "encodes"),
    ("timm:regnetx_002", 32, 40, "encodes"),
    ("timm:resnetv2_18", 32, 17, "the output of stem.pool is repeated"),
    ("torchvision:resnet18", 32, 17, "encodes"),
    ("torchvision:squeezenet1_1", 32, 26, "encodes"),
    ("torchvision:shufflenet_v2_x0_5", 32, 37, "encodes"),
    ("torchvision:googlenet", 64, 57, "encodes"),
    ("torchvision:densenet121", 32, 121, "encodes"),
    pytest.param("torchvision:vgg11_bn", 32, 10, "encodes", marks=pytest.mark.slow),
    pytest.param("timm:vgg11_bn", 32, 10, "encodes", marks=pytest.mark.slow),
    pytest.param("timm:densenet121", 32, 121, "encodes", marks=pytest.mark.slow),
    pytest.param("timm:resnet34", 32, 33, "encodes", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, size, neurons, entrance", CASES)
def test_every_relu_call_becomes_a_neuron_and_nothing_else_changes(
    name: str, size: int, neurons: int, entrance: str
) -> None:
    model = make(name)
    randomise(model)
    x = torch.rand(2, 3, size, size)
    network = spiking(model, 3, example=x, mean=0.4, std=0.3, initialisation="plain").eval()
    assert len(taps.neuron_paths(network)) == neurons
    assert entrance in network.notes[-1]
    with torch.no_grad():
        assert network(x).shape == (3, 2, 10)
        network.time_steps = 1
        expected = first_tensor(model.eval()((x - 0.4) / 0.3))
        found = with_relu(network)(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    # weights of the model fit by their own names, auxiliary classifiers aside
    names = {k.removeprefix("model.") for k in network.state_dict()} - {"mean", "std"}
    assert names == {k for k in model.state_dict() if not k.startswith("aux")}


def three_steps(images: Tensor) -> None:
    torch.manual_seed(0)
    network = spiking(
        timm.create_model("resnet18", num_classes=10), 4, example=torch.rand(2, 3, 32, 32)
    ).train()
    assert network(images[:2]).shape == (4, 2, 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    alive: dict[str, bool] = dict.fromkeys((n for n, _ in network.named_parameters()), False)
    paths = taps.neuron_paths(network)
    for step in range(3):
        batch = images.chunk(3)[step]
        loss = F.cross_entropy(network.predict(batch), torch.arange(len(batch)) % 10)
        optimizer.zero_grad()
        loss.backward()
        for name, p in network.named_parameters():
            assert p.grad is not None
            assert p.grad.isfinite().all(), name
            alive[name] |= bool(p.grad.any())
        optimizer.step()
    assert all(alive.values()), [n for n, a in alive.items() if not a]
    _, captured = taps.captures(network, images[:16], [f"{p}@spikes" for p in paths])
    rates = {p: captured[f"{p}@spikes"].mean().item() for p in paths}
    assert len(rates) == 17
    assert all(0.001 < r < 0.9 for r in rates.values()), rates


def test_turned_resnet18_trains() -> None:
    three_steps(torch.rand(30, 3, 32, 32))


@pytest.mark.data
def test_turned_resnet18_trains_on_cifar10(cifar10_test: tuple[Tensor, Tensor]) -> None:
    three_steps(cifar10_test[0][:48])


def test_default_example_and_statistics_are_timms() -> None:
    network = spiking(timm.create_model("resnet10t", num_classes=3, in_chans=1), 2)
    assert network.mean.tolist() == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    colour = spiking(timm.create_model("resnet18", num_classes=3), 2, example=torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(colour.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(colour.std, torch.tensor([0.229, 0.224, 0.225]))
    plain = spiking(models.resnet18(num_classes=3), 2, example=torch.rand(1, 3, 32, 32))
    assert plain.mean.tolist() == [0, 0, 0]
    assert plain.std.tolist() == [1, 1, 1]


def test_shared_relu_gets_a_neuron_per_call_and_aliases() -> None:
    network = spiking(
        models.resnet18(num_classes=10),
        2,
        PLIF(init_tau=1.2, threshold=0.2),
        example=torch.rand(2, 3, 32, 32),
        initialisation="plain",
    )
    modules = dict(network.named_modules())
    assert isinstance(modules["model.layer1.0.bn1"], NormNeuron)
    assert isinstance(modules["model.layer1.0.bn2"], nn.BatchNorm2d)
    assert isinstance(modules["model.layer1.0.relu.1"], PLIF)
    assert network.aliases["layer1.0.relu#0"] == "model.layer1.0.bn1"
    assert network.aliases["layer1.0.relu#1"] == "model.layer1.0.relu.1"
    x = torch.rand(2, 3, 32, 32)
    _, captured = taps.captures(
        network.eval(), x, ["layer1.0.relu#1@spikes", "layer1.0.relu", "layer1.0.conv2"]
    )
    block = captured["layer1.0.relu#1@spikes"]
    assert block.shape == (2, 2, 64, 8, 8)
    assert block.any()
    assert not torch.equal(block, captured["layer1.0.relu"])
    # each neuron has a time constant of its own
    assert len({id(m.w) for m in network.modules() if isinstance(m, PLIF)}) == 17


def test_zero_norm_scales_become_one_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    zeros = [p for p, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert zeros
    with caplog.at_level(logging.INFO, "spikedistill"):
        network = spiking(model, 2, example=torch.rand(2, 3, 32, 32))
    assert f"{len(zeros)} norms whose scales were all zero now have scale one" in caplog.text
    assert network.notes[0] in caplog.text
    assert all(network.get_submodule(f"model.{p}").weight.eq(1).all() for p in zeros)
    assert not model.get_submodule(zeros[0]).weight.any()  # the model that was given is as it was


@pytest.mark.parametrize(
    "name, words",
    [
        ("torchvision:mobilenet_v2", "35 operations.*features.0.2: ReLU6 at .*mobilenetv2.py:"),
        ("torchvision:mobilenet_v3_small", "Hardswish at .*mobilenetv3.py:"),
        ("torchvision:efficientnet_b0", "SiLU at .*efficientnet.py:"),
        ("timm:convnext_atto", "gelu at .*|GELU at"),
        ("timm:regnety_002", "13 operations.*s1.b1.se.gate: sigmoid at .*gates='keep'"),
        ("timm:vit_tiny_patch16_224", "scaled_dot_product_attention|softmax|GELU"),
    ],
)
def test_what_cannot_be_turned_is_refused_by_path_and_line(name: str, words: str) -> None:
    size = 224 if "vit" in name else 32
    with pytest.raises(SpikedistillError, match=f"(?s){words}"):
        spiking(make(name), example=torch.rand(2, 3, size, size))


def test_a_layer_that_torch_calls_is_named_by_its_path_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(SpikedistillError, match=r"1 operation without .*\n  1: GELU\n"):
        spiking(model, example=torch.rand(2, 3, 8, 8))


def test_gates_can_be_kept() -> None:
    network = spiking(make("timm:regnety_002"), 2, example=torch.rand(2, 3, 32, 32), gates="keep")
    assert network.train()(torch.rand(2, 3, 32, 32)).shape == (2, 2, 10)
    assert len(taps.neuron_paths(network)) == 53  # 40 between convolutions, 13 inside of gates


class Plain(nn.Module):
    """A small model with what the tests below vary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 1, 1)
        self.fc = nn.Linear(6, 5)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class InPlaceStatement(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        torch.relu_(x)
        return self.fc(x.mean((2, 3)))


class OldName(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x.relu_()
        return self.fc((torch.sigmoid_ if False else torch.neg)(y + x).mean((2, 3)))


class TrainingOnly(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.fc(F.relu(x).mean((2, 3)) if self.training else x.mean((2, 3)))


class Clamped(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).clamp(min=0).mean((2, 3)))


class NoReLU(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    "model, words",
    [
        (InPlaceStatement, "test_surgery.py:.*works in place.*x = relu"),
        (OldName, "test_surgery.py:.*works in place"),
        (TrainingOnly, "in training mode.*test_surgery.py:"),
        (Clamped, "clamp at .*test_surgery.py:"),
        (NoReLU, "calls no ReLU"),
    ],
)
def test_models_that_would_silently_stay_half_ann_are_refused(model: type[nn.Module], words: str) -> None:
    with pytest.raises(SpikedistillError, match=f"(?s){words}"):
        spiking(model(), 2, example=torch.rand(2, 3, 8, 8))


class Functional(Plain):
    """The same child called twice, and every way to write ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mid = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, 1, 1)
        self.block = Half(6)
        self.act = self.relu  # one module under two names

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        x = self.block(self.block(x)).relu()
        x = self.act(self.mid(x)) + torch.relu(x)
        return self.fc(self.relu(x).mean((2, 3)))


class Half(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(input=self.conv(x)) - 0.1


def test_functional_calls_and_reused_blocks() -> None:
    model, x = Functional(), torch.rand(4, 3, 8, 8)
    randomise(model)
    network = spiking(model, 3, example=x, initialisation="plain").eval()
    assert len(taps.neuron_paths(network)) == 7  # norm+relu, block twice, .relu(), act, torch.relu, relu
    assert isinstance(network.get_submodule("model.norm"), NormNeuron)
    assert isinstance(network.get_submodule("model.block.relu_sites.1"), IF)
    graph = trace(network, x)
    assert [n.kind for n in graph].count("IF") == 6
    network.time_steps = 1
    with torch.no_grad():
        torch.testing.assert_close(with_relu(network)(x)[0], model.eval()(x))


def test_stages_of_turned_networks_are_taps() -> None:
    x = torch.rand(2, 3, 64, 64)
    resnet = spiking(models.resnet18(num_classes=4), 2, example=x)
    assert [t.path for t in taps.stages(resnet, x)] == [f"model.layer{i}" for i in (1, 2, 3, 4)]
    squeezenet = spiking(models.squeezenet1_1(num_classes=4), 2, example=x)
    sizes = [c.shape[-1] for c in taps.captures(squeezenet, x, ["stages"])[1].all("stages").values()]
    assert sizes == [31, 15, 7, 3]


def test_two_passes_then_backward_and_copies_are_independent() -> None:
    network = spiking(Functional(), 2, LIF(), example=torch.rand(2, 3, 8, 8), initialisation="plain")
    x = torch.rand(2, 3, 8, 8)
    (network(x).sum() + network(x).sum()).backward()
    assert all(p.grad is not None for p in network.parameters())
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert network(x).any()
    assert not twin(x).any()


def test_streaming_equals_one_forward() -> None:
    for model in (Functional(), make("timm:resnetv2_18")):
        x = torch.rand(2, 3, 32, 32)
        network = spiking(model, 3, example=x, initialisation="plain").eval()
        with torch.no_grad():
            whole = network(x)
            state, steps = None, []
            for _ in range(3):
                out, state = network.step(x, state)
                steps.append(out)
        torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-4, atol=1e-5)


def test_time_steps_and_frames() -> None:
    x = torch.rand(2, 3, 8, 8)
    network = spiking(Plain(), 4, example=x, initialisation="plain").eval()
    with torch.no_grad(), simulation.time_steps(network, 2):
        assert network(x).shape == (2, 2, 5)
    events = spiking(Plain(), 4, example=x, input="frames", initialisation="plain").eval()
    events.load_state_dict(network.state_dict())
    with torch.no_grad():
        same = events(x.unsqueeze(1).expand(-1, 4, -1, -1, -1))
        torch.testing.assert_close(same, network(x))


def test_a_turned_network_is_made_anew_from_its_config(tmp_path: Path) -> None:
    from spikedistill.training.store import load_network, save_network

    network = spiking(Functional(), 3, LIF(tau=1.5), example=(2, 3, 8, 8), mean=0.5, std=0.2).eval()
    x = torch.rand(2, 3, 8, 8)
    save_network(tmp_path / "net", network, {}, "card")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "net", Functional())(x), network(x))
        network.config["name"] = "custom:mine"
        save_network(tmp_path / "mine", network, {}, "card")
        assert torch.equal(load_network(tmp_path / "mine", factories={"mine": Functional})(x), network(x))


def test_own_networks_are_sent_to_create() -> None:
    with pytest.raises(SpikedistillError, match="create it with time_steps"):
        spiking(create("vgg5", time_steps=None))
    with pytest.raises(SpikedistillError, match=r"shape \(2, 1, 8, 8\)"):
        spiking(Plain(), example=torch.rand(2, 1, 8, 8))
    with pytest.raises(SpikedistillError, match="neuron must be"):
        spiking(Plain(), neuron=nn.GELU(), example=torch.rand(2, 3, 8, 8))


class Patches(nn.Module):
    """Patches between two ReLUs, in front of the batch or behind it."""

    def __init__(self, front: bool = True, back: bool = True) -> None:
        super().__init__()
        self.front, self.back = front, back
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        n = x.shape[0]
        parts = x.reshape(n, 4, 2, 4, 2, 4)
        if self.front:
            x = parts.permute(2, 4, 0, 1, 3, 5).reshape(4 * n, 4, 4, 4)
        else:
            x = parts.permute(0, 2, 4, 1, 3, 5).reshape(4 * n, 4, 4, 4)
        x = torch.relu(self.conv2(x)).mean((2, 3))
        x = x.reshape(4, n, 4).mean(0) if self.front else x.reshape(n, 4, 4).mean(1)
        return self.head(x)


class Neighbours(nn.Module):
    """Looks across the batch, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, 5)
        self.seen = 0.0

    def mix(self, x: Tensor) -> Tensor:
        if self.way == "mean":
            return x - x.mean(0, keepdim=True)
        if self.way == "flip":
            return x.flip(0)
        if self.way == "roll":
            return x.roll(1, 0)
        if self.way == "sum":
            return x.cumsum(0)
        if self.way == "norm":
            return self.norm(x)
        if self.way == "first":
            return x + x[:1]
        if self.way == "deviation":
            return x / (x.std() + 1)
        if self.way == "state":
            self.seen = 0.5 * self.seen + float(x.abs().mean())
            return x + self.seen
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        if self.way == "end":
            x = torch.relu(self.conv2(x)).mean((2, 3))
            return self.head(x - x.mean(0, keepdim=True))
        return self.head(torch.relu(self.conv2(self.mix(x))).mean((2, 3)))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("input", ["image", "frames"])
def test_patches_in_front_of_the_batch_are_refused_and_behind_it_they_stream(input, steps):
    x = torch.rand(2, 3, 16, 16)
    with pytest.raises(
        SpikedistillError,
        match=r"(?s)neuron at model.relu_sites.1 reads mixes.*permute at .*test_surgery.py:\d+",
    ):
        spiking(Patches(), steps, example=x, input=input)
    network = spiking(Patches(front=False), steps, example=x, input=input).eval()
    given = torch.rand(3, steps, 3, 16, 16) if input == "frames" else torch.rand(3, 3, 16, 16)
    state = None
    for t, whole in enumerate(network(given)):
        out, state = network.step(given[:, t] if input == "frames" else given, state)
        torch.testing.assert_close(out, whole)


@pytest.mark.parametrize("way", ["mean", "flip", "roll", "sum", "norm", "first", "deviation", "state", "end"])
def test_what_looks_across_the_batch_is_refused(way):
    words = "the logits mix" if way == "end" else "neuron at model.relu_sites.1 reads mixes"
    with pytest.raises(SpikedistillError, match=rf"(?s){words}.*test_surgery.py:\d+"):
        spiking(Neighbours(way), 2, example=(2, 3, 16, 16))
    spiking(Neighbours("none"), 2, example=(2, 3, 16, 16))


AHEAD = {
    "flip": lambda x: x.flip(0),
    "first": lambda x: x + x[:1],
    "size": lambda x: x * x.shape[0],
    "place": lambda x: x * (1 + torch.arange(len(x))).view(-1, 1, 1, 1),
    "brightest": lambda x: x / x.max(),
}


@pytest.mark.parametrize("way", AHEAD)
def test_what_looks_across_the_images_before_the_first_neuron_is_refused(way):
    class Ahead(Neighbours):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(AHEAD[way](x))

    with pytest.raises(SpikedistillError, match=r"neuron at model.relu_sites.0 reads mixes"):
        spiking(Ahead("none"), 2, example=(2, 3, 16, 16))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("neuron", [{"type": "psn"}, {"type": "masked_psn", "order": 2}])
def test_neurons_tied_to_their_steps_are_turned_at_any_and_mixing_is_still_refused(neuron, steps):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    network = spiking(nn.Sequential(*layers), steps, neuron=neuron, example=(2, 3, 8, 8))
    assert network(torch.rand(2, 3, 8, 8)).shape == (steps, 2, 5)
    with pytest.raises(SpikedistillError, match="reads mixes"):
        spiking(Patches(), steps, neuron=neuron, example=(2, 3, 16, 16))


def test_conversion_refuses_what_mixes_images():
    with pytest.raises(SpikedistillError, match=r"(?s)reads mixes.*permute at .*test_surgery.py:\d+"):
        convert(Patches(), torch.rand(4, 3, 16, 16), 4)
