"""1x1 convolutions with a stride: gradients of torch's values, by no gradient that oneDNN gets wrong."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import spikedistill as sd
from spikedistill.neurons.strided import guard


class _Faulty(TorchDispatchMode):
    """Counts gradients of the weights of 1x1 convolutions with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.seen = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen += 1
            weight, stride, padding, mask = args[2], args[4], args[5], args[10]
            self.found += set(weight.shape[2:]) == {1} and max(stride) > 1 and not any(padding) and mask[1]
        return func(*args, **(kwargs or {}))


def _whole(*shape: int) -> Tensor:
    """Small integers: float32 holds every sum of their products exactly."""
    return torch.randint(-8, 9, shape).float()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 12, 15, 16, 24])
@pytest.mark.parametrize("stride, groups", [(2, 1), (3, 1), ((2, 1), 1), ((1, 3), 1), (2, 0)])
def test_gradients_are_those_of_float64_bit_for_bit(channels, stride, groups, layout):
    conv = nn.Conv2d(channels, 2 * channels, 1, stride, groups=groups or channels)
    guarded = guard(nn.Sequential(copy.deepcopy(conv)))[0]
    x = _whole(5, channels, 9, 7).contiguous(memory_format=layout).requires_grad_()
    for p in guarded.parameters():
        p.data = _whole(*p.shape)
    conv.load_state_dict(guarded.state_dict())
    wide = conv.double()
    x64 = x.detach().double().requires_grad_()
    with _Faulty() as faulty:
        y = guarded(x)
        g = _whole(*y.shape)
        found = torch.autograd.grad(y, [x, *guarded.parameters()], g)
    assert (faulty.found, faulty.seen) == (0, 1)
    expected = wide(x64)
    wanted = torch.autograd.grad(expected, [x64, *wide.parameters()], g.double())
    assert torch.equal(y.double(), expected)
    assert all(torch.equal(a.double(), b) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        assert torch.equal(guarded(x), y)


def test_sequences_too():
    conv = guard(nn.Sequential(nn.Conv1d(4, 6, 1, 2)))[0]
    x = _whole(3, 4, 9)
    with _Faulty() as faulty:
        conv(x).sum().backward()
    assert (faulty.found, faulty.seen) == (0, 1)
    torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight, conv.bias, 2))


class Strided(nn.Module):
    """A user's network: a shortcut, and a convolution of a class of its own."""

    class Own(nn.Conv2d):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.conv, self.short = nn.Conv2d(8, 12, 3, 2, 1), self.Own(8, 12, 1, 2)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.conv(x) + self.short(x)).mean((2, 3)))


class Made(nn.Conv2d):
    """One that says itself how it is made again."""

    def __reduce_ex__(self, protocol):
        return type(self), (self.in_channels, self.out_channels, 1, 2), self.__dict__


def _saved(network: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "torch": _saved,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {i}": lambda m, i=i: pickle.loads(pickle.dumps(m, i))
        for i in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("cls", [Strided.Own, Made, nn.Conv2d])
def test_what_is_guarded_can_be_stored(cls, copied):
    network, x = sd.equip(nn.Sequential(cls(4, 8, 1, 2))), torch.rand(2, 4, 9, 7)
    network[0].note = "kept"
    again = COPIES[copied](COPIES[copied](network))
    assert type(again[0]) is type(network[0])
    assert again[0].note == "kept"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    with _Faulty() as faulty:
        y = again(x)
        y.sum().backward()
    assert (faulty.found, faulty.seen) == (0, 1)
    assert torch.equal(y, network(x))


def _networks():
    x = torch.rand(4, 3, 16, 16)
    spiking = sd.networks.create("resnet18", width=0.05, time_steps=2)
    return {
        "own": spiking,
        "ann": sd.networks.create("resnet18", width=0.05, time_steps=None),
        "ms": sd.networks.create("ms_resnet18", width=0.05, time_steps=2),
        "sew": sd.networks.create("sew_resnet18", width=0.05, time_steps=2),
        "turned": sd.spiking(Strided(), 2, example=x),
        "quantized": sd.quantize(spiking, calibration=x),
        "folded": sd.quantize(spiking, calibration=x, scheme="mint"),
        "foreign": sd.foreign(Strided(), "NCHW", time_steps=None),
        "plain": Strided(),
    }


@pytest.mark.parametrize(
    "kind", ["own", "ann", "ms", "sew", "turned", "quantized", "folded", "foreign", "plain"]
)
def test_every_kind_of_network_is_guarded(kind):
    network, x, y = _networks()[kind].train(), torch.rand(4, 3, 16, 16), torch.arange(4)
    distiller = sd.Distiller(network) if kind == "plain" else None
    if distiller is not None:
        distiller.setup(x)
    with _Faulty() as faulty:
        if distiller is not None:
            distiller(x, y).total.backward()
        else:
            F.cross_entropy(network.predict(x), y).backward()
    assert faulty.seen > 2
    assert faulty.found == 0
    again = copy.deepcopy(network)
    assert [*again.state_dict()] == [*network.state_dict()]


def test_adapters_are_guarded():
    distiller = sd.Distiller(Strided(), None, [{"type": "cross_entropy"}])
    distiller.objectives["cross_entropy"].adapter = nn.Conv2d(3, 4, 1, 2)
    distiller.setup(torch.rand(4, 3, 16, 16))
    with _Faulty() as faulty:
        distiller.objectives["cross_entropy"].adapter(torch.rand(4, 3, 8, 8)).sum().backward()
    assert (faulty.found, faulty.seen) == (0, 1)
