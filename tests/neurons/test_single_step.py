"""At T = 1 small maps run as torch's norm and one comparison: equal to the plain equations."""

import pytest
import torch

import spikedistill as sd
from spikedistill.neurons import IF, LIF, PLIF, NormNeuron, single_step

NEURONS = {
    "lif": {"tau": 2.0, "surrogate": "atan"},
    "counting": {"reset": "soft", "initial": 0.5, "surrogate": "rectangle"},
    "learned": {"surrogate": "triangle"},
}
KINDS = {"lif": LIF, "counting": IF, "learned": PLIF}


def layer(kind: str, encode: bool) -> NormNeuron:
    neuron = KINDS[kind](time_steps=1, encode=encode, **NEURONS[kind])
    if kind == "counting":
        neuron.stretch = 1.7
    found = NormNeuron(4, neuron).double()
    torch.manual_seed(1)
    for p in (found.weight, found.bias):
        torch.nn.init.uniform_(p, 0.5, 1.5)
    return found


def measured(kind: str, encode: bool, residual: bool) -> list[torch.Tensor]:
    module = layer(kind, encode)
    torch.manual_seed(2)
    x = (torch.randn(6, 4, 5, 3, dtype=torch.float64) + 0.3).requires_grad_()
    r = torch.rand(6, 4, 5, 3, dtype=torch.float64).requires_grad_() if residual else None
    out = module(x, r)
    (out * torch.randn(out.shape, dtype=torch.float64)).sum().backward()
    grads = [x.grad, module.weight.grad, module.bias.grad, *([] if r is None else [r.grad])]
    return [out.detach(), *grads, module.running_mean, module.running_var, module.num_batches_tracked]


@pytest.fixture
def calls(monkeypatch):
    made: list[int] = []
    run = single_step.run
    monkeypatch.setattr(single_step, "run", lambda *given: made.append(1) or run(*given))
    return made


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("kind", ["lif", "counting"])
def test_equal_to_the_plain_equations(kind: str, encode: bool, residual: bool, calls: list[int]) -> None:
    with sd.eager():
        plain = measured(kind, encode, residual)
    assert not calls
    with sd.neurons.compilation.compiled():
        found = measured(kind, encode, residual)
    assert len(calls) == 1
    assert 0 < float(plain[0].mean()) < 1
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_neuron_alone(calls: list[int]) -> None:
    x = torch.randn(8, 5, requires_grad=True)
    found = []
    for context in (sd.eager, sd.neurons.compilation.compiled):
        x.grad = None
        with context():
            out = LIF(time_steps=1)(x)
            out.sum().backward()
        found.append((out.detach(), x.grad))
    assert len(calls) == 1
    torch.testing.assert_close(found[0], found[1])


def test_narrow_types_are_computed_in_float32(calls: list[int]) -> None:
    found = []
    for context in (sd.neurons.compilation.uncompiled, sd.neurons.compilation.compiled):
        module = layer("lif", False).float()
        x = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
        with context():
            out = module(x)
            out.sum().backward()
        assert out.dtype == x.grad.dtype == torch.bfloat16
        found.append((out.detach(), x.grad, module.weight.grad, module.running_var))
    assert len(calls) == 1
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["several steps", "learned", "large", "evaluated", "one value"])
def test_what_runs_otherwise(kind: str, calls: list[int], monkeypatch) -> None:
    module = layer("learned" if kind == "learned" else "lif", False)
    if kind == "several steps":
        module.neuron.time_steps = 2
    if kind == "large":
        monkeypatch.setattr(single_step, "MOST_VALUES", 100)
    module.train(kind != "evaluated")
    with sd.neurons.compilation.compiled(), torch.set_grad_enabled(kind != "evaluated"):
        module(torch.randn(*((1, 4, 1, 1) if kind == "one value" else (6, 4, 5, 3)), dtype=torch.float64))
    assert not calls
    assert bool(torch.isfinite(module.running_var).all())


def test_a_block_computed_twice_is_counted_once(calls: list[int]) -> None:
    network = sd.networks.create("vgg5", num_classes=3, width=0.125, pools=1, time_steps=1)
    counted = {}
    for memory in (None, "lean"):
        torch.manual_seed(0)
        one = sd.networks.create("vgg5", num_classes=3, width=0.125, pools=1, time_steps=1)
        one.load_state_dict(network.state_dict())
        with sd.neurons.compilation.compiled():
            from spikedistill.training.machine import saving

            with saving(memory or "default", one):
                one.predict(
                    torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
                ).sum().backward()
        counted[memory] = {k: v.clone() for k, v in one.named_buffers()}
    for key, value in counted[None].items():
        torch.testing.assert_close(counted["lean"][key], value)
