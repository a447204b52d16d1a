"""Own code that adds, joins, pools and multiplies: turned ResNets and DenseNets, transformers, sresnet8."""

import dataclasses

import pytest
import torch
from lively import assert_equal, awake, check, events, images
from torch import Tensor, nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.neurons import NormNeuron, SignedIF
from spikedistill.neurons.compilation import eager
from spikedistill.quantization import IntegerNetwork, quantize, to_integer


@pytest.fixture(autouse=True)
def _uncompiled():
    with eager():
        yield


def conv(c_in: int, c: int, k: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c, k, stride, k // 2, bias=False)


class Residual(nn.Module):
    """ResNet's form: spikes are added to what a norm gives, in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.pool = conv(3, 8), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.conv1, self.norm1, self.conv2, self.norm2 = (
            conv(8, 8),
            nn.BatchNorm2d(8),
            conv(8, 8),
            nn.BatchNorm2d(8),
        )
        self.conv3, self.norm3 = conv(8, 8, stride=2), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.AvgPool2d(2), conv(8, 8, 1), nn.BatchNorm2d(8))
        self.relu, self.fc = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        x = F.relu(y)
        x = F.relu(self.norm3(self.conv3(x)) + self.down(x))
        return self.fc(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet's form: spikes and bare convolutions joined, read by norms; a transition with average pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = conv(3, 8), nn.BatchNorm2d(8)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), conv(8, 4)
        self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)
        self.pool, self.norm3, self.conv3 = nn.AvgPool2d(2), nn.BatchNorm2d(8), conv(8, 4)
        self.norm4, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = self.pool(self.conv2(F.relu(self.norm2(x))))
        x = torch.cat([x, self.conv3(F.relu(self.norm3(x)))], 1)
        x = F.adaptive_avg_pool2d(F.relu(self.norm4(x)), (1, 1))
        return self.fc(torch.flatten(x, 1))


class Shuffle(nn.Module):
    """Split, branch, join, transpose; pools and a mean over nine places as functions; two heads, averaged."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.conv, self.norm1 = (
            conv(3, 8),
            nn.BatchNorm2d(8),
            conv(4, 4),
            nn.BatchNorm2d(4),
        )
        self.mix, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head, self.other = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, F.relu(self.norm1(self.conv(b)))), dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(self.norm2(self.mix(F.avg_pool2d(x, 3, 1, 1))))
        x = F.adaptive_avg_pool2d(x, 3) if h == 9 else x
        return (self.head(x.mean([2, 3])) + self.other(x[..., 0, -1])) / 2


def turned(model: nn.Module, x: Tensor, **options: object) -> sd.networks.Network:
    torch.manual_seed(0)
    return awake(sd.spiking(model, time_steps=3, example=x, **options), x)


@pytest.mark.parametrize(
    "neuron", [None, {"type": "lif", "tau": 1.7, "threshold": 0.6, "reset": "soft"}], ids=str
)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", [Residual, Dense, Shuffle])
def test_turned_networks(form, bits, neuron):
    x = images(6, size=18 if form is Shuffle else 16)
    network = turned(form(), x, neuron=neuron, mean=0.45, std=0.22)
    assert_equal(quantize(network, bits, bits, max(bits, 4), calibration=x), x, 0.8)


def finely_quantized(model, x):
    """Captures of a turned network at many bits, and of itself."""
    network = awake(sd.spiking(model, time_steps=3, example=x[:, 0], input="frames"), x)
    q = quantize(
        network, None, None, None, leak_bits=None, first_last_bits=None, fraction_bits=16, residual_bits=24,
        calibration=x,
    ).eval()  # fmt: skip
    with torch.no_grad():
        (_, mine), (_, theirs) = (taps.captures(n, x, ["*@spikes"]) for n in (q, network))
    return mine, theirs


@pytest.mark.parametrize("form", [Residual, Dense, Shuffle])
def test_with_many_bits_the_spikes_are_those_of_the_float_network(form):
    x = torch.poisson(torch.ones(4, 3, 3, 16, 16))
    torch.manual_seed(0)
    mine, theirs = finely_quantized(form(), x)
    for path, spikes in theirs.tensors.items():
        assert spikes.any()
        assert (mine.tensors[path] != spikes).float().mean() < 2e-3, path


