"""Inputs of other types than float32 give what the same numbers in float32 give."""

import pytest
import torch

import spikedistill as sd


@pytest.fixture
def events() -> torch.Tensor:
    return torch.randint(0, 5, (2, 2, 2, 16, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_counts_in_whole_numbers_are_normalised_as_real_ones(events, kind):
    network = sd.networks.create("dvs_gesture_cnn", time_steps=2, image_size=16, mean=0.3, std=0.8)
    sd.balance(network, events.float())
    network.eval()
    with torch.no_grad():
        expected = network(events.float())
        assert expected.sum() > 0
        assert torch.equal(network(events.to(kind)), expected)


def test_a_network_is_balanced_for_bytes_as_it_takes_them():
    def network():
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)]
        return sd.spiking(torch.nn.Sequential(*layers), time_steps=4, example=torch.rand(2, 3, 8, 8))

    levels = torch.randint(
        0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    one, other = sd.balance(network(), levels), sd.balance(network(), levels.float() / 255)
    assert one.config["thresholds"] == pytest.approx(other.config["thresholds"])


@pytest.mark.parametrize("rate", [16.0, -1.0, 0.0, float("nan"), "a"])
def test_a_rate_at_which_no_network_learns_is_refused(rate):
    network = sd.networks.create("vgg5", width=0.1, time_steps=2)
    with pytest.raises(sd.SpikedistillError, match=r"firing_rate must lie between 0 and 0\.5"):
        sd.balance(network, torch.rand(2, 3, 8, 8), firing_rate=rate)
