"""Rate-based backpropagation: traces against autograd and the paper's recursion, gradients, refusals."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import spikedistill as sd
from spikedistill import taps
from spikedistill.neurons import compilation, dynamics, fused
from spikedistill.neurons.dynamics import Constants
from spikedistill.neurons.surrogate import Surrogate
from spikedistill.recipe import load

ENTROPY = [{"type": "cross_entropy"}]
SIGMOID = Surrogate("sigmoid")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name="conv6", T=4, seed=0, **options):
    torch.manual_seed(seed)
    return sd.networks.create(name, num_classes=5, width=0.125, time_steps=T, **options).double()


def gradients(network, x, y, way, objectives=ENTROPY, mode="eager"):
    network = copy.deepcopy(network)
    with compilation.use(mode):
        distiller = sd.Distiller(network, None, objectives, backpropagation=way).setup(x).train()
        losses = distiller(x, y)
        losses.total.backward()
    return losses, {n: p.grad for n, p in network.named_parameters()}, network


CASES = list(itertools.product(("hard", "soft", None), (True, False), (True, False), (1.0, 0.4)))


@pytest.mark.parametrize(("reset", "detach", "encode", "decay"), CASES)
def test_the_trace_is_the_rates_derivative_by_a_current_at_every_step(reset, detach, encode, decay):
    T, shape = 5, (7, 3)
    constants = Constants(0.7, reset, SIGMOID, detach)
    current = random(*(shape if encode else (T, *shape)), seed=1)
    added = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    start = torch.full(shape, 0.2, dtype=torch.float64)
    spikes, _, _ = dynamics.scan(
        current + added, start, decay, 0.8, constants, steps=T if encode else None
    )  # fmt: skip
    (want,) = torch.autograd.grad(spikes.mean(0).sum(), added)
    with compilation.uncompiled():
        flat = current if encode else current.flatten(0, 1)
        found, rate, slope = fused.rates(flat, T, encode, decay, 0.8, 0.2, constants)
    assert torch.equal(found, spikes.detach().flatten(0, 1))
    torch.testing.assert_close(rate, spikes.detach().mean(0), rtol=0, atol=1e-15)
    torch.testing.assert_close(slope, want, rtol=1e-12, atol=1e-14)


def test_the_trace_is_the_papers_for_a_detached_soft_reset():
    """Its recursion, number by number: e_1 = 1, e_t+1 = 1 + decay e_t, mean_t sigma'(H_t - 1) e_t."""
    T, decay = 6, 0.2
    current = random(T, 4, seed=2) + 0.5
    want = []
    for i in current.T:
        v, e, trace = 0.0, 1.0, 0.0
        for t in range(T):
            h = decay * v + float(i[t])
            s = 1 / (1 + torch.exp(torch.tensor(-4.0 * (h - 1), dtype=torch.float64)))
            trace += float(4 * s * (1 - s)) * e / T
            v, e = h - (h >= 1), 1 + decay * e
        want.append(trace)
    with compilation.uncompiled():
        slope = fused.rates(current.flatten(), T, False, decay, 1.0, 0.0, Constants(1.0, "soft", SIGMOID))[2]
    assert slope.tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ["conv6", "vgg9", "resnet20", "ms_resnet20", "sew_resnet20"])
