import copy
import inspect

import pytest
import torch
from neuron_loop import NAMES, RESETS
from torch import nn

from spikedistill.errors import SpikedistillError
from spikedistill.neurons import IF, LIF, PLIF, TYPES, NormNeuron, Repeat, build, compilation
from spikedistill.neurons.dynamics import Grid
from spikedistill.neurons.surrogate import Surrogate
from spikedistill.simulation import Simulation

T, N = 8, 3


@pytest.fixture(autouse=True, params=["eager", "uncompiled"])
def way(request):
    """Everything holds of the plain equations and of the fused arithmetic."""
    with compilation.use(request.param):
        yield request.param


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("ours, theirs", [(IF, "IFNode"), (LIF, "LIFNode"), (PLIF, "ParametricLIFNode")])
def test_equals_spikingjelly(ours, theirs, reset, detach):
    peers = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    time = {"IFNode": {}, "LIFNode": {"tau": 1.7}, "ParametricLIFNode": {"init_tau": 1.7}}[theirs]
    peer = getattr(peers, theirs)(
        **time, v_threshold=0.7, v_reset=0.0 if reset == "hard" else None,
        surrogate_function=surrogate.ATan(2.0),
        detach_reset=detach, step_mode="m",
    )  # fmt: skip
    mine = ours(**time, threshold=0.7, reset=reset, detach_reset=detach, time_steps=T)
    x = (2 * torch.randn(T, N, 5, 4)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(T, N, 5, 4)
    spikes, peer_spikes = mine(x.flatten(0, 1)).unflatten(0, (T, N)), peer(y)
    assert torch.equal(spikes, peer_spikes)
    assert 0.1 < spikes.mean() < 0.9
    (spikes * weights).sum().backward()
    (peer_spikes * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
    if ours is PLIF:
        torch.testing.assert_close(mine.w.grad, peer.w.grad, rtol=1e-5, atol=1e-5)


def test_lif_by_tau_and_by_decay():
    x = 3 * torch.randn(4 * 5, 6, dtype=torch.float64)
    assert torch.equal(LIF(tau=4.0)(x), LIF(decay=0.75, gain=0.25)(x))
    assert torch.equal(LIF()(x), LIF(tau=2.0)(x))
    assert LIF(decay=0.25).gain == 1
    assert PLIF(init_tau=3.0).double().gain.item() == pytest.approx(1 / 3, abs=1e-6)
    assert torch.equal(LIF(decay=1.0)(x), IF()(x))
    assert not IF().leaky
    assert LIF().leaky
    assert PLIF().leaky


def test_initial_membrane():
    assert IF(initial=0.75, time_steps=2)(torch.tensor([[0.25], [0.5]])).tolist() == [[1], [0]]
    neuron = IF(initial=0.75, time_steps=1)
    neuron.grid = Grid(0.25, 4, (1, 0))
    assert neuron(torch.tensor([[1.0], [0.0]])).tolist() == [[1], [0]]


@pytest.mark.parametrize("neuron", [IF(), LIF(surrogate="triangle"), PLIF(init_tau=3.0, reset="soft")])
def test_two_forwards_then_backward_through_both(neuron):
    layer = NormNeuron(5, copy.deepcopy(neuron)).double()
    a, b = torch.randn(2, 4 * 3, 5, dtype=torch.float64)

    def gradients(*inputs):
        layer.zero_grad()
        outputs = [layer(x) for x in inputs]
        sum((o * (i + 1)).sum() for i, o in enumerate(outputs)).backward()
        return [p.grad.clone() for p in layer.parameters()]

    both = gradients(a, b)
    first, twice = gradients(a), gradients(b)
    for g, one, two in zip(both, first, twice):
        torch.testing.assert_close(g, one + 2 * two)


@pytest.mark.parametrize(
    "make", [lambda e: LIF(encode=e, threshold=0.3, reset="soft"), lambda e: NormNeuron(5, LIF(encode=e))]
)
def test_encoding_equals_repeating_the_input(make):
    once, often = make(True).double(), nn.Sequential(Repeat(4), make(False)).double()
    x = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(24, 5, 3, 3, dtype=torch.float64)
    spikes, repeated = once(x), often(y)
    assert torch.equal(spikes, repeated)
    assert 0.05 < spikes.mean() < 0.95
    (spikes * weights).sum().backward()
    (repeated * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)
    for p, q in zip(once.parameters(), often.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)
    for p, q in zip(once.buffers(), often.buffers()):  # running statistics, unbiased factor included
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


class Tiny(nn.Module):
    """Convolution with an encoding neuron, a reused neuron, a readout."""

    def __init__(self, neuron, **options):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.first = NormNeuron(3, neuron(encode=True, **options))
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.shared = neuron(**options)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.shared(self.second(self.first(self.conv(x))))
        x = self.shared(self.second(x))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("neuron", [IF, LIF, PLIF])
@pytest.mark.parametrize("reset", RESETS)
def test_chained_steps_equal_one_forward(neuron, reset):
    net = Tiny(neuron, reset=reset, threshold=0.15, initial=0.1).double().eval()
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    with Simulation(net, T):
        whole = net(x).unflatten(0, (T, 5))
    state = {"step": 0}
    for t in range(T):
        with Simulation(net, 1, state=state) as sim:
            out = net(x)
        assert torch.equal(out, whole[t])
        assert set(sim.state_out) == {"first#0", "shared#0", "shared#1"}
        state = {"step": t + 1, **sim.state_out}
    assert whole.std(0).max() > 0  # the steps differ, so the state mattered


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_of_norm_neuron(name, reset):
    layer = NormNeuron(2, PLIF(1.7, 0.6, reset, name, time_steps=3, detach_reset=False, smooth=True)).double()
    names = ["weight", "bias", "neuron.w"]

    def f(x, *values):
        with Simulation(layer, 3, insides=[("", 0, "membrane")]) as sim:
            out = torch.func.functional_call(layer, dict(zip(names, values)), (x,))
        return out, sim.captured["", 0, "membrane"]

    values = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.2, 0.7], [0.3, -0.1], 0.2)
    ]
    assert torch.autograd.gradcheck(
        f, (torch.randn(6, 2, 2, dtype=torch.float64, requires_grad=True), *values)
    )


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_of_a_network(name, reset):
    net = Tiny(PLIF, reset=reset, surrogate=name, detach_reset=False, smooth=True, time_steps=3).double()
    names = [n for n, _ in net.named_parameters()]
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64)

    def f(*values):
        return torch.func.functional_call(net, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(f, tuple(net.parameters()), fast_mode=True)


@pytest.mark.parametrize("neuron", [LIF(), nn.ReLU()])
def test_norm_neuron_equals_batch_norm_then_neuron(neuron):
    mine, norm = NormNeuron(5, neuron).double(), nn.BatchNorm2d(5).double()
    x = 3 * torch.randn(8, 5, 4, 4, dtype=torch.float64) + 7
    residual = torch.randn(8, 5, 4, 4, dtype=torch.float64)
    for training in (True, True, False):
        mine.train(training), norm.train(training)
        torch.testing.assert_close(mine(x, residual), neuron(norm(x) + residual))
        assert mine.state_dict().keys() == norm.state_dict().keys()
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], value, rtol=1e-9, atol=1e-9)
    mean, var = mine.train().statistics(x)
    a, b = mine.affine(mean, var)
    torch.testing.assert_close(a.view(-1, 1, 1) * x + b.view(-1, 1, 1), norm.train()(x))


