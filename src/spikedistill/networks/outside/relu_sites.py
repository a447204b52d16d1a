# ruff: noqa: SIM905  (lists of words)
"""Where a ReLU network can be made a spiking one: ReLU calls, norms before them, the entrance of time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import SpikedistillError
from ...terminal import amount
from ..graph import Graph
from ..operations import Node

RELU_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
)
GATES = frozenset({"Sigmoid", "Hardsigmoid", "sigmoid", "sigmoid_", "hardsigmoid"})
# Module classes and functions that have no spiking counterpart here.
REFUSED = GATES | frozenset(
    "ReLU6 GELU SiLU Hardswish Mish LeakyReLU PReLU RReLU ELU SELU CELU GLU Softplus Softsign Tanh Hardtanh "
    "Softmax Softmax2d LogSoftmax LogSigmoid MultiheadAttention QuickGELU relu6 gelu silu silu_ hardswish "
    "hardswish_ mish leaky_relu leaky_relu_ prelu rrelu elu elu_ selu selu_ celu glu softplus tanh tanh_ "
    "hardtanh hardtanh_ softmax log_softmax logsigmoid softsign scaled_dot_product_attention "
    "multi_head_attention_forward threshold "
    "threshold_".split()
)
# Norms of the input's own statistics: trained as they are in SNNs, but no worth of a spike passes them.
NORMS = frozenset(
    "LayerNorm RMSNorm GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LocalResponseNorm layer_norm "
    "rms_norm group_norm "
    "instance_norm local_response_norm normalize".split()
)
_OWN_STATISTICS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
_ATTENTION = frozenset(
    "Softmax Softmax2d LogSoftmax softmax log_softmax MultiheadAttention multi_head_attention_forward "
    "scaled_dot_product_attention".split()
)
CLAMPS = frozenset({"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"})


@dataclass
class Site:
    """One ReLU call; ``norm``: the norm that only this call reads; both become a NormNeuron."""

    node: Node
    norm: str | None


def reads(graph: Graph, name: str) -> int:
    """How often an output is read, looking through ``nn.Identity``; the network's output counts as one."""
    count = int(name == graph.output)
    for node in graph.readers(name):
        count += reads(graph, node.name) if node.kind == "Identity" else 1
    return count


def _dominates(graph: Graph, name: str, sites: list[Site]) -> bool:
    """Whether all that follows, every site but ``name`` included, gets the input only through ``name``."""
    live, below = graph.live, graph.after(name)
    if graph.output not in below and graph.output != name:
        return False
    if any(s.node.name not in below and s.node.name != name for s in sites):
        return False
    # Nothing below may read what bypasses ``name``: it has no time steps yet.
    past = live - below - {name}
    return not any(past.intersection(node.inputs) for node in graph if node.name in below)


def find(graph: Graph, model: nn.Module, gates: str = "refuse") -> list[Site]:
    """All ReLU calls as they run; raises for what has no spiking counterpart, by path and source line."""
    live = graph.live
    refuse([node for node in graph if node.name in live], gates)
    # Not live: a ReLU of parameters alone, the same for all images and steps.
    sites = [Site(n, norm_before(n, graph, model)) for n in graph if n.name in live and n.op == "relu"]
    if not sites:
        raise SpikedistillError(
            f"{type(model).__name__} calls no ReLU on its input; there is nothing to turn into neurons"
        )
    return sites


def refuse(nodes: list[Node], gates: str, norms: bool = False) -> None:
    """Raise for nodes that cannot be turned, all by path, with the nearest that can; ``norms``: these too."""
    wrong: list[str] = []
    kinds: set[str] = set()
    for node in nodes:
        kind = node.kind if node.module is None else type(node.module).__name__
        if gates == "keep" and kind in GATES:
            continue
        normalises = norms and (kind in NORMS or isinstance(node.module, _OWN_STATISTICS))
        if (
            normalises
            or kind in REFUSED
            or (node.module is not None and _variant(node.module))
            or _clamped(node)
        ):
            wrong.append(f"{node.place}: {kind}{node.at}")
            kinds.add("norm" if normalises else "attention" if kind in _ATTENTION else kind)
    if wrong:
        more = f"\n  ... and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise SpikedistillError(
            f"{amount(len(wrong), 'operation')} without a spiking counterpart (only ReLU has one):\n  "
            + "\n  ".join(wrong[:8])
            + more
            + "\n"
            + _nearest(kinds)
        )


def _nearest(kinds: set[str]) -> str:
    """What to use instead."""
    words = []
    if gates := kinds & GATES:
        words.append(
            f"{', '.join(sorted(gates))}: for squeeze-and-excite gates (sigmoid) gates='keep' of sd.spiking "
            "leaves them real-valued"
        )
    if "norm" in kinds:
        words.append(
            "Norms of the input's own statistics: use nn.BatchNorm1d or nn.BatchNorm2d, whose scale moves "
            "into weights and thresholds, and train the ANN anew"
        )
    if "attention" in kinds:
        words.append(
            "Attention by softmax: use attention without it, of spikes: "
            "sd.networks.create('spikformer_4_384', 'spike_driven_2_512' or 'qkformer_4_384') is trained or "
            "distilled as it is, with this network as its teacher"
        )
    if others := kinds - GATES - {"norm", "attention"}:
        words.append(
            f"{', '.join(sorted(others))}: use nn.ReLU in its place, or a ReLU variant of the network"
        )
    return "\n".join(words)


def _variant(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU) and type(module) is not nn.ReLU


def _clamped(node: Node) -> bool:
    if node.kind not in CLAMPS:
        return False
    low = node.kwargs.get("min", node.args[1] if len(node.args) > 1 else None)
    # clamp(min=0) is a ReLU that no site stands for: left alone it would stay in the spiking network.
    return isinstance(low, int | float) and low == 0


def norm_before(relu: Node, graph: Graph, model: nn.Module) -> str | None:
    """Path of a batch norm whose only reader is this ReLU."""
    node = relu
    for before in _backwards(relu, graph):
        if len(graph.readers(before.name)) != 1 or before.name == graph.output:
            return None
        node = before
        if node.kind != "Identity":
            break
    if type(node.module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        path = node.path
    elif (
        node.kind == "batch_norm"
        and _norm_act(model.get_submodule(node.scope))
        and relu.path == f"{node.scope}.act"
    ):
        path = node.scope
    else:
        return None
    assert path is not None
    norm: Any = model.get_submodule(path)
    # Called twice, norm and neuron would be one module at two sites.
    once = sum(c.path == path for c in graph.calls) <= 1 and relu.call == 0
    # A NormNeuron has no cumulative average (momentum None) and always tracks its statistics.
    whole = (
        norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.running_mean is not None
    )
    return path if once and whole else None


def _backwards(node: Node, graph: Graph) -> Iterator[Node]:
    while node.inputs and node.inputs[0] in graph:
        node = graph[node.inputs[0]]
        yield node


def _norm_act(module: nn.Module) -> bool:
    """timm's norm with its activation inside."""
    return isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d"


def entrance(graph: Graph, sites: list[Site]) -> list[tuple[str, str]]:
    """Ways for time to enter, best first: ("encode", site), ("repeat", path of a repeated module, or "")."""
    ways = []
    if _dominates(graph, sites[0].node.name, sites):
        ways.append(("encode", sites[0].node.name))
    before = []
    for node in graph:
        if node.name == sites[0].node.name:
            break
        before.append(node)
    for node in reversed(before):
        if node.path and len(graph.of_path(node.path)) == 1 and _dominates(graph, node.name, sites):
            ways.append(("repeat", node.path))
            break
    return [*ways, ("repeat", "")]
