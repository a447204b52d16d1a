"""Pools, means and sums on integer codes, and the plan that every operation of a network is written into."""

from dataclasses import replace
from math import prod
from typing import Any

from ..networks.base import Network
from ..networks.graph import Graph
from ..networks.operations import Node
from .plan import Edge, Op, Plan, input_names, is_power_of_two, refuse
from .streams import Streams

ROUNDED = 1 << 20  # a mean's sum is read back from a float by rounding; below this it cannot miss
ALLOWED = (
    "has no form on integer codes; allowed between layers: additions, products of spikes, powers of two as "
    "factors, pools, means, sums, reshaping, transposing, slicing, zero padding, concatenation"
)


class PlanWriter:
    """The plan while it is being made.

    ``limits``: each layer's largest weight code. ``entry``: what the input carries. ``finest``: see
    :class:`Streams`.
    """

    def __init__(
        self,
        network: Network,
        graph: Graph,
        limits: dict[str, int],
        residual_bits: int,
        entry: Edge,
        finest: float,
    ) -> None:
        self.network, self.graph, self.limits, self.entry = network, graph, limits, entry
        self.residual = (-(1 << (residual_bits - 1)), (1 << (residual_bits - 1)) - 1)
        self.plan = Plan()
        self.streams = Streams(self.plan, finest)
        self.called: set[str] = set()

    def edge(self, node: Node, i: int = 0) -> Edge:
        """What a node's i-th input carries."""
        return self.plan.edges[input_names(node)[i]]

    def put(self, node: Node, kind: str, edge: Edge, suffix: str = "", **options: Any) -> None:
        """One operation; with ``suffix`` one of several that a node becomes; the first read its inputs."""
        name = node.name + suffix
        self.plan.ops.append(Op(name, kind, input_names(node), node.path or "", options))
        self.plan.edges[name] = edge

    def then(self, node: Node, kind: str, before: str, edge: Edge, **options: Any) -> None:
        """The last operation of a node, behind the one that it put as ``before``."""
        self.plan.ops.append(Op(node.name, kind, [node.name + before], "", options))
        self.plan.edges[node.name] = edge


class PoolReader(PlanWriter):
    """What adds several codes to one."""

    def max_pool(self, node: Node) -> None:
        settings = self.window(node)
        window = {key: list(settings[key]) for key in ("kernel", "stride", "padding", "dilation")}
        options: dict[str, Any] = {**window, "ceil": settings["ceil"]}
        self.put(node, "max_pool", self.edge(node), **options)

    def average_pool(self, node: Node) -> None:
        settings = self.window(node)
        kernel, stride, padding = (list(settings[key]) for key in ("kernel", "stride", "padding"))
        sizes = zip(node.in_shapes[0][-2:], kernel, stride, padding)
        overhangs = settings["ceil"] and any((n + 2 * p - k) % s for n, k, s, p in sizes)
        if overhangs or (any(padding) and not (settings["include_padding"] or settings["divisor"])):
            raise refuse(
                node,
                "divides by a number that depends on the place; use ceil_mode=False, count_include_pad=True",
            )
        self.average(node, kernel, stride, padding, settings["divisor"] or prod(kernel))

    def adaptive_max_pool(self, node: Node) -> None:
        self.window(node)
        self.put(node, "adaptive_max", self.edge(node), size=list(node.shape[-2:]))

    def adaptive_average_pool(self, node: Node) -> None:
        self.window(node)
        before, after = node.in_shapes[0][-2:], node.shape[-2:]
        kernel = node.settings["kernel"]
        if all(a % b == 0 for b, a in zip(before, after)):  # every window is one place
            return self.put(node, "replicate", self.edge(node), times=[a // b for b, a in zip(before, after)])
        if kernel is None:
            raise refuse(
                node,
                f"has overlapping windows ({before} to {after}); its divisor is not one number: choose sizes "
                "that divide",
            )
        return self.average(node, list(kernel), list(kernel), [0, 0], prod(kernel))

    def window(self, node: Node) -> dict[str, Any]:
        """The settings of a pool over maps."""
        if len(node.shape) != 4:
            raise refuse(node, why_not(node))
        if node.settings["indices"]:
            raise refuse(node, "returns indices")
        return node.settings

    def average(
        self, node: Node, kernel: list[int], stride: list[int], padding: list[int], divisor: int
    ) -> None:
        """Sums over windows; their divisor is in the value of a code, and in a function's floats too."""
        # A module can be exchanged for one that sums; a function in the network's own code still divides.
        made = self.summed(node, prod(kernel), divisor, scaled=node.module is None)
        size = list(node.in_shapes[0][-2:])
        self.put(node, "sum_pool", made, kernel=kernel, stride=stride, padding=padding, size=size)

    def mean(self, node: Node) -> None:
        shape, dims = node.in_shapes[0], node.settings["dims"]
        if 0 in dims:
            raise refuse(node, "adds over the first dimension, which holds T*N")
        area = prod(shape[d] for d in dims)
        made = self.summed(node, area, area if node.op == "mean" else 1, scaled=True)
        self.put(node, "sum", made, ":sum", dims=dims, wide=made.bound >= 1 << 31)
        self.then(node, "reshape", ":sum", made, shape=list(node.shape[1:]))

    def summed(self, node: Node, area: int, divisor: int, scaled: bool) -> Edge:
        """``area`` codes in one, divided by ``divisor``."""
        edge = self.edge(node)
        if edge.base == "norm":
            self.streams.pooled.append((edge.group, divisor, node))
            if scaled:
                self.streams.real(edge.group)
        if scaled and not is_power_of_two(divisor) and edge.bound * area >= ROUNDED:
            raise refuse(node, "takes a mean of codes too large to be read back; use a pool as a module")
        fraction = edge.fraction / divisor if scaled else edge.fraction
        return replace(
            edge, low=edge.low * area, high=edge.high * area, share=edge.share / divisor, fraction=fraction
        )


def why_not(node: Node) -> str:
    """The words of a refusal: what this call could be instead."""
    if node.module is None:
        return ALLOWED
    name = node.kind
    if name in ("GELU", "SiLU", "Softmax", "Sigmoid", "Tanh", "LayerNorm", "GroupNorm", "MultiheadAttention"):
        return "has no form on integer codes (only spikes, sums and batch norms have)"
    if name in ("ReLU", "ReLU6", "LeakyReLU"):
        return "is not a neuron; quantize takes spiking networks (sd.spiking turns a ReLU network into one)"
    return (
        "is not known to quantization; known: convolutions, linear layers, batch norms, neurons, pools, "
        "zero padding, flattening, Repeat, Identity, Dropout"
    )
