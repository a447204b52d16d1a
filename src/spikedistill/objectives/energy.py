"""Synaptic operations as a loss: their energy, or what is beyond an aim."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import layers as neuron_layers
from .base import Objective, Setup, View, Weight, refuse

if TYPE_CHECKING:
    from ..hardware.layer import Layer

UNITS = {"pJ": 1.0, "nJ": 1e-3, "uJ": 1e-6}
MOST = 1000.0  # of the multiplier that makes an aim weigh more


def reach(layer: "Layer") -> Tensor:
    """Outputs of a group's channel that each input position of a convolution reaches, edges exact: (H, W)."""
    axes = []
    # By axis: the two counts multiply, so nothing loops over rows and columns at once.
    for n, m, kernel, stride, pad, dilation in zip(
        layer.in_size, layer.positions, layer.kernel_size, layer.stride, layer.pads, layer.dilation
    ):
        count = torch.zeros(n, dtype=torch.float64)
        for o in range(m):
            for k in range(kernel):
                i = o * stride - pad + k * dilation
                if 0 <= i < n:
                    count[i] += 1
        axes.append(count)
    return axes[0][:, None] * axes[1][None, :]


def fan_out(layer: "Layer") -> Tensor:
    """Outputs that an input value reaches, by position: (H, W), or a scalar for a linear layer."""
    if layer.kind == "linear":
        return torch.tensor(float(layer.out_channels), dtype=torch.float64)
    return reach(layer) * (layer.out_channels / layer.groups)


def connections(network: nn.Module, x: Tensor) -> dict[str, int]:
    """By neuron layer (``path`` or ``path#k``): the connections that its spikes enter.

    Connections are those of convolutions and linear layers. Poolings and additions on the way are passed
    through.
    """
    from ..hardware.workload import layers

    found = {layer.name: layer for layer in layers(network, x)}
    neurons, totals = neuron_layers(network), dict[str, int]()
    for layer in found.values():
        if layer.kind not in ("conv", "linear"):
            continue
        before, seen = list(layer.inputs), set()
        while before:
            name = before.pop()
            source = found.get(name)
            if source is None or name in seen:
                continue
            seen.add(name)
            if source.kind == "neuron":
                short = name.removesuffix(".neuron")
                # The workload names a norm neuron's inner neuron; taps know the pair by the norm's path.
                key = short if short.partition("#")[0] in neurons else name
                totals[key] = totals.get(key, 0) + layer.connections
            elif source.kind in ("pool", "add"):
                before += source.inputs
    return totals


