import resource
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.training import machine


class Cubed(nn.Module):
    """y = (w x)^3 mean over pixels: keeps x and (w x), and nothing else worth counting."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return ((x * self.w) ** 3).mean((2, 3))


def test_what_backward_keeps_is_counted_and_scaled():
    x, y = torch.rand(8, 3, 64, 64), torch.zeros(8, dtype=torch.long)
    found = machine.estimate(sd.Distiller(Cubed()), x, y, batch_size=100)
    image = 3 * 64 * 64 * 4 / 1e6
    # Kept: x (for w) and the product (for the power); small tensors of the head come on top.
    assert found.step_mb == pytest.approx(100 * 2 * image, rel=0.02)
    assert found.fixed_mb == pytest.approx(3 * 4e-6)


def test_statistics_and_random_state_stay():
    network = sd.networks.create("conv6", width=0.125)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x, y = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    state = torch.random.get_rng_state()
    found = machine.estimate(sd.Distiller(network), x, y, 32)
    assert found.step_mb > 0
    assert torch.equal(state, torch.random.get_rng_state())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_batch_that_cannot_fit_is_said(monkeypatch):
    monkeypatch.setattr(machine, "available", lambda device: 1e6)
    x, y = torch.rand(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    found = machine.estimate(sd.Distiller(Cubed()), x, y, batch_size=1000)
    assert not found.fits
    assert found.largest_batch == pytest.approx(1e6 / (2 * 3 * 64 * 64 * 4), rel=0.02)


@pytest.mark.parametrize("system, unit", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_millions_of_bytes_on_each_system(monkeypatch, system, unit):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 10**9 // unit))
    assert machine.peak_memory_mb(torch.device("cpu")) == pytest.approx(3000, rel=1e-6)


def test_spikes_that_are_packed_are_counted_as_bits():
    network = sd.networks.create("conv6", width=0.125, time_steps=2)
    x, y = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    found = {m: machine.estimate(sd.Distiller(network), x, y, 32, memory=m) for m in ("default", "packed")}
    with machine.saving("packed", network) as packer:
        sd.Distiller(network)(x[:2], y[:2])
    saved = (packer.bytes_unpacked - packer.bytes) / 2 * 32 / 1e6
    assert saved > 0
    assert found["default"].step_mb - found["packed"].step_mb == pytest.approx(saved, rel=0.5)
    assert found["default"].fixed_mb == found["packed"].fixed_mb
