"""What a neuron with weights over time keeps of the past, and what it computes again: in place of membranes.

Where the layer before it reads spikes, or pooled sums of them, these are kept as bits and the layer's sums
(and the norm behind them) are computed again for every step that a potential reaches back to; else (an image,
a sum, a residual) the currents themselves are kept. The rule is that of the integer network
(:func:`spikedistill.quantization.temporal.history`). Behind a constant image nothing is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from ..networks.graph import Graph
from ..networks.operations import Node
from ..neurons import Parallel
from ..quantization.quantized import Quantization
from ..quantization.temporal import MOST_LEVELS, history

_BETWEEN = ("pass", "reshape", "permute", "max_pool", "average_pool", "adaptive_average_pool")


@dataclass(frozen=True)
class Past:
    """``terms``: products in one H, averaged over steps.

    ``steps``, ``values``, ``bits`` of what is kept: so many steps of so many values of so many bits for one
    image; ``source``: the weight layer whose sums are computed again, or None.
    """

    terms: float
    steps: int
    values: int
    bits: int
    source: Node | None


def terms(neuron: Parallel, T: int) -> float:
    """Products of a weight and a current in one H, averaged over T steps; 1 at constant current."""
    if neuron.encode:
        return 1.0
    return sum(min(t + 1, neuron.taps) for t in range(T)) / T if neuron.causal else float(T)


def past(
    node: Node, neuron: Parallel, graph: Graph, T: int, levels: Callable[[str], int | None],
    current_bits: int | None,
    quantization: Quantization | None,
) -> Past:  # fmt: skip
    """What the neuron at ``node`` keeps. ``levels``: largest (pooled) spike count by tensor, None if real."""
    # a neuron that is not causal needs every step's current before its first spike
    count, steps = terms(neuron, T), neuron.taps - 1 if neuron.causal else T
    outputs = prod(node.shape[1:])
    if neuron.encode or steps == 0:
        return Past(count, 0, 0, 0, None)
    # before quantization there is no plan to ask: the same rule, read off the graph
    found = _source(node, graph, levels) if quantization is None else _planned(node, graph, quantization)
    if found is None:
        return Past(count, steps, outputs, current_bits or 32, None)
    source, bits = found
    return Past(count, steps, prod(source.in_shapes[0][1:]), bits, source)


def _planned(node: Node, graph: Graph, quantization: Quantization) -> tuple[Node, int] | None:
    plan = quantization.plan
    kept = history(plan, next(op for op in plan.ops if op.name == node.name))
    return None if kept is None else (graph[kept[0]], kept[1])


def _source(node: Node, graph: Graph, levels: Callable[[str], int | None]) -> tuple[Node, int] | None:
    # a residual joins the current: sums made again would lack it
    if len(node.inputs) != 1:
        return None
    before: Any = graph[node.inputs[0]]
    while before.op in _BETWEEN:
        before = graph[before.inputs[0]]
    most = levels(before.inputs[0]) if before.op in ("conv", "linear") else None
    return (before, max(1, most.bit_length())) if most is not None and most <= MOST_LEVELS else None
