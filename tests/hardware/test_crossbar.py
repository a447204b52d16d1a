"""Arrays with ADCs of few bits, against plain loops; lossless ADCs change nothing."""

import itertools

import pytest
import torch
from torch import nn

import spikedistill.networks as networks
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import Config
from spikedistill.hardware.crossbar import accumulate, convert, planes, simulate
from spikedistill.quantization import quantize


@pytest.mark.parametrize(
    ("bound", "low", "high"), [(1, 0, 1), (3, 0, 3), (8, 0, 8), (20, 0, 20), (127, -127, 127), (5, -5, 5)]
)
def test_planes_add_up(bound: int, low: int, high: int) -> None:
    x = torch.arange(low, high + 1).double()
    total = torch.zeros_like(x)
    for value, plane in planes(x, bound):
        assert set(plane.unique().tolist()) <= {0.0, 1.0}
        total += value * plane
    assert torch.equal(total, x)


def test_adc_by_hand() -> None:
    sums = torch.arange(65).double()
    assert torch.equal(convert(sums, Config()), sums)
    assert torch.equal(convert(sums, Config(adc_bits=7)), sums)
    four = convert(sums, Config(adc_bits=4))
    assert [four[i].item() for i in (0, 3, 4, 11, 12, 59, 60, 64)] == [0, 0, 8, 8, 16, 56, 64, 64]
    assert convert(torch.tensor([64.0]), Config(adc_bits=3)).item() == 64
    assert (
        convert(torch.tensor([128.0 * 3]), Config(adc_bits=2, crossbar_size=128, cell_bits=2)).item() == 384
    )


def reference(x: torch.Tensor, w: torch.Tensor, bits: int, config: Config, groups: int) -> torch.Tensor:
    """One image of 0/1, stride 1, no padding; every array, column and slice in turn."""
    c_out, c_in, kh, kw = w.shape
    H, W = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    out = torch.zeros(c_out, H, W, dtype=x.dtype)
    for o, h, v in itertools.product(range(c_out), range(H), range(W)):
        first = o // (c_out // groups) * c_in
        for i, j, start in itertools.product(range(kh), range(kw), range(0, c_in, config.crossbar_size)):
            rows = range(start, min(c_in, start + config.crossbar_size))
            active = [int(x[first + r, h + i, v + j]) for r in rows]
            for s in range(-(-bits // config.cell_bits)):
                held = [(int(w[o, r, i, j]) + 2 ** (bits - 1)) >> (s * config.cell_bits) for r in rows]
                total = sum(a * (code & (2**config.cell_bits - 1)) for a, code in zip(active, held))
                out[o, h, v] += (
                    2 ** (s * config.cell_bits) * convert(torch.tensor(float(total)), config).double()
                )
            out[o, h, v] -= 2 ** (bits - 1) * sum(active)
    return out


@pytest.mark.parametrize("config", [
    Config(crossbar_size=4, adc_bits=2), Config(crossbar_size=3, adc_bits=1, cell_bits=2),
    Config(crossbar_size=8, adc_bits=3),
])  # fmt: skip
@pytest.mark.parametrize(("groups", "bits"), [(1, 4), (2, 3)])
def test_arrays_against_loops(config: Config, groups: int, bits: int) -> None:
    w = torch.randint(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), (4, 10 // groups, 2, 3)).double()
    x = (torch.rand(2, 10, 4, 5) < 0.6).double()
    found = accumulate(x, w, bits, config, 1, groups=groups)
    for image, out in zip(x, found):
        assert torch.equal(out, reference(image, w, bits, config, groups))


@pytest.mark.parametrize("cell_bits", [1, 2, 3])
def test_lossless_arrays_are_the_convolution(cell_bits: int) -> None:
    w, x = torch.randint(-7, 8, (6, 5, 3, 3)).double(), torch.randint(-100, 101, (2, 10, 9, 8)).double()
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1), "groups": 2}
    found = accumulate(x, w, 4, Config(crossbar_size=4, cell_bits=cell_bits), 100, **geometry)
    assert torch.equal(found, nn.functional.conv2d(x, w, **geometry))


@pytest.mark.parametrize("name", ["vgg5", "ms_resnet18", "sew_resnet18"])
def test_lossless_adcs_change_no_logit(name: str) -> None:
    neuron = {"type": "if"}
    net = networks.create(name, num_classes=4, width=0.125, time_steps=2, neuron=neuron)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        for _ in range(10):  # norm statistics, without which deep layers are silent
            net(torch.rand(4, 3, 16, 16))
    low = quantize(net.eval(), input_size=(3, 16, 16)).eval()
    with torch.no_grad():
        plain = low(x)
    with simulate(low, Config(crossbar_size=16)):
        assert torch.equal(low(x), plain)
    with simulate(low, Config(crossbar_size=16, adc_bits=2)):
        assert not torch.equal(low(x), plain)
    with torch.no_grad():
        assert torch.equal(low(x), plain)


def test_only_quantized_networks() -> None:
    net = networks.create("vgg5", width=0.125)
    with pytest.raises(SpikedistillError, match="not quantized"), simulate(net):
        pass
    with (
        pytest.raises(SpikedistillError, match="real ones"),
        simulate(quantize(net.eval(), weight_bits=None, first_last_bits=None)),
    ):
        pass
