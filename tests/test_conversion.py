import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spikedistill import taps
from spikedistill.conversion import (
    accuracy_over_time,
    balance_thresholds,
    convert,
    measure,
    restore,
    time_steps_to_match,
)
from spikedistill.conversion.ranges import run_as_ann, with_activations
from spikedistill.errors import SpikedistillError
from spikedistill.networks import create, spiking
from spikedistill.networks.base import IMAGENET_MEAN, IMAGENET_STD, Network
from spikedistill.networks.outside.library import load_weights
from spikedistill.neurons import IF, LIF, QCFS, NormNeuron, SignedIF, layers
from spikedistill.neurons.qcfs import qcfs


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Rate(nn.Module):
    """A neuron's ideal: as many spikes as its current is thresholds."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) / self.threshold


def randomise(model: nn.Module) -> nn.Module:
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm | NormNeuron):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.3, 0.3)
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model.double().eval()


def ideal(network: Network, x: Tensor) -> Tensor:
    """Logits if every neuron gave its exact rate; spikes of SignedIF are ``levels`` to a threshold."""
    twin, _ = with_activations(network, lambda path: Rate(layers(network)[path].threshold))
    return run_as_ann(twin, twin, x)


OWN = ["conv6", "vgg9", "resnet20", "resnet18", "sew_resnet20", "ms_resnet20"]


@pytest.mark.parametrize("name", OWN)
def test_scales_leave_the_function_as_it_was(name: str) -> None:
    options = {"hidden": 24} if name == "vgg9" else {}
    ann = randomise(create(name, time_steps=None, width=0.25, mean=0.4, std=0.3, **options))
    x = torch.rand(4, 3, 32, 32)
    network = convert(ann, x, 4)
    with torch.no_grad():
        torch.testing.assert_close(ideal(network, x), ann(x), rtol=1e-9, atol=1e-9)
    assert all(n.initial == pytest.approx(n.threshold / 2) for n in layers(network).values())
    # where no spikes are added directly, the threshold stays 1 and all is in the weights
    plain = [
        n.threshold for p, n in layers(network).items() if name in ("conv6", "vgg9") or p.endswith("bn1")
    ]
    assert plain == pytest.approx([1.0] * len(plain))


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "DenseNet"])
def test_torchvision_networks_convert(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    options: dict[str, Any] = (
        {"init_weights": False, "aux_logits": False} if name == "googlenet" else {"weights": None}
    )
    if name == "DenseNet":  # spikes joined with real values that several layers read
        options = {"growth_rate": 4, "block_config": (3, 2), "num_init_features": 8, "bn_size": 2}
    ann = randomise(getattr(models, name)(num_classes=6, **options))
    x = torch.rand(2, 3, 64, 64)
    network = convert(ann, [x], 2)
    with torch.no_grad():
        torch.testing.assert_close(ideal(network, x), ann(x), rtol=1e-8, atol=1e-8)
        assert network(x).shape == (2, 2, 6)


def test_a_layer_by_hand() -> None:
    """Two linear layers: theta is the largest activation; spikes * theta through the second are logits."""
    ann = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(5, 3, 1, 1)
    network = convert(ann, x, 400, percentile="max")
    for p in ann.parameters():
        p.requires_grad_(False)
    hidden = torch.relu(x.flatten(1) @ ann[1].weight.T + ann[1].bias)
    theta = float(hidden.max())
    torch.testing.assert_close(network.get_submodule("model.1").weight, ann[1].weight / theta)
    torch.testing.assert_close(network.get_submodule("model.3").weight, ann[3].weight * theta)
    torch.testing.assert_close(network.get_submodule("model.3").bias, ann[3].bias)
    out = network.predict(x)
    # closed form of soft reset from half a threshold
    spikes = torch.floor(hidden / theta * 400 + 0.5).clamp(max=400)
    expected = spikes / 400 * theta @ ann[3].weight.T + ann[3].bias
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert (out - ann(x)).abs().max() < 0.5 * theta / 400 * ann[3].weight.abs().sum(1).max() + 1e-9


def test_a_norm_without_weights_reads_spikes() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    nn.init.uniform_(norm.running_mean, -0.3, 0.3)
    norm.running_var.copy_(torch.tensor([0.0, 0.2, 1.0, 1.5]))  # the first: a channel that never fired
    ann = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    ).eval()  # fmt: skip
    ann[0].weight.data.mul_(30)
    x = torch.rand(4, 3, 8, 8)
    network = convert(ann, x, 4, percentile="max")
    assert max(network.config["conversion"]["thetas"].values()) > 3  # spikes have a worth
    assert {f"model.{key}" for key in ann.state_dict()} <= network.state_dict().keys()
    assert "model.2.weight" not in network.state_dict()
    with torch.no_grad():
        torch.testing.assert_close(ideal(network, x), ann(x), rtol=1e-9, atol=1e-9)


def test_ranges_are_percentiles_of_the_anns_activations() -> None:
    ann = randomise(create("resnet20", time_steps=None, width=0.5))
    batches = [torch.rand(3, 3, 16, 16) for _ in range(2)]
    network = create("resnet20", time_steps=4, width=0.5, neuron=IF())
    network.load_state_dict(ann.state_dict())
    seen: dict[str, list[np.ndarray]] = {}
    for path in ("bn1", "layer2.1.bn2"):
        ann.get_submodule(path).register_forward_hook(
            lambda m, args, out, path=path: seen.setdefault(path, []).append(out.detach().numpy())
        )
    with torch.no_grad():
        for x in batches:
            ann(x)
    ranges = measure(network, ann, batches, 98.0)
    for path, values in seen.items():
        assert ranges[path] == pytest.approx(np.mean([np.percentile(v, 98.0) for v in values]), rel=1e-5)
    largest = measure(network, ann, batches, "max")
    assert largest["bn1"] == pytest.approx(max(v.max() for v in seen["bn1"]))


def test_qcfs_is_its_equation_and_its_gradient() -> None:
    x = torch.linspace(-3, 12, 301, requires_grad=True)
    act = QCFS(levels=4, init_threshold=7.3)
    y = act(x)
    theta, v = 7.3, x.detach().numpy()
    expected = theta * np.clip(np.floor(v * 4 / theta + 0.5) / 4, 0, 1)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12)
    y.sum().backward()
    q = np.clip(np.floor(v * 4 / theta + 0.5) / 4, 0, 1)
    inside = (v >= 0) & (v <= theta)
    np.testing.assert_allclose(x.grad.numpy(), inside, rtol=1e-12)
    assert float(act.threshold.grad) == pytest.approx(np.where(inside, q - v / theta, v > theta).sum())


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_if_from_half_its_threshold_fires_qcfs(levels: int) -> None:
    x = torch.rand(200) * 9 - 2
    neuron = IF(threshold=5.0, reset="soft", initial=2.5, time_steps=levels)
    rate = neuron(x.repeat(levels)).view(levels, -1).sum(0)
    torch.testing.assert_close(rate * 5.0 / levels, qcfs(x, 5.0, levels))


def test_signed_neuron_against_a_loop() -> None:
    """Membrane and soft reset by hand: what it fires is what is due, and not more than it may take back."""
    current = torch.randn(6, 50)
    neuron = SignedIF(levels=4, threshold=1.5, time_steps=6)
    spikes = neuron(current.flatten()).view(6, 50).numpy()
    v, fired = np.zeros(50), np.zeros(50)
    for t in range(6):
        v += current[t].numpy()
        n = np.floor((v + 1.5 / 8) / (1.5 / 4))
        n = np.minimum(np.maximum(n, -fired), 4 * (t + 1) - fired)
        np.testing.assert_array_equal(spikes[t], n)
        v -= n * (1.5 / 4)
        fired += n
    assert spikes.min() < 0
    assert spikes.max() > 1


def test_signed_neuron_passes_gradients_where_no_bound_is_passed() -> None:
    neuron, v = SignedIF(levels=4), torch.linspace(-1, 3, 161, requires_grad=True)
    due = neuron.due(v, 2)
    (grad,) = torch.autograd.grad(due.sum(), v)
    level = (v.detach() * 4 + 0.5).floor()
    assert torch.equal(due, level.clamp(0, 8))
    # Of a spike for each quarter of the threshold; on the bounds too, where no spike is held back.
    assert torch.equal(grad, 4.0 * ((level >= 0) & (level <= 8)))


def qcfs_ann(name: str, levels: int) -> Network:
    ann = create(
        name, time_steps=None, width=0.5, neuron={"type": "qcfs", "levels": levels}, mean=0.4, std=0.3
    )
    randomise(ann)
    for m in ann.modules():
        if isinstance(m, QCFS):
            nn.init.uniform_(m.threshold, 1.0, 3.0)
    return ann


@pytest.mark.parametrize("name", ["conv6", "resnet20", "resnet18"])
def test_signed_at_one_step_is_the_quantized_ann(name: str) -> None:
    ann, x = qcfs_ann(name, 4), torch.rand(4, 3, 32, 32)
    network = convert(ann, x, 1, method="signed")
    with torch.no_grad():
        out, captured = taps.captures(network, x, [f"{p}@spikes" for p in layers(network)])
        _, expected = taps.captures(ann, x, list(layers(network)))
        assert out.shape == (1, 4, 10)
        torch.testing.assert_close(out[0], ann(x), rtol=1e-9, atol=1e-9)
    for path in layers(network):
        theta = float(ann.get_submodule(f"{path}.neuron").threshold.detach())
        spikes = captured[f"{path}@spikes"]
        assert torch.equal(spikes, (expected[path] * 4 / theta).round()), path
        assert torch.equal(spikes, spikes.round())
    assert captured["bn1@spikes" if name != "conv6" else f"{next(iter(layers(network)))}@spikes"].max() > 1


def test_signed_converges_to_the_ann_and_streams() -> None:
    ann, x = randomise(create("resnet20", time_steps=None, width=0.5)), torch.rand(4, 3, 16, 16)
    network = convert(ann, x, 64, method="signed", levels=8, percentile="max")
    with torch.no_grad():
        errors = []
        for T in (1, 8, 64):
            network.time_steps = T
            errors.append(float((network.predict(x) - ann(x)).abs().max()))
        assert errors[2] < errors[0] / 8
        network.time_steps = 3
        state, steps = None, []
        for _ in range(3):
            out, state = network.step(x, state)
            steps.append(out)
        torch.testing.assert_close(torch.stack(steps), network(x))


def test_qcfs_network_trains_and_converts() -> None:
    ann = qcfs_ann("vgg5", 4).train()
    x = torch.rand(4, 3, 8, 8)
    ann(x).square().sum().backward()
    learned = [p for n, p in ann.named_parameters() if n.endswith("neuron.threshold")]
    assert len(learned) == 3
    assert all(p.grad is not None and p.grad.abs() > 0 for p in learned)
    thresholds = [p.item() for p in learned]
    network = convert(ann.eval(), x, 8, method="qcfs")
    assert list(network.config["conversion"]["thetas"].values()) == pytest.approx(thresholds)
    first = next(iter(layers(network)))
    network.time_steps = 4
    with torch.no_grad():
        _, captured = taps.captures(network, x, [f"{first}@spikes"])
        _, expected = taps.captures(ann, x, [first])
    # the first layer's current is constant: at T = L its mean is the activation itself
    torch.testing.assert_close(captured[f"{first}@spikes"].mean(0) * thresholds[0], expected[first][0])


def test_accuracy_over_time_is_that_of_the_first_steps() -> None:
    ann = randomise(create("resnet20", time_steps=None, width=0.5))
    x = torch.rand(40, 3, 8, 8)
    network = convert(ann, x, 16)
    with torch.no_grad():
        network.time_steps = 11
        labels = network.predict(x).argmax(1)
        curve = accuracy_over_time(
            network.train(), [(x[:25], labels[:25]), (x[25:], labels[25:])], [1, 5, 11]
        )
        assert network.training
        for T in (1, 5, 11):
            network.time_steps = T
            assert curve[T] == pytest.approx(
                float((network.eval().predict(x).argmax(1) == labels).double().mean())
            )
    assert curve[11] == 1
    assert list(curve) == [1, 5, 11]


def test_time_steps_to_match() -> None:
    curve = {1: 0.1, 2: 0.6, 4: 0.5, 8: 0.9}
    assert time_steps_to_match(curve, 0.55) == 2
    assert time_steps_to_match(curve, 0.9) == 8
    assert time_steps_to_match(curve, 0.91) is None


@pytest.mark.parametrize(
    "name, neuron",
    [
        ("conv6", LIF(tau=2.0)),
        ("vgg9", LIF(decay=0.25, threshold=0.5)),
        ("resnet20", LIF()),
        ("ms_resnet20", None),
    ],
)
def test_balanced_students_keep_thresholds_and_see_the_anns_ranges(name: str, neuron: LIF | None) -> None:
    ann = randomise(create(name, time_steps=None, width=0.25, mean=0.4, std=0.3))
    student = create(name, time_steps=4, width=0.25, mean=0.4, std=0.3, neuron=neuron).double()
    before = {p: n.threshold for p, n in layers(student).items()}
    x = torch.rand(4, 3, 32, 32)
    thetas = balance_thresholds(student, ann, [x], 99.0)
    assert student.training
    assert {p: n.threshold for p, n in layers(student).items()} == before
    with torch.no_grad():
        torch.testing.assert_close(ideal(student, x), ann(x), rtol=1e-9, atol=1e-9)
    if name != "ms_resnet20":
        # the current at the first layer: theta is a threshold
        first = next(iter(before))
        _, captured = taps.captures(student.eval(), x, [f"{first}@current"])
        _, expected = taps.captures(ann, x, [first])
        torch.testing.assert_close(
            captured[f"{first}@current"][0].relu() / before[first], expected[first][0] / thetas[first]
        )
    # all of it is in the weights: a network made anew is the same after loading them
    again = create(name, time_steps=4, width=0.25, neuron=neuron).double().eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(x), student.eval()(x))


def test_a_converted_network_is_restored_from_config_and_weights() -> None:
    ann, x = randomise(create("resnet20", time_steps=None, width=0.5)), torch.rand(4, 3, 16, 16)
    network = convert(ann, x, 8)
    config = network.config
    again = create(config["name"], **config["options"]).double().eval()
    again.load_state_dict(network.state_dict())
    assert not torch.equal(again(x), network(x))
    assert torch.equal(restore(again, config)(x), network(x))
    assert again.config["conversion"] == config["conversion"]  # it may be saved again


def test_a_converted_network_of_timm_survives_saving(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from spikedistill.networks.outside.library import from_name
    from spikedistill.training.store import load_network, save_network

    torch.set_default_dtype(torch.float32)
    ann, x = from_name("timm:resnet10t", num_classes=3).eval(), torch.rand(2, 3, 32, 32)
    network = convert(ann, x, 3, method="signed")
    save_network(tmp_path / "net", network, {}, "card")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "net")(x), network(x))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.fc((x * x).mean((2, 3)))


def test_wrong_use_is_refused() -> None:
    ann, x = create("vgg5", time_steps=None, width=0.1).double(), torch.rand(2, 3, 8, 8)
    learned = create("vgg5", time_steps=None, width=0.1, neuron={"type": "qcfs"}).double()
    for words, call in {
        "did you mean 'signed'": lambda: convert(ann, x, method="singed"),
        "trained with QCFS": lambda: convert(ann, x, method="qcfs"),
        "learned thresholds": lambda: convert(learned, x),
        "at least one batch": lambda: convert(ann, []),
        "percentile": lambda: convert(ann, x, percentile=101.0),
        "initial": lambda: convert(ann, x, initial=1.0),
        "time steps already": lambda: convert(create("vgg5", width=0.1).double(), x),
        "conversion does not know.*mul.*test_conversion.py": lambda: convert(Product(), x),
        "logits are spikes of model.2": lambda: convert(
            nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten()), x
        ),
        "one architecture": lambda: balance_thresholds(create("vgg9", width=0.1).double(), ann, [x]),
        "is an activation of ANNs": lambda: create("vgg5", neuron=QCFS()),
    }.items():
        with pytest.raises(SpikedistillError, match=f"(?s){words}"):
            call()


def test_the_ann_and_a_turned_network_are_left_alone() -> None:
    ann, x = randomise(create("conv6", time_steps=None, width=0.25)), torch.rand(2, 3, 16, 16)
    weights = copy.deepcopy(ann.state_dict())
    convert(ann, x, 2)
    assert all(torch.equal(weights[k], v) for k, v in ann.state_dict().items())
    assert isinstance(
        spiking(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()), 2, example=x), Network
    )


@pytest.mark.data
@pytest.mark.parametrize(
    "method, T, images, least",
    [
        ("signed", 2, 100, 0.88),
        pytest.param("threshold_balancing", 64, 100, 0.88, marks=pytest.mark.slow),
    ],
)
def test_the_published_resnet20_converts(
    cifar10_test: tuple[Tensor, Tensor], shared_data: Path, method: str, T: int, images: int, least: float
) -> None:
    torch.set_default_dtype(torch.float32)
    ann = create("resnet20", time_steps=None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    load_weights(ann, shared_data / "teacher_cifar10_resnet20.npz").eval()
    x, y = cifar10_test
    network = convert(ann, x[-200:].split(100), T, method=method)
    assert accuracy_over_time(network, [(x[:images], y[:images])], [T])[T] >= least


def test_measuring_leaves_frozen_layers_frozen():
    snn = create("vgg5", in_channels=1, width=0.125, time_steps=2).train()
    snn.stage1[1].eval()
    flags = {name: m.training for name, m in snn.named_modules()}
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    accuracy_over_time(snn, [(x, y)], [1, 2])
    assert {name: m.training for name, m in snn.named_modules()} == flags
    balance_thresholds(snn, create("vgg5", in_channels=1, width=0.125, time_steps=None).eval(), x)
    assert {name: m.training for name, m in snn.named_modules()} == flags


def test_the_ann_and_its_calibration_may_be_of_another_type_than_new_networks():
    torch.set_default_dtype(torch.float32)
    ann = create("vgg5", in_channels=1, width=0.125, time_steps=None).double().eval()
    x = torch.rand(4, 1, 8, 8)
    assert convert(ann, x, 4)(x.double()).dtype == torch.float64


def test_a_pair_that_is_no_list_of_pairs_is_refused():
    ann = create("vgg5", in_channels=1, width=0.125, time_steps=None).eval()
    with pytest.raises(SpikedistillError, match=r"batches of \(4, 1, 8, 8\) and \(4,\); give a batch"):
        convert(ann, (torch.rand(4, 1, 8, 8), torch.arange(4)), 4)
