"""A network as the few operations that exchange formats know, for one time step.

The traced graph becomes layers joined by weighted edges: norms fold into the convolution before them, sums
become several edges into one layer, a neuron's gain becomes a factor on its edges and from there moves into
weights and biases. What has no such form is collected, with the module's path, and raised all at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.base import Network
from ..networks.graph import Graph
from ..networks.operations import Node, Operation, Ref
from ..networks.resnet import PadShortcut
from ..neurons import IF, LIF, PLIF, NormNeuron, Parallel
from .layers import WEIGHTED, Kind, Layer, Lowered, Refusal, Terms, diagonal, pointwise, scaled, total


class _Refused(Exception):
    """Raised while a node is lowered; caught by the builder, which goes on to find the rest."""


class GraphBuilder:
    """Lowers a traced graph node by node; what each operation becomes is a method of its own."""

    def __init__(self, network: Network, graph: Graph) -> None:
        self.network, self.graph = network, graph
        self.layers: dict[str, Layer] = {}
        self.terms: dict[str, Terms] = {}
        self.refusals: list[Refusal] = []
        self.methods: dict[Operation, Callable[[Node], Terms]] = {
            "input": self.input,
            "conv": self.conv,
            "linear": self.linear,
            "batch_norm": self.norm,
            "norm_neuron": self.norm_neuron,
            "neuron": self.neuron,
            "average_pool": self.average_pool,
            "sum_pool": self.sum_pool,
            "adaptive_average_pool": self.adaptive,
            "max_pool": self.max_pool,
            "adaptive_max_pool": self.adaptive_max,
            "pass": self.given,
            "repeat": self.given,
            "cast": self.cast,
            "add": self.addition,
            "subtract": self.addition,
            "scale": self.scale,
            "multiply": self.product,
            "divide": self.product,
            "reshape": self.flatten,
            "mean": self.mean,
            "slice": self.index,
            "pad": self.pad,
            "concat": self.concatenation,
        }

    def build(self) -> Lowered:
        for node in self.graph:
            try:
                self.terms[node.name] = self.lowered(node)
            except _Refused as why:
                self.refusals.append(Refusal(node.path or node.scope or node.name, str(why)))
            except KeyError:  # reads something that was refused already, or that no layer made
                if not self.refusals:
                    place = node.path or node.scope or node.name
                    self.refusals.append(Refusal(place, "reads a tensor that no layer gave"))
        if self.graph.output in self.terms:
            out = self.terms[self.graph.output]
            self.layers["output"] = Layer(
                "output", "output", self.graph[self.graph.output].shape[1:], dict(out)
            )
            self.prune()
        return Lowered(self.layers, self.refusals)

    def lowered(self, node: Node) -> Terms:
        if node.op not in self.methods:
            raise self.no_form(node)
        return self.methods[node.op](node)

    def no_form(self, node: Node) -> _Refused:
        """The refusal of an operation that formats do not know."""
        return _Refused(
            f"{node.kind} ({node.source})" if node.module is None else f"{node.kind} has no form here"
        )

    def input(self, node: Node) -> Terms:
        return self.add(Layer("input", "input", node.shape[1:], {}))

    def given(self, node: Node, index: int = 0) -> Terms:
        """The terms of a node's argument."""
        argument = node.args[index]
        if not isinstance(argument, Ref) or argument.index is not None:
            raise _Refused(f"{node.kind} of something that is no layer's output ({node.source})")
        return self.terms[argument.name]

    def add(self, layer: Layer) -> Terms:
        name, k = layer.name, 1
        # a key of from_nir's ModuleDict, where to_nir looks for its neurons by this name
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

    def conv(self, node: Node) -> Terms:
        m: Any = node.module
        if m.padding_mode != "zeros":
            raise _Refused(f"padding_mode={m.padding_mode!r}; formats know zeros only")
        padding, dilation = node.settings["padding"], node.settings["dilation"]
        if any(node.settings["far_padding"]):
            raise _Refused("padding='same' with an even kernel pads one side more; formats pad both alike")
        weight, bias = self.weights(m)
        weight, padding = _square(_dense(weight, m.groups), padding, dilation)
        window = {"kernel": weight.shape[2:], "stride": m.stride, "padding": padding, "dilation": dilation}
        return self.of(node, "conv", self.given(node), weight=weight, bias=bias, window=window)

    def linear(self, node: Node) -> Terms:
        if len(node.shape) != 2:
            raise _Refused(f"a linear layer on tokens {node.shape[1:]}; formats know it on vectors only")
        weight, bias = self.weights(node.module)
        return self.of(node, "linear", self.given(node), weight=weight, bias=bias)

    def weights(self, m: Any) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a convolution or linear layer."""
        return as_array(m.weight), np.zeros(m.weight.shape[0]) if m.bias is None else as_array(m.bias)

    def norm(self, node: Node) -> Terms:
        m: Any = node.module
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
        """``a * x + b`` per channel, in the layer before it where that has weights and no other reader."""
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
                # where others read the layer too (a residual) they need it unfolded
                if before.origin == node.inputs[0] and len(self.graph.readers(before.origin)) == 1:
                    before.weight, before.bias = weight, bias
                    return terms
                return self.of(
                    node, before.kind, before.sources, "_folded",
                    weight=weight, bias=bias, window=before.window, shape=shape,
                )  # fmt: skip
        return self.diagonal(node, terms, a, b, shape)

    def diagonal(
        self, node: Node, terms: Terms, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]
    ) -> Terms:
        """A channel-wise affine map as a layer of its own."""
        return self.add(diagonal((node.path or node.scope).replace(".", "_") + "_affine", terms, a, b, shape))

    def neuron(self, node: Node, charge: Terms | None = None) -> Terms:
        n = neuron_of(node)
        if isinstance(n, Parallel):
            raise _Refused(f"{n.kind} has weights over time and no membrane; formats know neurons with one")
        if type(n) not in (IF, LIF, PLIF):
            raise _Refused(f"{type(n).__name__} is no IF, LIF or PLIF")
        if n.smooth:
            raise _Refused(
                "smooth=True puts the surrogate's primitive into the forward pass; spikes are not 0 or 1"
            )
        charge = self.given(node) if charge is None else charge
        gain = _number(n.gain)
        return self.of(
            node, "neuron", {name: factor * gain for name, factor in charge.items()},
            decay=_number(n.decay), threshold=n.threshold, reset=n.reset, initial=n.initial,
            reset_by=n.reset_by,
        )  # fmt: skip

    def norm_neuron(self, node: Node) -> Terms:
        return self.neuron(node, total(self.norm(node), self.residual(node)))

    def residual(self, node: Node) -> Terms:
        """What a norm's neuron is charged with besides; nothing where it has no shortcut."""
        residual = node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")
        return self.terms[residual.name] if isinstance(residual, Ref) else {}

    # -- pools

    def average_pool(self, node: Node) -> Terms:
        window, divisor = self.window(node), node.settings["divisor"]
        if any(window["padding"]) and not node.settings["include_padding"] and divisor is None:
            raise _Refused("average pooling with count_include_pad=False; formats count the padding")
        return self.average(node, window, divisor)

    def sum_pool(self, node: Node) -> Terms:
        if node.settings["power"] != 1:
            raise _Refused(f"LPPool2d of norm {node.settings['power']}; formats know sums and means")
        return self.average(node, self.window(node), 1)

    def adaptive(self, node: Node) -> Terms:
        return self.average(node, self.windows(node), None)

    def average(self, node: Node, window: dict[str, tuple[int, ...]], divisor: int | None) -> Terms:
        """``divisor``: None is the window's size."""
        if window["kernel"] == window["stride"] == (1, 1) and divisor in (None, 1):
            return self.given(node)
        if divisor is not None:
            return scaled(self.of(node, "sumpool", self.given(node), window=window), 1 / divisor)
        return self.of(node, "avgpool", self.given(node), window=window)

    def max_pool(self, node: Node) -> Terms:
        if any(d != 1 for d in node.settings["dilation"]) or node.settings["indices"]:
            raise _Refused("max pooling with dilation or indices")
        return self.of(node, "maxpool", self.given(node), window=self.window(node))

    def adaptive_max(self, node: Node) -> Terms:
        return self.of(node, "maxpool", self.given(node), window=self.windows(node))

    def window(self, node: Node) -> dict[str, tuple[int, ...]]:
        """A pool's window; formats know those over maps that are not cut."""
        if len(node.shape) != 4:
            raise self.no_form(node)
        window = {key: node.settings[key] for key in ("kernel", "stride", "padding")}
        spans = zip(node.in_shapes[0][2:], *window.values())
        if tuple((x + 2 * p - k) // s + 1 for x, k, s, p in spans) != node.shape[2:]:
            raise _Refused("pooling with ceil_mode whose last window is cut; formats round down")
        return window

    def windows(self, node: Node) -> dict[str, tuple[int, ...]]:
        """The window of an adaptive pool."""
        if len(node.shape) != 4:
            raise self.no_form(node)
        kernel = node.settings["kernel"]
        if kernel is None:
            before, after = ("x".join(map(str, shape[2:])) for shape in (node.in_shapes[0], node.shape))
            raise _Refused(f"adaptive pooling from {before} to {after}: its windows overlap")
        return {"kernel": kernel, "stride": kernel, "padding": (0, 0)}

    # -- functions

    def cast(self, node: Node) -> Terms:
        dtype = node.settings["dtype"]
        if dtype is None or not dtype.is_floating_point:
            raise self.no_form(node)
        return self.given(node)

    def addition(self, node: Node) -> Terms:
        """A sum or difference of two tensors."""
        if node.settings["reversed"]:
            raise self.no_form(node)
        if len(node.inputs) != 2 or node.settings["alpha"] != 1:
            raise _Refused(f"{node.kind} of a constant ({node.source})")
        shapes = node.in_shapes
        if shapes[0] != shapes[1]:
            raise _Refused(
                f"{node.kind} of different shapes {shapes[0][1:]} and {shapes[1][1:]} ({node.source})"
            )
        return total(self.given(node), scaled(self.given(node, 1), 1.0 if node.op == "add" else -1.0))

    def scale(self, node: Node) -> Terms:
        return scaled(self.given(node), node.settings["factor"])

    def product(self, node: Node) -> Terms:
        raise _Refused(f"{node.kind} of two tensors ({node.source})")

    def flatten(self, node: Node) -> Terms:
        before = node.in_shapes[0]
        if node.kind.lower() not in ("flatten", "reshape", "view"):
            raise self.no_form(node)
        if len(node.shape) != 2 or node.shape[0] != before[0]:
            raise _Refused(
                f"{node.kind} from {before[1:]} to {node.shape[1:]}; formats flatten all but the batch"
            )
        return self.given(node) if len(before) == 2 else self.of(node, "flatten", self.given(node))

    def mean(self, node: Node) -> Terms:
        dims = node.settings["dims"]
        if len(node.in_shapes[0]) != 4 or sorted(dims) != [2, 3]:
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
        """Shortcut without parameters: every second pixel, zero channels around: a 1x1 convolution of 1s."""
        m = self.shortcut(node)
        return self.placed(node, self.given(node), node.in_shapes[0][1], m.before, m.stride)

    def concatenation(self, node: Node) -> Terms:
        """A sum of 1x1 convolutions of ones, each of which puts its channels in their place."""
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        if node.settings["dim"] != 1 or not all(isinstance(p, Ref) and p.index is None for p in parts):
            raise _Refused(
                f"{node.kind} over something else than the channels of layers' outputs ({node.source})"
            )
        terms: Terms = {}
        start = 0
        for k, part in enumerate(parts):
            channels = self.graph[part.name].shape[1]
            terms = total(terms, self.placed(node, self.terms[part.name], channels, start, suffix=f"_{k}"))
            start += channels
        return terms

    def placed(
        self, node: Node, terms: Terms, channels: int, start: int, stride: int = 1, suffix: str = ""
    ) -> Terms:
        """Channels at ``start`` of the node's, zeros elsewhere."""
        weight = np.zeros((node.shape[1], channels))
        weight[np.arange(channels) + start, np.arange(channels)] = 1
        form = pointwise(weight, len(node.shape) - 2, stride)
        return self.of(node, sources=terms, suffix=suffix, bias=np.zeros(node.shape[1]), **form)

    def shortcut(self, node: Node) -> Any:
        module = self.network.get_submodule(node.scope)
        if not isinstance(module, PadShortcut):
            raise self.no_form(node)
        return module


# -- arrays


def as_array(x: Tensor) -> np.ndarray:
    """As float64 in memory."""
    return x.detach().to("cpu", torch.float64).numpy()


def neuron_of(node: Node) -> Any:
    """The neuron of a neuron layer."""
    return node.module.neuron if isinstance(node.module, NormNeuron) else node.module


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


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
        raise _Refused(
            f"a kernel of {kh}x{kw}; NIR's reader takes kernels for square, and this one is not odd by odd"
        )
    dh, dw = (size - kh) // 2, (size - kw) // 2
    padded = np.pad(weight, ((0, 0), (0, 0), (dh, dh), (dw, dw)))
    return padded, (padding[0] + dh * dilation[0], padding[1] + dw * dilation[1])
