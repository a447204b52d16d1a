"""Random networks that fire in every layer, and comparison of a quantized network with its integer form."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedistill import networks, taps
from spikedistill.networks import Network
from spikedistill.neurons import NormNeuron
from spikedistill.quantization import IntegerNetwork, quantize, to_integer
from spikedistill.quantization.header_check import read_header


def lively(name: str, x: Tensor, **options: object) -> Network:
    """A network of strong norms with running statistics of ``x``: silent layers would prove nothing."""
    return awake(networks.create(name, **options), x)


def awake(network: Network, x: Tensor) -> Network:
    norms = [m for m in network.modules() if isinstance(m, NormNeuron | nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        threshold = getattr(getattr(norm, "neuron", None), "threshold", 0.5)
        nn.init.uniform_(norm.weight, 1.5 * threshold, 2.5 * threshold)
        nn.init.normal_(norm.bias, 0.2 * threshold, 0.3 * threshold)
        norm.momentum = 0.6
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and any(part in path for part in ("hidden", "fc1", "head.linear")):
            nn.init.normal_(layer.weight, 0.2, 1.0)
            nn.init.uniform_(layer.bias, 0.5, 2.5)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(x)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def trained(network: Network, x: Tensor, y: Tensor) -> Network:
    """Six steps on the first 300 images: logits that tell images apart."""
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    network.train()
    for batch in torch.arange(300).split(50):
        optimizer.zero_grad()
        F.cross_entropy(network.predict(x[batch]), y[batch]).backward()
        optimizer.step()
    return network.eval()


def images(n: int = 8, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size)


def events(n: int = 4, steps: int = 4, channels: int = 2, size: int = 8) -> Tensor:
    return torch.poisson(torch.ones(n, steps, channels, size, size))


def assert_equal(quantized: Network, x: Tensor, alive: float = 0.9) -> IntegerNetwork:
    """Every spike of every layer, every integer logit of every step, every prediction; most layers fire."""
    quantized.eval()
    with torch.no_grad():
        logits, seen = taps.captures(quantized, x, ["*@spikes"])
        predicted = quantized.predict(x)
    integer = to_integer(quantized)
    read_header(integer.header, integer.tensors, "here")
    steps, spikes = integer.steps(x)
    assert len(spikes) == len(seen.tensors) > 0
    for path, mine in spikes.items():
        assert not mine.is_floating_point()
        assert torch.equal(mine.to(torch.int64), seen.tensors[f"{path}@spikes"].to(torch.int64)), path
    firing = [bool(s.any()) for s in spikes.values()]
    assert sum(firing) >= alive * len(firing), "silent layers prove nothing"
    assert torch.equal(steps.double() * integer.scale, logits.double())
    assert torch.equal(integer.predict(x), predicted)
    assert all(not t.is_floating_point() for t in integer.tensors.values())
    return integer


def check(
    name: str, x: Tensor, network_options: dict, alive: float = 0.9, **options: object
) -> IntegerNetwork:
    return assert_equal(quantize(lively(name, x, **network_options), calibration=x, **options), x, alive)
