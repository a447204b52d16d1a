"""All named networks: sizes, shapes, twins, equality with known references."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import KINDS, NAMES, example, make
from torch import Tensor, nn
from torch.nn import functional as F

from spikedistill import networks
from spikedistill.errors import SpikedistillError
from spikedistill.networks import Network
from spikedistill.neurons import IF, PLIF, Neuron, NormNeuron, compilation
from spikedistill.taps import resolve

PARAMETERS = {  # millions; where the number comes from
    ("resnet19", 10): 12.7,  # Zheng et al., AAAI 2021 and its followers
    ("resnet20", 10): 0.27,  # He et al., CVPR 2016
    ("resnet56", 10): 0.85,
    ("resnet18", 1000): 11.69,  # torchvision
    ("resnet34", 1000): 21.80,
    ("resnet50", 1000): 25.56,
    ("spikingformer_4_256", 10): 4.15,  # Zhou et al. 2023; heads of CIFAR-10
    ("spikingformer_2_384", 10): 5.76,
    ("spikingformer_4_384", 10): 9.32,
    ("spikingformer_8_384", 1000): 16.81,
    ("spikingformer_8_512", 1000): 29.68,
    ("spikingformer_8_768", 1000): 66.34,
    ("spike_driven_8_384", 1000): 16.81,  # Yao et al., NeurIPS 2023
    ("spike_driven_8_512", 1000): 29.68,
    ("spike_driven_8_768", 1000): 66.34,
    ("qkformer_10_384", 1000): 16.47,  # Zhou et al., NeurIPS 2024
    ("qkformer_10_512", 1000): 29.08,
    ("qkformer_10_768", 1000): 64.96,
    ("qkformer_4_384", 100): 6.74,
    ("spikformer_4_384", 10): 9.32,
    ("spikformer_2_256", 10): 2.57,
}


def two_updates(network, x, y):
    """The losses before each of two updates; the second update's gradients stay."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(network.predict(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    return losses


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_parameters_are_the_papers(name: str, classes: int) -> None:
    with torch.device("meta"):
        network = networks.create(name, num_classes=classes, time_steps=None)
    printed = PARAMETERS[name, classes]
    digits = 1 if printed == 12.7 else 2
    # Papers round or cut the last digit.
    assert abs(count(network) / 1e6 - printed) < 10.0**-digits


def test_parameters_of_hdkd_and_gesture() -> None:
    teacher = count(networks.create("hdkd_teacher"))
    student = count(networks.create("hdkd_student", num_classes=7, time_steps=None))
    assert (round(teacher / 1e6, 2), round(student / 1e6, 2)) == (3.95, 3.73)
    assert count(networks.create("dvs_gesture_cnn")) == 25_504


def test_parameters_of_the_wide_event_network() -> None:
    def block(c: int) -> int:
        return 2 * (9 * c * c + 2 * c)

    expected = (2 * 64 + 128) + 4 * block(64) + (64 * 128 + 256) + 3 * block(128) + 128 * 10 + 10
    neurons = 2 + 7 * 2  # PLIF: one w a layer
    assert count(networks.create("sew_7b_wide")) == expected + neurons


def test_parameters_of_the_audio_network() -> None:
    c = 64
    expected = 10 * c * 7 + 2 * c + 3 * 2 * (3 * c * c + 2 * c) + 35 * c + 35
    assert count(networks.create("sresnet8", features=10)) == expected
    assert count(networks.create("sresnet8", in_channels=10)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_network_and_twin(name: str) -> None:
    x = example(name)
    snn, ann = make(name, time_steps=4), make(name, time_steps=None)
    assert snn(x).shape == (4, 2, 5)
    assert snn.predict(x).shape == (2, 5)
    assert ann(x).shape == (2, 5)
    assert ann.predict(x).shape == (2, 5)
    modules = dict(snn.named_modules())
    assert snn.stage_paths()
    assert set(snn.stage_paths()) | {snn.head_path} <= set(modules)
    assert snn.stage_paths() == ann.stage_paths()
    assert not any(isinstance(m, Neuron) for m in ann.modules())
    assert not any(isinstance(m, nn.ReLU | nn.GELU) for m in snn.modules())


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("hdkd")])
def test_twin_has_the_same_parameters(name: str) -> None:
    snn = {k: v.shape for k, v in make(name).state_dict().items() if not k.endswith("neuron.w")}
    ann = {k: v.shape for k, v in make(name, time_steps=None).state_dict().items()}
    assert snn == ann


