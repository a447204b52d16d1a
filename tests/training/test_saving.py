"""``sd.save``: a network of a loop of one's own, on disk and back."""

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill.neurons import LIF


def test_a_balanced_network_comes_back_with_its_thresholds(tmp_path):
    x = torch.rand(8, 3, 16, 16)
    network = sd.balance(sd.networks.create("resnet20", width=0.25), x).eval()
    sd.save(network, tmp_path / "net")
    again = sd.load(tmp_path / "net")
    assert network.config["thresholds"]
    assert torch.equal(again.predict(x), network.predict(x))
    # and whatever loads it can save it again
    sd.save(again, str(tmp_path / "net"))
    assert torch.equal(sd.load(tmp_path / "net").predict(x), network.predict(x))


def test_a_turned_a_quantized_and_a_plain_network(tmp_path):
    x = torch.rand(4, 3, 16, 16)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 5)
    )
    turned = sd.spiking(model, neuron=LIF(), time_steps=2, example=x).eval()
    quantized = sd.quantize(sd.networks.create("conv6", width=0.125, time_steps=2), calibration=x).eval()
    for name, network, given in (("turned", turned, model), ("quantized", quantized, None)):
        sd.save(network, tmp_path / name)
        assert torch.equal(sd.load(tmp_path / name, network=given).predict(x), network.predict(x))
    sd.save(model.eval(), tmp_path / "plain")
    with pytest.raises(sd.SpikedistillError, match=r"is your own; pass it as sd.load\(..., network=...\)"):
        sd.load(tmp_path / "plain")
    fresh = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 5)
    )
    assert torch.equal(sd.load(tmp_path / "plain", network=fresh)(x), model(x))


def test_what_is_not_saved_is_refused_and_nothing_is_lost(tmp_path):
    network = sd.networks.create("conv6", width=0.125, time_steps=2).eval()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "mine" / "config.json").write_text('{"architectures": ["Another"]}')
    with pytest.raises(sd.SpikedistillError, match="holds something else than a network"):
        sd.save(network, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    integer = sd.to_integer(sd.quantize(network, calibration=torch.rand(4, 3, 16, 16)))
    with pytest.raises(sd.SpikedistillError, match="save the quantized one"):
        sd.save(integer, tmp_path / "integer")
    sd.save(network, tmp_path / "net")
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(sd.SpikedistillError, match="NaN"):
        sd.save(network, tmp_path / "net")
    sd.load(tmp_path / "net")  # the one that was there
