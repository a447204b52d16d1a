"""What all networks share: entrance of time, streaming, time steps, normalisation."""

import pytest
import torch
from small_networks import NAMES, example, make
from torch import Tensor, nn

from spikedistill import simulation
from spikedistill.errors import SpikedistillError
from spikedistill.networks import Network, balance
from spikedistill.networks.base import frames
from spikedistill.networks.encoding import encode
from spikedistill.neurons import LIF, Neuron, NormNeuron, Repeat

SOME = [
    *(
        "vgg5",
        "conv6",
        "svgg11",
        "resnet18",
        "resnet19",
        "sew_resnet20",
        "ms_resnet20",
        "ms_resnet18",
        "sresnet8",
    ),
    *("spikformer_4_256", "spikingformer_4_256", "hdkd_student"),
]
EVENTS = ["sew_7b_wide", "dvs_gesture_cnn", "spikformer_2_256", "spikingformer_2_256"]


def settled(name: str, **given: object) -> tuple[Network, Tensor]:
    """A network in eval mode that fires: its norm statistics are those of the example."""
    network = make(name, **{"neuron": {"type": "lif", "threshold": 0.1}, **given}).double()
    x = example(name).double()
    if given.get("input") == "frames" and x.dim() == 4:
        x = torch.rand(2, 4, *x.shape[1:], dtype=torch.float64)
    if name == "dvs_gesture_cnn":  # without norms
        balance(network, x)
    for module in network.modules():
        if isinstance(module, NormNeuron | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        for _ in range(3):
            network(x)
    return network.eval(), x


def spikes(network: Network, x: Tensor) -> dict[str, Tensor]:
    """Spikes of every neuron, folded over time."""
    found: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda m, a, out, name=name: found.__setitem__(name, out))
        for name, m in network.named_modules()
        if isinstance(m, NormNeuron)
        or (isinstance(m, Neuron) and not name.endswith(("bn1.neuron", "norm.neuron")))
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", [n for n in SOME if n != "sresnet8"])
def test_stem_once_equals_the_repeated_image(name: str) -> None:
    once, x = settled(name)
    repeated = make(name, input="frames", neuron={"type": "lif", "threshold": 0.1}).double()
    repeated.load_state_dict(once.state_dict())
    repeated.eval()
    assert sum(isinstance(m, Repeat) or getattr(m, "encode", False) for m in once.modules()) == 1
    assert not any(isinstance(m, Repeat) or getattr(m, "encode", False) for m in repeated.modules())
    ours, theirs = spikes(once, x), spikes(repeated, x.unsqueeze(1).expand(-1, 4, -1, -1, -1))
    assert ours.keys() == theirs.keys()
    assert sum(float(s.sum()) for s in ours.values()) > 0
    for path, value in ours.items():
        assert torch.equal(value, theirs[path]), path


@pytest.mark.parametrize("name", SOME)
def test_chained_steps_equal_forward_on_images(name: str) -> None:
    network, x = settled(name)
    _assert_stream(network, [x] * 4, x)


@pytest.mark.parametrize("encoding", ["latency", "poisson"])
@pytest.mark.parametrize("name", ["vgg5", "ms_resnet20", "spikingformer_4_256"])
def test_chained_steps_equal_forward_with_an_encoding(name: str, encoding: str) -> None:
    network, x = settled(name, encoding=encoding)
    _assert_stream(network, [x] * 4, x)


@pytest.mark.parametrize("name", [*EVENTS, "vgg5", "ms_resnet20"])
def test_chained_steps_equal_forward_on_frames(name: str) -> None:
    network, x = settled(name, input="frames")
    _assert_stream(network, list(x.unbind(1)), x)


def _assert_stream(network: Network, pieces: list[Tensor], x: Tensor) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        whole = network(x)
    torch.manual_seed(3)
    state = None
    for t, piece in enumerate(pieces):
        out, state = network.step(piece, state)
        torch.testing.assert_close(out, whole[t], rtol=1e-9, atol=1e-9)
        assert state["step"] == t + 1
    assert len(state) == 1 + sum(isinstance(m, Neuron) for m in network.modules())
    assert not torch.equal(whole[0], whole[-1])


