"""A lowered network: layers joined by weighted edges, and how the edges' factors move into weights."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..errors import SpikedistillError
from ..neurons.dynamics import Grid

Kind = Literal["input", "conv", "linear", "avgpool", "sumpool", "maxpool", "flatten", "neuron", "output"]
WEIGHTED = ("conv", "linear")
Terms = dict[str, float]  # a tensor of the network as a weighted sum of layers' outputs
DT = 1e-4  # a NIR file's time step: what snnTorch's and SpikingJelly's readers assume, and what we write for


def nir_module() -> Any:
    """The nir package, or an error that tells how to get it."""
    try:
        import nir
    except ImportError:
        raise SpikedistillError(
            "NIR files need the package nir: pip install 'spikedistill[export]'"
        ) from None
    return nir


@dataclass
class Layer:
    """One operation of one time step; ``sources``: the layers whose outputs it sums, each with a factor.

    ``shape``: of its output, without batch. ``origin``: the traced node that it stands for. ``weight``,
    ``bias``: float64. ``window``: kernel, stride, padding, dilation of convolutions and pools. ``decay``,
    ``threshold``, ``reset``, ``initial``, ``reset_by``, ``grid`` (of quantized ones): of neurons, whose gain
    is on the edges. ``step``: what the output is a multiple of, rounded half-up, in a quantized network; 0
    where nothing is rounded.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    sources: dict[str, float]
    path: str = ""
    call: int = 0
    origin: str = ""
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    window: dict[str, tuple[int, ...]] = field(default_factory=dict)
    step: float = 0.0
    decay: float = 1.0
    threshold: float = 1.0
    reset: str | None = "hard"
    initial: float = 0.0
    reset_by: float = 1.0
    grid: Grid | None = None


@dataclass(frozen=True)
class Refusal:
    """What cannot be said, where; ``lossy``: whether something near it can."""

    path: str
    what: str
    lossy: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class Lowered:
    """Layers in the order of execution, from "input" to "output"."""

    layers: dict[str, Layer]
    refusals: list[Refusal]

    def users(self, name: str) -> list[Layer]:
        """Layers that read ``name``."""
        return [layer for layer in self.layers.values() if name in layer.sources]


def total(left: Terms, right: Terms) -> Terms:
    """The sum of two tensors, in terms of layers."""
    out = dict(left)
    for name, factor in right.items():
        out[name] = out.get(name, 0.0) + factor
    return out


def scaled(terms: Terms, factor: float) -> Terms:
    """A tensor times a number, in terms of layers."""
    return {name: f * factor for name, f in terms.items()}


def diagonal(name: str, terms: Terms, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> Layer:
    """``a * x + b`` per channel, of maps or vectors: a 1x1 convolution or linear layer, diagonal."""
    weight = np.diag(np.broadcast_to(a, shape[:1]).astype(np.float64))
    bias = np.broadcast_to(b, shape[:1]).astype(np.float64)
    return Layer(name, sources=dict(terms), shape=shape, bias=bias, **pointwise(weight, len(shape) - 1))


def pointwise(weight: np.ndarray, dims: int, stride: int = 1) -> dict[str, Any]:
    """A matrix over channels as kind, weight and window: linear on vectors, a 1x1 convolution on ``dims``."""
    if not dims:
        return {"kind": "linear", "weight": weight}
    one = (1,) * dims
    window = {"kernel": one, "stride": (stride,) * dims, "padding": (0,) * dims, "dilation": one}
    return {"kind": "conv", "weight": weight.reshape(*weight.shape, *one), "window": window}


def _common(factors: list[float]) -> float | None:
    """The one factor of all edges, where it is not 1."""
    return factors[0] if factors and factors[0] != 1 and all(f == factors[0] for f in factors) else None


def settle(lowered: Lowered) -> None:
    """Move all factors of edges into weights, backwards where they leave a weighted layer, else forwards.

    The rest get a layer of their own (an identity shortcut into a neuron with gain).
    """
    # the last first, so that what a pool hands back is met in the layer before it
    for layer in reversed(list(lowered.layers.values())):
        users = lowered.users(layer.name)
        factor = _common([user.sources[layer.name] for user in users])
        # 1, or readers that disagree: one output cannot serve them both
        if factor is None:
            continue
        if layer.kind in WEIGHTED:
            assert layer.weight is not None
            assert layer.bias is not None
            layer.weight, layer.bias = layer.weight * factor, layer.bias * factor
            # the step of a rounding has no sign
            layer.step *= abs(factor)
        elif layer.kind in ("avgpool", "sumpool", "flatten") and _weighted_before(lowered, layer):
            layer.sources = scaled(layer.sources, factor)
        else:
            continue
        for user in users:
            user.sources[layer.name] = 1.0
    for layer in lowered.layers.values():
        factor = _common(list(layer.sources.values()))
        if factor is None or layer.kind not in (*WEIGHTED, "avgpool", "sumpool", "flatten"):
            continue
        layer.sources = dict.fromkeys(layer.sources, 1.0)
        if layer.kind in WEIGHTED:
            assert layer.weight is not None
            # not the bias, which is added behind the inputs
            layer.weight = layer.weight * factor
        else:
            for user in lowered.users(layer.name):
                user.sources[layer.name] *= factor
    ordered: dict[str, Layer] = {}
    for layer in lowered.layers.values():
        for source, factor in [*layer.sources.items()]:
            if factor != 1 or (layer.kind == "output" and len(layer.sources) > 1):
                name = f"{source}_times_{layer.name}"
                ordered[name] = diagonal(
                    name, {source: 1.0}, np.array(factor), np.array(0.0), lowered.layers[source].shape
                )
                del layer.sources[source]
                layer.sources[name] = 1.0
        ordered[layer.name] = layer
    lowered.layers = ordered


def _weighted_before(lowered: Lowered, layer: Layer) -> bool:
    before = [lowered.layers[name] for name in layer.sources]
    return all(
        b.kind in WEIGHTED or (b.kind in ("avgpool", "sumpool", "flatten") and _weighted_before(lowered, b))
        for b in before
    )
