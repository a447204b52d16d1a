"""From accumulators to codes on the next grid: multiplier and offset per channel, one shift per layer.

    code = floor(acc * M / 2^k + 1/2) + B        M = round(m 2^k), B = round(o / 2^j) 2^j

``m`` is norm weight, weight scale, input step and the neuron's gain over the target's unit, all in one
number; ``o`` the offset in units. ``k`` is the largest shift at which no multiplier saturates, ``j >= 0`` the
smallest at which no offset does; both move only in :meth:`Rescale.update`, between epochs.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..neurons import NormNeuron, fused
from ..neurons.dynamics import round_ste, saturate_ste
from ..neurons.sync import BatchStatistics
from .arithmetic import FLOAT32, current_steps, exact_dtype, scalar
from .membrane import Membrane, Number, in_units, plain, ratio
from .plan import is_power_of_two
from .weights import largest_code


class Target(Protocol):
    """A grid that codes are written on."""

    def per_unit(self) -> Number:
        """Codes that a real 1 makes."""
        ...


class Stream:
    """Grid of a residual stream: ``output_step`` of the norm or layer that writes to it, a power of two."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def per_unit(self) -> Number:
        """1 / step."""
        return 1 / scalar(self.norm, "output_step")


class OutputGrid:
    """Codes that leave a norm or layer: saturated, in ``dtype``; with ``real`` as values, codes x step."""

    def __init__(self, owner: nn.Module, low: int, high: int, dtype: torch.dtype, real: bool) -> None:
        self.owner, self.low, self.high, self.dtype, self.real = owner, low, high, dtype, real

    def __call__(self, code: Tensor) -> Tensor:
        out = saturate_ste(code, self.low, self.high).to(self.dtype)
        return out * scalar(self.owner, "output_step") if self.real else out


class InputCast:
    """Forward pre-hook where floats that are not codes enter: ``x / value``, rounded where that is not exact.

    ``value``: the float of one code (None: the module's ``input_step``, a power of two).
    """

    def __init__(self, value: float | None) -> None:
        self.value = value

    def of(self, module: nn.Module) -> float:
        """The float of one code that enters ``module``."""
        return scalar(module, "input_step") if self.value is None else self.value

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0] / self.of(module)
        return (x if self.value is None or is_power_of_two(self.value) else round_ste(x), *args[1:])


class PooledTarget:
    """A neuron's grid as a layer sees it whose currents are summed by a pool behind it: ``share`` of each."""

    def __init__(self, membrane: Membrane, share: float) -> None:
        self.membrane, self.share = membrane, share

    def per_unit(self) -> Number:
        """``share * gain / unit``."""
        return self.membrane.per_unit() * self.share


class CodeSource:
    """Where a part's codes come from: the accumulators of ``coded``, a :class:`.CodedLayer`, or (None) codes.

    Codes are of one step, the owner's ``input_step``. ``bound``: their largest magnitude; ``share``: 1 / area
    after sum pooling.
    """

    def __init__(self, owner: Any, bound: int, path: str, coded: Any = None, share: float = 1.0) -> None:
        self.owner, self.bound, self.path, self.coded, self.share = owner, bound, path, coded, share

    def step(self) -> Tensor:
        """Value of one code, per channel or one for all; float64."""
        step: Tensor = (
            self.owner.input_step.double() if self.coded is None else self.coded.step() * self.share
        )
        return step

    def bias(self) -> Tensor | None:
        """The layer's bias, added to what its accumulators mean."""
        return None if self.coded is None else self.coded.layer.bias


def shift_for(m: Tensor, bits: int) -> int:
    """``k = floor(log2(limit / max|m|))``, between -24 and 30; 0 where all multipliers are 0."""
    top = float(m.abs().max())
    return 0 if top == 0 else max(-24, min(30, math.floor(math.log2(largest_code(bits) / top))))


def offset_shift_for(o: Tensor, bits: int) -> int:
    """``j = max(0, ceil(log2(max|o| / limit)))``."""
    top = float(o.abs().max())
    return 0 if top <= largest_code(bits) else math.ceil(math.log2(top / largest_code(bits)))


