"""``sd.adopt``: networks of SpikingJelly, snnTorch and Norse with neurons of ours, equal on the example."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikedistill as sd
from spikedistill import neurons, taps
from spikedistill.errors import SpikedistillError

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lively(model: nn.Module, factor: float = 4.0) -> nn.Module:
    """Weights so large that neurons fire."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.weight.data.mul_(factor)
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 1, 3)
            nn.init.uniform_(m.bias, 0, 1)
    return model


def fires(network: nn.Module, x: Tensor = X) -> None:
    spikes = taps.captures(network, x, ["*@spikes"])[1].tensors.values()
    assert all(s.any() for s in spikes)


# -- SpikingJelly


def jelly(neuron: Any, mode: str) -> nn.Module:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    from spikingjelly.activation_based import functional

    model = nn.Sequential(
        layer.Conv2d(3, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron(), layer.MaxPool2d(2),
        layer.Conv2d(8, 8, 3, padding=1), neuron(), layer.AvgPool2d(4), layer.Flatten(), layer.Linear(8, 5),
    )  # fmt: skip
    functional.set_step_mode(model, mode)
    return lively(model, 4.0).eval()


JELLY: dict[str, dict[str, Any]] = {
    "IFNode": {}, "LIFNode soft": {"tau": 3.0, "v_reset": None},
    "LIFNode": {"decay_input": False, "v_threshold": 0.7},
    "LIFNode v_reset": {"v_reset": -0.2, "detach_reset": True}, "ParametricLIFNode": {"init_tau": 1.5},
    "ParametricLIFNode input": {"decay_input": False, "v_reset": None},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", JELLY)
def test_spikingjelly(name: str, mode: str) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    from spikingjelly.activation_based import functional

    model = jelly(lambda: getattr(neuron, name.split()[0])(**JELLY[name]), mode)
    adopted = sd.adopt(model, time_steps=4, example=X)
    assert adopted.differs["float64"] == 0
    assert adopted.differs["float32"] <= 1e-3
    assert "0 in float64" in repr(adopted)
    frames = X.unsqueeze(0).repeat(4, 1, 1, 1, 1)
    want = model(frames) if mode == "m" else torch.stack([model(x) for x in frames])
    functional.reset_net(model)
    torch.testing.assert_close(adopted(X), want, rtol=1e-4, atol=1e-4)
    layers = neurons.layers(adopted)
    assert list(layers) == ["model.1", "model.5"]  # the first with its norm, which encodes
    assert layers["model.1"].encode
    assert adopted.aliases["2"] == "model.1"
    fires(adopted)
    if name == "LIFNode":
        assert (layers["model.5"].gain, layers["model.5"].threshold) == (1.0, 0.7)
    if name == "LIFNode v_reset":
        assert layers["model.5"].threshold == pytest.approx(1.2)
        assert any("v_reset = -0.2" in note for note in adopted.notes)


def test_gradients_are_the_originals() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    from spikingjelly.activation_based import surrogate

    for function in (surrogate.ATan(), surrogate.Sigmoid(3.0), surrogate.PiecewiseQuadratic(0.8)):
        model = jelly(lambda f=function: neuron.LIFNode(surrogate_function=f), "m").double()  # type: ignore[misc]
        adopted = sd.adopt(model, example=X).double()
        weights = torch.randn(4, 4, 5, dtype=torch.float64)
        (model(X.double().unsqueeze(0).repeat(4, 1, 1, 1, 1)) * weights).sum().backward()
        (adopted(X.double()) * weights).sum().backward()
        torch.testing.assert_close(adopted.model[0].weight.grad, model[0].weight.grad)


def test_a_network_that_repeats_its_image_and_averages_over_time_by_itself() -> None:
    """SpikingJelly's own example of a convolutional network."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.T, self.conv_fc = 4, jelly(neuron.IFNode, "m")

        def forward(self, x: Tensor) -> Tensor:
            return self.conv_fc(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).mean(0)

    model = Own().eval()
    adopted = sd.adopt(model, time_steps=4, example=X)
    torch.testing.assert_close(adopted.predict(X), model(X))
    assert list(adopted.state_dict())[2:4] == ["model.conv_fc.0.weight", "model.conv_fc.1.weight"]
    with pytest.raises(SpikedistillError, match="give time_steps=4, found 6"):
        sd.adopt(model, time_steps=6, example=X)


def test_sew_resnet_of_spikingjelly_whole() -> None:
    sew_resnet = pytest.importorskip("spikingjelly.activation_based.model.sew_resnet")
    from spikingjelly.activation_based import functional, neuron

    model = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10)
    functional.set_step_mode(model, "m")
    adopted = sd.adopt(model, example=torch.rand(2, 3, 32, 32), time_steps=2)
    assert adopted.differs["float64"] == 0
    assert adopted.stage_paths() == [f"model.layer{k}" for k in (1, 2, 3, 4)]


def test_containers_and_dropout() -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    from spikingjelly.activation_based import neuron

    inner = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)]
    model = nn.Sequential(
        layer.SeqToANNContainer(*inner), neuron.IFNode(step_mode="m"), layer.Dropout(0.5, step_mode="m"),
        layer.MultiStepContainer(nn.Conv2d(6, 6, 3), neuron.IFNode()), layer.Flatten(step_mode="m"),
        layer.Linear(96, 20, step_mode="m"), layer.VotingLayer(4, step_mode="m"),
    )  # fmt: skip
    adopted = sd.adopt(lively(model, 2.0).eval(), example=X)
    assert adopted(X).shape == (4, 4, 5)
    assert list(neurons.layers(adopted)) == ["model.0.1", "model.3.1"]
    assert any("mask" in note for note in adopted.notes)


# -- snnTorch


class Looped(nn.Module):
    """As in snnTorch's tutorials: the loop over time in forward, the batch's size in a view."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        snn = pytest.importorskip("snntorch")
        self.conv, self.lif1 = nn.Conv2d(3, 8, 3), snn.Leaky(beta=0.9, **options)
        self.fc, self.lif2 = nn.Linear(72, 5), snn.Leaky(beta=0.8, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.reset_mem()
        spk_rec, mem_rec = [], []
        for _ in range(5):
            spk1, mem1 = self.lif1(nn.functional.max_pool2d(self.conv(x), 2), mem1)
            spk2, mem2 = self.lif2(self.fc(spk1.view(len(x), -1)), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("learned", [False, True])
def test_snntorch_loop(reset: str, learned: bool) -> None:
    from snntorch import surrogate

    options = {
        "reset_mechanism": reset,
        "learn_beta": learned,
        "threshold": 0.5,
        "spike_grad": surrogate.fast_sigmoid(20),
    }
    model = lively(Looped(**options))
    adopted = sd.adopt(model, time_steps=5, example=X)
    torch.testing.assert_close(adopted(X), model(X)[0])
    torch.testing.assert_close(adopted(X[:1]), model(X[:1])[0])
    first = neurons.layers(adopted)["model.lif1"]
    assert isinstance(first, sd.PLIF if learned else sd.LIF)
    assert float(torch.as_tensor(first.decay).detach()) == pytest.approx(0.9)
    assert first.reset == {"subtract": "soft", "zero": "hard", "none": None}[reset]
    assert first.reset_by == pytest.approx(1 / 0.9 if reset == "subtract" else 1)
    assert (first.surrogate.name, first.surrogate.alpha) == ("fast_sigmoid", 20)
    adopted.time_steps = 3  # the loop is gone
    torch.testing.assert_close(adopted(X), model(X)[0][:3])


def test_snntorch_fires_above_its_threshold_not_at_it() -> None:
    snn = pytest.importorskip("snntorch")
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    model = nn.Sequential(linear, snn.Leaky(beta=0.5, init_hidden=True))
    # exact ties
    x = torch.tensor([[[1.0], [0.5], [0.75], [2.0], [0.5]], [[0.5], [0.75], [0.75], [0.0], [2.0]]])
    adopted = sd.adopt(model, time_steps=5, example=x, input="frames")
    assert adopted(x)[..., 0].T.tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]
    assert adopted.differs == {"float64": 0.0, "float32": 0.0}
    plain = sd.LIF(decay=0.5, reset="soft", reset_by=2.0, time_steps=5)
    assert (
        plain(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (5, 2))[..., 0].T.tolist()
        != adopted(x)[..., 0].T.tolist()
    )
    assert any("H > threshold" in note for note in adopted.notes)


def test_snntorch_steps_sequences_and_loops_over_frames() -> None:
    snn = pytest.importorskip("snntorch")

    class Steps(nn.Module):
        def __init__(self, loop: bool) -> None:
            super().__init__()
            self.loop = loop
            self.fc1, self.lif1 = nn.Linear(20, 30), snn.Leaky(beta=0.9)
            self.fc2, self.lif2 = nn.Linear(30, 5), snn.Leaky(beta=0.8)

        def one(self, x: Tensor, mem1: Any, mem2: Any) -> tuple[Any, ...]:
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            return mem1, mem2, spk2

        def forward(self, x: Tensor, mem1: Any, mem2: Any) -> tuple[Any, ...]:
            return self.one(x, mem1, mem2)

    class OverFrames(Steps):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for t in range(x.size(0)):
                mem1, mem2, spk = self.one(x[t], mem1, mem2)
                out.append(spk)
            return torch.stack(out)

    x = torch.rand(4, 6, 20)
    model = lively(OverFrames(True))
    adopted = sd.adopt(model, time_steps=6, example=x, input="frames")
    torch.testing.assert_close(adopted(x), model(x.transpose(0, 1)))
    fires(adopted, x)
    steps = lively(Steps(False))
    steps.load_state_dict(model.state_dict())
    again = sd.adopt(steps, time_steps=6, example=x, input="frames", output=2)
    assert torch.equal(again(x), adopted(x))
    with pytest.raises(SpikedistillError, match="reads the membrane"):
        sd.adopt(steps, time_steps=6, example=x, input="frames", output=0)
    with pytest.raises(SpikedistillError, match="lif2: the model reads the membrane"):
        sd.adopt(lively(Looped()), time_steps=5, example=X, output=1)


def test_several_outputs_of_other_widths_are_told() -> None:
    """The first is taken, and a note says what else there was."""

    class Both(Looped):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mem1, mem2, hidden, out = self.lif1.init_leaky(), self.lif2.reset_mem(), [], []
            for _ in range(5):
                spk1, mem1 = self.lif1(nn.functional.max_pool2d(self.conv(x), 2), mem1)
                spk2, mem2 = self.lif2(self.fc(spk1.view(len(x), -1)), mem2)
                hidden.append(spk1.view(len(x), -1))
                out.append(spk2)
            return torch.stack(hidden), torch.stack(out)

    model = lively(Both())
    with pytest.warns(UserWarning, match=r"it returns 0 \(5, 4, 72\), 1 \(5, 4, 5\); the first is taken"):
        first = sd.adopt(model, time_steps=5, example=X)
    assert first(X).shape[-1] == 72
    assert sd.adopt(model, time_steps=5, example=X, output=1)(X).shape[-1] == 5


# -- Norse


@pytest.mark.parametrize("soft", [False, True])
def test_norse(soft: bool) -> None:
    norse = pytest.importorskip("norse.torch")
    from norse.torch.functional.reset import reset_subtract, reset_value

    p = norse.LIFBoxParameters(
        v_th=torch.as_tensor(0.3), reset_method=reset_subtract if soft else reset_value
    )
    model = norse.SequentialState(nn.Conv2d(3, 8, 3), norse.LIFBoxCell(p), nn.Flatten(), nn.Linear(8 * 36, 5))
    adopted = sd.adopt(lively(model, 6.0), example=X)
    state, want = None, []
    for _ in range(4):
        out, state = model(X, state)
        want.append(out)
    torch.testing.assert_close(adopted(X), torch.stack(want))
    fires(adopted)
    (cell,) = neurons.layers(adopted).values()
    assert (cell.gain, cell.reset) == (pytest.approx(0.1), "soft" if soft else "hard")


# -- what has no form


def refused() -> dict[str, tuple[Any, str]]:
    snn, norse = pytest.importorskip("snntorch"), pytest.importorskip("norse.torch")
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")

    class Mine(neuron.LIFNode):  # type: ignore[name-defined, misc]
        pass

    def leaky(**options: Any) -> nn.Module:
        return snn.Leaky(**{"beta": 0.5, "init_hidden": True, **options})

    return {
        "current": (snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True), "1: Synaptic keeps a second "
"state.*current"),
        "adaptation": (neuron.IzhikevichNode(), "IzhikevichNode keeps a second state.*adaptation"),
        "norse": (norse.LIFCell(), "LIFCell keeps a second state"),
        "recurrent": (snn.RLeaky(beta=0.5, linear_features=5, init_hidden=True), "feeds its spikes back"),
        "subclass": (Mine(), "Mine is a LIFNode with equations of its own"),
        "other": (neuron.QIFNode(), "QIFNode is none of IFNode"),
        "at once": (leaky(reset_delay=False), "reset_delay"),
        "many": (leaky(beta=torch.rand(5)), "1: Leaky has a beta for each neuron"),
        "beta 0": (leaky(beta=0.0), "beta 0"),
        "graded": (leaky(graded_spikes_factor=2.0), "graded_spikes_factor"),
        "rest": (norse.LIFBoxCell(norse.LIFBoxParameters(v_reset=torch.as_tensor(-0.1))), "LIFBoxCell is "
"reset to -0.1"),
        "none": (nn.ReLU(), "no neuron of SpikingJelly"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "current",
        "adaptation",
        "norse",
        "recurrent",
        "subclass",
        "other",
        "many",
        "graded",
        "rest",
        "none",
        "at once",
        "beta 0",
    ],
)
def test_what_has_no_form_is_refused_by_name(case: str) -> None:
    module, words = refused()[case]
    with pytest.raises(SpikedistillError, match=words):
        sd.adopt(nn.Sequential(nn.Linear(4, 5), module), example=torch.rand(3, 4))


def test_what_changes_between_steps_is_noticed() -> None:
    snn = pytest.importorskip("snntorch")

    class Fed(Looped):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            mem, out, before = self.lif1.reset_mem(), [], torch.zeros(len(x), 8, 6, 6)
            for _ in range(4):
                before, mem = self.lif1(self.conv(x) + before, mem)
                out.append(before.mean((2, 3)))
            return torch.stack(out)

    assert snn
    with pytest.raises(SpikedistillError, match=r"of the spikes differ|batch size"):
        sd.adopt(lively(Fed()), example=X)

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.seen = snn.Leaky(beta=0.5), 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return self.lif(x * self.seen)[0]

    with pytest.raises(SpikedistillError, match="second time on the same input"):
        sd.adopt(nn.Sequential(nn.Linear(4, 5), Forgetful()), example=torch.rand(3, 4) * 3)
    with pytest.raises(SpikedistillError, match="two images"):
        sd.adopt(lively(Looped()))
    with pytest.raises(SpikedistillError, match="unknown layout"):
        sd.adopt(lively(Looped()), example=X, layout="TNHWC")
    with pytest.raises(SpikedistillError, match="one of ours"):
        sd.adopt(sd.networks.create("vgg5"), example=X)
