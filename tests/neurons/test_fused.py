"""Fused arithmetic, run operation by operation, against an independent autograd loop and plain equations."""

import contextlib

import pytest
import torch
from neuron_loop import NAMES, RESETS, loop
from torch import nn

from spikedistill.errors import SpikedistillError
from spikedistill.neurons import IF, LIF, PLIF, NormNeuron, SlidingPSN, compilation, fused
from spikedistill.neurons.dynamics import Constants, Grid, round_ste
from spikedistill.neurons.surrogate import Surrogate
from spikedistill.simulation import Simulation

T, N, C = 5, 3, 4
LAYOUTS = {
    "first": ((2, 3), torch.contiguous_format),
    "last": ((2, 3), torch.channels_last),
    "sequence": ((6,), torch.contiguous_format),
    "linear": ((), torch.contiguous_format),
}


@pytest.fixture(autouse=True)
def _uncompiled():
    with compilation.uncompiled():
        yield


def tensor(*shape, layout="first", scale=1.0):
    places, form = LAYOUTS[layout]
    return (
        (scale * torch.randn(*shape, *places, dtype=torch.float64))
        .contiguous(memory_format=form)
        .requires_grad_()
    )


def is_fused(spikes):
    return "_Fused" in type(spikes.grad_fn).__name__


def gradients(outputs, inputs, seed=1):
    torch.manual_seed(seed)
    loss = sum((o * torch.randn(o.shape, dtype=o.dtype)).sum() for o in outputs)
    return torch.autograd.grad(loss, inputs)


