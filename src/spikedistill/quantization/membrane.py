"""A neuron's grid: the codes' unit, threshold and leak as integers, the stored membrane's bits and step."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons import Neuron
from ..neurons.dynamics import Grid, round_ste, saturate_ste
from .arithmetic import current_steps, exact_dtype, scalar
from .weights import largest_code, learned_step

Number = float | Tensor


@dataclass(frozen=True)
class LearnedGrid(Grid):
    """A grid whose unit is learned by Q's step, as in LSQ.

    Its gradient is that of ``unit * Q(v / unit)``, over ``sqrt(values * limit)`` and over ``4^shift``, so
    that the step, ``2^shift`` units, moves as if it were the parameter itself.
    """

    # Not compared: constants with a grid are hashed and compared whole, and == of tensors is a tensor.
    parameter: Tensor | None = field(default=None, compare=False)

    fusable = False  # the fused neuron knows no gradient of its unit

    def store(self, v: Tensor) -> Tensor:
        """Q; the factors around it are 1 and carry the gradient."""
        if self.bits is None or self.parameter is None:
            return super().store(v)
        factor = (v.numel() * largest_code(self.bits)) ** -0.5 / 4**self.shift
        learned = learned_step(self.parameter.abs(), factor)
        ratio = (1 + (learned - learned.detach()) / self.unit).to(v.dtype)
        return super().store(v / ratio) * ratio


class Membrane:
    """Puts a neuron on its grid before each pass.

    ``unit`` is the value of one code of current, H and V: the neuron's buffer ``membrane_unit``, first
    ``reach / 2^F`` (F: ``fraction_bits``; ``reach``: the threshold, or as measured); for a neuron fed by a
    stream ``gain * stream_step``, so that the stream's codes are its current. The threshold is
    ``round(threshold / unit)``, the leak ``round(decay * 2^L) / 2^L``, Q's step ``2^shift`` units, the
    smallest whose ``bits`` cover the reach.
    """

    def __init__(
        self, neuron: Neuron, bits: int | None, leak_bits: int | None, fraction_bits: int,
        stream: float | None,
        reach: float, learned: bool = False,
    ) -> None:  # fmt: skip
        self.neuron, self.bits, self.leak_bits, self.fraction_bits = neuron, bits, leak_bits, fraction_bits
        self.streamed, self.learned = stream is not None, learned and stream is None and bits is not None
        if stream is not None:
            neuron.register_buffer("input_step", torch.tensor(stream))
        elif self.learned:
            neuron.membrane_unit = nn.Parameter(torch.tensor(reach / 2**fraction_bits))
        else:
            neuron.register_buffer("membrane_unit", torch.tensor(reach / 2**fraction_bits))
        neuron.register_buffer("membrane_range", torch.tensor(reach))

    @property
    def gain(self) -> Number:
        """The neuron's factor on its current."""
        return self.neuron.gain

    @property
    def unit(self) -> float:
        """Value of one code; learned ones stay between 1/16 of their start and the whole reach."""
        if self.streamed:
            return plain(self.neuron.gain) * scalar(self.neuron, "input_step")
        unit = abs(scalar(self.neuron, "membrane_unit"))
        if not self.learned:
            return max(1e-12, unit)
        reach = scalar(self.neuron, "membrane_range")
        return min(max(unit, reach / 2 ** (self.fraction_bits + 4)), reach)

    def per_unit(self) -> Number:
        """Codes of charge that a real current of 1 makes: ``gain / unit``."""
        # A stream's unit holds the gain already, so that it cancels.
        return 1 / scalar(self.neuron, "input_step") if self.streamed else self.gain / self.unit

    @property
    def threshold(self) -> int:
        """Code at which the neuron fires."""
        # At 0, where a coarse unit may round to, every neuron would fire at rest.
        return max(1, math.floor(self.neuron.threshold / self.unit + 0.5))

    @property
    def reset_by(self) -> int | None:
        """Codes that a soft reset subtracts; None: the threshold."""
        n = self.neuron
        if n.reset != "soft" or n.reset_by == 1:
            return None
        return max(1, math.floor(n.threshold * n.reset_by / self.unit + 0.5))

    @property
    def shift(self) -> int:
        """log2 of Q's step in units."""
        if self.bits is None:
            return 0
        if self.learned:
            # Fixed: Q's step follows the unit as it learns, and must not jump by factors of 2.
            return max(0, self.fraction_bits - (self.bits - 1))
        reach = scalar(self.neuron, "membrane_range") / self.unit
        # 1e-6: what rounding leaves just above a power of two must not cost a bit.
        return max(0, math.ceil(math.log2(reach) - 1e-6) - (self.bits - 1))

    def leak(self) -> tuple[Any, int]:
        """``(l, L)``; a learned decay keeps its gradient through the rounding."""
        decay = self.neuron.decay
        learns = isinstance(decay, Tensor) and decay.requires_grad and torch.is_grad_enabled()
        if self.leak_bits is None:
            return decay if learns else plain(decay), 0
        top = 1 << self.leak_bits
        if learns:
            assert isinstance(decay, Tensor)
            return saturate_ste(round_ste(decay * top), 0, top), self.leak_bits
        code = min(top, math.floor(plain(decay) * top + 0.5))
        # In lowest terms: V * l stays small, and so does the type that holds it.
        spare = min(self.leak_bits, (code & -code).bit_length() - 1) if code else self.leak_bits
        return code >> spare, self.leak_bits - spare

    def grid(self) -> Grid:
        """The grid as it is now."""
        numbers = (self.unit, self.threshold, self.leak(), self.bits, self.shift)
        if not self.learned:
            return Grid(*numbers, reset_by=self.reset_by)
        parameter: Any = self.neuron.membrane_unit
        return LearnedGrid(*numbers, reset_by=self.reset_by, parameter=parameter)

    def prepare(self) -> Grid:
        """Set the neuron's grid."""
        self.neuron.grid = self.grid()
        return self.neuron.grid

    def bound(self, current: float, T: int) -> float:
        """Largest integers in the scan if ``|current|`` codes are at most this: V * l, H, and V without Q."""
        grid = self.neuron.grid or self.grid()
        if self.bits is None:
            # Nothing saturates V: it may grow at every step.
            stored = T * (current + grid.subtracted) + abs(math.floor(self.neuron.initial / grid.unit + 0.5))
        else:
            stored = float(1 << (self.bits - 1 + grid.shift))
        factor = plain(grid.leak[0])
        return max(stored * max(1.0, factor), stored + current + max(grid.threshold, grid.subtracted))


