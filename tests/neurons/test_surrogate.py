import pytest
import torch
from neuron_loop import NAMES

from spikedistill.errors import SpikedistillError
from spikedistill.neurons.surrogate import SURROGATES, Surrogate, fire


def test_every_surrogate_is_tested():
    assert set(NAMES) == set(SURROGATES)


@pytest.mark.parametrize("alpha", [None, 0.7, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_is_that_of_the_primitive(name, alpha):
    s = Surrogate(name, alpha)
    u, eps = torch.linspace(-2.003, 2.011, 401, dtype=torch.float64), 1e-6
    numerical = (s.primitive(u + eps) - s.primitive(u - eps)) / (2 * eps)
    torch.testing.assert_close(s.derivative(u), numerical, rtol=1e-5, atol=1e-6)
    assert s.primitive(torch.zeros(1)) == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_area_and_height_of_the_defaults(name):
    s, far = Surrogate(name), torch.tensor([-1e9, 1e9], dtype=torch.float64)
    low, high = s.primitive(far)
    assert high - low == pytest.approx(2 / 25 if name == "fast_sigmoid" else 1.0, abs=1e-6)
    assert s.derivative(torch.zeros(())) == 1.0


@pytest.mark.parametrize("ours, theirs, alpha", [
    ("atan", "ATan", 2.0), ("sigmoid", "Sigmoid", 4.0), ("triangle", "PiecewiseQuadratic", 1.0),
    ("rectangle", "Rect", 1.0),
])  # fmt: skip
def test_gradients_equal_those_of_spikingjelly(ours, theirs, alpha):
    peer = getattr(pytest.importorskip("spikingjelly.activation_based.surrogate"), theirs)(alpha=alpha)
    u = torch.linspace(-1.51, 1.53, 50, requires_grad=True)
    (mine,) = torch.autograd.grad(fire(u, Surrogate(ours)).sum(), u)
    (their,) = torch.autograd.grad(peer(u).sum(), u)
    torch.testing.assert_close(mine, their, rtol=1e-6, atol=1e-7)


def test_fire_is_one_at_zero_and_scales_its_argument():
    u = torch.tensor([-1.0, 0.0, 3.0], requires_grad=True)
    spike = fire(u, Surrogate("triangle"), scale=0.25)
    assert spike.tolist() == [0, 1, 1]
    (g,) = torch.autograd.grad(spike.sum(), u)
    assert g.tolist() == [0.25 * 0.75, 0.25, 0.25 * 0.25]


def test_errors_name_what_is_allowed():
    with pytest.raises(SpikedistillError, match="did you mean 'triangle'"):
        Surrogate("triangel")
    with pytest.raises(SpikedistillError, match=r"alpha must be more than 0, found -1"):
        Surrogate("atan", -1)
    with pytest.raises(SpikedistillError, match="unknown key 'slope'; allowed: name, alpha"):
        Surrogate.of({"name": "atan", "slope": 2})
    assert Surrogate.of({"name": "atan", "alpha": 3.0}) == Surrogate("atan", 3.0)
