"""A network as the few operations that exchange formats know, for one time step.

The traced graph becomes layers joined by weighted edges: norms fold into the convolution before them, sums become several
edges into one layer, a neuron's gain becomes a factor on its edges and from there moves into weights and biases. What has
no such form is collected, with the module's path, and raised all at once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks import graph as graphs
from ..networks.base import Network
from ..networks.graph import Graph
from ..networks.operations import Node, Ref
from ..neurons import IF, LIF, PLIF, Neuron, NormNeuron, Repeat
from .layers import WEIGHTED, Kind, Layer, Lowered, Refusal, Terms, diagonal, pointwise, scaled, settle, total

TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, Repeat)
PASSING = ("contiguous", "clone", "detach", "dropout", "float")


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
    settle(lowered)
    return lowered


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
            function = FUNCTIONS.get(node.kind.removesuffix("_"))  # in place or not
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

    def conv(self, node: Node, m: nn.Conv1d | nn.Conv2d) -> Terms:
        if m.padding_mode != "zeros":
            raise _Refused(f"padding_mode={m.padding_mode!r}; formats know zeros only")
        size, dilation = m.kernel_size, m.dilation
        if isinstance(m.padding, str):
            total = [d * (k - 1) for d, k in zip(dilation, size)] if m.padding == "same" else [0, 0]
            if any(t % 2 for t in total):
                raise _Refused("padding='same' with an even kernel pads one side more; formats pad both alike")
            padding = tuple(t // 2 for t in total)
        else:
            padding = m.padding
        weight, bias = self.weights(m)
        weight, padding = _square(_dense(weight, m.groups), padding, dilation)
        window = {"kernel": weight.shape[2:], "stride": m.stride, "padding": padding, "dilation": dilation}
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
                if before.origin == node.inputs[0] and len(self.graph.readers(before.origin)) == 1:
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
            return scaled(self.of(node, "sumpool", self.given(node), window=window), 1 / divisor)
        return self.of(node, "avgpool", self.given(node), window=window)

    def check_window(self, node: Node, window: dict[str, tuple[int, int]]) -> None:
        spans = zip(node.in_shapes[0][-2:], window["kernel"], window["stride"], window["padding"])
        if tuple((x + 2 * p - k) // s + 1 for x, k, s, p in spans) != tuple(node.shape[-2:]):
            raise _Refused("pooling with ceil_mode whose last window is cut; formats round down")

    def avgpool(self, node: Node, m: nn.AvgPool2d) -> Terms:
        return self.average(node, m.kernel_size, m.stride, m.padding, m.divisor_override, m.count_include_pad)

    def adaptive(self, node: Node, m: nn.Module | None = None) -> Terms:
        return self.average(node, self.windows(node)["kernel"], None, 0, None, True)

    def windows(self, node: Node) -> dict[str, tuple[int, int]]:
        """The window of an adaptive pool."""
        (h, w), (oh, ow) = node.in_shapes[0][-2:], node.shape[-2:]
        if h % oh or w % ow:
            raise _Refused(f"adaptive pooling from {h}x{w} to {oh}x{ow}: its windows overlap")
        return {"kernel": (h // oh, w // ow), "stride": (h // oh, w // ow), "padding": (0, 0)}

    def functional(self, node: Node) -> Terms:
        """A pool called as a function, as the module with its arguments."""
        names, module, method = POOLS[node.kind]
        arguments = {**dict(zip(names, node.args[1:])), **{k: v for k, v in node.kwargs.items() if k in names}}
        return getattr(self, method)(node, module(**arguments))

    def sumpool(self, node: Node, m: Any) -> Terms:
        if getattr(m, "norm_type", 1) != 1:
            raise _Refused(f"LPPool2d of norm {m.norm_type}; formats know sums and means")
        return self.average(node, m.kernel_size, m.stride, getattr(m, "padding", 0), 1, True)

    def maxpool(self, node: Node, m: nn.MaxPool2d) -> Terms:
        if _pair(m.dilation) != (1, 1) or m.return_indices:
            raise _Refused("max pooling with dilation or indices")
        window = {"kernel": _pair(m.kernel_size), "stride": _pair(m.stride), "padding": _pair(m.padding)}
        self.check_window(node, window)
        return self.of(node, "maxpool", self.given(node), window=window)

    def adaptive_max(self, node: Node, m: nn.Module | None = None) -> Terms:
        return self.of(node, "maxpool", self.given(node), window=self.windows(node))

    # -- functions

    def pass_on(self, node: Node) -> Terms:
        return self.given(node)

    def addition(self, node: Node, sign: float = 1.0) -> Terms:
        if len(node.inputs) != 2 or node.kwargs.get("alpha", 1) != 1:
            raise _Refused(f"{node.kind} of a constant ({node.source})")
        shapes = node.in_shapes
        if shapes[0] != shapes[1]:
            raise _Refused(f"{node.kind} of different shapes {shapes[0][1:]} and {shapes[1][1:]} ({node.source})")
        return total(self.given(node), scaled(self.given(node, 1), sign))

    def subtraction(self, node: Node) -> Terms:
        return self.addition(node, -1.0)

    def product(self, node: Node) -> Terms:
        left, right = node.args[:2]
        if isinstance(left, int | float) and isinstance(right, Ref):
            return scaled(self.given(node, 1), float(left))
        if not isinstance(right, int | float):
            raise _Refused(f"{node.kind} of two tensors ({node.source})")
        return scaled(self.given(node), 1 / right if "div" in node.kind else float(right))

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
        return self.placed(node, self.given(node), node.in_shapes[0][1], m.before, m.stride)

    def concatenation(self, node: Node) -> Terms:
        """A sum of 1x1 convolutions of ones, each of which puts its channels in their place."""
        parts = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim % len(node.shape) != 1 or not all(isinstance(p, Ref) and p.index is None for p in parts):
            raise _Refused(f"{node.kind} over something else than the channels of layers' outputs ({node.source})")
        terms: Terms = {}
        start = 0
        for k, part in enumerate(parts):
            channels = self.graph[part.name].shape[1]
            terms = total(terms, self.placed(node, self.terms[part.name], channels, start, suffix=f"_{k}"))
            start += channels
        return terms

    def placed(self, node: Node, terms: Terms, channels: int, start: int, stride: int = 1, suffix: str = "") -> Terms:
        """Channels at ``start`` of the node's, zeros elsewhere."""
        weight = np.zeros((node.shape[1], channels))
        weight[np.arange(channels) + start, np.arange(channels)] = 1
        form = pointwise(weight, len(node.shape) - 2, stride)
        return self.of(node, sources=terms, suffix=suffix, bias=np.zeros(node.shape[1]), **form)

    def shortcut(self, node: Node) -> Any:
        from ..networks.resnet import PadShortcut

        module = self.network.get_submodule(node.scope)
        if not isinstance(module, PadShortcut):
            raise _Refused(f"{node.kind} ({node.source})")
        return module


