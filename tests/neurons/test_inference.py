"""Norm, residual and neuron in native code, beside the same operations in torch and the equations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import spikedistill as sd
from spikedistill.neurons import IF, LIF, PLIF, Neuron, NormNeuron, compilation, inference, native
from spikedistill.neurons.norm_neuron import layers

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler")
NEURONS: dict[str, Callable[[], Neuron]] = {
    "if": IF,
    "lif": LIF,
    "plif": lambda: PLIF(init_tau=3.0),
    "soft": lambda: LIF(decay=0.7, threshold=0.6, reset="soft", reset_by=1.3),
    "soft at the threshold": lambda: IF(reset="soft", initial=0.5),
    "no reset": lambda: LIF(decay=0.25, threshold=0.4, reset=None, initial=0.1),
}
SHAPES = {"tokens": (12, 20, 7), "map": (12, 20, 5, 6), "one place": (12, 20, 1, 1), "vector": (12, 20)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes with which the native code is called."""
    seen: list[torch.Size] = []
    run = inference.run

    def counted(x: Tensor, *args: object) -> Tensor:
        seen.append(x.shape)
        return run(x, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "run", counted)
    return seen


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NEURONS)
def test_spikes_are_the_fused_arithmetic_s(
    kind: str, shape: str, last: bool, encode: bool, calls: list[torch.Size]
) -> None:
    neuron = NEURONS[kind]()
    neuron.encode = encode
    norm = NormNeuron(20, neuron).eval()
    for value in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        torch.nn.init.uniform_(value, 0.3, 1.5)
    x = 2 * torch.randn(SHAPES[shape])
    residual = None if encode else torch.rand_like(x)
    if last and x.dim() > 2:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    for module, more in ((norm, (residual,)), (neuron, ())):
        with torch.no_grad():
            with compilation.uncompiled():
                expected = module(x, *more)
            before = len(calls)
            with compilation.compiled():
                found = module(x, *more)
        assert len(calls) == before + 1
        assert torch.equal(found, expected)
        assert 0.02 < float(found.mean()) < 0.98
        assert x.dim() < 3 or encode or found.stride(1) == x.stride(1)


@pytest.mark.parametrize("T", [1, 4])
def test_a_network_gives_what_the_equations_give(T: int, calls: list[torch.Size]) -> None:
    torch.manual_seed(0)
    network = sd.networks.create("sew_resnet20", width=0.5, time_steps=T).train()
    x = torch.rand(6, 3, 16, 16)
    with torch.no_grad(), sd.eager():
        for _ in range(8):
            network(x)
        network.eval()
        expected = network(x)
        assert not calls
        with compilation.compiled():
            found = network(x)
    assert len(calls) == len(layers(network))
    same = (found - expected).abs().amax((0, 2)) < 1e-4
    assert same.double().mean() > 0.8  # a rounding may turn a spike at the threshold
    assert float(expected.std()) > 0.05


def test_what_it_does_not_know_goes_elsewhere(calls: list[torch.Size]) -> None:
    x, neuron = torch.randn(8, 3, 4, 4), LIF()
    with compilation.compiled():
        with torch.no_grad():
            for given in (x.double(), x.bfloat16()):
                neuron(given)
            LIF(smooth=True)(x)
            with sd.eager():
                neuron(x)
        assert not calls
        y = x.requires_grad_()
        assert neuron(y).requires_grad
    assert not calls


def test_not_finite_values_do_not_fire() -> None:
    x = torch.full((4, 2, 3, 3), float("nan"))
    with torch.no_grad(), compilation.compiled():
        assert not LIF()(x).any()
