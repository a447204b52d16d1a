"""What makes a network a quantized one, in one object: ``Network.quantization``."""

from typing import Any

import torch
from torch import Tensor

from .layers import CodedLayer
from .membrane import CodedNeuron
from .norm import CodedNorm, InputCast, NormGrid
from .options import Options
from .plan import Plan

Part = CodedLayer | CodedNorm | NormGrid | CodedNeuron


class Quantization:
    """Plan, options and parts of a quantized network.

    ``parts``, by path in the order of the plan: what computes in a module's place, a :class:`.CodedLayer` for
    a convolution or linear layer, a :class:`.CodedNorm`, a :class:`.NormGrid` for a NormNeuron, a
    :class:`.CodedNeuron` for a neuron that stands alone. ``casts``: what turns floats that are not codes into
    codes, by path of the module that they enter.

    Measured ranges, scales and shifts are parameters and buffers of the modules, so that the state dict holds
    them.
    """

    def __init__(self, plan: Plan, options: Options) -> None:
        self.plan, self.options = plan, options
        self.parts: dict[str, Part] = {}
        self.casts: dict[str, InputCast] = {}

    @property
    def layers(self) -> dict[str, CodedLayer]:
        """The parts that hold weights."""
        return {path: part for path, part in self.parts.items() if isinstance(part, CodedLayer)}

    def requantize(self) -> None:
        """Between epochs, choose anew what is fixed within: scales of least squared error, binary shifts."""
        for part in self.parts.values():
            part.update()

    def bits(self, path: str | None, what: str) -> int | None:
        """Bits by name; None: not quantized.

        ``weight_bits`` of the layer at ``path``, ``temporal_bits`` of neurons' weights over time, else the
        network's by their option's name.
        """
        if what == "weight_bits":
            return self.plan.formats[path].bits if path in self.plan.formats else None
        if what == "temporal_bits":
            return self.options.weight_bits
        found: int | None = getattr(self.options, what, None)
        return found

    def value(self, node: str) -> Tensor | None:
        """What a float 1 on the output of a graph's node is worth, for all or per channel; None: real."""
        edge = self.plan.edges.get(node)
        if edge is None or edge.spikes or (edge.base == "norm" and edge.group in self.plan.real):
            return None
        share = edge.share / edge.fraction  # the network's own code may have scaled the floats already
        if edge.base == "step":
            return torch.tensor([edge.step * share], dtype=torch.float64)
        part = self.parts[edge.layer if edge.base == "layer" else self.plan.groups[edge.group][0]]
        assert isinstance(part, CodedLayer | CodedNorm)
        if part.rescale is not None:
            return torch.as_tensor(share / part.rescale.target.per_unit()).double().detach().flatten()
        if isinstance(part, CodedNorm):  # folded into the layer before it, which charges its neuron
            layer: Any = self.parts[
                self.plan.edges[self.plan.op(self.plan.groups[edge.group][0]).inputs[0]].layer
            ]
            return torch.as_tensor(share / layer.membrane.per_unit()).double().detach().flatten()
        return None if part.logits else (share * part.step()).detach().flatten()
