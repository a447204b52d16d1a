"""A batch norm and the neuron behind it as one module; and which modules of a network are neuron layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import simulation
from ..errors import SpikedistillError
from ..numerics import at_least_float32
from . import fused, rates
from .modules import Neuron
from .simulate import simulate
from .sync import BatchStatistics, is_distributed, update_running


class NormNeuron(BatchStatistics, nn.Module):
    """A batch norm and the neuron behind it, together: ``neuron(norm(current) + residual)``.

    The statistics are over T, N and space jointly (tdBN's meaning; Zheng et al., AAAI 2021). The state dict
    looks like a batch norm's. ``neuron`` may be ``nn.ReLU()``: the ANN twin. Statistics, affine map, grid and
    scan are separate methods, so that quantization and evaluation reuse them.

    Shape: (T*N, C, ...) to (T*N, C, ...); with an encoding neuron (N, C, ...) to (T*N, C, ...).
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    grid: Any = None  # set by quantization: (x, a, b, residual) -> current in integer codes

    def __init__(self, channels: int, neuron: nn.Module, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.neuron = neuron

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance per channel: the batch's in training (running ones follow), or running."""
        if not self.training:
            return self.running_mean, self.running_var
        dims = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(at_least_float32(x), dims, unbiased=False)
        return self._read(mean, var, x.numel() // self.channels)[:2]

    def track(self, mean: Tensor, var: Tensor, n: int | Tensor) -> None:
        """Move the running statistics towards a batch's; ``n`` values per channel were read."""
        # A constant current stands for T equal ones: the unbiased factor counts all, as if repeated.
        neuron = self.neuron
        copies = simulation.steps(neuron.time_steps) if isinstance(neuron, Neuron) and neuron.encode else 1
        update_running(self, mean, var, n * copies)
        if (kept := rates.tape()) is not None:
            kept.keep(self, mean, torch.rsqrt(var + self.eps))

    def affine(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, b)`` with ``norm(x) = a * x + b``."""
        a = self.weight * torch.rsqrt(var + self.eps)
        return a, self.bias - mean * a

    def current(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """What charges the neuron: norm, then residual (on integer codes when quantized)."""
        if self.grid is not None:
            return self.grid(x, *self.affine(*self.statistics(x)), residual)
        kept = rates.tape() if self.training else None
        if kept is not None and not kept.recording:
            y = kept.normalised(self, x)
            return y if residual is None else y + residual
        if self.training and self.sync and is_distributed():
            a, b = (v.view(-1, *[1] * (x.dim() - 2)) for v in self.affine(*self.statistics(x)))
            y = (a * x + b).to(x.dtype)
        elif self.training:
            # Without running statistics: track() moves them, and knows of recomputing and constant currents.
            y, mean, invstd = torch.native_batch_norm(
                x, self.weight, self.bias, None, None, True, 0.0, self.eps
            )
            # Only 1 / sqrt(var + eps) comes back; rounding may put a variance of 0 below 0.
            var = (invstd.detach() ** -2 - self.eps).clamp(min=0)
            self.track(mean.detach(), var, x.numel() // self.channels)
        else:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return y if residual is None else y + residual

    def fusable(self, x: Tensor) -> bool:
        """Whether norm and neuron are plain enough to run as one operation on this input."""
        if type(self).current is not NormNeuron.current:
            return False
        return self.grid is None or bool(self.grid.fusable(x))

    def for_fused(
        self, x: Tensor, residual: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], fused.Batch | None, Tensor | None]:
        """For :func:`.fused.run`: ``(a, b)``, None and the residual; in training weight, bias, statistics."""
        if self.grid is not None:
            # Through the statistics autograd goes itself: multipliers and offsets are rounded in between.
            a, b, residual = self.grid.for_fused(*self.affine(*self.statistics(x)), residual)
            return (a, b), None, residual
        if not self.training:
            return self.affine(self.running_mean, self.running_var), None, residual
        # No graph through the statistics: the fused backward has their part of the derivative in it.
        with torch.no_grad():
            mean, var, n = self._read(*fused.moments(x), x.numel() // self.channels)
            rstd = torch.rsqrt(var + self.eps)
        batch = fused.Batch(mean, rstd, n, self.sync and is_distributed())
        return (self.weight, self.bias), batch, residual

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``residual``, shaped as ``x``, is added after the norm, before charging."""
        if residual is not None and residual.shape != x.shape:
            raise SpikedistillError(
                f"NormNeuron: the residual must have the shape of the current {tuple(x.shape)}, "
                f"found {tuple(residual.shape)}"
            )
        if not isinstance(self.neuron, Neuron):
            return self.neuron(self.current(x, residual))
        return simulate(x, self.neuron, self, self, residual)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"


def neuron_of(module: nn.Module | None) -> Neuron | None:
    """The neuron of a neuron layer: itself, or the one behind a norm; None for every other module."""
    inner = module.neuron if isinstance(module, NormNeuron) else module
    return inner if isinstance(inner, Neuron) else None


def layers(network: nn.Module) -> dict[str, Neuron]:
    """Neuron layers of a network by path, as defined; a norm and its neuron are one, at the norm's path."""
    inside = {f"{path}.neuron" for path, m in network.named_modules() if isinstance(m, NormNeuron)}
    found = {path: neuron_of(m) for path, m in network.named_modules() if path not in inside}
    return {path: neuron for path, neuron in found.items() if neuron is not None}