def test_at_one_step_it_is_backpropagation_through_time(name):
    network, x, y = made(name, T=1).train(), random(6, 3, 16, 16).abs(), torch.arange(6) % 5
    found = []
    for rate_based in (False, True):
        copied = copy.deepcopy(network)
        with compilation.eager():
            logits, _ = taps.run(copied, x, rate_based=rate_based)
        nn.functional.cross_entropy(logits[0], y).backward()
        found.append([logits, *(p.grad for p in copied.parameters()), *copied.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("neuron", [{"type": "lif", "decay": 0.3}, {"type": "lif", "reset": "soft"}])
def test_of_one_layer_of_neurons_it_is_exact_at_any_number_of_steps(neuron):
    """The current is constant: an equal one is added at every step, and nothing else is between."""
    network, x, y = made("vgg5", T=6, neuron=neuron), random(6, 3, 16, 16).abs(), torch.arange(6) % 5
    network.stage2 = nn.Identity()
    network.head = nn.Linear(8, 5).double()
    _, want, _ = gradients(network, x, y, "through_time")
    for mode in ("eager", "uncompiled"):
        _, found, _ = gradients(network, x, y, "rate_based", mode=mode)
        for key, value in want.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=f"{mode} {key}")


class Two(sd.networks.base.Network):
    """Two layers, one with a norm that stands alone, another input every step."""

    def __init__(self, **common):
        super().__init__(num_classes=5, in_channels=2, input="frames", **common)
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.neuron1 = sd.LIF(decay=0.3, reset="soft", surrogate="sigmoid")
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), sd.NormNeuron(8, sd.LIF(decay=0.3))
        self.head = nn.Linear(8, 5)

    def body(self, x):
        x = self.pool(self.neuron1(self.norm1(self.conv1(x))))
        return self.head(self.norm2(self.conv2(x)).mean((2, 3)))


def by_hand(network, x, y, T):
    """Both passes written out, of norms by their statistics over all steps."""
    spikes, rate, slope, moments, values = x.transpose(0, 1).flatten(0, 1), {}, {}, {}, {}
    rate["input"] = x.mean(1)
    parts = (
        (network.conv1, network.norm1, network.neuron1, network.pool),
        (network.conv2, network.norm2, network.norm2.neuron, nn.Identity()),
    )
    for k, (conv, norm, neuron, pool) in enumerate(parts):
        current = conv(spikes)
        var, mean = torch.var_mean(current, (0, 2, 3), unbiased=False)
        moments[k] = mean.detach(), var.detach()
        a = norm.weight / (var + norm.eps).sqrt()
        current = (current - mean.view(-1, 1, 1)) * a.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        steps = current.detach().unflatten(0, (T, -1))
        added = torch.zeros_like(steps[0], requires_grad=True)
        out, _, _ = dynamics.scan(
            steps + added, torch.zeros_like(steps[0]), neuron.decay, neuron.gain, neuron.constants
        )
        (slope[k],) = torch.autograd.grad(out.mean(0).sum(), added)
        rate[k] = out.detach().mean(0)
        spikes = pool(out.detach().flatten(0, 1))
        values[k] = spikes.unflatten(0, (T, -1)).mean(0)
    r = rate["input"]
    for k, (conv, norm, _, pool) in enumerate(parts):
        i = conv(r)
        mean = i.mean((0, 2, 3), keepdim=True)
        var = ((i - mean) ** 2).mean((0, 2, 3), keepdim=True)
        # Values of all steps, derivatives of the rates.
        mean = mean - mean.detach() + moments[k][0].view(1, -1, 1, 1)
        var = var - var.detach() + moments[k][1].view(1, -1, 1, 1)
        i = (i - mean) / (var + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        r = rate[k] + slope[k] * (i - i.detach())
        pooled = pool(r)
        r = pooled - pooled.detach() + values[k]
    return nn.functional.cross_entropy(network.head(r.mean((2, 3))), y)


@pytest.mark.parametrize("mode", ["eager", "uncompiled", "compiled"])
def test_two_passes_are_those_written_out_by_hand(mode):
    torch.manual_seed(3)
    network = Two(time_steps=4).double().train()
    with torch.no_grad():
        for norm in (network.norm1, network.norm2):
            norm.weight.uniform_(1, 2)
            norm.bias.uniform_(-0.2, 0.6)
    x, y = random(6, 4, 2, 8, 8, seed=4) * 2, torch.arange(6) % 5
    want = by_hand(network, x, y, 4)
    parameters = dict(network.named_parameters())
    expected = dict(zip(parameters, torch.autograd.grad(want, list(parameters.values()))))
    losses, found, _ = gradients(network, x, y, "rate_based", mode=mode)
    assert float(losses.total.detach()) == pytest.approx(float(want.detach()), rel=1e-12)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)


