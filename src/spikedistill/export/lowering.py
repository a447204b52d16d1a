"""A network as the few operations that exchange formats know, for one time step.

The traced graph becomes layers joined by weighted edges: norms fold into the convolution before them, sums become several
edges into one layer, a neuron's gain becomes a factor on its edges and from there moves into weights and biases. What has
no such form is collected, with the module's path, and raised all at once.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks import graph as graphs
from ..networks.base import Network
from ..networks.graph import Graph, Node, Ref
from ..neurons import IF, LIF, PLIF, Neuron, NormNeuron, Repeat
from ..neurons.dynamics import Grid

Kind = Literal["input", "conv", "linear", "avgpool", "sumpool", "maxpool", "flatten", "neuron", "output"]
WEIGHTED = ("conv", "linear")
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, Repeat)
PASSING = ("contiguous", "clone", "detach", "dropout", "float")


@dataclass
class Layer:
    """One operation of one time step; ``sources``: names of the layers whose outputs it sums, each with a factor.

    ``shape``: of its output, without batch. ``origin``: the traced node that it stands for. ``weight``, ``bias``: float64.
    ``window``: kernel, stride, padding, dilation of convolutions and pools. ``decay``, ``threshold``, ``reset``,
    ``initial``, ``grid`` (of quantized ones): of neurons, whose gain is on the edges.
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
    window: dict[str, tuple[int, int]] = field(default_factory=dict)
    decay: float = 1.0
    threshold: float = 1.0
    reset: str | None = "hard"
    initial: float = 0.0
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


def lower(network: Network, example: Tensor) -> Lowered:
    """The layers of one time step of ``network``; raises what has no form in any exchange format, with its path."""
    if not isinstance(network, Network):
        raise SpikedistillError(
            f"found a {type(network).__name__}; give a spikedistill network (sd.spiking turns others)"
        )
    if not network.spiking:
        raise SpikedistillError("this network is an ANN: there are no spikes to export; export the SNN")
    kind = GraphBuilder
    if network.input_codes is not None:
        from .coded import CodedBuilder

        kind = CodedBuilder
    builder = kind(network, graphs.trace(network, example))
    lowered = builder.build()
    fatal = [r for r in lowered.refusals if not r.lossy]
    if fatal:
        raise SpikedistillError(
            "this network cannot be expressed as convolutions, linear layers, average pools and neurons:\n  "
            + "\n  ".join(map(str, fatal))
        )
    _settle(lowered)
    return lowered


Terms = dict[str, float]  # a tensor of the network as a weighted sum of layers' outputs


class _Refused(Exception):
    """Raised while a node is lowered; caught by the builder, which goes on to find the rest."""


