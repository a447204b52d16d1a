"""Give spikes their worth without changing them: scales move along the graph into weights, norms, thresholds.

A neuron layer with range theta emits spikes worth ``theta / levels``. Inside the network they stay whole
numbers, so every value on an edge is in some unit, and

    weights behind a neuron                       are multiplied by what its spikes are worth
    the norm or layer that feeds a neuron         is divided by theta (threshold stays as it is)
    a norm that is added to a neuron's spikes     is divided by what these are worth; the sum is in that unit,
                                                  and the threshold of the neuron behind becomes theta / unit
    neurons whose spikes are added or joined      share one theta (the largest)
    spikes joined with real values (DenseNet)     each channel keeps its unit, up to the norm or convolution
                                                  behind
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks.graph import Graph
from ..networks.operations import HOMOGENEOUS, Node
from ..neurons import NormNeuron
from ..neurons.qcfs import SignedIF
from ..union_find import UnionFind


@dataclass
class Edge:
    """What stands on an edge: ``unit``, the worth of 1; who can scale it (None: nobody); whose spikes it is.

    ``channels``: the worth of 1 in each channel (C,), where they differ.
    """

    unit: float
    by: list[nn.Module] | None = None
    owner: str | None = None
    channels: Tensor | None = None


class Scaler:
    """One walk along the graph; ``apply=False`` only finds which neurons must share their theta.

    ``tied``: thresholds never change; a neuron that reads other neurons' spikes directly takes their theta.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: Graph,
        thetas: Mapping[str, float],
        tied: bool,
        groups: "Groups",
        apply: bool,
    ) -> None:
        self.network, self.graph, self.tied, self.groups, self.apply = network, graph, tied, groups, apply
        self.thetas = groups.shared(thetas)
        self.edges: dict[str, Edge] = {}
        self.scaled: dict[int, float] = {}

    def run(self) -> None:
        """Walk."""
        for node in self.graph:
            self.edges[node.name] = self.edge(node)
        out = self.edges[self.graph.output]
        if out.owner is not None:
            raise SpikedistillError(
                f"conversion: the logits are spikes of {out.owner}, whose worth no later weight could carry; "
                "convert a network that ends in a linear layer or convolution"
            )

    def inputs(self, node: Node) -> list[Edge]:
        """Edges into a node, parameters and constants aside."""
        return [self.edges[i] for i in node.inputs if i in self.edges]

    def edge(self, node: Node) -> Edge:
        """What a node puts out."""
        module: Any = node.module
        given = self.inputs(node)
        if not given:
            return Edge(1.0)
        if node.op in ("neuron", "norm_neuron"):
            return self.neuron(node, module, given)
        if node.op in ("conv", "conv3d", "linear"):
            self.multiply(module, given[0], node)
            return Edge(1.0, self.single(node, [module]))
        if node.op == "batch_norm":
            self.absorb(module, given[0], node)
            return Edge(1.0, self.single(node, [module]) if module.affine else None)
        if node.op == "concat" and _mixed(given) and node.settings["dim"] == 1:
            return self.joined(node, given)
        if any(e.channels is not None for e in given):
            raise self.unknown(node)
        if node.op in ("add", "concat", "stack"):
            return self.total(node, given)
        homogeneous = node.op in HOMOGENEOUS and not node.settings.get("value")  # zeros around stay zeros
        # A negative factor would turn spikes round; no threshold could follow.
        if len(given) == 1 and (homogeneous or node.settings.get("factor", 0) > 0):
            return Edge(given[0].unit, self.single(node, given[0].by), given[0].owner)
        if all(e.unit == 1.0 and e.owner is None for e in given):
            return Edge(1.0)
        raise self.unknown(node)

    @staticmethod
    def unknown(node: Node) -> SpikedistillError:
        """The error for an operation that no worth can pass."""
        return SpikedistillError(
            f"conversion does not know how spikes of a worth pass {node.kind} at "
            f"{node.place}{node.source and f' ({node.source})'}; convert a network of convolutions, "
            "linear layers, norms, pools, sums and concatenations"
        )

    def single(self, node: Node, by: list[nn.Module] | None) -> list[nn.Module] | None:
        """``by``, unless somebody else reads this edge too, or its module is used several times."""
        # To scale what others read too would change it for them.
        if by is None or len(self.graph.readers(node.name)) > 1:
            return None
        return by if node.path is None or len(self.graph.of_path(node.path)) == 1 else None

    def total(self, node: Node, given: list[Edge]) -> Edge:
        """A sum or concatenation: all in one unit."""
        spikes = [e for e in given if e.by is None]
        # Spikes of two layers in one sum have a common unit only where their thetas are equal.
        for e in spikes[1:]:
            if e.owner is not None and spikes[0].owner is not None:
                self.groups.union(spikes[0].owner, e.owner)
        unit = spikes[0].unit if spikes else 1.0
        if number := node.settings.get("number"):
            if unit != 1.0:
                raise SpikedistillError(f"conversion cannot add {number} to spikes, at {node.source}")
            return Edge(1.0)
        for e in given:
            if e.by is not None:
                self.rescale(e, unit)
            # Units are quotients of thetas: equal ones may differ in their last bits.
            elif self.apply and abs(e.unit / unit - 1) > 1e-6:
                raise SpikedistillError(f"conversion cannot add real values to spikes, at {node.source}")
        if spikes:
            return Edge(unit, None, spikes[0].owner)
        return Edge(1.0, self.single(node, [m for e in given for m in e.by or []]))

    def joined(self, node: Node, given: list[Edge]) -> Edge:
        """A concatenation of spikes and of real values that others read too: each channel keeps its unit."""
        units = [
            torch.full((shape[1],), e.unit) if e.channels is None else e.channels
            for e, shape in zip(given, node.in_shapes)
        ]
        return Edge(1.0, channels=torch.cat(units))

    def neuron(self, node: Node, module: Any, given: list[Edge]) -> Edge:
        """A neuron layer: bring its current into a unit in which it fires at theta."""
        path = str(node.path)
        neuron: Any = module.neuron if isinstance(module, NormNeuron) else module
        theta = self.thetas[path]
        first = id(module) not in self.scaled
        # A current that nobody can rescale (spikes, a stream that others read) sets the unit of the sum.
        fixed = next(
            (e for e in (given[1:] if isinstance(module, NormNeuron) else given) if e.by is None), None
        )
        reused = len(self.graph.of_path(path)) > 1
        if isinstance(module, NormNeuron):
            self.absorb(module, given[0], node)
        elif given[0].channels is not None:
            raise self.unknown(node)
        unit = theta / neuron.threshold if fixed is None else fixed.unit
        if fixed is not None and self.tied:
            if fixed.owner is not None:
                self.groups.union(fixed.owner, path)
            else:  # a stream of real values that others read too: it stays, and the neuron fires where it did
                theta = self.thetas[path] = unit * neuron.threshold
        if isinstance(module, NormNeuron):
            if first and self.apply:
                _divide(module, unit)
            given = given[1:]
        elif reused and fixed is None:
            raise SpikedistillError(
                f"conversion: the neuron at {path} is called several times; give each call its own"
            )
        for e in given:
            if e.by is not None:
                self.rescale(e, unit)
        if self.apply and first:
            if not self.tied:
                # Kept as a part of the threshold: 1/2 of it rounds, whatever its size.
                initial = neuron.initial / neuron.threshold
                neuron.threshold = theta / unit
                neuron.initial = initial * neuron.threshold
            self.scaled[id(module)] = theta
        levels = neuron.levels if isinstance(neuron, SignedIF) else 1
        return Edge(theta / levels, None, path)

    def rescale(self, edge: Edge, unit: float) -> None:
        """Have an edge in another unit by dividing what feeds it."""
        if self.apply:
            for module in edge.by or []:
                _divide(module, unit)

    def multiply(self, module: Any, edge: Edge, node: Node) -> None:
        """Weights that read spikes worth ``edge.unit``."""
        if edge.channels is not None:
            # With groups the weight's second axis is no longer the input's channels.
            if len(self.graph.of_path(str(node.path))) > 1 or getattr(module, "groups", 1) > 1:
                raise self.unknown(node)
            if self.apply:
                worth = edge.channels.to(module.weight.device)
                module.weight.mul_(worth.view(1, -1, *[1] * (module.weight.dim() - 2)))
        elif self.once(module, edge.unit, node):
            # The weight alone: a bias reads no spikes.
            module.weight.mul_(edge.unit)

    def absorb(self, module: Any, edge: Edge, node: Node) -> None:
        """A norm that reads spikes worth ``edge.unit``."""
        if self.apply and (edge.channels is not None or edge.unit != 1.0):
            if len(self.graph.of_path(str(node.path))) > 1:
                raise SpikedistillError(f"conversion: the norm at {node.path} reads spikes of several layers")
            if module.running_mean is None:
                raise SpikedistillError(
                    f"conversion: the norm at {node.path} reads spikes and keeps no running statistics; set "
                    "track_running_stats=True"
                )
            channels = edge.channels
            unit = edge.unit if channels is None else channels.to(module.running_mean.device)
            if module.weight is None:
                _divide_deviation(module, unit, str(node.path))
            else:
                # (u s - m) / d = u (s - m / u) / d: the running variance stays (the norm is in eval mode).
                module.weight.mul_(unit)
            module.running_mean.div_(unit)

    def once(self, module: nn.Module, unit: float, node: Node) -> bool:
        """Whether to change a module now; one used several times must read one unit."""
        if not self.apply:
            return False
        before = self.scaled.setdefault(id(module), unit)
        if len(self.graph.of_path(str(node.path))) == 1 or node.call == 0:
            return True
        if abs(before / unit - 1) > 1e-6:
            raise SpikedistillError(
                f"conversion: {node.path} is used several times on spikes of different worth"
            )
        return False


