"""The grid of a parallel neuron: weights over time as integer codes, H summed on codes, no membrane stored.

    H_t = sum_j code(W_tj) I_j + code(b_t); S_t = [H_t >= round(threshold / unit)]; unit = current's unit * s

``s`` is one scale a layer, ``max|W| / (2^(bits-1) - 1)``; W is coded as layers' weights are, by
``weight_bits``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpikedistillError
from ..neurons import Parallel
from ..neurons.dynamics import round_ste, saturate_ste
from ..neurons.parallel import product
from .arithmetic import FLOAT32, exact
from .header import BETWEEN
from .membrane import Membrane
from .options import Options
from .plan import Op, Plan
from .weights import WeightFormat, largest_code, weight_codes, weight_scale

BIAS_LIMIT = 16  # thresholds at which the code of b saturates, so that H has a bound


@dataclass(frozen=True)
class TemporalGrid:
    """Units of current and weights, the threshold's code; ``bits``: of the weights, None for real ones."""

    current_unit: float
    scale: float
    threshold: int
    bits: int | None

    fusable = False

    @property
    def unit(self) -> float:
        """Value of one unit of H."""
        return self.current_unit * self.scale

    def weights(self, W: Tensor) -> Tensor:
        """Codes of W, straight-through; float64."""
        if self.bits is None:
            return W.double()
        return weight_codes(W, torch.tensor(self.scale, dtype=torch.float64, device=W.device), self.bits)

    def offsets(self, bias: Tensor) -> Tensor:
        """Codes of b, saturating at 16 thresholds; float64."""
        most = BIAS_LIMIT * self.threshold
        return saturate_ste(round_ste(bias.double() / self.unit), -most, most)

    def charge(self, W: Tensor, current: Tensor, bias: Tensor) -> Tensor:
        """H in codes. Shape: W (T, M), current (M, N, ...), bias (T,) or () to (T, N, ...)."""
        with exact(current):
            return product(self.weights(W).to(current.dtype), current, self.offsets(bias).to(current.dtype))


class TemporalMembrane(Membrane):
    """Puts a parallel neuron on its grid each pass; its current's unit is what a membrane's would be."""

    def __init__(
        self,
        neuron: Parallel,
        weight_bits: int | None,
        fraction_bits: int,
        stream: float | None,
        reach: float,
    ) -> None:
        super().__init__(neuron, None, None, fraction_bits, stream, reach)
        self.parallel, self.weight_bits = neuron, weight_bits

    def weights(self) -> Tensor:
        """W as it counts, the mask applied: (T, T), or (k,) where it slides."""
        return self.parallel.whole()

    @property
    def scale(self) -> float:
        """Value of one weight code."""
        if self.weight_bits is None:
            return 1.0
        return float(
            weight_scale(self.weights().reshape(1, -1), WeightFormat(self.weight_bits, "tensor")).flatten()[0]
        )

    def grid(self) -> TemporalGrid:  # type: ignore[override]
        scale = self.scale
        threshold = max(1, math.floor(self.neuron.threshold / (self.unit * scale) + 0.5))
        return TemporalGrid(self.unit, scale, threshold, self.weight_bits)

    def prepare(self) -> TemporalGrid:  # type: ignore[override]
        self.parallel.grid = self.grid()
        return self.parallel.grid

    def bound(self, current: float, T: int) -> float:
        """Largest integer that the sum meets when ``|current|`` codes are at most this."""
        if self.weight_bits is None:
            return FLOAT32  # real weights: float64, nothing to prove
        grid = self.parallel.grid or self.grid()
        most = largest_code(self.weight_bits) * min(T, self.parallel.taps)
        # Thresholds: those at which the offset saturates, and the one that H is compared with.
        return max(1, most) * current + (BIAS_LIMIT + 1) * grid.threshold


def check(neurons: dict[str, Parallel], o: Options) -> None:
    """Refuse what has no form for parallel neurons; ``neurons`` by path."""
    if o.folded and neurons:
        path, neuron = next(iter(neurons.items()))
        name = "scheme 'mint'" if o.scheme == "mint" else "unit='weights'"
        raise SpikedistillError(
            f"{name} counts membranes in weight codes, and {neuron.kind} at {path} has no membrane; "
            "take scheme='uniform'"
        )


def history(plan: Plan, op: Op) -> tuple[str, int] | None:
    """What a parallel neuron's past currents come from again: the layer before it and the bits of one input.

    None where the currents themselves are kept: behind an image, a sum, a norm that stands alone, a residual.
    """
    if len(op.inputs) != 1:
        return None
    ops = {o.name: o for o in plan.ops}
    before = ops[op.inputs[0]]
    # What the stepper can run again by itself, from the layer on.
    while before.kind in BETWEEN:
        before = ops[before.inputs[0]]
    if before.kind != "layer":
        return None
    edge = plan.edges[before.inputs[0]]
    spikes = edge.base == "step" and edge.low >= 0 and edge.high <= MOST_LEVELS
    return (before.name, max(1, edge.high.bit_length())) if spikes else None


MOST_LEVELS = 8  # the largest integer that is kept as a spike count; wider sums are kept as currents