class EnergyRegularization(Objective):
    """``E_MAC MACs + sum_l e_l sum_i s_l,i f_l,i``: the energy of synaptic operations for one input.

    s_l,i are the values that enter layer l (spikes; small integers cost as many accumulates as their value),
    f_l,i the outputs that position i reaches, e_l the energy of one accumulate at the layer's bits; layers
    with real inputs cost their MACs, a constant without gradient. The definition, kinds of inputs and costs
    are those of ``hardware.operations``, so that the value is the ``energy_pj`` that the hardware report
    prints. Ours, not a paper's.

    ``unit``: "relative" (default): divided by the energy if every input of every step were 1; or "pJ", "nJ",
    "uJ" for one input and all of its T steps.

    Shape: inputs of all convolutions and linear layers (T, N, ...).

    Raises: SpikedistillError for a network in which no layer has spikes for its input.

    YAML: ``{type: energy_regularization, weight: 0.1}``
    """

    student_taps = ("*@input",)

    def __init__(
        self,
        unit: Literal["relative", "pJ", "nJ", "uJ"] = "relative",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.unit = unit
        self.constant = 0.0
        self.scale = 1.0
        self.costs: dict[str, Tensor] = {}

    def setup(self, setup: Setup) -> None:
        """Read the layers, their kinds of input and their costs."""
        from ..hardware.operations import accumulate_energy, mac_energy

        self.costs, dense, real = spike_costs(self, setup, accumulate_energy)
        self.constant = sum(layer.macs * layer.runs * mac_energy(layer) for layer in real)
        self.scale = 1 / (dense + self.constant) if self.unit == "relative" else UNITS[self.unit]

    def forward(self, view: View) -> Tensor:
        return (charged(self.costs, view) + self.constant) * self.scale


class OperationsAim(Objective):
    """``m log(operations / aim)`` where they are more than the aim, else 0: a price on the surplus alone.

    Operations are those of the results table: accumulates of one input over all T steps, means over the
    batch. A percent less is worth the same however far the aim is (the square of the surplus silences
    networks that start at twice their aim). ``operations``: the aim. ``m``: a multiplier, at first 1, so that
    the aim is reached beside objectives of any weight: each training batch multiplies it by ``(operations /
    aim) ** dual_rate`` (dual ascent; a factor beyond 2 or 1/2 counts as that), between 1 and 1,000;
    ``dual_rate: 0`` keeps it at 1. A stage's ``operations: 150000`` adds this objective. Ours, not a paper's.

    Shape: inputs of all convolutions and linear layers (T, N, ...). Units: synaptic operations per input.

    Raises: SpikedistillError for a network in which no layer has spikes for its input.

    YAML: ``{type: operations_aim, operations: 150000}``
    """

    student_taps = ("*@input",)
    multiplier: Tensor

    def __init__(
        self, operations: float, dual_rate: float = 0.03, weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if not 0 < operations < math.inf:
            raise SpikedistillError(
                f"operations_aim: operations must be a positive number, found {operations}"
            )
        if not 0 <= dual_rate < 1:
            raise SpikedistillError(f"operations_aim: dual_rate must be from 0 to below 1, found {dual_rate}")
        self.operations, self.dual_rate = operations, dual_rate
        self.costs: dict[str, Tensor] = {}
        self.register_buffer("multiplier", torch.ones(()))

    def setup(self, setup: Setup) -> None:
        """Read the layers and their fan-outs."""
        self.costs, _, _ = spike_costs(self, setup, lambda _: 1.0)

    def forward(self, view: View) -> Tensor:
        factor = charged(self.costs, view) / self.operations
        # A copy: it changes below, in place since processes share it, and backward asks for what it was.
        loss = self.multiplier.clone() * factor.clamp(min=1).log()
        if self.training and torch.is_grad_enabled():
            step = factor.detach().to(self.multiplier).nan_to_num(1.0).clamp(0.5, 2) ** self.dual_rate
            self.multiplier.mul_(step).clamp_(1, MOST)
        return loss


def spike_costs(
    objective: Objective, setup: Setup, price: Callable[["Layer"], float]
) -> tuple[dict[str, Tensor], float, list["Layer"]]:
    """By tap: what a spike at each place of a layer's input costs, at ``price`` an accumulate.

    Then what all of them would cost if every input of every step were 1, and the layers that have real inputs
    instead.
    """
    from ..hardware.workload import layers

    captured = setup.student.all("*@input")
    costs, dense, real = dict[str, Tensor](), 0.0, list["Layer"]()
    for layer in layers(setup.student_network, setup.x):
        tap = f"{layer.name}@input"
        if layer.kind not in ("conv", "linear") or tap not in captured:
            continue
        if layer.input_kind == "real":
            real.append(layer)
            continue
        x = captured[tap]
        cost = fan_out(layer) * price(layer)
        # Of a one-dimensional convolution the second axis is 1, and its input has none.
        costs[tap] = (cost if layer.kind == "linear" or x.dim() == 5 else cost[:, 0]).to(x)
        dense += layer.connections * layer.runs * price(layer)
    if not costs:
        raise refuse(
            objective, "no convolution or linear layer of the student has spikes for its input (an ANN?)"
        )
    return costs, dense, real


def charged(costs: dict[str, Tensor], view: View) -> Tensor:
    """The costs of the spikes that are there, all T steps of one input: a mean over the batch."""
    total = view.logits.new_zeros(())
    for tap, cost in costs.items():
        x = view.student.tensors[tap]
        kind = torch.promote_types(x.dtype, torch.float32)
        # Module.to passes over a dict, and setup saw captures before they were widened.
        if cost.device != x.device or cost.dtype != kind:
            cost = costs[tap] = cost.to(x.device, kind)
        total = total + view.student.weighted_sum(tap, cost) / x.shape[1]
    return total
