"""Reading a network's graph for quantization: which edges carry what codes, and what cannot be expressed.

Nothing is changed here: a network that cannot be quantized is refused, by the path of the module, before anything happens.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

from torch import nn

from ..errors import SpikedistillError
from ..networks.base import Network
from ..networks.graph import Graph, Node
from ..neurons import Neuron, NormNeuron, Repeat
from .weights import WeightFormat

Base = Literal["step", "layer", "norm"]


@dataclass(frozen=True)
class Edge:
    """What one node gives to the next: integers between ``low`` and ``high``.

    The value of one code is ``share`` times: ``step`` (spikes, counts, image codes), the step of the accumulators of
    ``layer``, or the step of the norms in ``group``, which write on one grid.
    """

    base: Base
    low: int
    high: int
    step: float = 1.0
    share: float = 1.0
    layer: str = ""
    group: int = -1

    @property
    def bound(self) -> int:
        """Largest magnitude."""
        return max(-self.low, self.high)

    @property
    def spikes(self) -> bool:
        """Whether these are 0 and 1 (or small integers) of value 1."""
        return self.base == "step" and self.step * self.share == 1


@dataclass
class Op:
    """One node of the plan: the executor runs these in order."""

    name: str
    kind: str
    inputs: list[str]
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """Operations in order, what their outputs carry, and where accumulators and norms end."""

    ops: list[Op] = field(default_factory=list)
    edges: dict[str, Edge] = field(default_factory=dict)
    ends: dict[str, tuple[str, str, float]] = field(
        default_factory=dict
    )  # layer path -> (norm | neuron | logits, path, share)
    groups: dict[int, list[str]] = field(default_factory=dict)  # group -> paths of its norms
    readers: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # group -> (kind, path) of who reads it
    formats: dict[str, WeightFormat] = field(default_factory=dict)  # layer path -> form of its weights
    output: str = ""

    def op(self, path: str) -> Op:
        """The operation of a module."""
        return next(op for op in self.ops if op.path == path)


_PASS_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten)
_RESHAPES = ("flatten", "view", "reshape", "unflatten", "contiguous", "squeeze", "unsqueeze")


def refuse(node: Node, why: str) -> SpikedistillError:
    """The error that names the module."""
    where = node.path if node.path is not None else node.scope or "the network's own forward"
    source = f" ({node.source})" if node.path is None and node.source else ""
    return SpikedistillError(f"cannot quantize {where}{source}: {node.kind} {why}")


class Reader:
    """Walks the graph once. ``bits(path)``: the weight format's largest code; ``residual``: range of norms' codes."""

    def __init__(self, network: Network, graph: Graph, limits: dict[str, int], residual_bits: int, entry: Edge) -> None:
        self.network, self.graph, self.limits = network, graph, limits
        self.residual = (-(1 << (residual_bits - 1)), (1 << (residual_bits - 1)) - 1)
        self.entry, self.plan = entry, Plan()
        self.parent: dict[int, int] = {}
        self.seen: set[str] = set()

    def read(self) -> Plan:
        """The plan; raises for what cannot be expressed."""
        for node in self.graph:
            self.visit(node)
        self.finish()
        return self.plan

    # -- one node ---------------------------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        module = node.module
        if node.kind == "input":
            return self.put(node, "input", self.entry)
        for name in node.inputs:
            if name not in self.plan.edges:
                raise refuse(node, "reads something that is not an activation (a parameter or constant tensor)")
        if module is not None and not isinstance(module, (*_PASS_MODULES, nn.MaxPool2d, Repeat, nn.AvgPool2d)):
            if node.path in self.seen:
                raise refuse(node, "is called more than once; codes have one scale a module: give each call its own")
            self.seen.add(str(node.path))
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            return self.layer(node, module)
        if isinstance(module, NormNeuron):
            return self.norm_neuron(node, module)
        if isinstance(module, Neuron):
            return self.neuron(node)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return self.norm(node, module)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            return self.pool(node, module)
        if isinstance(module, Repeat):
            return self.put(node, "repeat", self.edge(node))
        if isinstance(module, _PASS_MODULES):
            return self.reshape(node)
        if module is not None:
            raise refuse(node, _why_not(module))
        return self.function(node)

    def edge(self, node: Node, i: int = 0) -> Edge:
        return self.plan.edges[node.inputs[i]]

    def put(self, node: Node, kind: str, edge: Edge, **options: Any) -> None:
        self.plan.ops.append(Op(node.name, kind, list(node.inputs), node.path or "", options))
        self.plan.edges[node.name] = edge

    def layer(self, node: Node, module: Any) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            raise refuse(node, f"follows {edge.layer} without a norm or neuron between them")
        if edge.base == "norm":
            self.read_by(edge, "layer", node)
        options: dict[str, Any] = {"groups": 1}
        if not isinstance(module, nn.Linear):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise refuse(node, "pads otherwise than with a number of zeros; use padding=(h, w) of zeros")
            options = {
                "stride": list(module.stride), "padding": list(module.padding), "dilation": list(module.dilation),
                "groups": module.groups,
            }  # fmt: skip
        most = module.weight[0].numel() * self.limits[str(node.path)] * edge.bound
        self.put(node, "layer", Edge("layer", -most, most, layer=str(node.path)), **options)

    def norm_neuron(self, node: Node, module: NormNeuron) -> None:
        if not isinstance(module.neuron, Neuron):
            raise refuse(
                node, f"ends in {type(module.neuron).__name__}, not in a neuron; quantize takes spiking networks"
            )
        self.into_norm(node)
        if len(node.inputs) > 1:
            residual = self.edge(node, 1)
            if residual.base == "layer":
                raise refuse(node, f"adds the output of {residual.layer} without a norm")
            if residual.base == "norm":
                if residual.share != 1:
                    raise refuse(node, "adds a pooled norm; put the pooling before the norm")
                self.read_by(residual, "residual", node)
        self.put(node, "norm_neuron", Edge("step", 0, 1))

    def neuron(self, node: Node) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            self.end(edge, "neuron", node)
        elif edge.base == "norm":
            if edge.share != 1:
                raise refuse(node, "reads a pooled norm; put the pooling behind the neuron")
            self.read_by(edge, "neuron", node)
        self.put(node, "neuron", Edge("step", 0, 1))

    def norm(self, node: Node, module: Any) -> None:
        if module.running_mean is None:
            raise refuse(node, "keeps no running statistics; set track_running_stats=True")
        self.into_norm(node)
        group = len(self.parent)
        self.parent[group] = group
        self.plan.groups[group] = [str(node.path)]
        self.plan.readers[group] = []
        self.put(node, "norm", Edge("norm", *self.residual, group=group))

    def into_norm(self, node: Node) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            self.end(edge, "norm", node)
        elif edge.base == "norm":
            self.read_by(edge, "layer", node)

    def end(self, edge: Edge, kind: str, node: Node) -> None:
        if edge.layer in self.plan.ends:
            raise refuse(node, f"reads the output of {edge.layer}, which {self.plan.ends[edge.layer][1]} reads too")
        self.plan.ends[edge.layer] = (kind, str(node.path), edge.share)

    def read_by(self, edge: Edge, kind: str, node: Node) -> None:
        self.plan.readers[self.root(edge.group)].append((kind, str(node.path)))

    def pool(self, node: Node, module: Any) -> None:
        edge, before, after = self.edge(node), node.in_shapes[0], node.shape
        if isinstance(module, nn.MaxPool2d):
            if module.return_indices:
                raise refuse(node, "returns indices")
            self.put(
                node, "max_pool", edge, kernel=_pair(module.kernel_size), stride=_pair(module.stride),
                padding=_pair(module.padding), dilation=_pair(module.dilation), ceil=module.ceil_mode,
            )  # fmt: skip
            return
        if isinstance(module, nn.AvgPool2d):
            kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
            divisor = module.divisor_override or prod(kernel)
            if module.ceil_mode or (any(padding) and not (module.count_include_pad or module.divisor_override)):
                raise refuse(
                    node, "divides by a number that depends on the place; use ceil_mode=False, count_include_pad=True"
                )
        else:
            if any(a % b for a, b in zip(before[-2:], after[-2:])):
                raise refuse(
                    node, f"has overlapping windows ({tuple(before[-2:])} to {tuple(after[-2:])}); its divisor is not "
                    "one number: choose sizes that divide",
                )  # fmt: skip
            kernel = stride = [a // b for a, b in zip(before[-2:], after[-2:])]
            padding, divisor = [0, 0], prod(kernel)
        area = prod(kernel)
        made = replace(edge, low=edge.low * area, high=edge.high * area, share=edge.share / divisor)
        self.put(node, "sum_pool", made, kernel=kernel, stride=stride, padding=padding, size=list(before[-2:]))

    # -- functions --------------------------------------------------------------------------------------------------

    def function(self, node: Node) -> None:
        kind = node.kind.removesuffix("_")
        if kind in ("add", "iadd") and len(node.inputs) == 2 and node.kwargs.get("alpha", 1) == 1:
            return self.add(node)
        if kind in ("mul", "imul") and len(node.inputs) == 2:
            return self.multiply(node)
        if kind in ("rsub", "sub") and len(node.inputs) == 1:
            return self.complement(node)
        if kind in _RESHAPES:
            return self.reshape(node)
        if kind == "getitem" and len(node.inputs) == 1:
            index = [_slice(node, s) for s in _index(node)]
            if index[0] != [None, None, None]:
                raise refuse(node, "slices the first dimension, which holds T*N")
            return self.put(node, "slice", self.edge(node), index=index)
        if kind == "pad" and node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value"):
            return self.put(node, "pad", self.edge(node), pad=list(node.args[1]))
        if kind == "cat":
            return self.cat(node)
        if kind in ("dropout", "dropout2d"):
            return self.reshape(node)
        raise refuse(
            node, "has no form on integer codes; allowed between layers: additions, products of spikes, pools as modules, "
            "reshaping, slicing, zero padding, concatenation",
        )  # fmt: skip

    def add(self, node: Node) -> None:
        a, b = self.edge(node, 0), self.edge(node, 1)
        if {a.base, b.base} == {"norm", "step"}:
            raise refuse(
                node, "adds spikes to a normalised map outside of a module; let the block's last norm be an "
                "sd.NormNeuron and give it the shortcut as residual",
            )  # fmt: skip
        self.put(node, "add", self.joined(node, a, b, a.low + b.low, a.high + b.high))

    def joined(self, node: Node, a: Edge, b: Edge, low: int, high: int) -> Edge:
        same = a.base == b.base and a.share == b.share
        if a.base == "layer" or not same or (a.base == "step" and a.step != b.step):
            raise refuse(node, "joins codes of different steps")
        if a.base == "norm":
            self.union(a.group, b.group)
        return replace(a, low=low, high=high)

    def multiply(self, node: Node) -> None:
        a, b = self.edge(node, 0), self.edge(node, 1)
        if not (a.spikes and b.spikes):
            raise refuse(node, "multiplies real values (a gate); only products of spikes are integers")
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        self.put(node, "mul", Edge("step", min(corners), max(corners)))

    def complement(self, node: Node) -> None:
        edge = self.edge(node)
        numbers = [x for x in node.args if isinstance(x, int | float) and not isinstance(x, bool)]
        if not edge.spikes or len(numbers) != 1 or numbers[0] != int(numbers[0]):
            raise refuse(node, "subtracts on real values; only 1 - spikes is an integer")
        c = int(numbers[0])
        if node.kind == "sub" and not isinstance(node.args[0], int | float):
            return self.put(node, "affine", replace(edge, low=edge.low - c, high=edge.high - c), factor=1, offset=-c)
        return self.put(node, "affine", replace(edge, low=c - edge.high, high=c - edge.low), factor=-1, offset=c)

    def reshape(self, node: Node) -> None:
        if node.shape[:1] != node.in_shapes[0][:1]:
            raise refuse(node, "changes the first dimension, which holds T*N")
        self.put(node, "reshape", self.edge(node), shape=list(node.shape[1:]))

    def cat(self, node: Node) -> None:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        edges = [self.edge(node, i) for i in range(len(node.inputs))]
        edge = edges[0]
        for other in edges[1:]:
            edge = self.joined(node, edge, other, min(edge.low, other.low), max(edge.high, other.high))
        if dim == 0:
            raise refuse(node, "concatenates along the first dimension, which holds T*N")
        self.put(node, "cat", edge, dim=int(dim))

    # -- groups of norms --------------------------------------------------------------------------------------------

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def union(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        if a != b:
            self.parent[b] = a
            self.plan.groups[a] += self.plan.groups.pop(b)
            self.plan.readers[a] += self.plan.readers.pop(b)

    def finish(self) -> None:
        plan = self.plan
        plan.edges = {
            name: replace(edge, group=self.root(edge.group)) if edge.base == "norm" else edge
            for name, edge in plan.edges.items()
        }
        plan.output = self.graph.output
        out, last = plan.edges[plan.output], self.graph[plan.output]
        if out.base == "layer":
            self.end(out, "logits", last)
        elif out.base == "norm" or not out.spikes:
            raise refuse(last, "gives the logits; the last layer must be linear, or a neuron (head='spiking')")
        for path in (op.path for op in plan.ops if op.kind == "layer"):
            if path not in plan.ends:
                raise SpikedistillError(f"cannot quantize {path}: nothing reads its output")
        for group, readers in plan.readers.items():
            if len(readers) > 1 and any(kind == "residual" for kind, _ in readers):
                path = next(path for kind, path in readers if kind == "residual")
                raise SpikedistillError(
                    f"cannot quantize {path}: its residual, from {plan.groups[group][0]}, is read by others too and has "
                    "no grid of its own"
                )


def _why_not(module: nn.Module) -> str:
    name = type(module).__name__
    if name in ("GELU", "SiLU", "Softmax", "Sigmoid", "Tanh", "LayerNorm", "GroupNorm", "MultiheadAttention"):
        return "has no form on integer codes (only spikes, sums and batch norms have)"
    if name in ("ReLU", "ReLU6", "LeakyReLU"):
        return "is not a neuron; quantize takes spiking networks (sd.spiking turns a ReLU network into one)"
    return "is not known to quantization; known: convolutions, linear layers, batch norms, neurons, pools, Repeat"


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in value]


def _index(node: Node) -> tuple[Any, ...]:
    index = node.args[1]
    return index if isinstance(index, tuple) else (index,)


def _slice(node: Node, s: Any) -> list[int | None]:
    if not isinstance(s, slice) or any(v is not None and not isinstance(v, int) for v in (s.start, s.stop, s.step)):
        raise refuse(node, "picks by something else than slices")
    return [s.start, s.stop, s.step]
