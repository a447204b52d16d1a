"""Unusual but legal settings, and wrong ones, of quantization, prices and exports."""

import numpy as np
import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import hardware


def network(**options):
    torch.manual_seed(0)
    return sd.networks.create("vgg5", width=0.1, time_steps=2, pooling="avg", **options).eval()


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """A linear layer on as many tokens as it has channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.a = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
        self.linear, self.b, self.head = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(self.b(self.linear(x)).mean(1))


def test_a_linear_layer_on_tokens_is_refused():
    turned = sd.spiking(Tokens(), time_steps=3, example=X).eval()
    with pytest.raises(sd.SpikedistillError, match=r"linear.*tokens or maps; use a convolution of size 1"):
        sd.quantize(turned, calibration=X)


@pytest.mark.parametrize(
    ("pool", "bits"),
    [
        (nn.AvgPool2d(3, 1, 1), 4), (nn.AvgPool2d(3, 2, 1), 4), (nn.AvgPool2d(2, 1), 3),
        (nn.AvgPool2d(3, 2), 4), (nn.AvgPool2d(2), 3), (nn.AdaptiveAvgPool2d(2), 5),
    ],
)  # fmt: skip
def test_a_mean_of_n_spikes_has_the_bits_of_n(pool, bits):
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Conv2d(8, 8, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    turned = sd.spiking(model, time_steps=4, example=X).eval()
    second = [layer for layer in hardware.layers(turned, X) if layer.kind == "conv"][1]
    assert second.input_bits == bits


@pytest.mark.filterwarnings("ignore:.*of spikes differ for readers")
def test_a_network_with_learned_units_comes_back_from_nir(tmp_path):
    pytest.importorskip("nir")
    quantized = sd.quantize(network(), unit="learned", calibration=X).eval()
    sd.export.to_nir(quantized, tmp_path / "q.nir", X, allow_lossy=True)
    back = sd.export.from_nir(tmp_path / "q.nir")
    assert torch.allclose(back.predict(X), quantized.predict(X), atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, ceil_mode=True, divisor_override=4),
        nn.AvgPool2d([3, 3], 2, 1, ceil_mode=True, divisor_override=9),
    ],
)
def test_onnx_pools_round_up_where_torch_does(pool, size, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), pool, nn.AdaptiveAvgPool2d(1)]
    x = torch.rand(4, 3, size, size)
    turned = sd.spiking(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5)), time_steps=4, example=x).eval()
    sd.balance(turned, x)
    sd.export.to_onnx(turned, tmp_path / "o.onnx", x)
    (logits,) = runtime.InferenceSession(tmp_path / "o.onnx").run(["logits"], {"input": x.numpy()})
    with torch.no_grad():
        assert np.abs(logits - turned(x).numpy()).max() < 1e-5


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_onnx_files_are_of_float32_whatever_the_network_is(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    sd.export.to_onnx(network().to(kind), tmp_path / "o.onnx", X.to(kind))
    assert runtime.InferenceSession(tmp_path / "o.onnx").get_inputs()[0].type == "tensor(float)"


def test_quantized_networks_run_under_torchs_settings_of_precision():
    if not hasattr(torch.backends.mkldnn, "conv"):
        pytest.skip("settings of each operation came with torch 2.9")
    quantized = sd.quantize(network(), calibration=X).eval()
    expected, place = quantized.predict(X), torch.backends.cuda.matmul
    before = place.fp32_precision
    try:
        place.fp32_precision = "tf32"
        assert torch.equal(quantized.predict(X), expected)
        assert place.fp32_precision == "tf32"
    finally:
        place.fp32_precision = before


def test_arguments_of_a_price_go_over_a_recipes_section():
    layers = hardware.layers(network(), X)
    memory = hardware.memory.MemoryConfig(sram_law="linear")
    chips = hardware.floorline.FloorlineConfig(synop_ns=1, update_ns=1, message_ns=1)
    one = hardware.price(layers, hardware.Config(crossbar_size=32), memory, chips)
    other = hardware.price(layers, {"spikesim": {"crossbar_size": 32}}, memory, chips)
    assert one["memory"] == other["memory"]
    assert one["floorline"] == other["floorline"]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_frames_in_half_precision_have_the_quantized_networks_codes(kind):
    frames = torch.linspace(0.485, 0.505, 256).view(1, 2, 2, 8, 8).to(kind)
    net = network(input="frames", in_channels=2)
    quantized = sd.quantize(net, calibration=torch.rand(2, 2, 2, 8, 8).mul(3).floor()).eval()
    integer = sd.to_integer(quantized)
    codes = quantized.input_codes(frames.sum(0).to(kind))
    assert torch.equal(integer.codes(frames, 2).float(), codes.float())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: sd.quantize(n, input_size=32), "input_size is"),
        (lambda n: sd.quantize(n, percentile=None), "percentile must be"),
        (lambda n: hardware.at_bits(hardware.layers(n, X), weight_bits=0), "weight_bits must be 1 to 64"),
        (lambda n: hardware.at_bits(hardware.layers(n, X), membrane_bits=65), "membrane_bits must be"),
        (lambda n: hardware.at_rate(hardware.layers(n, X), 5), "from 0 to 1"),
        (lambda n: hardware.layers(n, X[:0]), "batch 0 has no image"),
        (lambda n: sd.quantize(n, calibration=[X, X[:0]]), "quantize: calibration: batch 1 has no image"),
        (lambda n: sd.balance(n, X[:0]), "balance: batch 0 has no image"),
        (lambda n: sd.balance(n, X / 0), "balance: batch 0 holds NaN or infinity"),
        (lambda n: sd.export.to_nir(n, "n.nir", X[:0]), "to_nir: example: batch 0 has no image"),
        (lambda n: sd.export.to_onnx(n, "n.onnx", X[:0]), "to_onnx: example: batch 0 has no image"),
        (lambda n: sd.Distiller(n, None, [{"type": "cross_entropy"}]).setup(X[:0]), "setup: batch 0 has no"),
        (lambda n: hardware.layers(n, X, image_bits=0), "image_bits must be 1 to 64"),
        (lambda n: hardware.write_layers(hardware.layers(n, X), "no/l.yaml"), "there is no folder"),
        (lambda n: sd.to_integer(sd.quantize(n, calibration=X)).save("no/such"), "there is no folder"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_words(call, words):
    with pytest.raises(sd.SpikedistillError, match=words):
        call(network())


@pytest.mark.parametrize("name", ["LIF", "none", "ReLU", "If"])
def test_a_neuron_named_almost_as_a_known_one_is_refused(name, tmp_path):
    conv = "{name: a, kind: conv, in_channels: 3, out_channels: 8, kernel_size: 3, in_size: 8, neuron: "
    (tmp_path / "a.yaml").write_text(f"layers: [{conv}{name}}}]")
    with pytest.raises(sd.SpikedistillError, match=rf"layers\.0 \(a\): neuron '{name}'; write if, lif"):
        hardware.price_file(tmp_path / "a.yaml")


def test_what_a_user_froze_stays_frozen():
    net = sd.networks.create("ms_resnet20", width=0.25, time_steps=2).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    frozen = sum(not p.requires_grad for p in net.parameters())
    assert frozen
    quantized = sd.quantize(net, calibration=X)
    assert sum(not p.requires_grad for p in quantized.parameters()) >= frozen


def test_an_offset_beyond_32_bits_is_refused():
    net = network(neuron={"type": "lif", "threshold": 0.01})
    with torch.no_grad():
        net.stage1[1].bias.fill_(1e5)
    quantized = sd.quantize(net, fraction_bits=16, calibration=X).eval()
    with pytest.raises(sd.SpikedistillError, match="units does not fit 32 bits"):
        sd.to_integer(quantized)