class CodedNeuron:
    """Forward of a neuron that stands alone: its current is in codes, in multiples of ``ratio()`` units."""

    def __init__(self, neuron: Neuron, membrane: Membrane, bound: int | None) -> None:
        self.neuron, self.membrane, self.bound = neuron, membrane, bound

    def ratio(self) -> Number:
        """Units of charge in a code of the input: 1, or ``round(step * gain / unit)`` for direct spikes."""
        if self.membrane.streamed or not hasattr(self.neuron, "input_step"):
            return 1.0
        return ratio(scalar(self.neuron, "input_step") * self.membrane.per_unit())

    def __call__(self, x: Tensor) -> Tensor:
        self.membrane.prepare()
        r = self.ratio()
        current = in_units(x, r)
        if self.bound is not None:
            most = self.bound * max(1.0, plain(r))
            current = current.to(
                exact_dtype(self.membrane.bound(most, current_steps(self.neuron)), type(self.neuron).__name__)
            )
        # By the class: the neuron's own attribute `forward` is this object.
        return Neuron.forward(self.neuron, current)

    def update(self) -> None:
        """Nothing of it stands still between epochs."""


def ratio(value: Number) -> Number:
    """A factor between grids, half-up to an integer of at least 1; straight-through where it is learned."""
    if isinstance(value, Tensor):
        return (
            round_ste(value).clamp(min=1)
            if value.requires_grad
            else float(max(1, math.floor(value.item() + 0.5)))
        )
    return float(max(1, math.floor(value + 0.5)))


def in_units(x: Tensor, ratio: Number) -> Tensor:
    """Codes of another grid in units of a neuron's charge; as they are where both are the same."""
    return x if isinstance(ratio, float) and ratio == 1 else x * ratio


def plain(value: Number) -> float:
    """As a Python number."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