def close(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def compare(
    layout="first",
    encode=False,
    reset="hard",
    name="atan",
    detach=True,
    grid=None,
    residual=True,
    membrane=True,
):
    """Given scale and shift: spikes and membranes equal those of the loop, and so do all gradients."""
    scale = 1.5 if grid is None else 25.0
    x = tensor(N if encode else T * N, C, layout=layout, scale=scale)
    a, b = (
        (torch.randn(C, dtype=torch.float64).abs() + 0.5).requires_grad_(),
        torch.zeros(C, dtype=torch.float64).requires_grad_(),
    )
    r = tensor(T * N, C, layout=layout, scale=0.3 * scale) if residual else None
    decay, gain = torch.tensor([0.6, 1.2], dtype=torch.float64, requires_grad=True).unbind()
    constants = Constants(0.9, reset, Surrogate(name), detach, grid=grid)
    spikes, charged = fused.run(
        x, T, encode, decay, gain, 0.1, constants, affine=(a, b), residual=r, membrane=membrane
    )  # fmt: skip
    assert is_fused(spikes)
    channel = (-1, *[1] * (x.dim() - 2))
    y = a.view(channel) * x
    y = (y if grid is None else round_ste(y)) + b.view(channel)
    y = y.expand(T, *y.shape) if encode else y.unflatten(0, (T, N))
    y = y if r is None else y + r.unflatten(0, (T, N))
    start = 0.1 if grid is None else float(round(0.1 / grid.unit))
    spikes2, charged2 = loop(y, decay, gain, 0.9, reset, name, detach, v=start, grid=grid)
    assert torch.equal(spikes.unflatten(0, (T, N)), spikes2)
    assert 0.05 < spikes.mean() < 0.95
    inputs = [x, a, b] + ([r] if residual else []) + ([decay, gain] if grid is None else [])
    outputs, outputs2 = [spikes.unflatten(0, (T, N))], [spikes2]
    if membrane:
        torch.testing.assert_close(charged, charged2, rtol=1e-12, atol=1e-12)
        outputs, outputs2 = [*outputs, charged], [*outputs2, charged2]
    else:
        assert charged is None
    close(gradients(outputs, inputs), gradients(outputs2, inputs))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_surrogate_and_reset(name, reset, detach):
    compare(name=name, reset=reset, detach=detach)


@pytest.mark.parametrize("form", ["plain", "fused", "over time"])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_stretched_surrogate_is_the_wider_one(form, smooth):
    """Beside the surrogate, so that layers of many widths share compiled code; a power of two: exactly."""
    kind = SlidingPSN if form == "over time" else LIF
    one = kind(surrogate=Surrogate("rectangle", 0.75), time_steps=T, smooth=smooth)
    other = kind(surrogate=Surrogate("rectangle", 1.5), time_steps=T, smooth=smooth)
    one.stretch = 2.0
    x = tensor(T * N, C)
    found = []
    with compilation.eager() if form == "plain" else contextlib.nullcontext():
        for neuron in (one, other):
            with Simulation(None, T):
                spikes = neuron(x)
            assert is_fused(spikes) == (form == "fused")
            found.append((spikes, *gradients([spikes], [x])))
    assert found[0][1].abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("membrane", [True, False])
@pytest.mark.parametrize("encode, residual", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_output(layout, encode, membrane, residual):
    compare(layout=layout, encode=encode, membrane=membrane, residual=residual)


@pytest.mark.parametrize("encode", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("grid", [
    Grid(1 / 16, 16, (171, 8)), Grid(1 / 16, 16, (1, 0), bits=6), Grid(1 / 16, 16, (171, 8), bits=4, shift=2),
    Grid(0.07, 14, (1, 1), bits=4, shift=2, leak_first=True), Grid(1 / 16, 16, (171, 8), leak_first=True),
])  # fmt: skip
def test_straight_through_gradients_on_grids(grid, reset, encode):
    compare(grid=grid, reset=reset, encode=encode, residual=not encode, name="triangle")
    compare(grid=grid, reset=reset, encode=encode, residual=False, detach=False)


@pytest.mark.parametrize("encode", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "neuron", [LIF(tau=1.7), PLIF(1.7, detach_reset=False), IF(reset="soft", threshold=0.6)]
)
def test_batch_statistics_equal_the_plain_equations(neuron, layout, encode):
    neuron.encode = encode
    layer = NormNeuron(C, neuron).double()
    x = tensor(N if encode else 4 * N, C, layout=layout, scale=2.0)
    r = tensor(N if encode else 4 * N, C, layout=layout)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 1.5]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.4]))
    inputs = [x, r, *layer.parameters()]
    results = []
    for way in ("uncompiled", "eager"):
        layer.running_mean.zero_(), layer.running_var.fill_(1)
        with compilation.use(way), Simulation(layer, 4, insides=[("", 0, "membrane")]) as sim:
            out = layer(x, r)
            charged = sim.captured["", 0, "membrane"]
            assert is_fused(out) == (way == "uncompiled")
            statistics = layer.running_mean.clone(), layer.running_var.clone()
            results.append((out, charged, *statistics, *gradients([out, charged], inputs)))
    assert torch.equal(results[0][0], results[1][0])
    close(results[0], results[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eval_mode_and_its_gradients(layout):
    layer = NormNeuron(C, LIF()).double().eval()
    with torch.no_grad():
        for p in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            p.copy_(torch.rand(C) + 0.5)
    x = tensor(4 * N, C, layout=layout, scale=3.0)
    inputs = [x, layer.weight, layer.bias]
    out = layer(x)
    assert is_fused(out)
    with compilation.eager():
        plain = layer(x)
    assert torch.equal(out, plain)
    close(gradients([out], inputs), gradients([plain], inputs))
    with torch.no_grad():
        assert torch.equal(layer(x), plain)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 2, 3, 1, 1), (1, 1, 3, 5, 7), (7, 3, 5, 3, 1), (3, 1, 2, 1, 5), (2, 5, 1, 3, 3)]
)
def test_odd_sizes(shape):
    steps, n, c, *places = shape
    for neuron in (LIF(time_steps=steps, threshold=0.2), LIF(time_steps=steps, encode=True, threshold=0.2)):
        for make in (lambda neuron: neuron, lambda neuron: NormNeuron(c, neuron).double()):
            layer = make(neuron)
            x = torch.randn(
                n if neuron.encode else steps * n, c, *places, dtype=torch.float64, requires_grad=True
            )
            out = layer(x)
            assert is_fused(out)
            with compilation.eager():
                plain = layer(x)
            assert torch.equal(out, plain)
            close(gradients([out], [x]), gradients([plain], [x]))