def test_frames_are_summed_in_consecutive_groups() -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1, 1)
    assert frames(x, 4, 4).flatten().tolist() == [1.0, 5.0, 9.0, 13.0]
    assert frames(x, 4, 2).flatten().tolist() == [1.0, 5.0]
    assert frames(x, 4, 6).flatten().tolist() == [1.0, 5.0, 9.0, 13.0, 1.0, 5.0]
    assert frames(x, 8, 8).flatten().tolist() == list(range(8))
    assert frames(x, None, None).shape == (8, 1, 1, 1, 1)
    with pytest.raises(SpikedistillError, match="multiple of 3"):
        frames(x, 3, 3)


def test_twin_on_frames_averages_its_logits() -> None:
    network = make("vgg5", input="frames", time_steps=None).eval()
    x = torch.rand(2, 3, 3, 8, 8)
    each = torch.stack([network(x[:, f : f + 1]) for f in range(3)])
    torch.testing.assert_close(network(x), each.mean(0))


@pytest.mark.parametrize("name", ["vgg5", "ms_resnet20", "sew_7b_wide"])
def test_other_time_steps_for_one_call(name: str) -> None:
    network, x = settled(name)
    other = make("vgg5")
    with torch.no_grad():
        whole = network(x)
        with simulation.time_steps(network, 2):
            assert torch.allclose(network(x), whole[:2], rtol=1e-9, atol=1e-9)
            assert other(torch.rand(1, 3, 8, 8)).shape[0] == 4
        with simulation.time_steps(network, 6):
            longer = network(x)
        assert longer.shape[0] == 6
        torch.testing.assert_close(longer[:4], whole, rtol=1e-9, atol=1e-9)
        assert network.time_steps == 4
        if network.input == "image":
            network.time_steps = 3
            torch.testing.assert_close(network(x), whole[:3], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="at least 1"), simulation.time_steps(network, 0):
        pass


def test_two_forwards_then_backward_through_both() -> None:
    network, x = settled("vgg5")
    y = x.flip(0) * 0.5
    weights = torch.rand(4, 2, 5, dtype=torch.float64)
    parameters = list(network.parameters())
    separate = [torch.autograd.grad((network(v) * weights).sum(), parameters) for v in (x, y)]
    a, b = network(x), network(y)
    together = torch.autograd.grad(((a + b) * weights).sum(), parameters)
    for one, two, both in zip(*separate, together):
        torch.testing.assert_close(both, one + two)
    assert any(bool(g.abs().sum() > 0) for g in together)


def test_network_normalises_its_input() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    own, plain = make("vgg5", mean=mean, std=std).eval(), make("vgg5").eval()
    plain.load_state_dict(
        {k: v for k, v in own.state_dict().items() if k not in ("mean", "std")}, strict=False
    )
    x = torch.rand(2, 3, 8, 8)
    by_hand = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.equal(own(x), plain(by_hand))


def test_latency_fires_once_the_brighter_the_earlier() -> None:
    x = torch.tensor([1.0, 0.75, 0.5, 0.26, 0.0]).view(1, 5)
    out = encode(x, 5, "latency")
    assert out.sum(0).tolist() == [[1, 1, 1, 1, 0]]
    assert out[:, 0, :4].argmax(0).tolist() == [0, 1, 2, 3]
    assert torch.equal(torch.cat([encode(x, 1, "latency", t, 5) for t in range(5)]), out)


def test_poisson_fires_with_the_probability_of_the_pixel() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 1.0])
    rate = encode(x, 20_000, "poisson").mean(0)
    # Five standard deviations of a Bernoulli mean.
    assert ((rate - x).abs() <= 5 * (x * (1 - x) / 20_000).sqrt()).all()


