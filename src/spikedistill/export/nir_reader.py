"""NIR files as networks of ours: the round trip of our own, and graphs that other tools wrote."""

import json
import os
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks.base import Network
from ..neurons import LIF, Repeat
from ..neurons.dynamics import Grid

DT = 1e-4


def from_nir(path: str | os.PathLike[str], time_steps: int | None = None, metadata: bool = True) -> Network:
    """The network of a NIR file: convolutions, linear layers, pools, LIF and IF neurons, without loops.

    ``metadata``: what :func:`to_nir` noted beside the graph is obeyed (soft reset, initial membranes, max pooling, image
    input, the scale of integer logits); without it, and for files that others wrote, the graph alone is run as their
    readers do, one frame (N, F, C, H, W) a step. ``time_steps``: None is the file's own T, or 4.
    Neurons are ``V <- (1 - dt/tau) V + (r dt/tau) I``, ``dt = 1e-4`` (IF: ``V + r dt I``), firing at and above the threshold.
    Raises :class:`SpikedistillError` for a file that is no such graph, naming the node.
    """
    from .nir import nir_module

    nir = nir_module()
    try:
        graph = nir.read(path)
    except Exception as why:  # the package raises whatever h5py or a missing key raises
        raise SpikedistillError(f"cannot read {path} as a NIR graph: {why}") from None
    if not isinstance(graph, nir.NIRGraph):
        raise SpikedistillError(f"{path} holds a single {type(graph).__name__}, not a NIR graph")
    notes: dict[str, Any] = json.loads(graph.metadata["spikedistill"]) if "spikedistill" in graph.metadata else {}
    if not metadata:
        notes = {}
    return NIRNetwork(nir, graph, notes, time_steps or notes.get("time_steps") or 4)


class NIRNetwork(Network):
    """A NIR graph as a network: the modules of ``nodes``, each fed the sum of its edges, in order."""

    head_path = ""

    def __init__(self, nir: Any, graph: Any, notes: dict[str, Any], time_steps: int) -> None:
        names = {type(node).__name__: name for name, node in graph.nodes.items()}
        if "Input" not in names or "Output" not in names:
            raise SpikedistillError("this NIR graph has no input or no output node")
        self_input, self_output = names["Input"], names["Output"]
        shape = tuple(int(s) for s in graph.nodes[self_input].input_type["input"])
        classes = int(np.prod(graph.nodes[self_output].output_type["output"]))
        image = notes.get("input", "").startswith("the same image")
        super().__init__(classes, shape[0], "image" if image else "frames", time_steps)
        self.graph_input, self.graph_output = self_input, self_output
        self.dims = len(shape) - 1
        self.logits_scale = float(notes.get("logits_scale", 1.0))
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            self.sources[target].append(source)
        try:
            self.order = list(TopologicalSorter(self.sources).static_order())
        except CycleError as why:
            raise SpikedistillError(
                f"this NIR graph has a loop ({' -> '.join(why.args[1])}); loops are not read"
            ) from None
        self.repeat = Repeat(time_steps) if image else nn.Identity()
        self.codes = Codes(**notes["codes"]) if notes.get("codes") else None
        self.nodes = nn.ModuleDict()
        extras = notes.get("nodes", {})
        for name in self.order:
            if name not in (self_input, self_output):
                self.nodes[_key(name)] = _module(name, graph.nodes[name], extras.get(name, {}), time_steps)
        if self.codes is not None and "normalise" in self.nodes:
            self.nodes["normalise"] = nn.Identity()  # the codes are past it

    def body(self, x: Tensor) -> Tensor:
        """Each node in order; several edges into one node are summed."""
        values = {self.graph_input: self.repeat(x if self.codes is None else self.codes(x))}
        for name in self.order:
            if name == self.graph_input:
                continue
            total = values[self.sources[name][0]]
            for source in self.sources[name][1:]:
                total = total + values[source]
            values[name] = total if name == self.graph_output else self.nodes[_key(name)](total)
        return values[self.graph_output] / self.logits_scale


def _key(name: str) -> str:
    key = name.replace(".", "_")
    return f"{key}_" if hasattr(nn.ModuleDict, key) else key


def _module(name: str, node: Any, extra: dict[str, Any], time_steps: int) -> nn.Module:
    kind = type(node).__name__
    if kind in ("LIF", "IF"):
        neuron = _neuron(name, node, extra, time_steps)
        if "grid" in extra:
            numbers = {**extra["grid"], "leak": tuple(extra["grid"]["leak"])}
            neuron.grid = Grid(**{field.name: numbers[field.name] for field in fields(Grid)})
            neuron.initial *= neuron.grid.unit  # in the file it is a code
            neuron.register_forward_pre_hook(lambda _, args: ((args[0] + 0.5).floor(), *args[1:]))
        return neuron
    maker = MODULES.get(kind)
    if maker is None:
        raise SpikedistillError(f"node {name!r} is a {kind}; from_nir reads {', '.join([*MODULES, 'IF', 'LIF'])}")
    module: nn.Module = maker(node, extra)
    step = extra.get("step")
    if step:  # sums of codes, exact in float64, and the one rounding behind them
        module.double().register_forward_pre_hook(lambda _, args: (args[0].double(),))
        module.register_forward_hook(lambda _, __, out: ((out / step + 0.5).floor() * step).float())
    return module


