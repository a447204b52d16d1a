"""Gradients of a fresh network, measured: do they reach the first layers as they reach the last?"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..neurons import NormNeuron, eager
from ..randomness import apart
from .base import Network

SAMPLES, VALUES = 16, 2**18  # at most as many, of that many values over all steps: a graph is kept of them
TILT = math.log(16)  # what the first layers may have beyond the last ones, or lack
RANGE = math.log(8)  # of the factor on all widths
HALVINGS = 6
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.modules.batchnorm._BatchNorm, NormNeuron)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Norms use the batch's statistics, as in training; nothing else trains, and nothing is left of it.

    Networks run in eager arithmetic, in which a neuron's ``simulate`` is called.
    """
    flags = {m: m.training for m in network.modules()}
    # Norms in training mode move their running statistics; they are put back.
    frozen = {k: v.clone() for k, v in network.named_buffers()}
    try:
        network.eval()
        for module in network.modules():
            # A fresh network's running statistics are 0 and 1. Norms alone: dropout would blur rates.
            if isinstance(module, _NORMS):
                module.train()
        with eager(), apart():
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        with torch.no_grad():
            for k, v in network.named_buffers():
                v.copy_(frozen[k])


def gradient_tilt(network: Network, x: Tensor) -> float:
    """Logarithm of |w| |gradient| at the first layer over that at the last, by a line through all layers'.

    Of convolutions that learn, in the order in which the network holds them; of linear layers but the last in
    networks without; for equally likely labels on ``x``. 0 with fewer than three, infinite where they
    overflow.
    """
    found: list[Any] = [m for m in network.modules() if isinstance(m, _CONVOLUTIONS)]
    # The classifier's gradient is as large as its input, whatever reaches the layers before it.
    found = found or [m for m in network.modules() if isinstance(m, nn.Linear)][:-1]
    weights = [m.weight for m in found if m.weight.requires_grad]
    if len(weights) < 3:
        return 0.0
    steps = (network.time_steps or 1) if network.input == "image" else 1
    samples = max(2, min(SAMPLES, VALUES // (x[0].numel() * steps)))
    with torch.enable_grad(), batch_statistics(network):
        logits = network.predict(x[:samples])
        loss = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) % logits.shape[1])
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    pairs = zip(weights, gradients, strict=True)
    sizes = [float(w.detach().norm() * g.norm()) for w, g in pairs if g is not None]
    if not all(map(math.isfinite, sizes)):
        return math.inf
    logarithms = torch.tensor([math.log(max(size, 1e-30)) for size in sizes], dtype=torch.float64)
    places = torch.linspace(-0.5, 0.5, len(sizes), dtype=torch.float64)
    return -float((places * logarithms).sum() / places.square().sum())


def level(measured: Callable[[float], float]) -> float:
    """The factor on all widths at which ``measured`` (a tilt, which falls with the width) is nearest to 0.

    1 where the tilt is small.
    """
    if abs(measured(1.0)) < TILT:
        return 1.0
    low, high = -RANGE, RANGE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if measured(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)