@pytest.mark.parametrize(
    ("given", "shape", "words"),
    [
        ({}, (3, 8, 8), r"\(N, C, H, W\)"),
        ({}, (1, 1, 8, 8), "C = 3"),
        ({"input": "frames"}, (1, 3, 8, 8), r"\(N, F, C, H, W\)"),
        ({"input": "frames"}, (1, 6, 3, 8, 8), "multiple of 4"),
    ],
)
def test_wrong_inputs_are_refused_in_words(given: dict, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(SpikedistillError, match=words):
        make("vgg5", **given)(torch.zeros(shape))


def test_wrong_streams_are_refused_in_words() -> None:
    network, x = make("vgg5"), torch.rand(1, 3, 8, 8)
    with pytest.raises(SpikedistillError, match="eval"):
        network.step(x)
    with pytest.raises(SpikedistillError, match="ANN"):
        make("vgg5", time_steps=None).eval().step(x)
    _, state = network.eval().step(x)
    with pytest.raises(SpikedistillError, match="state=None"):
        network.step(torch.rand(2, 3, 8, 8), state)


def test_the_wide_event_network_gives_an_image_its_time_steps() -> None:
    # As many channels as its first blocks, so that no convolution and neuron stand before them.
    given = {"in_channels": 8, "width": 0.125, "pools": 3, "neuron": {"type": "if"}}
    network = make("sew_7b_wide", input="image", **given).eval()
    frames = make("sew_7b_wide", **given).eval()
    frames.load_state_dict(network.state_dict())
    x = torch.rand(8, 8, 16, 16)
    with torch.no_grad():
        whole = network(x)
        torch.testing.assert_close(frames(x.unsqueeze(1).expand(-1, 4, -1, -1, -1)), whole)
        for i in range(8):
            torch.testing.assert_close(network(x[i : i + 1]), whole[:, i : i + 1])
    assert make("sew_7b_wide", input="image", time_steps=None, **given).state_dict().keys() == (
        network.state_dict().keys()
    )


class Bare(Network):
    """A body that gives an image as many time steps as its neuron does."""

    def __init__(self, encode: bool, **given) -> None:
        super().__init__(5, 3, **given)
        self.neuron, self.head = LIF(encode=encode), nn.Linear(3, 5)

    def body(self, x):
        return self.head(self.neuron(4 * x).mean((2, 3)))


@pytest.mark.parametrize("images", [4, 8])
def test_images_that_no_neuron_gives_time_steps_are_refused(images: int) -> None:
    x = torch.rand(images, 3, 8, 8)
    with pytest.raises(SpikedistillError, match=f"Bare: .* {images} rows .* T = 4; .*encode=True"):
        Bare(encode=False)(x)
    assert Bare(encode=True)(x).shape == (4, images, 5)
    assert Bare(encode=True)(x[:0]).shape == (4, 0, 5)
    # Frames have their steps, and at T = 1 a row is a step.
    assert Bare(encode=False, input="frames")(x.unsqueeze(1).expand(-1, 4, -1, -1, -1)).shape[1] == images
    assert Bare(encode=False, encoding="poisson")(x).shape == (4, images, 5)
    assert Bare(encode=False, time_steps=1)(x).shape == (1, images, 5)


def test_an_snn_does_not_become_an_ann() -> None:
    snn, ann = make("vgg5"), make("vgg5", time_steps=None)
    with pytest.raises(SpikedistillError, match="create it anew"):
        snn.time_steps = None
    with pytest.raises(SpikedistillError, match="create it anew"):
        ann.time_steps = 4


def test_statistics_count_the_repeated_image() -> None:
    once, repeated = make("vgg5", width=0.25), make("vgg5", width=0.25, input="frames")
    repeated.load_state_dict(once.state_dict())
    x = torch.rand(2, 3, 4, 4)
    once(x), repeated(x.unsqueeze(1).expand(-1, 4, -1, -1, -1))
    for (key, a), b in zip(once.state_dict().items(), repeated.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


def test_names_are_listed_once_and_sorted() -> None:
    assert sorted(set(NAMES)) == NAMES
    assert {"conv6", "resnet19", "ms_resnet18", "spikingformer_8_768", "hdkd_student", "sew_7b_wide"} <= set(
        NAMES
    )
