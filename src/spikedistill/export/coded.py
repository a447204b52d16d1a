"""Quantized networks for exchange formats: the same operations on codes, without the roundings between them."""

from typing import Any

import numpy as np
from torch import nn

from ..networks.graph import Node, Ref
from ..neurons import Neuron, NormNeuron
from ..quantization.norm import Rescale
from .layers import Refusal, Terms, total
from .lowering import GraphBuilder, as_array


def _multiplier(rescale: Rescale, a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    m, o = rescale.codes(a, b)
    return as_array(m) * 2.0 ** -(0 if rescale.bits is None else rescale.k), as_array(o)


class CodedBuilder(GraphBuilder):
    """Weight codes, multipliers and offsets as weights and biases, thresholds and decays of the grids."""

    def weights(self, m: Any) -> tuple[np.ndarray, np.ndarray]:
        coded: Any = m.forward
        weight, offset = as_array(coded.codes()), coded.offset()
        bias = np.zeros(len(weight)) if offset is None else as_array(offset)
        if coded.rescale is not None:
            scale, bias = _multiplier(coded.rescale, *coded.plain())
        elif coded.logits:
            scale = np.broadcast_to(as_array(coded.step()).ravel(), (len(weight),))
            bias = bias * scale
        else:
            return weight, bias
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias

    def coefficients(self, m: Any) -> tuple[np.ndarray, np.ndarray] | None:
        rescale = m.grid.rescale if isinstance(m, NormNeuron) else m.__dict__.get("rescale")
        if rescale is None:
            return None
        affine = m.affine if isinstance(m, NormNeuron) else m.affine_map
        return _multiplier(rescale, *affine(m.running_mean, m.running_var))

    def adaptive(self, node: Node, m: nn.Module | None = None) -> Terms:
        (h, w), (oh, ow) = node.in_shapes[0][-2:], node.shape[-2:]
        return self.average(node, (h // oh, w // ow), None, 0, 1, True)

    def norm_neuron(self, node: Node, m: NormNeuron) -> Terms:
        charge = self.norm(node, m)
        residual = node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")
        if isinstance(residual, Ref):
            ratio = float(m.grid.ratio())
            charge = total(charge, {name: f * ratio for name, f in self.terms[residual.name].items()})
        m.grid.membrane.prepare()
        return self.neuron(node, m.neuron, charge)

    def neuron(self, node: Node, n: nn.Module, charge: Terms | None = None) -> Terms:
        assert isinstance(n, Neuron)
        gain = 1.0
        if charge is None:
            charge = self.given(node)
            coded: Any = n.__dict__.get("forward")
            if coded is not None:
                coded.membrane.prepare()
                gain = float(coded.ratio())
        grid = n.grid
        assert grid is not None
        self.refusals.append(
            Refusal(str(node.path), "a quantized membrane; NIR's neurons have no grid and round no current", lossy=True)
        )
        return self.of(
            node, "neuron", {name: f * gain for name, f in charge.items()}, decay=grid.decay,
            threshold=float(grid.threshold), reset=n.reset, initial=n.initial / grid.unit, grid=grid,
        )  # fmt: skip
