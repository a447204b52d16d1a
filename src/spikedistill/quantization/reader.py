"""Reading a network's graph for quantization: which operations on codes its calls become."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ..networks.operations import Node, Operation
from ..neurons import Neuron, NormNeuron, Parallel
from .arithmetic import FLOAT32
from .plan import Edge, End, Plan, input_names, is_power_of_two, own_code, refuse
from .pool_reader import ALLOWED, PoolReader, why_not

_POOLS = ("max_pool", "average_pool", "adaptive_max_pool", "adaptive_average_pool")
_VIEWS = ("pass", "reshape")
# Modules without a scale of their own: each call is an operation of its own.
_REUSABLE = (*_VIEWS, "repeat", "pad", "max_pool", "average_pool", "adaptive_max_pool")


class Reader(PoolReader):
    """Walks the graph once; :data:`METHODS` says what each operation becomes."""

    def read(self) -> Plan:
        """The plan; raises for what cannot be expressed."""
        for node in self.graph:
            self.visit(node)
        self.output()
        self.streams.finish()
        return self.plan

    def visit(self, node: Node) -> None:
        """One node."""
        for name in input_names(node):
            if name not in self.plan.edges:
                raise refuse(
                    node, "reads something that is not an activation (a parameter or constant tensor)"
                )
        if node.module is not None:
            self.known(node, node.module)
            if node.op not in _REUSABLE:
                if node.path in self.called:
                    raise refuse(
                        node,
                        "is called more than once; codes have one scale a module: give each call its own",
                    )
                self.called.add(str(node.path))
        if node.op not in METHODS:
            raise refuse(node, why_not(node))
        METHODS[node.op](self, node)

    def input(self, node: Node) -> None:
        self.put(node, "input", self.entry)

    def repeat(self, node: Node) -> None:
        self.put(node, "repeat", self.edge(node))

    def known(self, node: Node, module: nn.Module) -> None:
        """Refuse a subclass with equations of its own: its codes would follow others."""
        parts: list[tuple[nn.Module, type[nn.Module] | None, tuple[str, ...]]] = [
            (module, None, ("forward", "_conv_forward", "statistics", "affine", "current"))
        ]
        neuron = module.neuron if isinstance(module, NormNeuron) else module
        if isinstance(neuron, Parallel):
            parts.append((neuron, None, ("forward", "simulate", "matrix", "matrix_bias", "whole")))
        elif isinstance(neuron, Neuron):
            parts.append((neuron, Neuron, ("forward", "simulate", "constants")))
        for part, kind, methods in parts:
            if name := own_code(part, kind, *methods):
                where = "" if part is module else f"holds a neuron ({type(part).__name__}) that "
                raise refuse(
                    node, f"{where}computes by {name}() of its own, which has no form on integer codes"
                )

    # -- layers and neurons

    def layer(self, node: Node) -> None:
        edge, path, module = self.edge(node), str(node.path), node.module
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        if edge.base == "norm":
            self.streams.read_by(edge, "layer", path)
        options: dict[str, Any] = {"groups": 1}
        if isinstance(module, nn.Linear) and len(node.shape) != 2:
            # Its channels come last, and scales and biases go to the second dimension.
            raise refuse(node, f"reads {node.in_shapes[0]}, tokens or maps; use a convolution of size 1")
        if not isinstance(module, nn.Linear):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise refuse(node, "pads otherwise than with a number of zeros; use padding=(h, w) of zeros")
            options = {key: list(node.settings[key]) for key in ("stride", "padding", "dilation")}
            options["groups"] = module.groups
        last = node.name == self.graph.output
        if not last and not self.graph.readers(node.name):
            raise refuse(node, "is read by nothing")
        most = module.weight[0].numel() * self.limits[path] * edge.bound
        # float32 holds sums of logits over T below 2^24; wider ones are codes of a stream.
        if self.alone(node.name) and not (last and 2 * most * (self.network.time_steps or 1) >= FLOAT32):
            return self.put(node, "layer", Edge("layer", -most, most, layer=path), **options)
        self.plan.ends[path] = End("stream", path, 1.0)
        return self.put(
            node, "layer", Edge("norm", *self.residual, group=self.streams.group(path)), **options
        )

    def alone(self, name: str) -> bool:
        """Whether no grid is needed: one norm or neuron reads a layer, pools between, or it is the output."""
        pooled, moved = False, False
        while name != self.graph.output:
            readers = self.graph.readers(name)
            if len(readers) != 1:
                return False
            node = readers[0]
            if node.op in ("norm_neuron", "neuron", "batch_norm"):
                # A norm's channels have to be the layer's, whose biases and scales it takes in.
                return node.inputs[0] == name and not (moved and node.op != "neuron")
            moved = moved or (node.op == "reshape" and node.shape[1:2] != node.in_shapes[0][1:2])
            if node.op in _POOLS and node.module is not None:
                pooled = True
            elif node.op not in (*_VIEWS, "repeat"):
                return False
            name = node.name
        return not pooled

    def norm_neuron(self, node: Node) -> None:
        assert isinstance(node.module, NormNeuron)
        inner = node.module.neuron
        if not isinstance(inner, Neuron):
            raise refuse(
                node, f"ends in {type(inner).__name__}, not in a neuron; quantize takes spiking networks"
            )
        self.into_norm(node)
        if len(input_names(node)) > 1:
            residual = self.edge(node, 1)
            if (
                residual.base == "layer"
                or residual.fraction != 1
                or (residual.base == "norm" and residual.share != 1)
            ):
                raise refuse(node, "adds a pooled or scaled map; put the pooling before the norm or layer")
            if residual.base == "norm":
                self.streams.read_by(residual, "residual", str(node.path))
        self.put(node, "norm_neuron", Edge("step", 0, 1))

    def neuron(self, node: Node) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            self.end(edge, "neuron", node)
        elif edge.base == "norm":
            # Behind a pool a code is a part of the stream's: the stream keeps its step, the unit follows it.
            self.streams.read_by(edge, "neuron" if edge.share == 1 else "layer", str(node.path))
        self.put(node, "neuron", Edge("step", 0, 1))

    def norm(self, node: Node) -> None:
        if getattr(node.module, "running_mean", None) is None:
            raise refuse(node, "keeps no running statistics; set track_running_stats=True")
        self.into_norm(node)
        self.put(node, "norm", Edge("norm", *self.residual, group=self.streams.group(str(node.path))))

    def into_norm(self, node: Node) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            self.end(edge, "norm", node)
        elif edge.base == "norm":
            self.streams.read_by(edge, "layer", str(node.path))

    def end(self, edge: Edge, kind: Any, node: Node) -> None:
        self.plan.ends[edge.layer] = End(kind, str(node.path), edge.share)

    def output(self) -> None:
        """The logits: a linear layer's, spikes, or real values in steps of a power of two."""
        plan = self.plan
        plan.output = self.graph.output
        out, last = plan.edges[plan.output], self.graph[plan.output]
        if out.base == "layer":
            self.end(out, "logits", last)
        elif out.base == "norm":
            self.streams.real(out.group)
        elif not out.real:
            raise refuse(
                last, "gives the logits; the last layer must be linear, or a neuron (head='spiking')"
            )

    # -- sums and products

    def add(self, node: Node) -> None:
        if len(input_names(node)) != 2 or node.settings["alpha"] != 1:
            raise refuse(node, ALLOWED)
        grid, ranges = self.streams.join(node, [self.edge(node, 0), self.edge(node, 1)])
        low, high = (sum(r[i] for r in ranges) for i in (0, 1))
        self.put(node, "add", replace(grid, low=low, high=high))

    def concat(self, node: Node) -> None:
        dim = node.settings["dim"]
        if dim == 0:
            raise refuse(node, "concatenates along the first dimension, which holds T*N")
        grid, ranges = self.streams.join(node, [self.edge(node, i) for i in range(len(input_names(node)))])
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        self.put(node, "cat", replace(grid, low=low, high=high), dim=dim)

    def multiply(self, node: Node) -> None:
        if len(input_names(node)) != 2:
            raise refuse(node, ALLOWED)
        a, b = self.edge(node, 0), self.edge(node, 1)
        if not (a.spikes and b.spikes):
            raise refuse(node, "multiplies real values (a gate); only products of spikes are integers")
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        self.put(node, "mul", Edge("step", min(corners), max(corners)))

    def scale(self, node: Node) -> None:
        edge, factor = self.edge(node), node.settings["factor"]
        if not is_power_of_two(factor) or edge.base == "layer":
            raise refuse(node, "multiplies by a real number; only powers of two keep codes exact")
        if edge.base == "norm":
            self.streams.real(edge.group)
        made = replace(edge, share=edge.share * factor, fraction=edge.fraction * factor)
        # Nothing to compute: the factor is in what a code is worth.
        self.put(node, "reshape", made, shape=list(node.shape[1:]))

    def matmul(self, node: Node) -> None:
        a, b = self.edge(node, 0), self.edge(node, 1)
        if a.base != "step" or b.base != "step" or len(node.shape) < 3 or not node.scope:
            raise refuse(node, "multiplies maps that are not spikes, inside of one module, image by image")
        bound = node.in_shapes[0][-1] * a.bound * b.bound
        if bound >= FLOAT32:
            raise refuse(
                node, f"sums products of spikes up to {bound:.3g}; float32 holds integers below 2^24"
            )
        self.plan.products.add(node.scope)
        made = Edge(
            "step", -bound if min(a.low, b.low) < 0 else 0, bound, a.step * b.step, a.share * b.share,
            a.fraction * b.fraction,
        )  # fmt: skip
        self.put(node, "matmul", made, wide=bound >= 1 << 31)

    def complement(self, node: Node) -> None:
        edge, number = self.edge(node), node.settings["number"]
        if len(input_names(node)) != 1:
            raise refuse(node, ALLOWED)
        if not edge.spikes or number is None or number != int(number) or node.settings["alpha"] != 1:
            raise refuse(node, "subtracts on real values; only 1 - spikes is an integer")
        c = int(number)
        if not node.settings["reversed"]:
            return self.put(
                node, "affine", replace(edge, low=edge.low - c, high=edge.high - c), factor=1, offset=-c
            )
        return self.put(
            node, "affine", replace(edge, low=c - edge.high, high=c - edge.low), factor=-1, offset=c
        )

    # -- shapes

    def reshape(self, node: Node) -> None:
        if len(input_names(node)) != 1:
            raise refuse(node, ALLOWED)
        if node.shape[:1] != node.in_shapes[0][:1]:
            raise refuse(node, "changes the first dimension, which holds T*N")
        self.put(node, "reshape", self.edge(node), shape=list(node.shape[1:]))

    def permute(self, node: Node) -> None:
        dims = node.settings["dims"]
        if dims[0] != 0:
            raise refuse(node, "moves the first dimension, which holds T*N")
        self.put(node, "permute", self.edge(node), dims=dims)

    def pad(self, node: Node) -> None:
        if node.settings["mode"] != "constant" or node.settings["value"]:
            raise refuse(node, ALLOWED)
        self.put(node, "pad", self.edge(node), pad=node.settings["pad"])

    def split(self, node: Node) -> None:
        dim, start = node.settings["dim"], 0
        if dim == 0:
            raise refuse(node, "splits the first dimension, which holds T*N")
        for i, n in enumerate(node.settings["sizes"]):
            index = [[None, None, None]] * dim + [[start, start + n, None]]
            self.put(node, "slice", self.edge(node), f":{i}", index=index)
            start += n

    def slice(self, node: Node) -> None:
        if len(input_names(node)) != 1:
            raise refuse(node, ALLOWED)
        slices = [_slice(node, s) for s in node.settings["index"]]
        if slices[0] != [None, None, None]:
            raise refuse(node, "slices the first dimension, which holds T*N")
        self.put(node, "slice", self.edge(node), ":all", index=slices)
        self.then(node, "reshape", ":all", self.edge(node), shape=list(node.shape[1:]))


