"""Max-pooling in converted networks: of rates, not of single spikes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill import networks
from spikedistill.conversion.pooling import RateMaxPool
from spikedistill.simulation import Simulation
from spikedistill.training.store import save_network


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(1)])
def test_counts_out_are_the_largest_counts_in(pool):
    spikes = (torch.rand(7, 2, 3, 6, 6) < 0.3 * torch.rand(2, 3, 6, 6)).float()
    module = RateMaxPool(pool)
    with Simulation(module, 7):
        out = module(spikes.flatten(0, 1)).unflatten(0, (7, 2))
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    for t in range(1, 8):
        assert torch.equal(out[:t].sum(0), pool(spikes[:t].sum(0)))
    assert out.sum() < pool(spikes.flatten(0, 1)).sum()  # the OR of spikes is more


def trained_looking(**given):
    torch.manual_seed(1)
    ann = networks.create("vgg5", time_steps=None, width=0.25, num_classes=4, **given)
    for m in ann.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.uniform_(m.bias, -0.2, 0.4)
    x = torch.rand(16, 3, 16, 16)
    ann.train()(x)
    return ann.eval(), x


@torch.no_grad()
def test_a_network_with_max_pooling_tends_to_its_ann():
    ann, x = trained_looking(pooling="max")
    expected = ann(x)
    scale = expected.std()
    errors = {}
    for T in (16, 64, 256):
        snn = sd.convert(ann, x, time_steps=T, percentile="max")
        errors[T] = float((snn.predict(x) - expected).abs().mean() / scale)
    assert errors[256] < 0.02
    assert errors[256] < errors[64] < errors[16]
    assert any(isinstance(m, RateMaxPool) for m in snn.modules())


@torch.no_grad()
def test_streamed_saved_and_loaded_it_is_the_same(tmp_path):
    ann, x = trained_looking(pooling="max")
    snn = sd.convert(ann, x, time_steps=5)
    whole, state, steps = snn(x), None, []
    for _ in range(5):
        out, state = snn.step(x, state)
        steps.append(out)
    assert torch.equal(whole, torch.stack(steps))
    save_network(tmp_path / "net", snn, {}, "")
    assert torch.equal(sd.load(tmp_path / "net")(x), whole)


class Lenet(nn.Module):
    """A pool before the first activation, one behind it, and one as a function."""

    def __init__(self, function: bool = False) -> None:
        super().__init__()
        self.conv1, self.pool1 = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)
        self.conv2, self.pool2 = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.head, self.relu, self.function = nn.Linear(8 * 16, 4), nn.ReLU(), function

    def forward(self, x):
        x = self.relu(self.pool1(self.conv1(x)))
        x = self.relu(self.conv2(x))
        x = F.max_pool2d(x, 2) if self.function else self.pool2(x)
        return self.head(x.flatten(1))


def test_pools_before_the_first_neuron_stay_and_functions_are_warned_of():
    x = torch.rand(4, 3, 16, 16)
    snn = sd.convert(Lenet(), x, time_steps=4)
    pools = {
        n.rpartition(".")[2]: m
        for n, m in snn.named_modules()
        if n.rpartition(".")[2].startswith("pool") and m
    }
    assert isinstance(pools["pool1"], nn.MaxPool2d)
    assert any(isinstance(m, RateMaxPool) and n.endswith("pool2") for n, m in snn.named_modules())
    with pytest.warns(UserWarning, match=r"test_conversion_pooling.py:\d+: max_pool2d of spikes"):
        sd.convert(Lenet(function=True), x, time_steps=4)