def test_logits_captures_and_statistics_are_those_of_the_spikes():
    x = random(6, 3, 16, 16).abs()
    for name in ("vgg9", "ms_resnet20"):
        network = made(name).train()
        other = copy.deepcopy(network)
        with torch.no_grad():
            logits, spikes = taps.captures(network, x, ["stages", "*@spikes"])
            averaged, rates = taps.run_resolved(
                other, x, {t: taps.resolve(other, t, x) for t in ("stages", "*@spikes")}, rate_based=True
            )
        torch.testing.assert_close(averaged[0], logits.mean(0), rtol=1e-9, atol=1e-12)
        for tap in ("stages", "*@spikes"):
            for path, mean in spikes.means(tap).items():
                torch.testing.assert_close(rates.all(tap)[path][0], mean, rtol=1e-9, atol=1e-12)
        for a, b in zip(network.buffers(), other.buffers()):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_what_backward_keeps_does_not_grow_with_time_steps():
    def kept(T, way):
        network, x, y = made(T=T), random(6, 3, 16, 16), torch.arange(6) % 5
        sizes = {}
        distiller = sd.Distiller(network, None, ENTROPY, backpropagation=way).setup(x).train()
        keep = lambda t: sizes.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t  # noqa: E731
        with compilation.uncompiled(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            losses = distiller(x, y)
        assert losses.total.requires_grad
        return sum(sizes.values())

    assert kept(16, "rate_based") == kept(2, "rate_based")
    assert kept(16, "through_time") > 4 * kept(2, "through_time")


def test_a_quiet_norm_stays_as_it_is_and_forwards_stay_where_they_were():
    network, x, y = made("resnet20"), random(4, 3, 16, 16).abs(), torch.arange(4)
    network.layer1.eval()
    before = copy.deepcopy(network.layer1.state_dict())
    with compilation.eager():
        distiller = sd.Distiller(network, None, ENTROPY, backpropagation="rate_based").setup(x)
        for module in network.layer1.modules():
            assert not module.training
        distiller(x, y).total.backward()
    assert all(torch.equal(value, before[key]) for key, value in network.layer1.state_dict().items())
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(p.grad is not None for p in network.parameters())


def refused(network, words, objectives=ENTROPY, x=None):
    with pytest.raises(sd.SpikedistillError, match=words):
        sd.Distiller(network, None, objectives, backpropagation="rate_based").setup(
            torch.rand(4, 3, 16, 16) if x is None else x
        )


def test_what_has_no_rates_is_refused_by_name():
    refused(made("conv6", T=None).float(), "for spiking networks of ours, found VGG")
    refused(nn.Conv2d(3, 4, 3), "for spiking networks of ours, found Conv2d")
    flat = nn.Sequential(nn.Flatten(2), nn.Linear(3 * 16 * 16, 5))
    refused(sd.foreign(flat, time_steps=2), "for spiking networks of ours, found Foreign")
    refused(made(neuron={"type": "plif"}).float(), r"stage1\.1: what PLIF learns itself")
    refused(
        made("vgg9", dropout=0.3).float(),
        "dropout: Dropout at .* draws another mask",
        x=torch.rand(4, 3, 32, 32),
    )
    refused(made("spikformer_4_256").float(), "matmul", x=torch.rand(4, 3, 32, 32))

    class Rectified(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    rectified = Two(time_steps=4)
    rectified.norm1 = Rectified(6)
    refused(rectified, "norm1: batch_norm .*does not give for an average", x=torch.rand(4, 4, 2, 8, 8))
    quantized = sd.quantize(made().float(), calibration=[torch.rand(4, 3, 16, 16)])
    refused(quantized, "learned scales")
    for term in (
        {"type": "temporal_efficient_training"},
        {"type": "logit_distillation", "over": "step"},
        {"type": "operations_aim", "operations": 1000.0},
    ):
        with pytest.raises(sd.SpikedistillError, match="is about single time steps"):
            sd.Distiller(made().float(), made("conv6", None).float(), [term], backpropagation="rate_based")
    with pytest.raises(sd.SpikedistillError, match="'through_time' or 'rate_based', found 'rates'"):
        sd.Distiller(made(), None, ENTROPY, backpropagation="rates")


@pytest.mark.parametrize("first", [True, False])
def test_another_way_in_the_second_pass_is_refused(first):
    class Turns(Two):
        def body(self, x):
            if first and len(x) == 6:  # the pass of rates
                return self.head(self.norm2(self.conv2(self.pool(self.conv1(x)))).mean((2, 3)))
            out = super().body(x)
            return out if len(x) == 6 else out + self.neuron1(out)

    network = Turns(time_steps=4).double().train()
    with pytest.raises(sd.SpikedistillError, match="must take the same way in both"):
        taps.run(network, random(6, 4, 2, 8, 8), rate_based=True)


@pytest.mark.parametrize(
    ("stage", "more", "said"),
    [
        ({"objectives": [{"type": "temporal_efficient_training"}]}, {}, "is about single time steps"),
        ({"operations": 1000}, {}, "'operations_aim' is about single time steps"),
        ({}, {"memory": "lean"}, "leave out memory: lean"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_path(stage, more, said):
    one = {"name": "a", "network": {"name": "vgg5"}, "backpropagation": "rate_based", **stage}
    with pytest.raises(sd.SpikedistillError, match=rf"stages\.a\.backpropagation: .*{said}"):
        load({"data": {"name": "digits"}, "stages": [one], **more})


def test_a_recipe_cites_its_paper():
    one = {"name": "a", "network": {"name": "vgg5"}, "backpropagation": "rate_based"}
    assert any("yu2024advancing" in entry for entry in sd.citations({"stages": [one]}))


@pytest.mark.parametrize("kind", ["drop path", "noise"])
def test_what_draws_in_training_alone_is_refused_by_what_it_gives(kind):
    class Draws(nn.Module):  # an identity in eval mode, in which networks are looked at
        def forward(self, x):
            if not self.training:
                return x
            return x + torch.randn_like(x) if kind == "noise" else x * (torch.rand(len(x), 1, 1, 1) < 0.5)

    class Drawn(Two):
        def __init__(self, **options):
            super().__init__(**options)
            self.draws = Draws()

        def body(self, x):
            x = self.neuron1(self.norm1(self.conv1(x)))
            return self.head(self.draws(self.norm2(self.conv2(self.pool(x)))).mean((2, 3)))

    x, y = random(6, 4, 2, 8, 8), torch.arange(6) % 5
    distiller = sd.Distiller(Drawn(time_steps=4).double(), None, ENTROPY, backpropagation="rate_based")
    distiller.setup(x).train()
    with pytest.raises(sd.SpikedistillError, match="ends at other logits than the average"):
        distiller(x, y)
    distiller.student.draws.eval()
    distiller(x, y).total.backward()


@pytest.mark.parametrize("way", ["rate_based", "through_time"])
def test_a_checkpoint_that_loses_the_simulation_is_refused(way):
    class Twice(Two):
        def second(self, x):
            return self.norm2(self.conv2(x))

        def body(self, x):
            x = self.pool(self.neuron1(self.norm1(self.conv1(x))))
            again = torch.is_grad_enabled() and x.requires_grad
            x = checkpoint(self.second, x, use_reentrant=True) if again else self.second(x)
            return self.head(x.mean((2, 3)))

    x, y = random(6, 4, 2, 8, 8), torch.arange(6) % 5
    network = Twice(time_steps=4).double()
    distiller = sd.Distiller(network, None, ENTROPY, backpropagation=way).setup(x).train()
    if way == "through_time":
        distiller(x, y).total.backward()  # at the T that it was made with nothing is lost
        network.time_steps = 2
    losses = distiller(x, y)
    with pytest.raises(sd.SpikedistillError, match=r"torch\.utils\.checkpoint computes it a second time"):
        losses.total.backward()
