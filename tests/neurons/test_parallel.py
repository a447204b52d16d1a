import math

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.neurons import (
    PSN,
    MaskedPSN,
    NormNeuron,
    SlidingPSN,
    Surrogate,
    build,
    compilation,
    layers,
    parallel,
)
from spikedistill.simulation import Simulation
from spikedistill.training.store import load_network, save_network

T, N = 6, 3
KINDS = ["psn", "masked_psn", "sliding_psn"]


def spec(kind, **options):
    return {"type": kind, **({} if kind == "psn" else {"order": 3}), **options}


def ours(kind, **options):
    return build(spec(kind, time_steps=T, **options))


def peer_of(mine):
    peers = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate").ATan(2.0)
    if isinstance(mine, PSN):
        peer = peers.PSN(T, surrogate)
    elif isinstance(mine, MaskedPSN):
        peer = peers.MaskedPSN(mine.order, T, mine.mask, surrogate, "m")
    else:
        peer = peers.SlidingPSN(mine.order, True, surrogate, "m")
    peer = peer.double()
    with torch.no_grad():
        if isinstance(mine, MaskedPSN):
            peer.lambda_ = mine.mask  # in float64 again
        peer.weight.copy_(mine.weight)
        peer.bias.copy_((mine.bias - mine.threshold).view(peer.bias.shape))
    return peer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.7}, {"mask_start": 0.4, "anneal": 10}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_spikingjelly_in_values_and_gradients(kind, options, layout):
    if "anneal" in options and kind != "masked_psn":
        pytest.skip("only a mask comes in slowly")
    mine = ours(kind, surrogate="atan", **options).double()
    with torch.no_grad():
        mine.weight.normal_(0, 0.8)
        mine.bias.normal_(0.2, 0.3)
    peer = peer_of(mine)
    x = torch.randn(T * N, 5, 4, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y = x.detach().clone().requires_grad_()
    g = torch.randn(T, N, 5, 4, 4, dtype=torch.float64)
    out, theirs = mine(x).unflatten(0, (T, N)), peer(y.unflatten(0, (T, N)).contiguous())
    assert torch.equal(out, theirs)
    assert 0.1 < float(out.detach().mean()) < 0.9
    (out * g).sum().backward()
    (theirs * g).sum().backward()
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(x.grad, y.grad, **close)
    torch.testing.assert_close(mine.weight.grad, peer.weight.grad, **close)
    torch.testing.assert_close(mine.bias.grad, peer.bias.grad.view(mine.bias.shape), **close)


def test_initial_weights_are_the_references():
    peers = pytest.importorskip("spikingjelly.activation_based.neuron")
    assert torch.equal(SlidingPSN(order=4).weight, peers.SlidingPSN(4).weight)
    assert SlidingPSN(order=3).weight.tolist() == [0.25, 0.5, 1.0]
    weight = PSN(init="uniform", time_steps=64).weight
    assert weight.shape == (64, 64)
    assert 0.95 / 8 < float(weight.detach().abs().max()) <= 1 / 8  # 1 / sqrt(T)
    causal = PSN(time_steps=3).weight
    assert causal.tolist() == [[1, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]]


def test_closed_form_of_the_sliding_one():
    mine = SlidingPSN(order=2, time_steps=4)
    x = torch.tensor([[0.8], [0.8], [-0.5], [1.3]])
    with Simulation(mine, 4, insides=[("", 0, "membrane"), ("", 0, "current")]) as sim:
        spikes = mine(x)
    h = sim.captured[("", 0, "membrane")].flatten()
    assert h.tolist() == pytest.approx([0.8, 1.2, -0.1, 1.05])
    assert spikes.flatten().tolist() == [0, 1, 0, 1]
    assert torch.equal(sim.captured[("", 0, "current")].flatten(0, 1), x)


def test_order_one_is_a_neuron_without_memory():
    x = torch.randn(T * N, 5)
    assert torch.equal(SlidingPSN(order=1, time_steps=T)(x), (x >= 1).float())


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoding_neuron_sees_the_same_current_at_each_step(kind):
    torch.manual_seed(0)
    mine = ours(kind)
    mine.encode = True
    same = ours(kind)
    same.load_state_dict(mine.state_dict())
    x = 2 * torch.randn(N, 5)
    assert torch.equal(mine(x), same(x.repeat(T, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_smooth_neuron(kind):
    mine = ours(kind, smooth=True).double()
    x = torch.randn(T * 2, 3, dtype=torch.float64, requires_grad=True)
    parameters = (mine.weight, mine.bias)

    def run(x, weight, bias):
        return torch.func.functional_call(mine, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("kind", ["masked_psn", "sliding_psn"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_streaming_equals_one_pass(kind, order):
    network = sd.networks.create(
        "vgg5", in_channels=1, width=0.2, pools=1, time_steps=5, neuron={"type": kind, "order": order}
    )
    x = torch.rand(4, 1, 8, 8)
    sd.balance(network, x)
    network.eval()
    state, outs = None, []
    for _ in range(5):
        out, state = network.step(x, state)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs), network(x))
    assert all(v.shape[:2] == (4, order - 1) for k, v in state.items() if k != "step")
    assert float(network(x).detach().std()) > 0


def test_what_cannot_be_streamed_is_refused_by_name():
    x = torch.rand(2, 1, 8, 8)
    network = sd.networks.create("vgg5", in_channels=1, width=0.2, pools=1, neuron={"type": "psn"}).eval()
    with pytest.raises(
        SpikedistillError, match=r"psn sums over all time steps.*cannot be streamed.*sliding_psn"
    ):
        network.step(x)
    soft = {"type": "masked_psn", "order": 2, "anneal": 10}
    network = sd.networks.create("vgg5", in_channels=1, width=0.2, pools=1, neuron=soft).eval()
    with pytest.raises(SpikedistillError, match=r"masked_psn still sees all steps.*cannot be streamed"):
        network.step(x)
    hard = {"type": "masked_psn", "order": 2}
    network = sd.networks.create("vgg5", in_channels=1, width=0.2, pools=1, time_steps=1, neuron=hard).eval()
    _, state = network.step(x)
    with pytest.raises(SpikedistillError, match=r"masked_psn has weights for T = 1 time steps, found T = 2"):
        network.step(x, state)


@pytest.mark.parametrize("kind", ["psn", "masked_psn"])
def test_another_t_is_refused(kind):
    network = sd.networks.create("vgg5", in_channels=1, width=0.2, pools=1, neuron={"type": kind})
    network.time_steps = 8
    with pytest.raises(SpikedistillError, match=rf"{kind} has weights for T = 4 time steps, found T = 8"):
        network(torch.rand(2, 1, 8, 8))


def test_the_sliding_one_runs_at_any_t():
    network = sd.networks.create(
        "vgg5", in_channels=1, width=0.2, pools=1, neuron={"type": "sliding_psn"}
    ).eval()
    x = torch.rand(2, 1, 8, 8)
    short = network(x)
    network.time_steps = 9
    torch.testing.assert_close(network(x)[:4], short)


def test_the_mask_comes_in_with_the_training_passes():
    mine = MaskedPSN(order=1, anneal=4, mask_start=0.2, time_steps=3)
    masks = []
    for _ in range(6):
        masks.append(mine.mask)
        mine(torch.randn(3, 2))
    assert masks == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert torch.equal(mine.whole(), mine.weight * torch.eye(3))
    mine.eval()(torch.randn(3, 2))
    assert int(mine.passes) == 6
    again = MaskedPSN(order=1, anneal=4, mask_start=0.2, time_steps=3)
    again.load_state_dict(mine.state_dict())
    assert again.mask == 1


@pytest.mark.parametrize("name", ["vgg9", "resnet20", "sew_resnet20", "ms_resnet20", "spikformer_2_256"])
@pytest.mark.parametrize("kind", KINDS)
def test_families_start_balanced_and_learn(name, kind):
    torch.manual_seed(0)
    options = {} if name.startswith("spik") else {"width": 0.25}
    network = sd.networks.create(name, time_steps=4, neuron={"type": kind}, **options)
    x = torch.rand(4, 4, 2, 32, 32) if name.startswith("spik") else torch.rand(16, 3, 16, 16)
    sd.balance(network, x)
    network.train()
    out, seen = taps.captures(network, x, ["*@spikes", "*@membrane"])
    seen.tensors = {k: v.detach() for k, v in seen.tensors.items()}
    rates = {k: float(v.mean()) for k, v in seen.tensors.items() if k.endswith("@spikes")}
    # An attention's sums are mostly 0 on so few tokens: its neuron fires where it can.
    assert all((0.0 if "attn.neuron" in k else 0.08) < r <= 0.3 for k, r in rates.items()), rates
    for key, spikes in seen.tensors.items():
        if key.endswith("@spikes"):
            threshold = dict(layers(network))[key[:-7].split("#")[0]].threshold
            h = seen.tensors[key[:-7] + "@membrane"]
            assert torch.equal(spikes > 0, h >= threshold)
    out.square().sum().backward()
    assert all(
        n.weight.grad is not None and float(n.weight.grad.abs().max()) > 0 for n in layers(network).values()
    )


def test_layers_draw_their_own_weights_and_the_balance_draws_none():
    def made(kind):
        torch.manual_seed(1)
        network = sd.networks.create("vgg5", in_channels=1, neuron={"type": kind, "init": "uniform"})
        return network, torch.rand(1)

    network, after = made("psn")
    first, second = list(layers(network).values())[:2]
    assert not torch.equal(first.weight, second.weight)
    again, after_again = made("psn")  # the second time the balance is known
    assert torch.equal(after, after_again)
    assert network.balanced_by == "data"
    assert torch.equal(again.state_dict()["stage1.1.weight"], network.state_dict()["stage1.1.weight"])


def test_saved_and_loaded(tmp_path):
    spec = {"type": "masked_psn", "order": 3, "threshold": 0.8, "anneal": 2}
    network = sd.networks.create("vgg5", in_channels=1, width=0.2, pools=1, time_steps=6, neuron=spec)
    x = torch.rand(4, 1, 8, 8)
    sd.balance(network, x)
    network(x)
    save_network(tmp_path / "n", network, {}, "")
    back = load_network(tmp_path / "n")
    network.eval(), back.eval()
    assert torch.equal(network(x), back(x))
    assert {k: n.spec() for k, n in layers(back).items()} == {k: n.spec() for k, n in layers(network).items()}
    assert all(n.mask == 0.5 for n in layers(back).values())


@pytest.mark.parametrize("kind", KINDS)
def test_spec_makes_its_like(kind):
    mine = ours(kind, threshold=0.6, surrogate={"name": "sigmoid", "alpha": 3.0})
    like = build(mine.spec())
    assert like.spec() == mine.spec()
    assert mine.spec()["type"] == kind
    assert like.surrogate == Surrogate("sigmoid", 3.0)


def test_nothing_is_copied_in_channels_last():
    x = torch.randn(T * N, 8, 4, 4).to(memory_format=torch.channels_last)
    h = parallel.product(torch.eye(T), x.unflatten(0, (T, N)), torch.zeros(T))
    assert torch.equal(h, x.unflatten(0, (T, N)))
    assert h.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_behind_a_norm_in_every_way_of_running():
    norm = NormNeuron(5, SlidingPSN(order=2, time_steps=T))
    nn.init.constant_(norm.weight, 2.0)
    x, r = torch.randn(T * N, 5, 3, 3), torch.rand(T * N, 5, 3, 3)
    found = []
    for mode in ("eager", "uncompiled"):
        with compilation.use(mode):
            found.append(norm.eval()(x, r).detach())
    assert torch.equal(*found)
    assert 0 < float(found[0].mean()) < 1


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"type": "sliding_psn", "order": 0}, "sliding_psn: order must be a whole number from 1, found 0"),
        ({"type": "masked_psn", "order": 1.5}, "masked_psn: order must be a whole number from 1, found 1.5"),
        ({"type": "masked_psn", "mask_start": 2.0}, "mask_start must be between 0 and 1, found 2.0"),
        ({"type": "psn", "init": "zeros"}, "psn: init must be 'exponential' or 'uniform', found 'zeros'"),
        ({"type": "psn", "reset": "hard"}, "neuron psn: unknown option 'reset'"),
    ],
)
def test_refusals(spec, words):
    with pytest.raises(SpikedistillError, match=words):
        build(spec)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"accuracy_at": [2]}, r"stages\.b\.accuracy_at: psn has weights for T = 4 time steps, found 2"),
        ({"time_steps": 8}, r"stages\.b\.time_steps: psn has weights for T = 4 time steps, found 8"),
        (
            {"objectives": [{"type": "temporal_self_distillation", "time_steps": 8}]},
            r"stages\.b\.objectives\.temporal_self_distillation\.time_steps: "
            r"psn has weights for T = 4 time steps, found 8",
        ),
    ],
)
def test_recipes_that_ask_for_another_t_are_refused_before_anything_runs(change, words):
    from spikedistill.recipe import load

    def recipe(kind, change):
        network = {"name": "vgg5", "neuron": {"type": kind}}
        return {"stages": [{"name": "a", "network": network}, {"name": "b", "from": "a", **change}]}

    load(recipe("sliding_psn", change))
    load(recipe("psn", {"accuracy_at": [4], "time_steps": 4}))
    with pytest.raises(SpikedistillError, match=words):
        load(recipe("psn", change))


def test_kaiming_bound_of_the_sliding_one():
    assert float(SlidingPSN(order=400, init="uniform").weight.detach().abs().max()) <= 1 / math.sqrt(400)