def test_turned_networks_train_and_come_back_from_a_file(tmp_path):
    x, y = images(6, size=16), torch.randint(0, 5, (6,))
    q = quantize(turned(Residual(), x), calibration=x, weight_range="learned")
    optimizer = torch.optim.SGD(q.parameters(), 0.05)
    q.train()
    for _ in range(2):
        F.cross_entropy(q.predict(x), y).backward()
        optimizer.step()
    q.requantize()
    integer = assert_equal(q, x, 0.8)
    integer.save(tmp_path / "network")
    assert torch.equal(IntegerNetwork.load(tmp_path / "network")(x), integer(x))


@pytest.mark.parametrize("options", [{"scheme": "mint"}, {"unit": "weights"}])
def test_folded_schemes_refuse_what_spikes_join(options):
    with pytest.raises(SpikedistillError, match=r"refuses model\.norm2: it writes to a residual stream"):
        quantize(turned(Residual(), images(4, size=16)), calibration=images(4, size=16), **options)


def test_a_stream_that_spikes_join_counts_in_spikes():
    x = images(4, size=16)
    q = quantize(turned(Residual(), x), calibration=x).eval()
    norm = q.model.norm2
    seen = []
    norm.register_forward_hook(lambda _, __, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        q(x)
    codes = seen[0] / norm.output_step
    assert torch.equal(codes, codes.round())
    assert 0 < float(norm.output_step) < 1
    assert float(torch.log2(norm.output_step)) % 1 == 0


@pytest.mark.parametrize("library", ["torchvision", pytest.param("timm", marks=pytest.mark.slow)])
def test_resnet18(library):
    x = images(2, size=32)
    models = pytest.importorskip(library)
    model = (
        models.create_model("resnet18", num_classes=5)
        if library == "timm"
        else models.models.resnet18(num_classes=5)
    )
    torch.manual_seed(0)
    assert_equal(quantize(turned(model, x), calibration=x), x, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11_bn", "alexnet", "densenet121", "resnet50", "googlenet", "shufflenet_v2_x0_5",
    "mnasnet0_5", "resnext50_32x4d"]
)  # fmt: skip
def test_torchvision(name):
    x = images(2, size=64)
    own = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(pytest.importorskip("torchvision").models, name)(num_classes=5, **own)
    if name in ("vgg11_bn", "alexnet"):
        model.avgpool = nn.Identity()
        model.classifier[1 if name == "alexnet" else 0] = nn.Linear(256 if name == "alexnet" else 2048, 4096)
    if name == "alexnet":  # without norms its own initial weights leave most layers silent
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=-0.5)
                layer.weight.data.mul_(2)
    assert_equal(quantize(turned(model, x), 8, 8, calibration=x), x, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["densenet121", "resnetv2_50", "regnetx_002", "dla34", "resnet18d", "vovnet39a"]
)
def test_timm(name):
    x = images(2, size=64)
    model = pytest.importorskip("timm").create_model(name, num_classes=5)
    assert_equal(quantize(turned(model, x), 8, 8, calibration=x), x, 0.5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["spikformer_2_384", "spikingformer_2_384"])
def test_transformers(name, bits):
    x = images(4, size=16)
    check(name, x, {"width": 0.25, "time_steps": 2}, 0.6, weight_bits=bits, membrane_bits=bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("name", "options"),
    [("spike_driven_2_256", {}), ("spike_driven_2_512", {"pools": 0, "depth": 1}), ("qkformer_4_384", {}),
     ("qkformer_4_384", {"attention": "channel", "depth": 3})],
)  # fmt: skip
def test_attention_by_masks(name, options, bits):
    """Spike sums before a neuron; Spike-driven Transformer: a neuron behind global pools (49 places too)."""
    x = images(4, size=14 if "pools" in options else 16)
    check(name, x, {"width": 0.25, "time_steps": 2, **options}, 0.6, weight_bits=bits, membrane_bits=bits)


def test_attention_by_masks_on_frames():
    check("qkformer_2_256", events(2, 4, size=32), {"width": 0.125, "time_steps": 2}, 0.6)


