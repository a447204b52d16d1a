"""Quantized networks for exchange formats: the same operations on codes, without roundings between them."""

from typing import Any

import numpy as np

from ..networks.operations import Node
from ..neurons import NormNeuron, Parallel
from ..quantization.norm import Rescale
from ..quantization.quantized import Quantization
from .layers import Refusal, Terms, scaled
from .lowering import GraphBuilder, as_array, neuron_of


def _multiplier(rescale: Rescale, a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    m, o = (as_array(x) for x in rescale.codes(a, b))
    # real multipliers still meet a rounded offset, as in `Rescale`
    return (m, np.floor(o + 0.5)) if rescale.bits is None else (m * 2.0**-rescale.k, o)


class CodedBuilder(GraphBuilder):
    """Weight codes, multipliers and offsets as weights and biases, thresholds and decays of the grids."""

    @property
    def quantization(self) -> Quantization:
        """The network's."""
        assert isinstance(self.network.quantization, Quantization)
        return self.network.quantization

    def conv(self, node: Node) -> Terms:
        return self.rounded(super().conv(node), node.module.forward)  # type: ignore[union-attr]

    def linear(self, node: Node) -> Terms:
        return self.rounded(super().linear(node), node.module.forward)  # type: ignore[union-attr]

    def norm(self, node: Node) -> Terms:
        m = node.module
        return self.rounded(super().norm(node), m.grid if isinstance(m, NormNeuron) else m)

    def rounded(self, terms: Terms, part: Any) -> Terms:
        """Note that the layer whose output ``part`` rescales is rounded there.

        A stream that spikes join has its values.
        """
        if getattr(part, "rescale", None) is not None:
            for name in terms:
                self.layers[name].step = 1.0
        grid = getattr(part, "output_grid", None)
        value = float(grid.owner.output_step) if grid is not None and grid.real else 1.0
        return {name: factor * value for name, factor in terms.items()}

    def given(self, node: Node, index: int = 0) -> Terms:
        """In codes, also where the network's own code gives other floats."""
        terms, module = super().given(node, index), node.module
        if module is None or index:
            return terms
        cast = self.quantization.casts.get(node.path or "")
        value = 1.0 if cast is None else cast.of(module)
        return {name: factor / value for name, factor in terms.items()}

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

    def adaptive(self, node: Node) -> Terms:
        pool: Any = node.module
        return self.average(node, self.windows(node), None if pool is None else getattr(pool, "divisor", 1))

    def residual(self, node: Node) -> Terms:
        grid: Any = node.module.grid  # type: ignore[union-attr]
        terms = super().residual(node)
        charge = scaled(terms, float(grid.ratio())) if terms else terms
        # last, for `neuron` reads the grid next: it may be of a pass with other constants
        grid.membrane.prepare()
        return charge

    def neuron(self, node: Node, charge: Terms | None = None) -> Terms:
        n, gain = neuron_of(node), 1.0
        if isinstance(n, Parallel):
            return super().neuron(node, charge)  # refused there
        if charge is None:
            charge = self.given(node)
            coded: Any = self.quantization.parts.get(node.path or "")
            if coded is not None:
                coded.membrane.prepare()
                # not the neuron's own gain, which is in the unit of its grid
                gain = float(coded.ratio())
        grid = n.grid
        self.refusals.append(
            Refusal(
                str(node.path),
                "a quantized membrane; NIR's neurons have no grid and round no current",
                lossy=True,
            )
        )
        return self.of(
            node, "neuron", {name: f * gain for name, f in charge.items()}, decay=grid.decay,
            threshold=float(grid.threshold), reset=n.reset, initial=n.initial / grid.unit, grid=grid,
            reset_by=n.reset_by,
        )  # fmt: skip