MODULES: list[tuple[Any, str]] = [
    ((nn.Conv1d, nn.Conv2d), "conv"),
    (nn.Linear, "linear"),
    (nn.modules.batchnorm._BatchNorm, "norm"),
    (NormNeuron, "norm_neuron"),
    (Neuron, "neuron"),
    (nn.LPPool2d, "sumpool"),
    (nn.AvgPool2d, "avgpool"),
    (nn.AdaptiveAvgPool2d, "adaptive"),
    (nn.MaxPool2d, "maxpool"),
    (nn.AdaptiveMaxPool2d, "adaptive_max"),
    (nn.Flatten, "flatten"),
]
_WINDOW = ("kernel_size", "stride", "padding")
POOLS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "avg_pool2d": ((*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override"), nn.AvgPool2d, "avgpool"),
    "max_pool2d": ((*_WINDOW, "dilation", "ceil_mode", "return_indices"), nn.MaxPool2d, "maxpool"),
}
FUNCTIONS: dict[str, str] = {
    **dict.fromkeys(PASSING, "pass_on"),
    **dict.fromkeys(("add", "iadd", "radd"), "addition"),
    **dict.fromkeys(("sub", "isub"), "subtraction"),
    **dict.fromkeys(("mul", "imul", "rmul", "div", "truediv", "true_divide"), "product"),
    **dict.fromkeys(("flatten", "reshape", "view"), "flatten"),
    "adaptive_avg_pool2d": "adaptive",
    "adaptive_max_pool2d": "adaptive_max",
    **dict.fromkeys(POOLS, "functional"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "concatenation"),
    "mean": "mean",
    "getitem": "index",
    "pad": "pad",
}


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
    weight: np.ndarray, padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """A square kernel with zeros around: NIR's reader takes every kernel for square."""
    if weight.ndim == 3:
        return weight, padding
    kh, kw = weight.shape[2:]
    size = max(kh, kw)
    if (size - kh) % 2 or (size - kw) % 2:
        raise _Refused(f"a kernel of {kh}x{kw}; NIR's reader takes kernels for square, and this one is not odd by odd")
    dh, dw = (size - kh) // 2, (size - kw) // 2
    padded = np.pad(weight, ((0, 0), (0, 0), (dh, dh), (dw, dw)))
    return padded, (padding[0] + dh * dilation[0], padding[1] + dw * dilation[1])


__all__ = ["GraphBuilder", "as_array", "lower"]
