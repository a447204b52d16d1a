"""Parameter groups of an optimizer: what is decayed, and what learns at a rate of its own."""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import SpikedistillError, nearest
from .neurons import Neuron, NormNeuron, Parallel

log = logging.getLogger("spikedistill")
OptimizerName = Literal["sgd", "adam", "adamw"]
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, NormNeuron)
LEARNED_SCALES = ("weight_scale", "membrane_unit")  # a quantized network's parameters that are no weights
SCALES_RATE = 0.1
# Adam moves every parameter by the rate itself, whatever its size: a unit of 1/256 would be gone in 40 steps
# at 1e-3. So a scale moves by no more than twice its size times the rate: 10 % in 50 steps there.
SCALES_PACE = 2.0
# A parallel neuron's weight over time scales every channel of its layer, so its gradient is the sum of all of
# theirs: at the whole rate of SGD a loss of 20 drives it from 0.5 to 2 in 150 steps. A hundredth is about
# what the mean over a layer's channels would do. Adam's steps do not grow with the gradient.
OVER_TIME_RATE = 0.01


def parameter_groups(
    network: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    optimizer: OptimizerName = "sgd",
    eps: float = 1e-8,
) -> list[dict[str, Any]]:
    """Trainable parameters as groups for ``torch.optim.SGD``, ``Adam`` or ``AdamW``.

    ``weights`` are decayed; ``vectors`` (norms, biases, other vectors, neurons' parameters) are not;
    ``learned scales`` of a quantized network learn at a tenth of the rate, undecayed; with Adam and AdamW
    each is a group of its own, ``learned scales: PATH``, at no more than twice its size times the rate.
    ``weights over time`` of parallel neurons, and their biases, are undecayed and with SGD learn at a
    hundredth of the rate. A linear layer whose ``input_factor`` is c (a balanced network's classifier and
    hidden linear layers) is a group named by its path, whose weight learns exactly as if the layer's input
    were multiplied by c and the weight divided by it:

        SGD     lr c^2    decay / c^2
        Adam    lr c      decay / c^2    eps / c
        AdamW   lr c      decay / c      eps / c

    Each group has ``name``, ``params``, ``lr``, ``lr_factor``, ``input_factor``, ``weight_decay``, and
    ``eps`` for Adam and AdamW. A schedule sets ``group["lr"] = rate * group["lr_factor"]``; torch's own
    schedulers that scale every group's rate keep the factors. Where they take a rate as a number, all groups
    would get that one: OneCycleLR takes ``max_lr=[g["lr"] for g in groups]``, CyclicLR such lists for
    ``base_lr`` and ``max_lr``, ReduceLROnPlateau for ``min_lr``; CosineAnnealingLR keeps factors with
    ``eta_min=0`` alone. :func:`clip_gradients` knows them too.

        optimizer = torch.optim.SGD(sd.parameter_groups(network, 0.1, weight_decay=5e-4), momentum=0.9)

    Raises :class:`SpikedistillError` for an unknown optimizer's name.
    """
    if optimizer not in ("sgd", "adam", "adamw"):
        raise SpikedistillError(
            f"unknown optimizer {optimizer!r}: {nearest(optimizer, ('sgd', 'adam', 'adamw'))}"
        )
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter, factor in _named(network, optimizer != "sgd"):
        rate, decay, least = 1.0, weight_decay, eps
        if name.startswith("learned scales"):
            rate, decay = SCALES_RATE, 0.0
            if optimizer != "sgd":
                rate = min(rate, SCALES_PACE * float(parameter.detach().abs().mean()))
        elif name == "weights over time":
            rate, decay = OVER_TIME_RATE if optimizer == "sgd" else 1.0, 0.0
        elif name == "vectors":
            decay = 0.0
        elif factor != 1:
            rate = factor**2 if optimizer == "sgd" else factor
            decay = weight_decay / (factor if optimizer == "adamw" else factor**2)
            least = eps / factor
        if name not in groups:
            groups[name] = {
                "name": name, "params": [], "lr": lr * rate, "lr_factor": rate, "input_factor": factor,
                "weight_decay": decay,
                **({} if optimizer == "sgd" else {"eps": least}),
            }  # fmt: skip
        groups[name]["params"].append(parameter)
    return list(groups.values())


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, most: float) -> Tensor:
    """Scale all gradients so that their norm is at most ``most``; returns the norm that was found.

    As ``torch.nn.utils.clip_grad_norm_``, for groups of :func:`parameter_groups`: a weight with an input
    factor c counts with c times its gradient, which is what it would be if the input were multiplied.
    """
    factors = {p: g.get("input_factor", 1.0) for g in optimizer.param_groups for p in g["params"]}
    gradients = {p: p.grad for p in factors if p.grad is not None}
    if not gradients:
        return torch.zeros(())
    device = next(iter(gradients)).device
    # Norms move, not gradients: the parameters of one network may lie on several devices.
    norms = [factors[p] * torch.linalg.vector_norm(g).to(device) for p, g in gradients.items()]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(gradients, most, norm)
    return norm


def _named(network: nn.Module, apart: bool) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Group's name, parameter and input factor, each once; ``apart``: a group for each learned scale."""
    seen: set[int] = set()
    for path, module in network.named_modules():
        factor = float(getattr(module, "input_factor", 1.0))
        if factor != 1 and "weight" not in dict(module.named_parameters(recurse=False)):
            log.warning(
                "%s: its weight is made of other parameters (weight_norm and its kind); they learn at the "
                "plain rate, not as if the layer's input were %.3g times larger, as a balanced start has it",
                path,
                factor,
            )
        for key, parameter in module.named_parameters(recurse=False):
            # A shared weight has two paths; in two groups torch refuses it.
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            # First: by their dimensions they would be vectors or weights, and learn at the whole rate.
            if key in LEARNED_SCALES:
                yield f"learned scales: {path}.{key}" if apart else "learned scales", parameter, 1.0
            elif isinstance(module, Parallel):
                yield "weights over time", parameter, 1.0
            elif parameter.dim() < 2 or isinstance(module, (*_NORMS, Neuron)):
                yield "vectors", parameter, 1.0
            # The bias is added after the input's factor, so it keeps the plain rate, among the vectors.
            elif factor != 1 and key == "weight":
                yield path, parameter, factor
            else:
                yield "weights", parameter, 1.0
