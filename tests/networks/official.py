"""What the published transformers' layers compute, written anew from their equations, on weights from ours.

Tensors are (T, N, C, H, W) all along, time is a loop, and a neuron is dV = (x - V) / 2, a spike at the
threshold, a reset to 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fire(current: Tensor, threshold: float = 1.0) -> Tensor:
    membrane, spikes = torch.zeros_like(current[0]), []
    for step in current:
        membrane = membrane + (step - membrane) / 2
        spikes.append((membrane >= threshold).to(current.dtype))
        membrane = torch.where(membrane >= threshold, torch.zeros_like(membrane), membrane)
    return torch.stack(spikes)


def affine(x: Tensor, norm: nn.Module) -> Tensor:
    """A norm in eval mode, channel by channel."""
    mean, var, weight, bias = (
        getattr(norm, k).view(-1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


def conv(x: Tensor, layer: nn.Module) -> Tensor:
    return F.conv2d(x.flatten(0, 1), layer.weight, layer.bias, layer.stride, layer.padding).unflatten(
        0, x.shape[:2]
    )


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])


def branch(x: Tensor, part: nn.Module) -> Tensor:
    """Convolution, norm, neuron."""
    return fire(affine(conv(x, part.conv), part.norm))


def mlp(x: Tensor, block: nn.Module) -> Tensor:
    """Up to the norm of its second layer."""
    hidden = fire(affine(conv(x, block.fc1), block.fc1_norm))
    return affine(conv(hidden, block.fc2), block.fc2_norm)


def lively(network: nn.Module, x: Tensor) -> nn.Module:
    """Norms strong enough that all layers fire, with statistics of ``x``; float64, eval mode."""
    network = network.double().train()
    norms = [m for m in network.modules() if hasattr(m, "running_var")]
    for norm in norms:
        nn.init.uniform_(norm.weight, 1.5, 3.0)
        nn.init.normal_(norm.bias, 0.3, 0.3)
        norm.momentum = 0.6
    with torch.no_grad():
        for _ in range(3):
            network(x)
    return network.eval()


def assert_rows_are_alone(network: nn.Module, x: Tensor) -> None:
    """What an image gives is its own: another batch around it changes nothing, at no step."""
    others = torch.rand_like(x)
    others[1] = x[1]
    with torch.no_grad():
        whole, changed, alone = network(x), network(others), network(x[1:2])
    assert not torch.equal(whole[:, 0], changed[:, 0])
    torch.testing.assert_close(changed[:, 1], whole[:, 1], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone[:, 0], whole[:, 1], rtol=0, atol=1e-9)
