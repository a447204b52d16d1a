"""Native max pooling against torch's: values and gradients bit for bit, and when it is used."""

import copy

import pytest
import torch
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.neurons import compilation, native
from spikedistill.neurons.pooling import MaxPool2d

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler")
NATIVE = "_MaxPoolBackward"
# channels, kernel, stride, padding, height, width
SIZES = [
    (16, 2, 2, 0, 32, 32),
    (40, 2, 2, 0, 17, 15),  # the last row and column are in no window
    (5, 2, 1, 0, 40, 41),
    (48, 3, 2, 1, 19, 20),
    (33, 3, 1, 1, 16, 16),
    (16, 3, 3, 0, 20, 22),
    (7, 2, 5, 1, 33, 31),  # windows with gaps between them
    (24, 5, 2, 2, 14, 13),
]


def both(x: Tensor, *given: int, **options: object) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients, torch's and ours."""
    found = []
    for cls in (nn.MaxPool2d, MaxPool2d):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        with compilation.compiled():
            y = cls(*given, **options)(leaf)  # type: ignore[arg-type]
        assert (y.grad_fn.name() == NATIVE) == (cls is MaxPool2d)
        torch.manual_seed(1)
        (g,) = torch.autograd.grad(y, leaf, torch.randn(y.shape).to(y.dtype))
        found.append([y, g])
    return found[0], found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["spikes", "numbers", "few"])
def test_it_is_torchs(size: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    C, kernel, stride, pad, H, W = size
    torch.manual_seed(0)
    x = torch.randn(16, C, H, W)
    # Few values, and so many equal ones: the first of them has the gradient. Zeros of both signs are equal.
    x = {"spikes": (x > 1).float(), "numbers": x, "few": x.round() * 0.5}[kind]
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    theirs, ours = both(x, kernel, stride, pad)
    for a, b in zip(theirs, ours, strict=True):
        assert a.dtype == b.dtype == dtype
        assert torch.equal(a, b)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_is_passed_on(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 19, 16, 16)
    x[torch.rand(x.shape) < 0.05] = float("nan")
    x[torch.rand(x.shape) < 0.05] = -float("nan")
    x[torch.rand(x.shape) < 0.2] = -float("inf")
    x[torch.rand(x.shape) < 0.1] = float("inf")
    theirs, ours = both(x.to(dtype).contiguous(memory_format=torch.channels_last), 2, 2)
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        assert torch.equal(a.isnan(), b.isnan())


def test_what_does_not_apply_is_torchs() -> None:
    x = torch.randn(8, 16, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()

    def native_for(x: Tensor, *given: object, mode: compilation.Mode = "compiled", **options: object) -> bool:
        with compilation.use(mode):
            y = MaxPool2d(*given, **options)(x)  # type: ignore[arg-type]
        assert torch.equal(y, nn.MaxPool2d(*given, **options)(x))  # type: ignore[arg-type]
        return y.grad_fn.name() == NATIVE

    assert native_for(x, 2)
    assert native_for(x, (2, 2), stride=(2, 2), padding=(0, 0))
    assert not native_for(x, 2, mode="eager")
    assert not native_for(x, (2, 3))
    assert not native_for(x, 3, 2, ceil_mode=True)
    assert not native_for(x, 2, dilation=2)
    assert not native_for(x, 16)
    assert not native_for(x.contiguous(), 2)
    assert not native_for(x.double(), 2)
    assert not native_for(x[:1], 2)  # small
    with compilation.compiled(), pytest.raises(RuntimeError, match="pad should be at most half"):
        MaxPool2d(2, padding=2)(x)


def test_it_keeps_a_byte_for_each_value() -> None:
    kept: list[Tensor] = []
    x = torch.randn(8, 16, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    with (
        compilation.compiled(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        y = MaxPool2d(2)(x)
    assert sum(t.nbytes for t in kept) == y.numel()


def test_networks_have_it_and_compute_what_they_did() -> None:
    network = sd.networks.create("vgg5", time_steps=4).to(memory_format=torch.channels_last)
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert pools
    assert all(type(m) is MaxPool2d for m in pools)
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if type(module) is MaxPool2d:
            module.__class__ = nn.MaxPool2d
    x, y = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))
    for net in (network, plain):
        with compilation.compiled():
            torch.nn.functional.cross_entropy(net(x).mean(0), y).backward()
    for (name, a), b in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]