class GraphBuilder:
    """Lowers a traced graph node by node; what each kind of module becomes is a method of its own."""

    def __init__(self, network: Network, graph: Graph) -> None:
        self.network, self.graph = network, graph
        self.layers: dict[str, Layer] = {}
        self.terms: dict[str, Terms] = {}
        self.refusals: list[Refusal] = []

    def build(self) -> Lowered:
        for node in self.graph:
            try:
                self.terms[node.name] = self.lowered(node)
            except _Refused as why:
                self.refusals.append(Refusal(node.path or node.scope or node.name, str(why)))
            except KeyError:  # reads something that was refused already
                continue
        if self.graph.output in self.terms:
            out = self.terms[self.graph.output]
            self.layers["output"] = Layer("output", "output", self.graph[self.graph.output].shape[1:], dict(out))
            self.prune()
        return Lowered(self.layers, self.refusals)

    def lowered(self, node: Node) -> Terms:
        if node.kind == "input":
            return self.add(Layer("input", "input", node.shape[1:], {}))
        module = node.module
        if module is None:
            function = FUNCTIONS.get(node.kind)
            if function is None:
                raise _Refused(f"{node.kind} ({node.source})")
            return getattr(self, function)(node)
        if isinstance(module, TRANSPARENT):
            return self.given(node)
        for kinds, method in MODULES:
            if isinstance(module, kinds):
                return getattr(self, method)(node, module)
        raise _Refused(f"{type(module).__name__} has no form here")

    def given(self, node: Node, index: int = 0) -> Terms:
        """The terms of a node's argument."""
        argument = node.args[index]
        if not isinstance(argument, Ref) or argument.index is not None:
            raise _Refused(f"{node.kind} of something that is no layer's output ({node.source})")
        return self.terms[argument.name]

    def add(self, layer: Layer) -> Terms:
        name, k = layer.name, 1
        while name in self.layers or name == "output" or hasattr(nn.ModuleDict, name):
            name, k = f"{layer.name}_{k}", k + 1
        layer.name = name
        self.layers[name] = layer
        return {name: 1.0}

    def of(self, node: Node, kind: Kind, sources: Terms, suffix: str = "", **more: Any) -> Terms:
        path = node.path if node.path is not None else node.scope
        name = (path or node.kind).replace(".", "_") + suffix + (f"_call{node.call}" if node.call else "")
        more.setdefault("shape", node.shape[1:])
        more.setdefault("origin", node.name)
        return self.add(Layer(name, kind, sources=dict(sources), path=path, call=node.call, **more))

    def prune(self) -> None:
        needed, stack = set(), ["output", "input"]
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack += self.layers[name].sources
        self.layers = {name: layer for name, layer in self.layers.items() if name in needed}

    # -- layers

    def conv(self, node: Node, m: nn.Conv2d) -> Terms:
        if m.padding_mode != "zeros":
            raise _Refused(f"padding_mode={m.padding_mode!r}; formats know zeros only")
        size, dilation = _pair(m.kernel_size), _pair(m.dilation)
        if isinstance(m.padding, str):
            total = [d * (k - 1) for d, k in zip(dilation, size)] if m.padding == "same" else [0, 0]
            if any(t % 2 for t in total):
                raise _Refused("padding='same' with an even kernel pads one side more; formats pad both alike")
            padding = (total[0] // 2, total[1] // 2)
        else:
            padding = _pair(m.padding)
        weight, bias = self.weights(m)
        weight, padding = _square(_dense(weight, m.groups), padding, dilation)
        window = {
            "kernel": _pair(weight.shape[2:]),
            "stride": _pair(m.stride),
            "padding": padding,
            "dilation": dilation,
        }
        return self.of(node, "conv", self.given(node), weight=weight, bias=bias, window=window)

    def linear(self, node: Node, m: nn.Linear) -> Terms:
        if len(node.shape) != 2:
            raise _Refused(f"a linear layer on tokens {node.shape[1:]}; formats know it on vectors only")
        weight, bias = self.weights(m)
        return self.of(node, "linear", self.given(node), weight=weight, bias=bias)

    def weights(self, m: Any) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a convolution or linear layer."""
        return as_array(m.weight), np.zeros(m.weight.shape[0]) if m.bias is None else as_array(m.bias)

    def norm(self, node: Node, m: Any) -> Terms:
        if m.running_mean is None:
            raise _Refused(f"{type(m).__name__} without running statistics")
        found = self.coefficients(m)
        return self.given(node) if found is None else self.affine(node, *found)

    def coefficients(self, m: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """``(a, b)`` with ``norm(x) = a x + b``; None where a norm does nothing."""
        a = 1 / np.sqrt(as_array(m.running_var) + m.eps)
        a = a * as_array(m.weight) if m.weight is not None else a
        return a, -as_array(m.running_mean) * a + (as_array(m.bias) if m.bias is not None else 0)

    def affine(self, node: Node, a: np.ndarray, b: np.ndarray) -> Terms:
        """``a * x + b`` per channel, inside the layer before it where that is weighted and read by nobody else."""
        terms = self.given(node)
        shape = node.in_shapes[0][1:]
        if len(terms) == 1:
            ((name, factor),) = terms.items()
            before = self.layers[name]
            if before.kind in WEIGHTED:
                assert before.weight is not None
                assert before.bias is not None
                scale = (a * factor).reshape(-1, *[1] * (before.weight.ndim - 1))
                weight, bias = before.weight * scale, before.bias * a * factor + b
                if before.origin == node.inputs[0] and len(self.graph.users(before.origin)) == 1:
                    before.weight, before.bias = weight, bias
                    return terms
                return self.of(
                    node, before.kind, before.sources, "_folded",
                    weight=weight, bias=bias, window=before.window, shape=shape,
                )  # fmt: skip
        return self.diagonal(node, terms, a, b, shape)

    def diagonal(self, node: Node, terms: Terms, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> Terms:
        """A channel-wise affine map as a layer of its own."""
        return self.add(diagonal((node.path or node.scope).replace(".", "_") + "_affine", terms, a, b, shape))

    def neuron(self, node: Node, n: nn.Module, charge: Terms | None = None) -> Terms:
        if type(n) not in (IF, LIF, PLIF):
            raise _Refused(f"{type(n).__name__} is no IF, LIF or PLIF")
        assert isinstance(n, Neuron)
        if n.smooth:
            raise _Refused("smooth=True puts the surrogate's primitive into the forward pass; spikes are not 0 or 1")
        charge = self.given(node) if charge is None else charge
        gain = _number(n.gain)
        return self.of(
            node, "neuron", {name: factor * gain for name, factor in charge.items()},
            decay=_number(n.decay), threshold=n.threshold, reset=n.reset, initial=n.initial,
        )  # fmt: skip

    def norm_neuron(self, node: Node, m: NormNeuron) -> Terms:
        charge = self.norm(node, m)
        residual = node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")
        if isinstance(residual, Ref):
            charge = total(charge, self.terms[residual.name])
        return self.neuron(node, m.neuron, charge)

    # -- pools

    def average(self, node: Node, size: Any, stride: Any, padding: Any, divisor: int | None, include: bool) -> Terms:
        kernel = _pair(size)
        window = {
            "kernel": kernel,
            "stride": _pair(kernel if stride in (None, ()) else stride),
            "padding": _pair(padding),
        }
        if any(window["padding"]) and not include and divisor is None:
            raise _Refused("average pooling with count_include_pad=False; formats count the padding")
        self.check_window(node, window)
        if kernel == (1, 1) and window["stride"] == (1, 1) and divisor in (None, 1):
            return self.given(node)
        if divisor is not None:
            return _scaled(self.of(node, "sumpool", self.given(node), window=window), 1 / divisor)
        return self.of(node, "avgpool", self.given(node), window=window)

    def check_window(self, node: Node, window: dict[str, tuple[int, int]]) -> None:
        spans = zip(node.in_shapes[0][-2:], window["kernel"], window["stride"], window["padding"])
        if tuple((x + 2 * p - k) // s + 1 for x, k, s, p in spans) != tuple(node.shape[-2:]):
            raise _Refused("pooling with ceil_mode whose last window is cut; formats round down")

    def avgpool(self, node: Node, m: nn.AvgPool2d) -> Terms:
        return self.average(node, m.kernel_size, m.stride, m.padding, m.divisor_override, m.count_include_pad)

    def adaptive(self, node: Node, m: nn.Module | None = None) -> Terms:
        (h, w), (oh, ow) = node.in_shapes[0][-2:], node.shape[-2:]
        if h % oh or w % ow:
            raise _Refused(f"adaptive pooling from {h}x{w} to {oh}x{ow}: its windows overlap")
        return self.average(node, (h // oh, w // ow), None, 0, None, True)

    def sumpool(self, node: Node, m: Any) -> Terms:
        if getattr(m, "norm_type", 1) != 1:
            raise _Refused(f"LPPool2d of norm {m.norm_type}; formats know sums and means")
        return self.average(node, m.kernel_size, m.stride, getattr(m, "padding", 0), 1, True)

    def maxpool(self, node: Node, m: nn.MaxPool2d) -> Terms:
        if _pair(m.dilation) != (1, 1) or m.return_indices:
            raise _Refused("max pooling with dilation or indices")
        window = {"kernel": _pair(m.kernel_size), "stride": _pair(m.stride), "padding": _pair(m.padding)}
        self.check_window(node, window)
        self.refusals.append(Refusal(node.path or node.scope, "max pooling; use pooling='avg'", lossy=True))
        return self.of(node, "maxpool", self.given(node), window=window)

    # -- functions

    def pass_on(self, node: Node) -> Terms:
        return self.given(node)

    def addition(self, node: Node, sign: float = 1.0) -> Terms:
        if len(node.inputs) != 2 or node.kwargs.get("alpha", 1) != 1:
            raise _Refused(f"{node.kind} of a constant ({node.source})")
        shapes = node.in_shapes
        if shapes[0] != shapes[1]:
            raise _Refused(f"{node.kind} of different shapes {shapes[0][1:]} and {shapes[1][1:]} ({node.source})")
        return total(self.given(node), _scaled(self.given(node, 1), sign))

    def subtraction(self, node: Node) -> Terms:
        return self.addition(node, -1.0)

    def product(self, node: Node) -> Terms:
        left, right = node.args[:2]
        if isinstance(left, int | float) and isinstance(right, Ref):
            return _scaled(self.given(node, 1), float(left))
        if not isinstance(right, int | float):
            raise _Refused(f"{node.kind} of two tensors ({node.source})")
        return _scaled(self.given(node), 1 / right if "div" in node.kind else float(right))

    def flatten(self, node: Node, m: nn.Module | None = None) -> Terms:
        before = node.in_shapes[0]
        if len(node.shape) != 2 or node.shape[0] != before[0]:
            raise _Refused(f"{node.kind} from {before[1:]} to {node.shape[1:]}; formats flatten all but the batch")
        return self.given(node) if len(before) == 2 else self.of(node, "flatten", self.given(node))

    def mean(self, node: Node) -> Terms:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        rank = len(node.in_shapes[0])
        if rank != 4 or not isinstance(dims, list | tuple) or sorted(d % rank for d in dims) != [2, 3]:
            raise _Refused(f"mean over dimensions {dims} ({node.source}); formats know it over a whole map")
        size = node.in_shapes[0][-2:]
        pooled = self.of(
            node, "avgpool", self.given(node), "_mean", shape=(*node.in_shapes[0][1:2], 1, 1),
            window={"kernel": size, "stride": size, "padding": (0, 0)},
        )  # fmt: skip
        return pooled if len(node.shape) == 4 else self.of(node, "flatten", pooled, "_flatten")

    def index(self, node: Node) -> Terms:
        self.shortcut(node)
        return self.given(node)

    def pad(self, node: Node) -> Terms:
        """The parameter-free shortcut: every second pixel, zero channels around: a 1x1 convolution of ones."""
        m = self.shortcut(node)
        channels_in, channels = node.in_shapes[0][1], node.shape[1]
        weight = np.zeros((channels, channels_in, 1, 1))
        weight[np.arange(channels_in) + m.before, np.arange(channels_in)] = 1
        window = {"kernel": (1, 1), "stride": (m.stride, m.stride), "padding": (0, 0), "dilation": (1, 1)}
        return self.of(node, "conv", self.given(node), weight=weight, bias=np.zeros(channels), window=window)

    def shortcut(self, node: Node) -> Any:
        from ..networks.resnet import PadShortcut

        module = self.network.get_submodule(node.scope)
        if not isinstance(module, PadShortcut):
            raise _Refused(f"{node.kind} ({node.source})")
        return module


MODULES: list[tuple[Any, str]] = [
    (nn.Conv2d, "conv"),
    (nn.Linear, "linear"),
    (nn.modules.batchnorm._BatchNorm, "norm"),
    (NormNeuron, "norm_neuron"),
    (Neuron, "neuron"),
    (nn.LPPool2d, "sumpool"),
    (nn.AvgPool2d, "avgpool"),
    (nn.AdaptiveAvgPool2d, "adaptive"),
    (nn.MaxPool2d, "maxpool"),
    (nn.Flatten, "flatten"),
]
FUNCTIONS: dict[str, str] = {
    **dict.fromkeys(PASSING, "pass_on"),
    **dict.fromkeys(("add", "iadd", "radd"), "addition"),
    **dict.fromkeys(("sub", "isub"), "subtraction"),
    **dict.fromkeys(("mul", "imul", "rmul", "div", "truediv", "true_divide"), "product"),
    **dict.fromkeys(("flatten", "reshape", "view"), "flatten"),
    "adaptive_avg_pool2d": "adaptive",
    "mean": "mean",
    "getitem": "index",
    "pad": "pad",
}


# -- edges


def total(left: Terms, right: Terms) -> Terms:
    """The sum of two tensors, in terms of layers."""
    out = dict(left)
    for name, factor in right.items():
        out[name] = out.get(name, 0.0) + factor
    return out


def _scaled(terms: Terms, factor: float) -> Terms:
    return {name: f * factor for name, f in terms.items()}


def diagonal(name: str, terms: Terms, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> Layer:
    """``a * x + b`` per channel, of maps or vectors: a 1x1 convolution or a linear layer with a diagonal matrix."""
    channels = shape[0]
    weight = np.diag(np.broadcast_to(a, (channels,)).astype(np.float64))
    bias = np.broadcast_to(b, (channels,)).astype(np.float64)
    if len(shape) == 1:
        return Layer(name, "linear", shape, dict(terms), weight=weight, bias=bias)
    window = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    return Layer(name, "conv", shape, dict(terms), weight=weight[:, :, None, None], bias=bias, window=window)


def _common(factors: list[float]) -> float | None:
    """The one factor of all edges, where it is not 1."""
    return factors[0] if factors and factors[0] != 1 and all(f == factors[0] for f in factors) else None


def _settle(lowered: Lowered) -> None:
    """Move all factors of edges into weights, backwards where they leave a weighted layer, else forwards; the rest get a
    layer of their own (an identity shortcut into a neuron with gain)."""
    for layer in reversed(list(lowered.layers.values())):
        users = lowered.users(layer.name)
        factor = _common([user.sources[layer.name] for user in users])
        if factor is None:
            continue
        if layer.kind in WEIGHTED:
            assert layer.weight is not None
            assert layer.bias is not None
            layer.weight, layer.bias = layer.weight * factor, layer.bias * factor
        elif layer.kind in ("avgpool", "sumpool", "flatten") and _weighted_before(lowered, layer):
            layer.sources = _scaled(layer.sources, factor)
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


# -- arrays


def as_array(x: Tensor) -> np.ndarray:
    """As float64 in memory."""
    return x.detach().to("cpu", torch.float64).numpy()


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's weight as that of an ungrouped one: readers do not agree on groups."""
    if groups == 1:
        return weight
    out, per = weight.shape[0] // groups, weight.shape[1]
    full = np.zeros((weight.shape[0], per * groups, *weight.shape[2:]))
    for g in range(groups):
        full[g * out : (g + 1) * out, g * per : (g + 1) * per] = weight[g * out : (g + 1) * out]
    return full


def _square(
    weight: np.ndarray, padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """A square kernel with zeros around: NIR's reader takes every kernel for square."""
    kh, kw = weight.shape[2:]
    size = max(kh, kw)
    if (size - kh) % 2 or (size - kw) % 2:
        raise _Refused(f"a kernel of {kh}x{kw}; NIR's reader takes kernels for square, and this one is not odd by odd")
    dh, dw = (size - kh) // 2, (size - kw) // 2
    padded = np.pad(weight, ((0, 0), (0, 0), (dh, dh), (dw, dw)))
    return padded, (padding[0] + dh * dilation[0], padding[1] + dw * dilation[1])


__all__ = ["GraphBuilder", "Layer", "Lowered", "Refusal", "as_array", "diagonal", "lower", "total"]
