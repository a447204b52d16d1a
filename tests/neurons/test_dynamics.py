import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_loop import NAMES, RESETS, loop

from spikedistill.neurons.dynamics import Constants, Grid, round_ste, scan
from spikedistill.neurons.surrogate import Surrogate


def run(x, decay=0.5, gain=1.0, **constants):
    x = torch.as_tensor(x, dtype=torch.float64)
    return scan(x, torch.zeros_like(x[0]), decay, gain, Constants(**constants), membrane=True)


def test_membrane_below_threshold_is_a_geometric_sum():
    _, h, v = run(torch.full((6, 1), 0.25), decay=0.75, gain=0.5)
    want = 0.125 * (1 - 0.75 ** torch.arange(1, 7, dtype=torch.float64)) / 0.25
    torch.testing.assert_close(h[:, 0], want)
    assert v.item() == h[-1].item()


@given(st.lists(st.integers(-64, 128), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_soft_reset_conserves_charge(currents):
    x = torch.tensor(currents, dtype=torch.float64)[:, None] / 64
    spikes, _, v = run(x, decay=1.0, reset="soft")
    assert x.sum() == v.sum() + spikes.sum()


def test_soft_reset_rate_is_the_floor_of_the_charge_and_hard_reset_discards_the_rest():
    x = torch.full((16, 1), 0.375)
    assert run(x, decay=1.0, reset="soft")[0].sum() == 6  # floor(16 * 0.375)
    assert run(x, decay=1.0, reset="hard")[0].sum() == 5  # one spike every ceil(1 / 0.375) = 3 steps
    assert run(x, decay=1.0, reset=None)[0].sum() == 14  # silent twice, then for ever above


def test_fires_at_equality():
    assert run([[1.0], [0.5]], decay=1.0)[0].flatten().tolist() == [1, 0]


def test_the_membrane_is_not_materialised_unless_asked():
    x = torch.zeros(3, 2)
    assert scan(x, torch.zeros(2), 0.5, 1.0, Constants())[1] is None


def test_a_constant_current_equals_a_repeated_one():
    x = torch.randn(2, 5, dtype=torch.float64)
    once = scan(x, torch.zeros_like(x), 0.5, 1.0, Constants(), membrane=True, steps=4)
    often = scan(x.expand(4, 2, 5), torch.zeros_like(x), 0.5, 1.0, Constants(), membrane=True)
    assert all(torch.equal(a, b) for a, b in zip(once, often, strict=True))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, reset):
    constants = Constants(0.8, reset, Surrogate(name), detach_reset=False, smooth=True)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    decay, gain = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True).unbind()

    def f(x, v, decay, gain):
        return scan(x, v, decay, gain, constants, membrane=True)

    assert torch.autograd.gradcheck(f, (x, v, decay, gain))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_an_independent_loop(name, reset, detach):
    x = (1.5 * torch.randn(6, 3, 7, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(2, 6, 3, 7, dtype=torch.float64)
    constants = Constants(0.9, reset, Surrogate(name), detach)
    spikes, h, _ = scan(x, torch.full_like(x[0], 0.1), 0.6, 1.2, constants, membrane=True)
    spikes2, h2 = loop(x, 0.6, 1.2, 0.9, reset, name, detach, v=0.1)
    assert torch.equal(spikes, spikes2)
    assert 0.1 < spikes.mean() < 0.9
    torch.testing.assert_close(h, h2)
    (mine,) = torch.autograd.grad((spikes * weights[0] + h * weights[1]).sum(), x)
    (their,) = torch.autograd.grad((spikes2 * weights[0] + h2 * weights[1]).sum(), x)
    torch.testing.assert_close(mine, their, rtol=1e-12, atol=1e-12)


def integers(currents, grid, reset):
    """One neuron in Python's integers: shifts floor, an added half makes them round half up."""
    v, spikes, charged, stored = 0, [], [], []
    leak, places = grid.leak
    for i in currents:
        h = (v if grid.leak_first else (v * leak) >> places) + i
        s = h >= grid.threshold
        v = {"hard": 0 if s else h, "soft": h - grid.threshold * s, None: h}[reset]
        if grid.leak_first:
            v = (v * leak + (1 << (places + grid.shift - 1)) >> places + grid.shift) << grid.shift
            v = v >> grid.shift
            v = max(-(2 ** (grid.bits - 1)), min(2 ** (grid.bits - 1) - 1, v)) << grid.shift
        elif grid.bits is not None:
            v = (v + (1 << grid.shift >> 1)) >> grid.shift
            v = max(-(2 ** (grid.bits - 1)), min(2 ** (grid.bits - 1) - 1, v)) << grid.shift
        spikes.append(int(s))
        charged.append(h)
        stored.append(v)
    return spikes, charged, stored


@given(
    st.lists(st.integers(-400, 400), min_size=1, max_size=20),
    st.sampled_from([(1, 0), (1, 1), (1, 2), (171, 8), (0, 8)]),
    st.sampled_from([None, 2, 4, 8]),
    st.integers(0, 5),
    st.sampled_from(RESETS),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_grid_computes_like_integers(currents, leak, bits, shift, reset, leak_first):
    leak_first = leak_first and bits is not None and leak[1] > 0
    grid = Grid(1 / 64, 64, leak, bits, shift if bits is not None else 0, leak_first)
    spikes, h, v = run(torch.tensor(currents)[:, None], reset=reset, grid=grid)
    want_spikes, want_h, want_v = integers(currents, grid, reset)
    assert spikes.flatten().tolist() == want_spikes
    assert h.flatten().tolist() == want_h
    assert v.item() == want_v[-1]


def test_rounding_saturation_and_leak_by_hand():
    assert round_ste(torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-2, -1, 0, 1, 2, 3]
    grid = Grid(1.0, 100, (1, 1), bits=4, shift=2)
    stored = [run([[float(i)]], grid=grid)[2].item() for i in (1, 2, 5, 6, 27, 30, 99, -2, -3, -33, -99)]
    assert stored == [0, 4, 4, 8, 28, 28, 28, 0, -4, -32, -32]
    assert grid.decayed(torch.tensor([-3.0, 3.0, 5.0])).tolist() == [-2, 1, 2]
    fired = run([[99.0], [87.0], [86.0]], grid=Grid(1.0, 100, (1, 1), bits=8))[0]
    assert fired.flatten().tolist() == [0, 1, 0]  # 99; 49 + 87 = 136; 0 + 86


@pytest.mark.parametrize("leak_first", [False, True])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_straight_through_gradients_equal_an_independent_loop(name, reset, leak_first):
    grid = Grid(1 / 16, 16, (171, 8), bits=4, shift=2, leak_first=leak_first)
    x = torch.randint(-20, 40, (5, 4, 6)).double().requires_grad_()
    weights = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    spikes, h, _ = scan(
        x, torch.zeros_like(x[0]), 1.0, 1.0, Constants(1.0, reset, Surrogate(name), grid=grid), True
    )
    spikes2, h2 = loop(x, None, None, None, reset, name, True, grid=grid)
    assert torch.equal(spikes, spikes2)
    assert torch.equal(h, h2)
    (mine,) = torch.autograd.grad((spikes * weights[0] + h * weights[1]).sum(), x)
    (their,) = torch.autograd.grad((spikes2 * weights[0] + h2 * weights[1]).sum(), x)
    torch.testing.assert_close(mine, their, rtol=1e-12, atol=1e-12)