def test_recomputation_counts_and_updates_nothing():
    net = nn.Sequential(NormNeuron(2, LIF()), LIF())
    x = torch.randn(8, 2)
    with Simulation(net, 4, insides=[("1", 0, "spikes")]) as sim:
        before = sim.snapshot()
        out = net(x)
        mean, kept = net[0].running_mean.clone(), sim.captured["1", 0, "spikes"]
    with sim.reenter(before):
        assert torch.equal(net(x), out)
    assert torch.equal(net[0].running_mean, mean)
    assert net[0].num_batches_tracked == 1
    assert sim.captured["1", 0, "spikes"] is kept


def test_captures():
    net = nn.Sequential(NormNeuron(3, LIF(encode=True)), LIF(reset=None, surrogate="triangle"))
    x = torch.randn(2, 3, 4)
    insides = [
        ("0", 0, "current"),
        ("0", 0, "membrane"),
        ("1", 0, "membrane"),
        ("1", 0, "spikes"),
        ("1", 1, "spikes"),
    ]
    with Simulation(net, 5, insides=insides) as sim:
        out = net(x)
    assert set(sim.captured) == set(insides[:-1])  # the second call of "1" never came
    assert all(v.shape == (5, 2, 3, 4) for v in sim.captured.values())
    assert torch.equal(sim.captured["1", 0, "spikes"].flatten(0, 1), out)
    h, current = sim.captured["0", 0, "membrane"], sim.captured["0", 0, "current"]
    torch.testing.assert_close(h[0], current[0] / 2)
    assert torch.equal(sim.captured["1", 0, "membrane"] >= 1, sim.captured["1", 0, "spikes"].bool())