class PooledStream(nn.Module):
    """A norm, a pool, a neuron; ``joined``: the norm's values and spikes are added first."""

    def __init__(self, joined: bool):
        super().__init__()
        self.joined, self.stem, self.norm = joined, conv(3, 8), nn.BatchNorm2d(8)
        self.conv, self.norm1, self.pool, self.fc = (
            conv(8, 8),
            nn.BatchNorm2d(8),
            nn.AvgPool2d(2),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm1(self.conv(x))
        y = F.relu(self.pool(y + x if self.joined else y))
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("joined", [False, True])
def test_a_neuron_reads_a_pooled_stream(joined, bits):
    x = images(4, size=16)
    assert_equal(quantize(turned(PooledStream(joined), x), bits, bits, calibration=x), x, 0.8)


def test_a_pooled_stream_charges_the_neuron_as_in_floats():
    x = torch.poisson(torch.ones(4, 3, 3, 16, 16))
    torch.manual_seed(0)
    mine, theirs = finely_quantized(PooledStream(False), x)
    for path, spikes in theirs.tensors.items():
        assert 0 < spikes.mean() < 1, path
        assert (mine.tensors[path] != spikes).float().mean() < 2e-3, path


@pytest.mark.parametrize(
    "options", [{"downsampling": "original"}, {"neuron": {"type": "plif", "threshold": 0.7}}]
)
@pytest.mark.parametrize("name", ["spikformer_2_256", "spikingformer_2_256"])
def test_transformers_on_frames(name, options):
    x = events(2, 4, size=32)
    check(name, x, {"width": 0.25, "pools": 2, "depth": 1, "time_steps": 2, **options}, 0.6)


def test_attention_keeps_its_integers_under_autocast():
    x = images(2, size=32)
    q = quantize(awake(sd.networks.create("spikformer_2_384", width=0.25), x), calibration=x).eval()
    with torch.no_grad():
        plain = q(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(q(x), plain)


@pytest.mark.parametrize(
    "options", [{}, {"dims": 2}, {"pooling": "avg"}, {"features": 8, "head": "spiking"}], ids=str
)
def test_sresnet8(options):
    x = torch.rand(4, 1, 8, 16) if options else torch.rand(4, 1, 1, 16)
    network = {"width": 0.2, "num_classes": 5} | options
    for bits in (3, 8):
        check("sresnet8", x, network, 0.8, weight_bits=bits, membrane_bits=bits)
    check("sresnet8", x, network, 0.7, weight_bits=4, membrane_bits=4, scheme="mint")


def test_convolutional_teacher_as_a_spiking_network():
    x = images(4, size=32)
    check("hdkd_teacher", x, {"width": 0.1, "time_steps": 2}, 0.6)


def test_tokens_are_refused_by_path():
    x = images(2, size=32)
    network = sd.networks.create("hdkd_student", width=0.25, image_size=32)
    with pytest.raises(
        SpikedistillError, match=r"cannot quantize transformer .*: add reads something that is not an act"
    ):
        quantize(network, calibration=x)


def test_wide_logits_are_exact_on_a_grid():
    x = images(2, size=16)
    network = sd.networks.create("spikingformer_2_384", width=0.5, depth=1, pools=0, time_steps=2)
    q = quantize(awake(network, x), 8, 8, calibration=x)
    integer = assert_equal(q, x, 0.6)
    assert torch.log2(torch.tensor(to_integer(q).scale)) % 1 == 0
    assert integer.header["ops"][-1]["high"] == 2**15 - 1


class Between(nn.Module):
    """One layer or pool between two neurons."""

    def __init__(self, module: nn.Module, channels: int = 8):
        super().__init__()
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.module, self.norm2 = module, nn.BatchNorm2d(channels)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.module(F.relu(self.norm(self.stem(x))))
        if isinstance(self.module, nn.Conv2d):
            x = F.relu(self.norm2(x))
        return self.fc(self.pool(x).flatten(1))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(8, 8, 3, 1, 2, dilation=2), nn.Conv2d(8, 8, 3, 1, (1, 2), dilation=(1, 2), bias=False),
        nn.Conv2d(8, 8, 3, 2, 3, dilation=3), nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=4),
        nn.Conv2d(8, 8, (1, 5), (2, 1), (0, 4), dilation=(5, 2), groups=8), nn.Conv2d(8, 8, 1, 2, dilation=4),
        nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, (3, 2), (1, 2), (2, 1), groups=2),
        nn.MaxPool2d(3, 1, 1, dilation=2), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d((2, 3), (1, 2), (1, 1)),
        nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((2, 1), divisor_override=3), nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d((4, 2)),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_is_accepted_runs_in_integers(module):
    x = images(4)
    q = quantize(turned(Between(module), x), calibration=x)
    assert_equal(q, x, 0.5)
    assert_equal(quantize(turned(Between(module), x), calibration=x, scheme="mint"), x, 0.0)


