"""Optimizer, learning-rate schedule, moving average."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .. import finite
from ..optimizer_groups import parameter_groups
from ..recipe import Optimizer


def optimizer(module: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over student and adapters, fused where torch has it for the device."""
    groups = parameter_groups(module, config.lr, config.weight_decay, config.name)
    # Asked for and not left to torch: fused kernels are the ones that the guard can hold back without a wait.
    fused = all(p.is_floating_point() and p.device.type in ("cuda", "cpu") for p in module.parameters())
    if config.name == "sgd":
        return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.nesterov, fused=fused)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, config.betas, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The schedule's rate, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def state_by_name(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as ``{"parameter name|key": tensor}``: groups may be cut otherwise."""
    out = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                out[f"{name}|{key}"] = torch.as_tensor(value)
    return out


def restore_by_name(optimizer: torch.optim.Optimizer, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """What :func:`state_by_name` gave; raises ``KeyError`` for a parameter that the module lacks."""
    places = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = dict(module.named_parameters())
    # A checkpoint of an older version, by number.
    if any("|" not in text for text in state):
        state = _named_state(state, module)
    states: dict[int, dict[str, Tensor]] = {}
    for text, value in state.items():
        name, key = text.rsplit("|", 1)
        states.setdefault(places[id(parameters[name])], {})[key] = value
    # Through torch, which brings each state to its parameter's device and type. The groups are
    # the optimizer's own: a checkpoint keeps none.
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _named_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state by number ("3.momentum_buffer"), as checkpoints of two groups had it: decayed, then vectors."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    group = {id(p): g["name"] == "vectors" for g in parameter_groups(module, 1.0) for p in g["params"]}
    order = [name for last in (False, True) for name, p in named if group[id(p)] == last]
    out = {}
    for text, value in state.items():
        index, key = text.split(".", 1)
        out[f"{order[int(index)]}|{key}"] = value
    return out


def learning_rate(config: Optimizer, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0) among ``steps``: a pure function of position."""
    warm = round(config.warm_up * steps_per_epoch)
    if step < warm:
        # step + 1: the first update already moves, and the last of the warm-up has the whole rate.
        return config.warm_up_lr + (config.lr - config.warm_up_lr) * (step + 1) / warm
    p = (step - warm) / max(1, steps - warm)
    if config.schedule == "cosine":
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * p)) / 2
    if config.schedule == "step":
        return config.lr * config.gamma ** ((step // steps_per_epoch) // config.step_epochs)
    if config.schedule == "one_cycle":
        # Cosine up from lr/25, cosine down to min_lr (Smith's policy as in OneCycleLR, momentum fixed).
        up = config.one_cycle_up
        if p < up:
            return config.lr / 25 + (config.lr - config.lr / 25) * (1 - math.cos(math.pi * p / up)) / 2
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * (p - up) / (1 - up))) / 2
    return config.lr


class MovingAverage:
    """Exponential moving average of a module's parameters and floating-point buffers."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in _tensors(module)}
        self.masks = finite.mask_names(module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """``average <- decay * average + (1 - decay) * value``; integers and a mask's infinity are copied."""
        for name, value in _tensors(module):
            average = self.values[name]
            if not value.is_floating_point():
                average.copy_(value)
            elif name in self.masks:
                # Between infinities lies NaN. Asked on the device: to read it would wait for the GPU.
                held = torch.isinf(value) | torch.isinf(average)
                average.copy_(torch.where(held, value, average.lerp(value, 1 - self.decay)))
            else:
                average.lerp_(value, 1 - self.decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's values with the averages."""
        for name, value in _tensors(module):
            # In place: the optimizer and the wrapper of several processes hold these tensors.
            other = self.values[name].clone()
            self.values[name].copy_(value)
            value.copy_(other)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
