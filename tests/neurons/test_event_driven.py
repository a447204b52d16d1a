"""Event-driven convolutions against torch's in float64: values, gradients, and when they are used."""

import copy
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.neurons import compilation, event_driven, native
from spikedistill.neurons.event_driven import Conv2d, bits_of, equip

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler")
EVENT = "_EventConvolutionBackward"


@pytest.fixture(autouse=True)
def units(monkeypatch) -> None:
    """As on a processor without AMX, which computes spikes alone in bfloat16 too."""
    monkeypatch.setattr(event_driven, "cpu_bf16_units", lambda: "AVX512-BF16")


def spikes(*shape: int, rate: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape) < rate).to(dtype).contiguous(memory_format=torch.channels_last)


def convolution(*given: int, **options: object) -> Conv2d:
    conv = equip(nn.Sequential(nn.Conv2d(*given, **options)))[0]  # type: ignore[arg-type]
    assert isinstance(conv, Conv2d)
    return conv


# channels in, out, kernel, stride, padding, height, width, samples
SIZES = [
    (32, 32, 3, 1, 1, 16, 16, 4),
    (64, 128, 3, 2, 1, 15, 9, 5),
    (20, 16, 3, 1, 0, 13, 17, 7),  # words that are not full
    (70, 48, 5, 2, 2, 12, 11, 3),
    (130, 144, 1, 1, 0, 9, 8, 3),
    (16, 32, 7, 3, 3, 23, 21, 4),
    (32, 16, 3, 1, 4, 8, 9, 9),  # more padding than kernel
    (64, 16, 4, 4, 0, 18, 17, 1),
    (128, 256, 2, 3, 1, 8, 8, 6),  # pixels that no output meets
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_convolution(size: tuple[int, ...], dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(event_driven, "limit", lambda dtype, weights: 0.25)  # narrow ones too
    C, K, kernel, stride, pad, H, W, M = size
    conv = convolution(C, K, kernel, stride, pad)
    x = spikes(M, C, H, W, dtype=dtype).requires_grad_()
    with compilation.compiled(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = conv(x)
    assert y.grad_fn.name() == EVENT  # type: ignore[union-attr]
    assert y.dtype == dtype
    g = torch.randn(y.shape).to(dtype)  # channels first, as it may come
    found = torch.autograd.grad(y, [x, conv.weight, conv.bias], g)
    rounded = [p.detach().to(dtype).double().requires_grad_() for p in (conv.weight, conv.bias)]
    x64 = x.detach().double().requires_grad_()
    expected = F.conv2d(x64, *rounded, stride, pad)
    wanted = torch.autograd.grad(expected, [x64, *rounded], g.double())
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(y.double(), expected, **close)
    torch.testing.assert_close(found[0].double(), wanted[0], **close)
    for a, b in zip(found[1:], wanted[1:], strict=True):  # sums in float32, whatever the precision
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("images", [3, 70])  # all at once; in several parts
def test_large_strides_take_no_memory_for_inputs_that_there_are_not(images: int) -> None:
    """Of patches there are few outputs to an image: room for as many images as fit by these was gigabytes."""
    script = f"""
import resource
import torch
import spikedistill as sd
from spikedistill.neurons import compilation, event_driven

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # Linux: in KiB

torch.manual_seed(0)
conv = sd.equip(torch.nn.Conv2d(16, 16, 32, 32, bias=False))
x = (torch.rand({images}, 16, 64, 64) < 0.05).float().contiguous(memory_format=torch.channels_last)
with compilation.compiled():
    y = conv(x)
assert y.grad_fn.name() == {EVENT!r}
g = torch.randint(-4, 5, y.shape).float()  # whole numbers: sums are exact
expected = torch.nn.grad.conv2d_weight(x, conv.weight.shape, g, 32)
before = peak()
y.backward(g)
assert torch.equal(conv.weight.grad, expected)
assert peak() - before < 200, peak() - before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_rectangular_kernels() -> None:
    conv = convolution(32, 32, (1, 3), bias=False)
    x = spikes(8, 32, 10, 12)
    with compilation.compiled():
        y = conv(x)
    assert y.grad_fn.name() == EVENT
    torch.testing.assert_close(y, F.conv2d(x, conv.weight), rtol=1e-5, atol=1e-5)


def test_bits() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = spikes(3, 70, 9, 8, dtype=dtype)
        x[0, 5, 0, 0] = -0.0  # a zero
        bits = bits_of(x, 0.5)
        assert bits is not None
        shifts = torch.arange(64)
        values = ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, :70]
        assert torch.equal(values, x.permute(0, 2, 3, 1).reshape(-1, 70).long())


def test_dense_where_it_is_dense() -> None:
    conv, alone = convolution(32, 32, 3), spikes(8, 32, 12, 12)
    cases = {
        "other values": alone * 0.5,
        "one other value at the end": alone.clone(memory_format=torch.preserve_format).index_fill_(
            0, torch.tensor(7), 2.0
        ),
        "too many": spikes(8, 32, 12, 12, rate=0.6),
        "not channels last": alone.contiguous(),
        "few": alone[:1],
        "float64": alone.double(),
    }
    with compilation.compiled():
        assert conv(alone).grad_fn.name() == EVENT
        for name, x in cases.items():
            layer = copy.deepcopy(conv).double() if x.dtype == torch.float64 else conv
            assert layer(x).grad_fn.name() != EVENT, name
        for options in (
            {"groups": 2},
            {"dilation": 2},
            {"padding": "same"},
            {"padding": 1, "padding_mode": "reflect"},
        ):
            assert convolution(32, 32, 3, **options)(alone).grad_fn.name() != EVENT, options
        assert convolution(32, 24, 3)(alone).grad_fn.name() != EVENT
    with compilation.uncompiled():
        assert conv(alone).grad_fn.name() != EVENT


def test_where_dense_is_faster_at_once(monkeypatch) -> None:
    def bits(x: Tensor) -> Tensor | None:
        return bits_of(x, event_driven.limit(x.dtype, 9 * 32 * 32))

    few, some = (spikes(8, 32, 12, 12, rate=rate, dtype=torch.bfloat16) for rate in (0.01, 0.05))
    late = torch.cat([few, spikes(8, 32, 12, 12, rate=0.5, dtype=torch.bfloat16)])
    assert bits(few) is not None
    assert bits(some) is not None
    assert bits(late) is None  # what the first rows do not show
    assert bits_of(few, 0.0) is None
    monkeypatch.setattr(event_driven, "cpu_bf16_units", lambda: "AMX")
    assert bits(few) is not None
    assert bits(some) is None
    assert bits(some.float()) is not None


def test_the_limit_by_precision_size_and_processor(monkeypatch) -> None:
    half, single = torch.bfloat16, torch.float32
    for units in (None, "AVX512-BF16", "AMX"):
        monkeypatch.setattr(event_driven, "cpu_bf16_units", lambda units=units: units)
        for dtype in (half, single):
            shares = [event_driven.limit(dtype, 9 * c * c) for c in (16, 32, 64, 512)]
            assert shares == sorted(shares)  # more weights for a spike: events pay longer
            assert shares[0] < shares[-1] < 0.5
        assert event_driven.limit(half, 36_864) < event_driven.limit(single, 36_864)
    assert event_driven.limit(half, 1 << 22) < 0.05  # AMX


def test_few_channels_go_the_dense_way() -> None:
    """A layer of 16 channels spends more on finding spikes than on their sums, in bfloat16 at any rate."""
    narrow, wide = convolution(16, 16, 3), convolution(64, 64, 3)
    with compilation.compiled(), torch.autocast("cpu", torch.bfloat16):
        assert narrow(spikes(8, 16, 12, 12, rate=0.05)).grad_fn.name() != EVENT
        assert wide(spikes(8, 64, 12, 12, rate=0.05)).grad_fn.name() == EVENT


def test_autocast_decides_the_type_whatever_the_rate() -> None:
    conv = convolution(64, 64, 3)
    for cast in (torch.bfloat16, torch.float16):
        with compilation.compiled(), torch.autocast("cpu", cast):
            for rate in (0.02, 0.6):
                assert conv(spikes(8, 64, 12, 12, rate=rate)).dtype == cast
    with compilation.compiled(), pytest.raises(RuntimeError, match="same"):
        conv.bfloat16()(spikes(8, 64, 12, 12))


def test_what_torch_refuses_is_refused() -> None:
    with compilation.compiled():
        with pytest.raises(RuntimeError, match="to have 32 channels, but got 64 channels"):
            convolution(32, 32, 3)(spikes(8, 64, 12, 12))
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            convolution(64, 32, 7)(spikes(32, 64, 6, 6))


def test_no_number_is_no_number() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        conv, x = convolution(32, 32, 3, bias=False).to(dtype), spikes(8, 32, 12, 12, rate=0.1, dtype=dtype)
        with torch.no_grad(), compilation.compiled():
            conv.weight[3] = float("nan")
            conv.weight[4] = float("inf")
            y = conv(x)
        assert y[:, 3].isnan().any()
        assert y[:, 4].isinf().any()
        assert y[:, :3].isfinite().all()


def test_a_network_learns_the_same() -> None:
    """A step with dense convolutions and one by few spikes: the same loss and, to rounding, gradients."""
    torch.manual_seed(0)
    network = sd.networks.create("conv6", time_steps=2).to(memory_format=torch.channels_last)
    x, y = torch.rand(8, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(8)
    assert all(isinstance(m, Conv2d) for m in network.modules() if isinstance(m, nn.Conv2d))
    seen: list[str] = []

    def step(network: nn.Module) -> tuple[Tensor, list[Tensor]]:
        for m in network.modules():
            if isinstance(m, nn.Conv2d):
                m.register_forward_hook(lambda m, args, out: seen.append(out.grad_fn.name()))
        loss = F.cross_entropy(network(x).mean(0), y)
        return loss, list(torch.autograd.grad(loss, list(network.parameters())))

    plain = copy.deepcopy(network)
    for m in plain.modules():
        if type(m) is Conv2d:
            m.__class__ = nn.Conv2d
    with compilation.compiled():
        loss, gradients = step(network)
        assert seen.count(EVENT) == 5  # all but the first, which sees the image
        expected, wanted = step(plain)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_anns_stay_torchs() -> None:
    assert not any(isinstance(m, Conv2d) for m in sd.networks.create("conv6", time_steps=None).modules())


def test_it_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKEDISTILL_CACHE", str(tmp_path))
    made = native._built(native.COMPILERS[0])
    assert [made] == list((tmp_path / "compiled").iterdir())
    monkeypatch.setattr(subprocess, "run", None)
    assert native._built(native.COMPILERS[0]) == made


def test_what_does_not_compile_is_dense(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    conv, x = convolution(32, 32, 3), spikes(8, 32, 12, 12)

    def fail(command: list[str], **given: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr=b"no such option\nmore")

    native.library.cache_clear()
    monkeypatch.setenv("SPIKEDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", fail)
    try:
        with caplog.at_level(logging.WARNING), compilation.compiled():
            assert conv(x).grad_fn.name() != EVENT
            assert conv(x).grad_fn.name() != EVENT
    finally:
        native.library.cache_clear()
    assert len(caplog.records) == 1
    assert caplog.messages == [
        "convolutions stay dense and inference slower, native code was not compiled: no such option"
    ]


def test_a_module_of_ones_own_is_equipped() -> None:
    own = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), sd.NormNeuron(32, sd.LIF()), nn.Conv2d(32, 32, 3))
    x = torch.rand(32, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with compilation.uncompiled():
        expected = own(x)
    names = list(own.state_dict())
    equipped = sd.equip(own)
    assert equipped is own
    assert list(own.state_dict()) == names
    with compilation.compiled():
        found = own(x)
    assert found.grad_fn.name() == EVENT
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