def test_captures_on_a_grid_are_in_real_units():
    neuron = LIF(time_steps=2)
    neuron.grid = Grid(1 / 8, 8, (1, 1))
    with Simulation(neuron, 2, insides=[("", 0, "membrane"), ("", 0, "current")]) as sim:
        neuron(torch.tensor([[5.0], [4.0]]))
    assert sim.captured["", 0, "current"].flatten().tolist() == [5 / 8, 4 / 8]
    assert sim.captured["", 0, "membrane"].flatten().tolist() == [5 / 8, 6 / 8]


def test_half_precision_keeps_its_state_in_float32():
    x = torch.full((256, 1), 1 / 256)  # bfloat16 sums of this stop at 1/2
    assert IF(time_steps=256)(x.bfloat16()).sum() == 1
    assert IF()(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("make, message", [
    (lambda: LIF(threshold=0), "threshold must be more than 0, found 0"),
    (lambda: IF(reset="zero"), "reset must be 'hard', 'soft' or None, found 'zero'"),
    (lambda: IF(time_steps=0), "time_steps must be at least 1, found 0"),
    (lambda: LIF(tau=2.0, decay=0.5), "tau or decay, not both"),
    (lambda: LIF(tau=0.5), "tau must be at least 1, found 0.5"),
    (lambda: LIF(decay=1.5), "decay must be between 0 and 1, found 1.5"),
    (lambda: PLIF(init_tau=1.0), "init_tau must be more than 1, found 1.0"),
    (lambda: LIF(surrogate="atn"), "did you mean 'atan'"),
    (lambda: build({"type": "lift"}), "did you mean 'lif'"),
    (lambda: build({"type": "lif", "tua": 2}), "did you mean 'tau'"),
    (lambda: LIF()(torch.zeros(6, 2)), r"found \(6, 2\), not a multiple of T = 4"),
])  # fmt: skip
def test_errors(make, message):
    with pytest.raises(SpikedistillError, match=message):
        make()


def test_a_stream_of_another_batch_is_refused():
    net = IF()
    with (
        Simulation(net, 1, state={"step": 1, "#0": torch.zeros(2, 3)}),
        pytest.raises(SpikedistillError, match="start a new stream"),
    ):
        net(torch.zeros(4, 3))


@pytest.mark.parametrize("neuron", [
    IF(reset="soft", initial=0.5), LIF(), LIF(tau=3.0, encode=True),
    LIF(decay=0.25, threshold=0.5, surrogate="rectangle"),
    LIF(tau=3.0, gain=1.0), PLIF(init_tau=3.0, surrogate=Surrogate("atan", 5.0), smooth=True,
    detach_reset=False, reset=None),
])  # fmt: skip
def test_a_neuron_can_be_built_from_its_spec(neuron):
    like = build({k: v for k, v in neuron.spec().items() if k != "encode"})
    like.encode = neuron.encode
    assert type(like) is type(neuron)
    assert like.constants == neuron.constants
    assert like.spec() == neuron.spec()
    assert like.decay == neuron.decay
    assert like.gain == neuron.gain
    assert build(neuron) is not neuron


@pytest.mark.parametrize("name", [name for name in TYPES if name != "qcfs"])
def test_a_types_name_is_the_one_its_instances_give(name):
    """An instance without a recipe is recorded by its own word, and has to be found under it again."""
    made = TYPES[name]()
    assert made.spec()["type"] == name
    assert type(build(made.spec())) is type(made)


class Half(LIF):
    def __init__(self, life: float = 1.0, **common):
        super().__init__(decay=0.5 ** (1 / life), **common)
        self.life = life


def test_common_options_are_handed_on_and_told_by_the_signature():
    assert [*inspect.signature(Half).parameters] == ["life", *inspect.signature(IF).parameters]
    made = Half(2.0, threshold=0.5, surrogate="rectangle")
    assert (made.life, made.threshold, made.surrogate.name) == (2.0, 0.5, "rectangle")
    assert repr(made) == "Half(life=2.0, threshold=0.5, surrogate='rectangle')"
    with pytest.raises(TypeError, match="thresold"):
        Half(thresold=0.5)
