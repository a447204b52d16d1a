"""Reading a network's graph for quantization: modules."""

from typing import Any

from torch import nn

from ..networks.base import Network
from ..networks.graph import Graph, Node
from ..neurons import Neuron, NormNeuron, Repeat
from .arithmetic import FLOAT32
from .functions import RESHAPES, Functions
from .plan import Edge, End, Plan, input_names, own_code, refuse

_PASS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.Unflatten)
_MAX = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
_AVERAGE = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_NORM = nn.modules.batchnorm._BatchNorm


class Reader(Functions):
    """Walks the graph once. ``limits``: each layer's largest weight code; ``entry``: what the input carries."""

    def __init__(
        self, network: Network, graph: Graph, limits: dict[str, int], residual_bits: int, entry: Edge, finest: float
    ) -> None:
        super().__init__(network, graph, residual_bits, finest)
        self.limits, self.entry = limits, entry
        self.seen: set[str] = set()
        self.users: dict[str, list[Node]] = {}
        for node in graph:
            for name in node.inputs:
                self.users.setdefault(name, []).append(node)

    def read(self) -> Plan:
        """The plan; raises for what cannot be expressed."""
        for node in self.graph:
            self.visit(node)
        self.output()
        self.finish()
        return self.plan

    def visit(self, node: Node) -> None:
        """One node."""
        module = node.module
        if node.kind == "input":
            return self.put(node, "input", self.entry)
        for name in input_names(node):
            if name not in self.plan.edges:
                raise refuse(node, "reads something that is not an activation (a parameter or constant tensor)")
        if module is not None:
            self.known(node, module)
        if module is not None and not isinstance(module, (*_PASS, *_MAX, Repeat, nn.AvgPool2d)):
            if node.path in self.seen:
                raise refuse(node, "is called more than once; codes have one scale a module: give each call its own")
            self.seen.add(str(node.path))
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            return self.layer(node, module)
        if isinstance(module, NormNeuron):
            return self.norm_neuron(node, module)
        if isinstance(module, Neuron):
            return self.neuron(node)
        if isinstance(module, _NORM):
            return self.norm(node, module)
        if isinstance(module, nn.MaxPool2d):
            return self.max_pool(node, vars(module))
        if isinstance(module, nn.AvgPool2d):
            return self.avg_pool(node, vars(module))
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            if getattr(module, "return_indices", False):
                raise refuse(node, "returns indices")
            return self.adaptive(node, isinstance(module, nn.AdaptiveMaxPool2d))
        if isinstance(module, Repeat):
            return self.put(node, "repeat", self.edge(node))
        if isinstance(module, _PASS):
            return self.reshape(node)
        if module is not None:
            raise refuse(node, _why_not(module))
        return self.function(node)

    def known(self, node: Node, module: nn.Module) -> None:
        """Refuse a subclass with equations of its own: its codes would follow others."""
        parts: list[tuple[nn.Module, type[nn.Module] | None, tuple[str, ...]]] = [
            (module, None, ("forward", "_conv_forward", "statistics", "affine", "current"))
        ]
        neuron = module.neuron if isinstance(module, NormNeuron) else module
        if isinstance(neuron, Neuron):
            parts.append((neuron, Neuron, ("forward", "run", "simulate")))
        for part, kind, methods in parts:
            if name := own_code(part, kind, *methods):
                where = "" if part is module else f"holds a {type(part).__name__} that "
                raise refuse(node, f"{where}computes by {name}() of its own, which has no form on integer codes")

    def layer(self, node: Node, module: Any) -> None:
        edge, path = self.edge(node), str(node.path)
        if edge.base == "norm":
            self.read_by(edge, "layer", path)
        options: dict[str, Any] = {"groups": 1}
        if not isinstance(module, nn.Linear):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise refuse(node, "pads otherwise than with a number of zeros; use padding=(h, w) of zeros")
            options = {
                "stride": list(module.stride), "padding": list(module.padding), "dilation": list(module.dilation),
                "groups": module.groups,
            }  # fmt: skip
        if node.name not in self.users and node.name != self.graph.output:
            raise refuse(node, "is read by nothing")
        most = module.weight[0].numel() * self.limits[path] * edge.bound
        last = node.name == self.graph.output
        if self.alone(node.name) and not (last and 2 * most * (self.network.time_steps or 1) >= FLOAT32):
            return self.put(node, "layer", Edge("layer", -most, most, layer=path), **options)
        self.plan.ends[path] = End("stream", path, 1.0)
        return self.put(node, "layer", Edge("norm", *self.residual, group=self.group(path)), **options)

    def alone(self, name: str) -> bool:
        """Whether one norm or neuron reads a layer (through pools and views), or it is the output: no grid is needed."""
        pooled = False
        while name != self.graph.output:
            users = self.users.get(name, [])
            if len(users) != 1:
                return False
            node = users[0]
            if isinstance(node.module, NormNeuron | Neuron | _NORM):
                return node.inputs[0] == name
            if isinstance(node.module, (*_MAX, *_AVERAGE)):
                pooled = True
            elif not isinstance(node.module, (*_PASS, Repeat)) and node.kind not in RESHAPES:
                return False
            name = node.name
        return not pooled

    def norm_neuron(self, node: Node, module: NormNeuron) -> None:
        if not isinstance(module.neuron, Neuron):
            raise refuse(
                node, f"ends in {type(module.neuron).__name__}, not in a neuron; quantize takes spiking networks"
            )
        self.into_norm(node)
        if len(input_names(node)) > 1:
            residual = self.edge(node, 1)
            if residual.base == "layer" or residual.fraction != 1 or (residual.base == "norm" and residual.share != 1):
                raise refuse(node, "adds a pooled or scaled map; put the pooling before the norm or layer")
            if residual.base == "norm":
                self.read_by(residual, "residual", str(node.path))
        self.put(node, "norm_neuron", Edge("step", 0, 1))

    def neuron(self, node: Node) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            self.end(edge, "neuron", node)
        elif edge.base == "norm":
            if edge.share != 1:
                raise refuse(node, "reads a pooled norm; put the pooling behind the neuron")
            self.read_by(edge, "neuron", str(node.path))
        self.put(node, "neuron", Edge("step", 0, 1))

    def norm(self, node: Node, module: Any) -> None:
        if module.running_mean is None:
            raise refuse(node, "keeps no running statistics; set track_running_stats=True")
        self.into_norm(node)
        self.put(node, "norm", Edge("norm", *self.residual, group=self.group(str(node.path))))

    def into_norm(self, node: Node) -> None:
        edge = self.edge(node)
        if edge.base == "layer":
            self.end(edge, "norm", node)
        elif edge.base == "norm":
            self.read_by(edge, "layer", str(node.path))

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
            self.real(out.group)
        elif not out.real:
            raise refuse(last, "gives the logits; the last layer must be linear, or a neuron (head='spiking')")


def _why_not(module: nn.Module) -> str:
    name = type(module).__name__
    if name in ("GELU", "SiLU", "Softmax", "Sigmoid", "Tanh", "LayerNorm", "GroupNorm", "MultiheadAttention"):
        return "has no form on integer codes (only spikes, sums and batch norms have)"
    if name in ("ReLU", "ReLU6", "LeakyReLU"):
        return "is not a neuron; quantize takes spiking networks (sd.spiking turns a ReLU network into one)"
    return "is not known to quantization; known: convolutions, linear layers, batch norms, neurons, pools, Repeat"