def _neuron(name: str, node: Any, extra: dict[str, Any], time_steps: int) -> LIF:
    if type(node).__name__ == "IF":
        decay, gain = 1.0, _uniform(name, "r", node.r) * DT
    else:
        tau = _uniform(name, "tau", node.tau)
        decay, gain = max(0.0, 1 - DT / tau), _uniform(name, "r", node.r) * DT / tau
        if np.any(node.v_leak):
            raise SpikedistillError(f"node {name!r}: v_leak must be 0, found {np.unique(node.v_leak)}")
    if np.any(node.v_reset):
        raise SpikedistillError(f"node {name!r}: v_reset must be 0, found {np.unique(node.v_reset)}")
    return LIF(
        decay=decay, gain=gain, threshold=_uniform(name, "v_threshold", node.v_threshold),
        reset=extra.get("reset", "hard"), initial=extra.get("initial", 0.0), time_steps=time_steps,
    )  # fmt: skip


class Codes(nn.Module):
    """The input of a quantized network as codes: an image's levels by ``table`` (C, 256), counts half-up and clipped."""

    def __init__(self, kind: str, limit: int, table: list[list[int]] | None) -> None:
        super().__init__()
        self.kind, self.limit = kind, limit
        self.table = None if table is None else torch.tensor(table, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        if self.table is None:
            return x if self.kind == "spikes" else (x + 0.5).floor().clamp(-self.limit, self.limit)
        levels = (x * 255 + 0.5).floor().clamp(0, 255).long()
        return torch.stack([row[v] for row, v in zip(self.table, levels.unbind(1), strict=True)], 1)


def _uniform(name: str, what: str, values: Any) -> float:
    unique = np.unique(values)
    if unique.size != 1:
        raise SpikedistillError(
            f"node {name!r}: {what} must be the same for all its neurons, found {unique.size} values"
        )
    return float(unique[0])


def _ints(value: Any, n: int = 2) -> tuple[int, ...]:
    return tuple(int(v) for v in np.broadcast_to(np.ravel(value), (n,)))


def _filled(module: Any, node: Any) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.asarray(node.weight, np.float32)))
        if module.bias is not None:
            module.bias.copy_(torch.from_numpy(np.asarray(node.bias, np.float32)))
    return module


def _conv(node: Any, extra: dict[str, Any]) -> nn.Module:
    out, per_group, *kernel = node.weight.shape
    groups, n = int(node.groups), len(kernel)
    padding = node.padding if isinstance(node.padding, str) else _ints(node.padding, n)
    conv: Any = nn.Conv1d if n == 1 else nn.Conv2d
    return _filled(
        conv(
            per_group * groups, out, tuple(kernel), _ints(node.stride, n), padding, _ints(node.dilation, n), groups,
            bias=node.bias is not None,
        ),
        node,
    )  # fmt: skip


def _linear(node: Any, extra: dict[str, Any]) -> nn.Module:
    out, features = node.weight.shape
    return _filled(nn.Linear(features, out, bias=hasattr(node, "bias")), node)


def _pool(node: Any, extra: dict[str, Any]) -> nn.Module:
    window: Any = _ints(node.kernel_size), _ints(node.stride), _ints(node.padding)
    if extra.get("max"):
        return nn.MaxPool2d(*window)
    kernel, stride, padding = window
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=1 if type(node).__name__ == "SumPool2d" else None)


class Scale(nn.Module):
    """Each value times a constant of its own."""

    scale: Tensor

    def __init__(self, node: Any, extra: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(np.asarray(node.scale, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, ...) to (T*N, ...)."""
        return x * self.scale


class FromDimension(nn.Module):
    """Flattening whose dimensions count without the batch, as NIR's do."""

    def __init__(self, node: Any, extra: dict[str, Any]) -> None:
        super().__init__()
        self.start, self.end = (int(d) + 1 if d >= 0 else int(d) for d in (node.start_dim, node.end_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, C, H, W) to (T*N, C*H*W)."""
        return torch.flatten(x, self.start, self.end)


MODULES: dict[str, Any] = {
    "Affine": _linear,
    "AvgPool2d": _pool,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "Flatten": FromDimension,
    "Linear": _linear,
    "Scale": Scale,
    "SumPool2d": _pool,
}