class Rescale:
    """Accumulators to codes; ``owner`` keeps the buffers ``norm_shift`` (k) and ``offset_shift`` (j)."""

    def __init__(self, owner: nn.Module, bits: int | None, source: CodeSource, target: Target) -> None:
        self.owner, self.bits, self.source, self.target = owner, bits, source, target
        owner.register_buffer("norm_shift", torch.tensor(0, dtype=torch.int32))
        owner.register_buffer("offset_shift", torch.tensor(0, dtype=torch.int32))

    @property
    def k(self) -> int:
        """The binary shift."""
        return int(scalar(self.owner, "norm_shift"))

    @property
    def j(self) -> int:
        """log2 of the offset's step in units."""
        return int(scalar(self.owner, "offset_shift"))

    def real(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """``(m, o)``: ``a * x + b`` of real x, as a map from accumulators to codes; float64, (C,)."""
        per_unit, bias = self.target.per_unit(), self.source.bias()
        a, b = a.double(), b.double()
        if bias is not None:
            b = b + a * bias
        return a * self.source.step().flatten() * per_unit, b * per_unit

    def update(self, a: Tensor, b: Tensor) -> None:
        """Choose k and j for these coefficients."""
        if self.bits is None:
            return
        with torch.no_grad():
            m, o = self.real(a, b)
            self.owner.norm_shift.fill_(shift_for(m, self.bits))  # type: ignore[operator]
            self.owner.offset_shift.fill_(offset_shift_for(o, self.bits))  # type: ignore[operator]

    def codes(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """``(M, B)`` as integers in float64, straight-through in the coefficients; B in units."""
        m, o = self.real(a, b)
        if self.bits is None:
            return m, o
        most, step = largest_code(self.bits), float(2**self.j)
        return (
            saturate_ste(round_ste(m * 2.0**self.k), -most, most),
            saturate_ste(round_ste(o / step), -most, most) * step,
        )

    def bounds(self) -> tuple[float, float]:
        """Largest ``|acc * M| + 2^(k-1)`` and largest ``|code|``."""
        acc = float(self.source.bound)
        if self.bits is None:
            return FLOAT32, FLOAT32  # real coefficients: float64, nothing to prove
        k, most = self.k, largest_code(self.bits)
        # 2^(k-1) too: the half that rounding adds must be exact as well. A left shift grows the product.
        product = acc * most * 2.0 ** max(0, -k) + 2.0 ** max(0, k - 1)
        return product, acc * most * 2.0**-k + 1 + most * 2.0**self.j

    def coefficients(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """``(M / 2^k, B)``, float64: ``floor(acc * M / 2^k + 1/2) + B`` in floats is the add and shift."""
        m, o = self.codes(a, b)
        return (m, round_ste(o)) if self.bits is None else (m * 2.0**-self.k, o)

    def __call__(self, acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Codes on the target's grid. Shape: (M, C, ...)."""
        factor, offset = self.coefficients(a, b)
        dtype = exact_dtype(self.bounds()[0], self.source.path)
        shape = (1, -1, *[1] * (acc.dim() - 2))
        # M / 2^k is exact in floats, so one product and one rounding are the integers' add and shift.
        code = round_ste(acc.to(dtype) * factor.to(dtype).view(shape))
        return code + offset.to(dtype).view(shape)


def affine(norm: Any, mean: Tensor | None = None, var: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(a, b)`` of any norm, ``norm(x) = a * x + b``, by these statistics (None: its running ones); (C,)."""
    # Torch's batch norms have a flag `affine`, so the coded one's map has another name.
    of = norm.affine if isinstance(norm, NormNeuron) else norm.affine_map
    found: tuple[Tensor, Tensor] = of(
        norm.running_mean if mean is None else mean, norm.running_var if var is None else var
    )
    return found


class CodedStatistics:
    """A norm's statistics, from codes, kept in real values: instance attribute ``statistics`` of a norm."""

    def __init__(self, norm: nn.Module, source: CodeSource | None, frozen: bool) -> None:
        self.norm, self.source, self.frozen = norm, source, frozen

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm: Any = self.norm
        if self.source is None or self.frozen or not norm.training:
            return norm.running_mean, norm.running_var
        # Of the codes, and scaled afterwards: two vectors to multiply, no copy of the map.
        mean, var = fused.differentiable_moments(x)
        step, bias = self.source.step().flatten(), self.source.bias()
        real_mean, real_var = mean.double() * step, var.double() * step * step
        if bias is not None:
            real_mean = real_mean + bias
        return norm._read(real_mean, real_var, x.numel() // x.shape[1])[:2]


class NormGrid:
    """``NormNeuron.grid``: from accumulators and a residual's codes to the neuron's current in codes."""

    rescale: Any = None  # None: the norm is folded into the layer before it

    def __init__(
        self,
        norm: NormNeuron,
        rescale: Rescale,
        membrane: Membrane,
        residual_bound: int | None,
        residual_step: bool,
    ) -> None:
        self.norm, self.rescale, self.membrane = norm, rescale, membrane
        self.residual_bound, self.residual_step = residual_bound, residual_step

    def ratio(self) -> Number:
        """Units of charge in a residual's code: 1 on the neuron's grid, or ``round(step * gain / unit)``."""
        if not self.residual_step:
            return 1.0
        return ratio(self.membrane.per_unit() * scalar(self.norm, "residual_step"))

    def bound(self, T: int) -> float:
        """Largest integer of the neuron's scan."""
        residual = 0.0 if self.residual_bound is None else self.residual_bound * plain(self.ratio())
        return self.membrane.bound(self.rescale.bounds()[1] + residual, T)

    def __call__(self, x: Tensor, a: Tensor, b: Tensor, residual: Tensor | None) -> Tensor:
        # First: the bound below asks the neuron for the grid of this pass.
        self.membrane.prepare()
        current = self.rescale(x, a, b)
        if residual is not None:
            current = current + in_units(residual, self.ratio())
        return current.to(exact_dtype(self.bound(current_steps(self.norm.neuron)), self.rescale.source.path))

    def fusable(self, x: Tensor) -> bool:
        """Whether the fused neuron can do the norm too: in training, where float32 holds all integers."""
        if self.rescale is None or not self.norm.training:
            return False
        self.membrane.prepare()
        most = max(self.rescale.bounds()[0], self.bound(current_steps(self.norm.neuron)))
        return x.dtype == torch.float32 and most < FLOAT32

    def for_fused(
        self, a: Tensor, b: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Multipliers M / 2^k and offsets B, float32, and the residual in units of the neuron's charge."""
        factor, offset = self.rescale.coefficients(a, b)
        if residual is not None:
            residual = in_units(residual, self.ratio())
        return factor.float(), offset.float(), residual

    def update(self) -> None:
        """Choose the shifts from the running statistics."""
        self.rescale.update(*affine(self.norm))


class CodedNorm(BatchStatistics, nn.modules.batchnorm._BatchNorm):
    """A batch norm that stands alone and computes on codes; saturates at ``residual_bits``.

    Shape: accumulators (M, C, ...) to codes (M, C, ...).
    """

    graph_leaf = True
    rescale: Rescale | None = None  # None: the norm is folded into the layer before it
    output_grid: OutputGrid
    statistics: Any

    @classmethod
    def of(cls, norm: nn.modules.batchnorm._BatchNorm) -> "CodedNorm":
        """With the parameters and statistics of ``norm``."""
        out = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        out.load_state_dict(norm.state_dict())
        out.train(norm.training)
        # What a user froze stays frozen.
        for name, parameter in norm.named_parameters():
            out.get_parameter(name).requires_grad_(parameter.requires_grad)
        return out.to(norm.running_mean.device)  # type: ignore[union-attr]

    def _check_input_dim(self, input: Tensor) -> None: ...

    def affine_map(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, b)`` with ``norm(x) = a * x + b``."""
        a = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            a = self.weight * a
        return a, (0 if self.bias is None else self.bias) - mean * a

    def forward(self, x: Tensor) -> Tensor:
        if self.rescale is None:
            return x
        return self.output_grid(self.rescale(x, *self.affine_map(*self.statistics(x))))

    def update(self) -> None:
        """Choose the shifts from the running statistics."""
        if self.rescale is not None:
            self.rescale.update(*affine(self))
