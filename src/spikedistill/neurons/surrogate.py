"""Surrogate gradients: what stands in for the derivative of the step function in the backward pass.

Each is a value: a name and one parameter. ``derivative(u)`` is the surrogate with ``u = H - threshold``;
``primitive(u)`` is a function whose true derivative it is, so that a neuron with ``smooth=True`` can be
checked by finite differences.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SpikedistillError, nearest


def _atan(u: Tensor, a: float) -> Tensor:
    return (a / 2) / (1 + (math.pi / 2 * a * u) ** 2)


def _atan_primitive(u: Tensor, a: float) -> Tensor:
    return torch.atan(math.pi / 2 * a * u) / math.pi + 0.5


def _sigmoid(u: Tensor, a: float) -> Tensor:
    s = torch.sigmoid(a * u)
    return a * s * (1 - s)


def _sigmoid_primitive(u: Tensor, a: float) -> Tensor:
    return torch.sigmoid(a * u)


def _triangle(u: Tensor, a: float) -> Tensor:
    return a * (1 - a * u.abs()).clamp(min=0)


def _triangle_primitive(u: Tensor, a: float) -> Tensor:
    x = (a * u).clamp(-1, 1)
    return 0.5 + x - 0.5 * x * x.abs()


def _rectangle(u: Tensor, a: float) -> Tensor:
    # Not `where(inside, 1 / a, 0)`: compiled, in a longer kernel, that gives 1 for 1 / a (torch 2.14.1).
    return torch.where(u.abs() < a / 2, 1.0, 0.0).to(u.dtype) * (1 / a)


def _rectangle_primitive(u: Tensor, a: float) -> Tensor:
    return (u / a + 0.5).clamp(0, 1)


def _fast_sigmoid(u: Tensor, a: float) -> Tensor:
    return 1 / (1 + a * u.abs()) ** 2


def _fast_sigmoid_primitive(u: Tensor, a: float) -> Tensor:
    return u / (1 + a * u.abs()) + 0.5


_Pair = tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor], float]
# name -> derivative, primitive, default parameter. Sources: atan, Fang et al., "Incorporating learnable
# membrane time constant", ICCV 2021; sigmoid, SpikingJelly's default slope; triangle, Bellec et al., NeurIPS
# 2018 (piecewise quadratic primitive); rectangle, Wu et al., "Spatio-temporal backpropagation", Frontiers in
# Neuroscience 2018; fast sigmoid, Zenke and Ganguli, "SuperSpike", Neural Computation 2018 (slope 25:
# snnTorch's default).
SURROGATES: dict[str, _Pair] = {
    "atan": (_atan, _atan_primitive, 2.0),
    "sigmoid": (_sigmoid, _sigmoid_primitive, 4.0),
    "triangle": (_triangle, _triangle_primitive, 1.0),
    "rectangle": (_rectangle, _rectangle_primitive, 1.0),
    "fast_sigmoid": (_fast_sigmoid, _fast_sigmoid_primitive, 25.0),
}


@dataclass(frozen=True)
class Surrogate:
    """A surrogate gradient by name and parameter ``alpha`` (None: the name's default).

    ``atan`` (a/2) / (1 + (pi a u / 2)^2), a = 2; ``sigmoid`` a s(1 - s) with s = 1/(1 + exp(-a u)), a = 4;
    ``triangle`` a max(0, 1 - a|u|), a = 1; ``rectangle`` 1[|u| < a/2] / a, a = 1; ``fast_sigmoid`` 1/(1 +
    a|u|)^2, a = 25.
    """

    name: str = "atan"
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.name not in SURROGATES:
            raise SpikedistillError(f"unknown surrogate {self.name!r}: {nearest(self.name, SURROGATES)}")
        if self.alpha is None:
            # Filled in: a default named and one left out are equal, and share the code that is kept by them.
            object.__setattr__(self, "alpha", SURROGATES[self.name][2])
        elif not self.alpha > 0:
            raise SpikedistillError(f"surrogate {self.name}: alpha must be more than 0, found {self.alpha}")

    def derivative(self, u: Tensor) -> Tensor:
        """The surrogate at ``u = H - threshold`` (any shape)."""
        assert self.alpha is not None
        return SURROGATES[self.name][0](u, self.alpha)

    def primitive(self, u: Tensor) -> Tensor:
        """A function with this derivative, 1/2 at 0 (any shape)."""
        assert self.alpha is not None
        return SURROGATES[self.name][1](u, self.alpha)

    @classmethod
    def of(cls, value: "str | Surrogate | Mapping[str, Any]") -> "Surrogate":
        """From a name, a mapping ``{name, alpha}`` or a surrogate."""
        if isinstance(value, Surrogate):
            return value
        if isinstance(value, str):
            return cls(value)
        unknown = set(value) - {"name", "alpha"}
        if unknown:
            raise SpikedistillError(f"surrogate: unknown key {sorted(unknown)[0]!r}; allowed: name, alpha")
        return cls(**value)


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate, scale: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.scale = surrogate, scale
        # At the threshold itself it fires, as kernels, native code and integer networks do.
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        # u may be a code: the surrogate sees real units, and the second scale is the chain rule's.
        return grads[0] * ctx.surrogate.derivative(u * ctx.scale) * ctx.scale, None, None


def fire(u: Tensor, surrogate: Surrogate, smooth: bool = False, scale: float = 1.0) -> Tensor:
    """``[u >= 0]`` with the surrogate's gradient, or with ``smooth`` the surrogate's primitive itself.

    ``scale`` is the value of one unit of ``u``: where that is an integer code (quantized membranes), or the
    surrogate is stretched.
    """
    if smooth:
        return surrogate.primitive(u * scale if scale != 1.0 else u)
    return _Fire.apply(u, surrogate, scale)