def test_dilated_sequences_run_in_integers():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv1d(8, 8, 3, 1, 4, dilation=4, bias=False), nn.BatchNorm1d(8)
            self.stem, self.norm, self.fc = conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8 * 8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.stem(x))).mean(2)
            return self.fc(F.relu(self.norm1(self.conv1(x))).flatten(1))

    x = images(4)
    assert_equal(quantize(turned(Sequence(), x), calibration=x), x, 0.5)


class Reshaped(nn.Module):
    """Norms whose channels are not those of the layer before: behind a flattening, a regrouping."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.mix = conv(3, 8), nn.BatchNorm2d(32), nn.Conv2d(32, 4, 1)
        self.norm1, self.fc = nn.BatchNorm1d(4 * 16), nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(x.reshape(-1, 32, 4, 4)))
        return self.fc(F.relu(self.norm1(self.mix(x).flatten(1))))


def test_norms_of_other_channels_than_the_layer_before_have_a_grid_between():
    x = images(6)
    assert_equal(quantize(turned(Reshaped(), x), calibration=x), x, 0.5)


class Doubled(sd.LIF):
    """LIF with equations of its own."""

    def simulate(self, current, state, T, membrane):
        return super().simulate(2 * current, state, T, membrane)


class Calling(sd.IF):
    def forward(self, current):
        return super().forward(0.5 * current)


class Eager(sd.LIF):
    @property
    def constants(self):
        return dataclasses.replace(super().constants, threshold=0.5)


class Shifted(NormNeuron):
    def affine(self, mean, var):
        a, b = super().affine(mean, var)
        return a, b + 1


@pytest.mark.parametrize("options", [{}, {"scheme": "mint"}], ids=str)
@pytest.mark.parametrize(
    "neuron, method",
    [(Doubled(), "simulate"), (Calling(), "forward"), (SignedIF(), "simulate"), (Eager(), "constants")],
)
def test_neurons_with_equations_of_their_own_are_refused_by_path(neuron, method, options):
    network = sd.networks.create("vgg5", width=0.125)
    network.stage2[2].neuron = neuron
    with pytest.raises(
        SpikedistillError, match=rf"cannot quantize stage2\.2: .*computes by {method}\(\) of its own"
    ):
        quantize(network, calibration=images(2), **options)
    alone = sd.networks.create("vgg5", width=0.125, head="spiking")
    alone.head.neuron = neuron
    with pytest.raises(
        SpikedistillError, match=rf"cannot quantize head\.neuron: .*computes by {method}\(\) of its own"
    ):
        quantize(alone, calibration=images(2), **options)


def test_norms_with_equations_of_their_own_are_refused_by_path():
    network = sd.networks.create("vgg5", width=0.125)
    network.stage2[2] = Shifted(network.stage2[2].channels, sd.LIF())
    with pytest.raises(
        SpikedistillError, match=r"cannot quantize stage2\.2: .*computes by affine\(\) of its own"
    ):
        quantize(network, calibration=images(2))


class PooledCurrent(nn.Module):
    """A pool between a layer and its neuron."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.relu, self.fc = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.AvgPool2d(2),
            nn.ReLU(),
            nn.Linear(128, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.pool(self.conv(x))).flatten(1))


@pytest.mark.parametrize(
    "model, paths", [(Residual, ["model.norm", "model.norm2"]), (PooledCurrent, ["model.conv", "model.pool"])]
)
def test_captures_are_real_values_on_streams_that_spikes_join_and_around_pools(model, paths):
    torch.manual_seed(0)
    x = images(4)
    network = awake(sd.spiking(model(), time_steps=4, example=x), x)
    q = quantize(network, weight_bits=8, membrane_bits=None, calibration=x).eval()
    _, real = taps.captures(network, x, paths)
    _, found = taps.captures(q, x, paths)
    for path in paths:
        assert (found[path] - real[path]).abs().mean() < 0.2 * real[path].abs().mean(), path


def test_an_image_that_is_no_number_is_refused_by_integer_networks():
    x = images(4)
    integer = to_integer(quantize(turned(Between(nn.MaxPool2d(2)), x), calibration=x))
    assert torch.equal(integer((x * 255 + 0.5).floor().byte()), integer(x))
    x[1, 0, 2, 3] = float("nan")
    with pytest.raises(SpikedistillError, match="not finite"):
        integer.predict(x)
