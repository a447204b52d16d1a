"""The mean-field model behind a balanced start: closed forms, and growth measured in networks."""

import math

import pytest
import torch
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.networks import balanced
from spikedistill.networks.balanced import balance_of
from spikedistill.networks.mean_field import MeanField
from spikedistill.neurons import IF, LIF, Neuron


def test_the_model_of_one_step_is_the_normal_distribution() -> None:
    """T = 1, gain 1: rate P(s z >= threshold); a surrogate of width w: E[sigma'^2] = P(|u| < w/2) / w^2."""
    normal = torch.distributions.Normal(0.0, 1.0)
    found = MeanField(IF(time_steps=1), 0.16)
    assert found.scale == pytest.approx(1 / float(normal.icdf(torch.tensor(0.84))), rel=0.01)
    s, w = found.scale, 1.5
    inside = float(normal.cdf(torch.tensor((1 + w / 2) / s)) - normal.cdf(torch.tensor((1 - w / 2) / s)))
    assert found.gain(w) == pytest.approx(s**2 * inside / w**2 / (0.16 * 0.84), rel=0.06)


def test_units_do_not_matter() -> None:
    """A neuron of half the threshold needs half the current and half the width."""
    one, half = balance_of(LIF(decay=0.5)), balance_of(LIF(decay=0.5, threshold=0.5))
    assert half.scale == pytest.approx(one.scale / 2, rel=0.02)
    assert half.width == pytest.approx(one.width / 2, rel=0.02)
    quarter = balance_of(LIF(decay=0.5, gain=0.25))
    assert quarter.scale == pytest.approx(4 * one.scale, rel=0.02)


@pytest.mark.parametrize(
    ("neuron", "width"), [(LIF(time_steps=4), 1.96), (LIF(decay=0.25, threshold=0.5, time_steps=4), 0.91)]
)
def test_a_residual_chain_grows_as_a_network_does(neuron: Neuron, width: float) -> None:
    """Blocks of ResNet-56 in its second and first stage, far from the loss; strided ones left out."""
    torch.manual_seed(0)
    spec = neuron.spec() | {"surrogate": {"name": "rectangle", "alpha": width}}
    network = sd.networks.create("resnet56", width=0.5, time_steps=4, neuron=spec).train()
    sizes: dict[str, float] = {}

    def watch(name: str, block: torch.nn.Module) -> None:
        def seen(_: torch.nn.Module, __: object, spikes: torch.Tensor) -> None:
            spikes.register_hook(lambda g: sizes.__setitem__(name, float(g.square().mean())))

        block.register_forward_hook(seen)

    for stage in (1, 2):
        for i in range(9):
            watch(f"{stage}.{i}", network.get_submodule(f"layer{stage}.{i}"))
    x = F.interpolate(torch.randn(24, 3, 8, 8), size=(32, 32), mode="bilinear")
    F.cross_entropy(network.predict(x), torch.arange(24) % 10).backward()
    growth = [math.log(sizes[f"{stage}.0"] / sizes[f"{stage}.8"]) / 8 for stage in (1, 2)]
    found = MeanField(neuron, 0.16, residual=True)
    assert math.exp(sum(growth) / 2) == pytest.approx(found.gain(width), rel=0.12)


def test_the_models_draws_leave_every_generator_alone(monkeypatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for cached in (balanced._balance, balanced._threshold):
        cached.cache_clear()
    neuron = sd.neurons.PSN(time_steps=3)  # its weights are drawn
    torch.set_rng_state(state)
    found = balance_of(neuron, 0.15)
    assert seeded == [7]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    balanced._balance.cache_clear()
    assert balance_of(neuron, 0.15) == found
