"""What has no form on integer codes is refused by path; damaged and foreign files too."""

import json

import pytest
import torch
from lively import events, images, lively
from safetensors.torch import load_file, save_file
from torch import nn

from spikedistill import networks
from spikedistill.errors import SpikedistillError
from spikedistill.neurons.compilation import eager
from spikedistill.quantization import IntegerNetwork, quantize, to_integer


@pytest.fixture(autouse=True)
def _uncompiled():
    with eager():
        yield


@pytest.mark.parametrize(
    "module, words",
    [
        (nn.GELU(), "cannot quantize stage2.6: GELU"),
        (nn.LayerNorm(2), "cannot quantize stage2.6: LayerNorm"),
        (nn.Softmax(1), "cannot quantize stage2.6: Softmax"),
        (nn.ReLU(), "sd.spiking turns"),
        (
            nn.AdaptiveAvgPool2d(3),
            r"stage2.6: AdaptiveAvgPool2d has overlapping windows \(\(2, 2\) to \(3, 3\)\)",
        ),
        (nn.AvgPool2d(2, 1, 1, count_include_pad=False), "cannot quantize stage2.6: AvgPool2d divides"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_modules_are_refused_by_path(module, words):
    network = networks.create("vgg5", width=0.125)
    network.stage2.append(module)
    with pytest.raises(SpikedistillError, match=words):
        quantize(network, calibration=images(2))
    assert network.input_codes is None
    assert not any("step" in k for k in network.state_dict())


def test_gates_of_real_values_are_refused():
    class Gate(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    network = networks.create("vgg5", width=0.125)
    network.stage2.append(Gate())
    with pytest.raises(SpikedistillError, match=r"cannot quantize stage2.\d+ .*: mul multiplies real values"):
        quantize(network, calibration=images(2))


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div has no form on integer codes"),
        (lambda x: x.sub(1, alpha=2), "sub subtracts on real values"),
        (lambda x: nn.functional.pad(x, (1, 1, 1, 1), "reflect"), "pad has no form on integer codes"),
        (lambda x: nn.functional.pad(x, (1, 1, 1, 1), "constant", 1), "pad has no form on integer codes"),
    ],
    ids=["floor", "alpha", "reflect", "ones"],
)
def test_calls_that_are_nearly_known_are_refused(function, words):
    class Own(nn.Module):
        def forward(self, x):
            return function(x)

    network = networks.create("vgg5", width=0.125, input="frames", in_channels=2)
    network.stage2.append(Own())
    with pytest.raises(SpikedistillError, match=words):
        quantize(network, calibration=events(2))


def test_ann_quantized_and_foreign_networks_are_refused():
    x = images(2)
    with pytest.raises(SpikedistillError, match="found an ANN"):
        quantize(networks.create("vgg5", width=0.125, time_steps=None), calibration=x)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x)
    with pytest.raises(SpikedistillError, match="quantized already"):
        quantize(q, calibration=x)
    with pytest.raises(SpikedistillError, match="found Linear"):
        quantize(nn.Linear(2, 2))
    with pytest.raises(SpikedistillError, match="takes a quantized network"):
        to_integer(networks.create("vgg5", width=0.125))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weight_bits": 9}, "weight_bits must be 2 to 8, or None, found 9"),
        ({"membrane_bits": 1}, "membrane_bits must be 2 to 8"),
        ({"residual_bits": 3}, "residual_bits must be 4 to 24"),
        ({"weight_scale": "row"}, "weight_scale must be one of channel, tensor"),
        ({"scheme": "mint", "membrane_bits": 8}, "equal bits for weights and membrane"),
        ({"unit": "max"}, "give calibration"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(SpikedistillError, match=words):
        quantize(networks.create("vgg5", width=0.125), **options)


@pytest.mark.parametrize("options", [{"scheme": "mint"}, {"unit": "weights"}])
def test_folded_schemes_refuse_streams(options):
    with pytest.raises(SpikedistillError, match="refuses bn1: it writes to a residual stream"):
        quantize(networks.create("ms_resnet20", width=0.25), calibration=images(2), **options)


def test_frames_with_a_mean_are_refused():
    network = networks.create("vgg5", width=0.125, in_channels=2, input="frames", mean=0.5)
    with pytest.raises(SpikedistillError, match="frames are counts"):
        quantize(network, calibration=events(2))


@pytest.mark.parametrize("name", ["weight_bits", "norm_bits", "leak_bits"])
def test_real_numbers_stay_out_of_integer_networks(name):
    x = images(2)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x, **{name: None})
    assert q(x).isfinite().all()
    with pytest.raises(SpikedistillError, match=f"{name} is None"):
        to_integer(q)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    x = images(2)
    good = tmp_path / "good.safetensors"
    to_integer(quantize(lively("vgg5", x, width=0.125), calibration=x)).save(good)
    raw = bytearray(good.read_bytes())

    def refused(content: bytes, words: str) -> None:
        path = tmp_path / "bad"
        path.write_bytes(content)
        with pytest.raises(SpikedistillError, match=words):
            IntegerNetwork.load(path)

    flipped = bytearray(raw)
    flipped[-3] ^= 1
    refused(bytes(flipped), "its checksum differs")
    refused(bytes(raw[:-10]), "was damaged")
    refused(b"not a network", "is no integer network")
    refused(bytes(raw).replace(b"time_steps", b"time_stepz", 1), "its checksum differs")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights")
    refused((tmp_path / "weights").read_bytes(), "holds weights, but no integer network")
    with pytest.raises(SpikedistillError, match="no such file"):
        IntegerNetwork.load(tmp_path / "missing")
    newer = IntegerNetwork.load(good)
    newer.header["version"] = 2
    newer.save(tmp_path / "newer")
    with pytest.raises(SpikedistillError, match="version 2; this release reads"):
        IntegerNetwork.load(tmp_path / "newer")
    assert json.dumps(newer.header)
    assert all(not t.is_floating_point() for t in load_file(good).values())


def test_integer_input_of_the_wrong_form():
    x = images(2)
    integer = to_integer(quantize(lively("vgg5", x, width=0.125), calibration=x))
    with pytest.raises(SpikedistillError, match=r"takes image \(N, C, ...\)"):
        integer(torch.rand(2, 1, 8, 8))
    with pytest.raises(SpikedistillError, match=r"of \[3, 8, 8\], found \(2, 3, 16, 16\)"):
        integer(torch.rand(2, 3, 16, 16))


def test_a_compiled_network_is_told_from_one_that_is_none():
    network = networks.create("vgg5", time_steps=2)
    with pytest.raises(SpikedistillError, match="give its _orig_mod"):
        quantize(torch.compile(network, backend="eager"))