@pytest.mark.parametrize("layout", ["first", "last"])
def test_the_memory_layout_is_kept(layout):
    form = LAYOUTS[layout][1]
    x = tensor(4 * N, C, layout=layout)
    for layer in (LIF(), NormNeuron(C, LIF()).double()):
        assert layer(x).is_contiguous(memory_format=form)
    strided = torch.randn(4 * N, 2 * C, 2, 3, dtype=torch.float64).contiguous(memory_format=form)[:, ::2]
    with compilation.eager():
        plain = LIF()(strided)
    assert torch.equal(LIF()(strided), plain)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_spikes_may_be_changed_in_place(layout):
    x, layer = tensor(4 * N, C, layout=layout), NormNeuron(C, LIF()).double()
    results = []
    for way in ("uncompiled", "eager"):
        with compilation.use(way):
            out = layer(x)
            out += x
            results.append([out, *gradients([out * out], [x])])
    close(*results)


def test_a_module_used_twice():
    layer = NormNeuron(C, PLIF()).double()
    x, y = tensor(4 * N, C), tensor(4 * N, C, scale=2.0)
    inputs = [x, y, *layer.parameters()]
    both = gradients([layer(layer(x)), layer(y)], inputs)
    with compilation.eager():
        close(both, gradients([layer(layer(x)), layer(y)], inputs))


def test_exactly_representable_numbers_give_equal_bits():
    x = torch.randint(-512, 512, (4 * N, C, 4, 4)) / 256.0
    a, b = torch.tensor([1.0, 0.5, 2.0, -1.0]), torch.tensor([0.25, -0.5, 0.0, 1.0])
    spikes, charged = fused.run(
        x, 4, False, 0.5, 0.5, 0.0, Constants(reset="soft"), affine=(a, b), membrane=True
    )
    y = a.view(-1, 1, 1) * x + b.view(-1, 1, 1)
    with compilation.eager(), Simulation(LIF(reset="soft"), 4, insides=[("", 0, "membrane")]) as sim:
        assert torch.equal(sim.network(y), spikes)
    assert torch.equal(sim.captured["", 0, "membrane"], charged)


def test_with_batch_statistics_spikes_differ_first_only_at_the_threshold():
    layer = NormNeuron(16, LIF(tau=1.7))
    x = 5 * torch.randn(4 * 8, 16, 16, 16) + 3
    out = layer(x).unflatten(0, (4, 8))
    with compilation.eager(), Simulation(layer, 4, insides=[("", 0, "membrane")]) as sim:
        plain = layer(x).unflatten(0, (4, 8))
    differs = out != plain
    first = differs & (differs.cumsum(0) == 1)
    assert (sim.captured["", 0, "membrane"][first] - 1).abs().lt(1e-5).all()
    assert first.sum() <= 5  # of 131,072


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    layer = NormNeuron(C, LIF())
    x = (3 * torch.randn(4 * N, C, 5, 5)).to(dtype).requires_grad_()
    out = layer(x)
    exact = layer(x.float())
    assert out.dtype == dtype
    assert torch.equal(out.float(), exact)
    torch.testing.assert_close(
        gradients([out.float()], [x])[0].float(), gradients([exact], [x])[0].float(), rtol=1e-2, atol=1e-3
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x.float()), exact)


def test_only_the_current_is_kept_for_backward():
    layer, x = NormNeuron(8, LIF()), torch.randn(4 * 16, 8, 4, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    big = [t for t in kept if t.numel() > 100]
    assert [t.data_ptr() for t in big] == [x.data_ptr()]
    kept.clear()
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        compilation.eager(),
    ):
        layer(x)
    assert sum(t.numel() for t in kept) > 2 * x.numel()  # what the plain equations keep