METHODS: dict[Operation, Callable[[Reader, Node], None]] = {
    "input": Reader.input, "conv": Reader.layer, "linear": Reader.layer, "batch_norm": Reader.norm,
    "norm_neuron": Reader.norm_neuron, "neuron": Reader.neuron,
    "add": Reader.add, "subtract": Reader.complement, "multiply": Reader.multiply, "scale": Reader.scale,
    "matmul": Reader.matmul, "concat": Reader.concat, "mean": Reader.mean, "sum": Reader.mean,
    "pass": Reader.reshape, "reshape": Reader.reshape, "permute": Reader.permute, "pad": Reader.pad,
    "repeat": Reader.repeat, "split": Reader.split, "slice": Reader.slice,
    "max_pool": Reader.max_pool, "average_pool": Reader.average_pool,
    "adaptive_max_pool": Reader.adaptive_max_pool, "adaptive_average_pool": Reader.adaptive_average_pool,
}  # fmt: skip


def _slice(node: Node, s: Any) -> list[int | None]:
    if isinstance(s, int) and not isinstance(s, bool):
        # The index -1 ends at the end: 0 there would be an empty slice.
        return [s, s + 1 or None, None]
    if not isinstance(s, slice) or any(
        v is not None and not isinstance(v, int) for v in (s.start, s.stop, s.step)
    ):
        raise refuse(node, "picks by something else than slices")
    return [s.start, s.stop, s.step]