def _mixed(given: list[Edge]) -> bool:
    """Spikes, and real values that nobody could rescale."""
    spikes = [e.owner is not None or e.channels is not None for e in given]
    return any(spikes) and any(e.by is None and not spike for e, spike in zip(given, spikes))


def _divide(module: Any, unit: float) -> None:
    module.weight.div_(unit)
    if module.bias is not None:
        module.bias.div_(unit)


def _divide_deviation(norm: Any, unit: float | Tensor, path: str) -> None:
    """What a factor ``unit`` on its weight would do, where a norm has none: its variance carries it."""
    factor = torch.as_tensor(unit, dtype=torch.float64, device="cpu")
    wanted = (norm.running_var.cpu().double() + norm.eps) / factor**2
    # May lie below 0: nobody reads it without eps, and both together are what is wanted.
    made = (wanted - norm.eps).to(norm.running_var.dtype)
    # Of a variance far below eps rounding leaves little.
    if bool(((made.double() + norm.eps) / wanted - 1).abs().max() > 1e-3):
        raise SpikedistillError(
            f"conversion: the norm at {path} has no weight to carry what the spikes that it reads are worth; "
            "make it with affine=True (weight 1 and bias 0 are the same norm)"
        )
    norm.running_var.copy_(made)


class Groups(UnionFind[str]):
    """Neuron layers that must share one theta."""

    def shared(self, thetas: Mapping[str, float]) -> dict[str, float]:
        """Each layer's theta: the largest of its group."""
        largest: dict[str, float] = {}
        for path, theta in thetas.items():
            largest[self.root(path)] = max(theta, largest.get(self.root(path), 0.0))
        return {path: largest[self.root(path)] for path in thetas}


@torch.no_grad()
def rescale(
    network: nn.Module, graph: Graph, thetas: Mapping[str, float], tied: bool = False
) -> dict[str, float]:
    """Give each neuron layer's spikes the worth theta (``/ levels``), in place; returns thetas after sharing.

    The function of the network with real-valued activations is unchanged. ``tied``: no threshold changes, see
    :class:`Scaler`. Raises for operations that scales cannot pass.
    """
    groups = Groups()
    # Twice: a layer late in the network may raise the theta of its whole group, the first ones included.
    Scaler(network, graph, thetas, tied, groups, apply=False).run()
    final = Scaler(network, graph, thetas, tied, groups, apply=True)
    final.run()
    return final.thetas