def test_gradients_may_be_missing():
    layer, x = NormNeuron(C, LIF()).double(), tensor(4 * N, C)
    with Simulation(layer, 4, insides=[("", 0, "membrane")]) as sim:
        out = layer(x)
    (mine,) = torch.autograd.grad(sim.captured["", 0, "membrane"].square().sum(), x)
    with compilation.eager(), Simulation(layer, 4, insides=[("", 0, "membrane")]) as sim:
        layer(x)
    (plain,) = torch.autograd.grad(sim.captured["", 0, "membrane"].square().sum(), x)
    torch.testing.assert_close(mine, plain)
    frozen = NormNeuron(C, LIF()).double().requires_grad_(False)
    assert torch.autograd.grad(frozen(x).sum(), x)[0].abs().sum() > 0
    assert not frozen(x.detach()).requires_grad
    assert is_fused(out)


class Signed(LIF):
    """A neuron with equations of its own."""

    def simulate(self, current, state, T, membrane):
        return current.unsqueeze(0).flatten(0, 1).sign(), None, current[0]


def test_a_neuron_with_other_equations_keeps_them():
    x = tensor(4 * N, C)
    assert torch.equal(Signed()(x), x.sign())


def test_the_current_is_materialised_when_a_tap_asks():
    layer, x = NormNeuron(C, LIF()).double(), tensor(4 * N, C)
    with Simulation(layer, 4, insides=[("", 0, "current")]) as sim:
        out = layer(x)
    torch.testing.assert_close(sim.captured["", 0, "current"].flatten(0, 1), nn.BatchNorm2d(C).double()(x))
    assert torch.equal(out, LIF()(sim.captured["", 0, "current"].flatten(0, 1)))


def test_switches(monkeypatch):
    compilation._contexts.clear()
    monkeypatch.setenv("SPIKEDISTILL_EAGER", "1")
    assert compilation.mode() == "eager"
    monkeypatch.delenv("SPIKEDISTILL_EAGER")
    assert compilation.mode() == "compiled"
    with compilation.eager():
        assert compilation.mode() == "eager"
        with compilation.uncompiled():
            assert compilation.mode() == "uncompiled"
            assert not compilation.allowed()  # whoever asks within eager
        assert not compilation.allowed()
        assert not fused.usable(torch.zeros(1))
    assert compilation.allowed()
    compilation.enable(False)
    assert compilation.mode() == "eager"
    assert not compilation.allowed()
    compilation.enable(True)
    assert compilation.mode() == "compiled"
    compilation._contexts.append("uncompiled")  # for the fixture to take back


def test_a_compiler_that_fails_is_reported_once_and_replaced(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compilation, "_broken", None)
    x = tensor(3 * N, C)
    neuron = LIF(time_steps=3, threshold=0.123)
    with compilation.compiled():
        with pytest.warns(RuntimeWarning, match="no compiler here"):
            out = neuron(x)
        assert is_fused(out)
        out.sum().backward()  # a second warning would be an error
        assert not is_fused(neuron(x))  # from now on the plain equations, silently
        assert torch.equal(neuron(x), out)
    assert compilation.failure() == "RuntimeError: no compiler here"


def test_a_residual_of_another_shape_is_refused():
    with pytest.raises(SpikedistillError, match="residual"):
        NormNeuron(C, LIF())(torch.zeros(4, C, 2, 2), torch.zeros(1, C, 2, 2))


def test_what_inference_mode_kept_can_be_learned_with():
    neuron, norm = LIF(decay=0.37, time_steps=2), NormNeuron(8, LIF(decay=0.43, time_steps=2))
    x, given = torch.rand(4, 8, dtype=torch.float64), torch.rand(4, 8)
    with torch.inference_mode():
        neuron(x)
        norm.eval()(given.bfloat16())
    for module, value in ((neuron, x), (norm.train(), given)):
        value.requires_grad_()
        module(value).sum().backward()
        assert value.grad is not None
