"""Averages and distances over whole simulations against torch's own, in value, gradient and memory layout."""

import pytest
import torch
from torch import Tensor

from spikedistill.neurons import compilation
from spikedistill.neurons.over_time import mean_square, time_mean, weighted_sum

MODES = ("uncompiled", pytest.param("compiled", marks=pytest.mark.slow))


def inputs(dtype: torch.dtype, layout: str) -> Tensor:
    x = torch.randn(4, 6, 5, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    if layout == "channels last":
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "a constant":
        return x[:1].expand(4, 6, 5, 3, 2)
    return x[:, :, 1:4] if layout == "a part" else x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["as it is", "channels last", "a constant", "a part"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_time_mean(dtype: torch.dtype, layout: str, mode: compilation.Mode) -> None:
    x = inputs(dtype, layout).detach().requires_grad_()
    weights = torch.randn(x.shape[1:], dtype=torch.float64)
    with compilation.use(mode):
        found = time_mean(x)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (g,) = torch.autograd.grad((found * weights).sum(), x)
    expected = x.double().mean(0)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(g, wanted)
    if layout == "channels last":
        assert g.stride() == x.stride()  # else the next addition of gradients walks two layouts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", ["as it is", "channels last"])
@pytest.mark.parametrize("layout", ["as it is", "channels last", "a constant"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mean_square(dtype: torch.dtype, layout: str, other: str, mode: compilation.Mode) -> None:
    a = inputs(dtype, layout).detach().requires_grad_()
    b = inputs(dtype, other).flip(1).clone(memory_format=torch.preserve_format).requires_grad_()
    with compilation.use(mode):
        found = mean_square(a, b)
    (3 * found).backward()
    assert b.grad is None
    expected = (a.double() - b.detach().double()).square().mean()
    (wanted,) = torch.autograd.grad(3 * expected, a)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert a.grad is not None
    torch.testing.assert_close(a.grad, wanted)
    if layout == other == "channels last":
        assert a.grad.stride() == a.stride()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["as it is", "channels last", "a constant", "a part"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weighted_sum(dtype: torch.dtype, layout: str, mode: compilation.Mode) -> None:
    x = inputs(dtype, layout).detach().requires_grad_()
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for weight in (torch.rand(3, 2, dtype=exact), torch.tensor(2.5, dtype=exact)):
        with compilation.use(mode):
            found = weighted_sum(x, weight)
        assert found.dtype == exact
        expected = (x.double() * weight.double()).sum()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
        # Added to another gradient, as in a network, in the order in which that lies in memory.
        g, wanted = (torch.autograd.grad(3 * loss + x.square().sum(), x)[0] for loss in (found, expected))
        torch.testing.assert_close(g, wanted)
        assert g.stride() == wanted.stride()


def test_gradients_by_finite_differences() -> None:
    x = inputs(torch.float64, "channels last").detach().requires_grad_()
    with compilation.uncompiled():
        assert torch.autograd.gradcheck(time_mean, x)
        assert torch.autograd.gradcheck(lambda a: mean_square(a, torch.zeros_like(a)), x)
        weight = torch.rand(3, 2, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda a: weighted_sum(a, weight), x)


def test_one_step_is_its_own_mean() -> None:
    x = torch.randn(1, 3, 4)
    assert torch.equal(time_mean(x), x[0])