@pytest.mark.parametrize(("name", "time_steps"), [*((n, 2) for n in NAMES), *((n, None) for n in KINDS)])
def test_two_steps_of_training(name: str, time_steps: int | None) -> None:
    torch.manual_seed(1)
    network = make(
        name, time_steps=time_steps, neuron={"type": "if", "threshold": 0.3} if time_steps else None
    )
    x, y = example(name, 4), torch.tensor([0, 1, 2, 3])
    if network.spiking and network.balanced_by == "data":
        networks.balance(network, x)
    losses = two_updates(network, x, y)
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert sum(bool((g != 0).any()) for g in gradients if g is not None) > 0.95 * len(gradients)
    assert losses[0] != losses[1]


class PlainVGG(nn.Module):
    """The ANN that vgg5 should be, written with torch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c, pool in ((3, 8, True), (8, 16, False), (16, 16, True)):
            layers += [nn.Conv2d(c_in, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pool else []
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).mean((2, 3)))


def test_twin_is_a_batch_norm_network_in_training_and_eval() -> None:
    twin, plain = make("vgg5", time_steps=None), PlainVGG()
    plain.load_state_dict(dict(zip(plain.state_dict(), list(twin.state_dict().values())[2:], strict=True)))
    for _ in range(2):
        x = torch.rand(4, 3, 8, 8)
        torch.testing.assert_close(twin(x), plain(x), rtol=1e-5, atol=1e-6)
    twin.eval(), plain.eval()
    torch.testing.assert_close(twin(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_twin_equals_torchvision(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    ours = networks.create(name, num_classes=7, time_steps=None).eval()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == ["mean", "std"]
    assert not missing.unexpected_keys
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_logic_on_spikes_has_no_twin() -> None:
    for connect in ("and", "IAND"):
        assert networks.create("sew_resnet20", connect=connect, width=0.25)(torch.rand(1, 3, 8, 8)).shape == (
            4,
            1,
            10,
        )
        with pytest.raises(SpikedistillError, match="no ANN twin"):
            networks.create("sew_resnet20", connect=connect, time_steps=None)
    for name in ("sew_resnet20", "sew_7b_wide"):
        with pytest.raises(SpikedistillError, match="add, and, iand"):
            networks.create(name, connect="xor")


@pytest.mark.parametrize("name", ["vgg5", "resnet20", "ms_resnet20", "spikingformer_4_256", "sresnet8"])
def test_spiking_head_gives_spikes(name: str) -> None:
    network = make(name, head="spiking", neuron={"type": "if", "threshold": 0.1})
    if network.balanced_by == "data":
        networks.balance(network, example(name))
    out = network(example(name))
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    assert out.sum() > 0


@pytest.mark.parametrize("name", ["conv6", "resnet20", "spikformer_4_256", "hdkd_student"])
@pytest.mark.parametrize("channels", [1, 6])
def test_any_number_of_input_channels(name: str, channels: int) -> None:
    network = make(name, in_channels=channels, mean=[0.5] * channels, std=0.25)
    assert network(torch.rand(1, channels, 16, 16)).shape == (4, 1, 5)


def test_width_scales_the_channels() -> None:
    wide, narrow = networks.create("vgg9"), networks.create("vgg9", width=0.25)
    pairs = [
        (a.out_channels, b.out_channels)
        for a, b in zip(wide.modules(), narrow.modules())
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d)
    ]
    assert len(pairs) == 7
    assert all(a == 4 * b for a, b in pairs)


def test_svgg11_is_the_official_configuration() -> None:
    network = networks.create("svgg11")
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert [m.stride[0] for m in convs] == [2, 2, 1, 2, 1, 2, 1, 2]
    assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)] == [512, 512, 10]
    neurons = [m for m in network.modules() if isinstance(m, Neuron)]
    assert len(neurons) == 10
    assert {(n.decay, n.threshold, n.reset) for n in neurons} == {(0.5, 1.0, "soft")}


def test_neurons_are_copied_per_site() -> None:
    network = networks.create("vgg5", neuron=PLIF(init_tau=3.0), time_steps=2)
    neurons = [m for m in network.modules() if isinstance(m, PLIF)]
    assert len(neurons) == 3
    assert len({id(n.w) for n in neurons}) == 3
    assert all(n.init_tau == 3.0 and n.time_steps == 2 for n in neurons)


def test_ms_neuron_is_the_papers() -> None:
    neurons = [m for m in networks.create("ms_resnet20").modules() if isinstance(m, Neuron)]
    assert {(n.decay, n.gain, n.threshold, n.surrogate.name) for n in neurons} == {
        (0.25, 1.0, 0.5, "rectangle")
    }


def test_norms_start_at_the_threshold() -> None:
    network = networks.create("resnet20", neuron=IF(threshold=0.5), initialisation="plain")
    norms = [m for m in network.modules() if isinstance(m, NormNeuron)]
    assert len(norms) == 19
    assert all(bool((m.weight == 0.5).all()) for m in norms)


@pytest.mark.parametrize(
    ("name", "path"), [("resnet19", "fc1_neuron"), ("svgg11", "hidden.3"), ("svgg11", "hidden.1")]
)
def test_hidden_linear_layers_fire_at_first(name: str, path: str) -> None:
    network = networks.create(name, width=0.5, time_steps=8)
    rates = []
    network.get_submodule(path).register_forward_hook(lambda m, a, out: rates.append(float(out.mean())))
    with torch.no_grad():
        network(torch.rand(8, 3, 32, 32))
    assert 0.0005 < rates[0] < 0.5


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_stays_finite(name: str) -> None:
    network = make(name, time_steps=2)
    # At 16 pixels the last strided convolution of some meets a map smaller than its stride, where oneDNN's
    # bfloat16 weight gradients are whatever the memory held.
    x = example(name, size=32)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x)
    out.float().square().sum().backward()
    assert torch.isfinite(out).all()
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "resnet91"}, "resnet19"),
        ({"name": "vgg9", "poling": "max"}, "pooling"),
        ({"name": "vgg9", "pooling": "sum"}, "'avg'"),
        ({"name": "resnet18", "stem": "tiny"}, "imagenet"),
        ({"name": "resnet50", "shortcut": "pad"}, "bottlenecks"),
        ({"name": "resnet18", "head": "conv"}, "spiking"),
        ({"name": "vgg9", "encoding": "rate"}, "poisson|latency|direct"),
        ({"name": "vgg9", "encoding": "poisson", "mean": 0.5}, "leave mean 0"),
        ({"name": "vgg9", "encoding": "poisson", "input": "frames"}, "already"),
        ({"name": "vgg9", "input": "video"}, "frames"),
        ({"name": "vgg9", "time_steps": 0}, "from 1"),
        ({"name": "vgg9", "std": 0.0}, "more than 0"),
        ({"name": "vgg9", "mean": [0.1, 0.2]}, "3 input channels"),
        ({"name": "spikformer_4_384", "downsampling": "avg"}, "original"),
        ({"name": "spikformer_4_384", "pools": 5}, "0 to 4"),
        ({"name": "sresnet8", "dims": 3}, "1 or 2"),
        ({"name": "sresnet8", "dims": 2, "features": 10}, "dims=1"),
        ({"name": "dvs_gesture_cnn", "image_size": 4}, "at least 9"),
    ],
)
def test_wrong_options_are_refused_in_words(given: dict, words: str) -> None:
    name = given.pop("name")
    with pytest.raises(SpikedistillError, match=words):
        networks.create(name, **given)


def test_frames_too_small_are_refused_in_words() -> None:
    with pytest.raises(SpikedistillError, match="pools to at most 5"):
        networks.create("sew_7b_wide")(torch.zeros(1, 4, 2, 48, 48))
    with pytest.raises(SpikedistillError, match="image_size"):
        networks.create("dvs_gesture_cnn")(torch.zeros(1, 4, 2, 48, 48))


@pytest.mark.parametrize(
    ("name", "before_head", "pooled", "last_stage"),
    [
        ("vgg9", "stage3.7", "pool", "stage3"),
        ("resnet19", "layer3.1.bn2", "avgpool", "layer3"),
        ("ms_resnet20", "neuron", "avgpool", "layer3"),
        ("spikingformer_4_256", "blocks.0", "pool", "blocks.0"),
        ("hdkd_student", "transformer", "head", "stage3"),
        ("hdkd_teacher", "norm", "pool", "stage3"),
        ("sresnet8", "layer1", "pool", "layer1"),
        ("sew_7b_wide", "stage7.block.join", "pool", "stage7"),
    ],
)
def test_taps_by_alias(name: str, before_head: str, pooled: str, last_stage: str) -> None:
    network, x = make(name), example(name)
    assert [t.path for t in resolve(network, "before_head", x)] == [before_head]
    assert [t.path for t in resolve(network, "pooled", x)] == [pooled]
    assert [t.path for t in resolve(network, f"stage{len(network.stage_paths())}", x)] == [last_stage]


@pytest.mark.parametrize("name", KINDS)
def test_fused_arithmetic_trains_alike(name: str) -> None:
    """Losses of two steps: plain equations under autograd, and the fused arithmetic with its own backward."""
    assert losses_of_two_steps(name, "uncompiled") == pytest.approx(
        losses_of_two_steps(name, "eager"), rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_trains_alike(name: str) -> None:
    assert losses_of_two_steps(name, "compiled") == pytest.approx(
        losses_of_two_steps(name, "eager"), rel=1e-6
    )
    assert compilation.failure() is None


def losses_of_two_steps(name: str, mode: compilation.Mode) -> list[float]:
    torch.manual_seed(1)
    network = make(name, time_steps=2, neuron={"type": "lif", "threshold": 0.3}).double()
    x, y = example(name, 4).double(), torch.tensor([0, 1, 2, 3])
    with compilation.use(mode):
        return two_updates(network, x, y)


@pytest.mark.data
@pytest.mark.parametrize("depth", [20, 56])
def test_published_cifar_weights_fit(depth: int, shared_data: Path) -> None:
    given = np.load(shared_data / f"teacher_cifar10_resnet{depth}.npz")
    network = networks.create(f"resnet{depth}", time_steps=None)
    loaded = network.load_state_dict({k: torch.from_numpy(given[k]) for k in given.files}, strict=False)
    assert not loaded.unexpected_keys
    assert {k.rpartition(".")[2] for k in loaded.missing_keys} == {"mean", "std", "num_batches_tracked"}


def test_config_remakes_the_network() -> None:
    first = networks.create("vgg5", width=0.125, neuron=IF(threshold=0.5), time_steps=3, mean=(0.1, 0.2, 0.3))
    again = networks.create(first.config["name"], **first.config["options"])
    assert isinstance(again, Network)
    again.load_state_dict(first.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(first.eval()(x), again.eval()(x))


@pytest.mark.parametrize("option, value, words", [
    ("width", 0, "a finite number above 0"), ("width", -1.0, "a finite number above 0"),
    ("width", math.nan, "a finite number above 0"), ("width", "wide", "a finite number above 0"),
    ("num_classes", 0, "a whole number from 1"), ("in_channels", 2.5, "a whole number from 1"),
    ("pools", -1, "a whole number from 0"), ("hidden", [8, -3], "a whole number from 0"),
    ("dropout", math.nan, "a number from 0 to 1"), ("mean", [math.nan] * 3, "finite"),
])  # fmt: skip
def test_options_out_of_range_are_refused_by_name(option: str, value: object, words: str) -> None:
    with pytest.raises(SpikedistillError, match=f"{option} must be {words}, found "):
        networks.create("vgg5", **{"width": 0.0625, option: value})


@pytest.mark.parametrize("options", [{}, {"encoding": "poisson"}, {"time_steps": None}], ids=str)
def test_images_of_bytes_are_levels(options):
    network = networks.create(
        "vgg5", width=0.125, mean=0.4 if "encoding" not in options else None, **options
    ).eval()
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    outputs = []
    for given in (x, x / 255):
        torch.manual_seed(0)
        outputs.append(network.predict(given))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("name", "pools"), [("vgg5", 3), ("conv6", 1), ("vgg9", 6)])
def test_more_pools_than_a_network_has_are_refused(name, pools):
    with pytest.raises(SpikedistillError, match=rf"pools must be at most \d, .*found {pools}"):
        networks.create(name, width=0.125, pools=pools)
