import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.networks.outside.foreign import foreign


class Frames(nn.Module):
    """(T, N, C, H, W) to logits that differ per step: the mean of the frame, times (t + 1), per class."""

    def __init__(self, order: str = "TN") -> None:
        super().__init__()
        self.fc, self.order = nn.Linear(3, 5, bias=False), order

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "TN":
            x = x * torch.arange(1, x.shape[0] + 1).view(-1, 1, 1, 1, 1)
        elif self.order == "NT":
            x = x * torch.arange(1, x.shape[1] + 1).view(1, -1, 1, 1, 1)
        return self.fc(x.mean((-1, -2)))


@pytest.mark.parametrize("order, layout", [("TN", "TNCHW"), ("NT", "NTCHW")])
def test_order_of_time_and_batch(order: str, layout: str) -> None:
    model = Frames(order)
    network = foreign(model, layout, time_steps=4, in_channels=3, mean=0.25, std=0.5)
    x = torch.rand(2, 3, 6, 6)
    expected = torch.stack([model.fc(((x - 0.25) / 0.5).mean((2, 3))) * (t + 1) for t in range(4)])
    torch.testing.assert_close(network(x), expected)
    network.time_steps = 3
    torch.testing.assert_close(network(x), expected[:3])
    torch.testing.assert_close(network.predict(x), expected[:3].mean(0))


@pytest.mark.parametrize("layout", ["folded", "step", "TNCHW"])
def test_frames_reach_the_model_in_order(layout: str) -> None:
    model = Frames("none")
    network = foreign(model, layout, time_steps=3, in_channels=3, input="frames")
    x = torch.rand(2, 6, 3, 6, 6)  # N, F
    expected = model.fc(x.unflatten(1, (3, 2)).sum(2).mean((-1, -2))).transpose(0, 1)
    torch.testing.assert_close(network(x), expected)


def test_models_that_average_or_loop_over_time_themselves() -> None:
    averaged = foreign(lambda x: x.mean((0, 3, 4)), "TNCHW", num_classes=3, time_steps=4)
    x = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(averaged(x), x.mean((2, 3)).expand(4, 2, 3))

    def looping(x: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.stack([x.mean((2, 3)) * t for t in range(4)])
        return torch.zeros_like(steps), steps

    own = foreign(looping, "NCHW", num_classes=3, time_steps=4, output=1)
    torch.testing.assert_close(own(x), looping(x)[1])


def test_ann_teacher_and_resizing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    ann = foreign(model, "NCHW", time_steps=None, input_size=16)
    x = torch.rand(2, 3, 8, 8)
    big = nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(ann(x), model(big))
    assert ann.num_classes == 7
    _, captured = taps.captures(ann, x, ["model.1", "0"])  # the model's own path is an alias
    assert captured["0"].shape == (1, 2, 4, 14, 14)


class Counter(nn.Module):
    """Keeps state from call to call, as other libraries' neurons do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.fc = 0, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x.mean((-1, -2)) * self.seen

    def forget(self) -> None:
        self.seen = 0


@pytest.mark.parametrize("reset", ["forget", lambda model: model.forget()])
def test_reset_comes_before_every_forward_also_in_copies(reset: Any) -> None:
    x = torch.rand(2, 3, 4, 4)
    network = foreign(Counter(), reset=reset, in_channels=3, time_steps=2)
    twin = copy.deepcopy(network)
    assert torch.equal(network(x), network(x))
    assert torch.equal(twin(x), twin(x))
    assert torch.equal(twin(x), network(x))
    with pytest.raises(SpikedistillError, match=r"second time on the same input.*reset="):
        foreign(Counter(), in_channels=3, time_steps=2)(x)


def test_spikingjelly_multi_step_network() -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    from spikingjelly.activation_based import functional, neuron

    model = nn.Sequential(
        layer.Conv2d(3, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.IFNode(),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(8, 5),
    )
    functional.set_step_mode(model, "m")
    network = foreign(model, "TNCHW", reset=functional.reset_net, mean=0.5, std=0.25, time_steps=4)
    assert network.num_classes == 5
    x = torch.rand(2, 3, 8, 8)
    functional.reset_net(model)
    expected = model(((x - 0.5) / 0.25).unsqueeze(0).repeat(4, 1, 1, 1, 1))
    model[1].reset_running_stats()
    assert torch.equal(network(x), expected)
    assert torch.equal(network(x), expected)  # without the reset the membranes of the first pass would go on
    (network(x).sum() + network(x).sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_wrong_use_is_refused() -> None:
    with pytest.raises(SpikedistillError, match="TNCHW"):
        foreign(Frames(), "TNCWH")
    with pytest.raises(SpikedistillError, match="num_classes"):
        foreign(lambda x: x)
    with pytest.raises(SpikedistillError, match="no method"):
        foreign(Counter(), reset="forgot")
    with pytest.raises(SpikedistillError, match="NCHW"):
        foreign(Frames(), "TNCHW", time_steps=None)
    with pytest.raises(SpikedistillError, match=r"gave \(4, 2, 3, 5\) for T = 4, N = 2"):
        foreign(lambda x: torch.zeros(4, 2, 3, 5), num_classes=5)(torch.rand(2, 3, 4, 4))
    with pytest.raises(SpikedistillError, match="cannot be streamed"):
        foreign(Frames(), in_channels=3).eval().step(torch.rand(2, 3, 4, 4))


def test_a_wrong_layout_is_noticed_by_another_image() -> None:
    """Steps add up along what the network takes for time."""

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((-1, -2)).cumsum(0)

    x = torch.rand(4, 3, 6, 6)
    assert foreign(Sums(), "TNCHW", num_classes=3, in_channels=3, time_steps=4)(x).shape == (4, 4, 3)
    with pytest.raises(SpikedistillError, match="layout 'NTCHW' is not what"):
        foreign(Sums(), "NTCHW", num_classes=3, in_channels=3, time_steps=4)(x)


@pytest.mark.parametrize("layout", ["TNCHW", "folded", "step", "NTCHW"])
def test_features_are_tapped_as_the_layout_says(layout: str) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.features, self.fc = nn.Identity(), nn.Identity(), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.flat(x.flatten(0, 1) if x.dim() == 5 else x)
            return self.fc(self.features(x).mean((-1, -2)))

    network = foreign(Features(), layout, time_steps=3, input="frames", in_channels=3)
    x = torch.rand(2, 3, 3, 6, 6)
    for tap in ("features", "model.flat"):
        captured = taps.captures(network, x, [tap])[1][tap]
        assert torch.equal(captured, x.transpose(0, 1))


@pytest.mark.parametrize("multi", [False, True])
def test_spikes_of_known_neurons_are_its_activity(multi: bool) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    from spikingjelly.activation_based import functional, layer

    model = nn.Sequential(layer.Flatten(), layer.Linear(27, 5), neuron.IFNode())
    functional.set_step_mode(model, "m" if multi else "s")
    network = foreign(model, "TNCHW" if multi else "step", functional.reset_net, time_steps=4, in_channels=3)
    logits, seen = taps.captures(network, torch.rand(2, 3, 3, 3) * 3, ["*@spikes"])
    assert torch.equal(seen["*@spikes"], logits)
