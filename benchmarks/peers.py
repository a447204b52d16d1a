"""Other libraries' neurons in our networks: the same layers and weights, their time loop."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.neurons import LIF, Neuron, NormNeuron

Simulate = Callable[[Tensor], Tensor]  # current (T, N, ...) to spikes (T, N, ...)


def create(name: str, T: int | None, frames: bool = False, **options: Any) -> nn.Module:
    """One of ours, or with T None its ANN twin, with equal weights whichever way images enter.

    ``frames``: at each time step, as other libraries' users do it. A balanced start depends on that: the
    neuron that reads an image once gets a constant current.
    """
    torch.manual_seed(0)
    way, neuron = "frames" if frames else "image", None if T is None else LIF()
    network = sd.networks.create(name, input=way, time_steps=T, neuron=neuron, **options)
    if frames:
        network.load_state_dict(create(name, T, **options).state_dict())
    return network


def fired(network: nn.Module, x: Tensor) -> nn.Module:
    """The network in eval mode with norms of these images, so that neurons fire as after training."""
    for norm in network.modules():
        if getattr(norm, "running_mean", None) is not None:
            norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(x[:16])
    return network.eval()


class _Atan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g / (1 + (math.pi * u).square())


def plain(neuron: Neuron) -> Simulate:
    """A loop as one writes it by hand."""

    def run(x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            h = neuron.decay * v + neuron.gain * current
            s = _Atan.apply(h - neuron.threshold)
            v = h * (1 - s.detach())
            spikes.append(s)
        return torch.stack(spikes)

    return run


def spikingjelly(neuron: Neuron) -> Simulate:
    from spikingjelly.activation_based import surrogate
    from spikingjelly.activation_based.neuron import LIFNode

    return LIFNode(1 / neuron.gain, surrogate_function=surrogate.ATan(2.0), detach_reset=True, step_mode="m")


def reset(network: nn.Module) -> None:
    """What SpikingJelly's networks need before each simulation; outside what is compiled, as its users do."""
    for module in network.modules():
        if type(module).__name__ == "LIFNode":
            module.reset()


def snntorch(neuron: Neuron) -> Simulate:
    import snntorch
    from snntorch import surrogate

    leaky = snntorch.Leaky(
        neuron.decay, spike_grad=surrogate.atan(2.0), reset_mechanism="zero", reset_delay=False
    )

    return stepped(leaky, neuron.gain)


def stepped(leaky: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], gain: float) -> Simulate:
    """snnTorch's neurons know one step: the loop that its users write."""

    def run(x: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(x[0]), []
        for current in x:
            s, mem = leaky(gain * current, mem)
            spikes.append(s.to(x.dtype))
        return torch.stack(spikes)

    return run


def norse(neuron: Neuron) -> Simulate:
    from norse.torch.functional.lif_box import (
        LIFBoxFeedForwardState,
        LIFBoxParameters,
        lif_box_feed_forward_step,
    )

    p = LIFBoxParameters(tau_mem_inv=torch.tensor(1000 * neuron.gain), v_th=torch.tensor(neuron.threshold))

    def run(x: Tensor) -> Tensor:
        state, spikes = LIFBoxFeedForwardState(torch.zeros_like(x[0])), []
        for current in x:
            s, state = lif_box_feed_forward_step(current, state, p, dt=0.001)
            spikes.append(s)
        return torch.stack(spikes)

    return run


PEERS = {"plain loop": plain, "SpikingJelly": spikingjelly, "snnTorch": snntorch, "Norse": norse}


class _PeerNeuron(nn.Module):
    """Folds time as the library does; a constant current enters all steps."""

    def __init__(self, neuron: Neuron, make: Callable[[Neuron], Simulate], T: int) -> None:
        super().__init__()
        self.run, self.T, self.encode = make(neuron), T, neuron.encode

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).expand(self.T, *x.shape) if self.encode else x.unflatten(0, (self.T, -1))
        return self.run(x).flatten(0, 1)


class _PeerNormNeuron(nn.Module):
    def __init__(self, norm: NormNeuron, neuron: nn.Module) -> None:
        super().__init__()
        self.norm, self.neuron = nn.BatchNorm2d(norm.channels, norm.eps, norm.momentum), neuron
        self.norm.load_state_dict({k: v for k, v in norm.state_dict().items() if not k.startswith("neuron.")})

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return self.neuron(x if residual is None else x + residual)


def swapped(network: nn.Module, peer: str, T: int) -> nn.Module:
    """A copy of one of our networks with torch's norms and a peer's neurons."""
    make = PEERS[peer]

    def turn(module: nn.Module) -> nn.Module:
        if isinstance(module, NormNeuron):
            return _PeerNormNeuron(module, turn(module.neuron))
        if isinstance(module, Neuron):
            assert isinstance(module, LIF)
            assert module.reset == "hard"
            return _PeerNeuron(module, make, T)
        for name, child in list(module.named_children()):
            setattr(module, name, turn(child))
        return module

    return turn(copy.deepcopy(network))


class Unit(nn.Sequential):
    """A run of layers that ends with a neuron: what SpikingJelly's memory optimization works on."""


def grouped(network: nn.Module) -> nn.Module:
    """The network with layer runs up to a neuron in one module each, where sequences have such; in place."""
    for name, child in list(network.named_children()):
        grouped(child)
        if not isinstance(child, nn.Sequential):
            continue
        runs: list[list[nn.Module]] = [[]]
        for layer in child:
            runs[-1].append(layer)
            if isinstance(layer, (_PeerNormNeuron, _PeerNeuron)):
                runs.append([])
        units = [Unit(*run) if len(run) > 1 else run[0] for run in runs if run]
        setattr(network, name, nn.Sequential(*units))
    return network
