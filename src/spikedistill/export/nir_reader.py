"""NIR files as networks of ours: the round trip of our own, and graphs that other tools wrote."""

import os
from graphlib import CycleError, TopologicalSorter
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..networks.base import Network
from ..neurons import LIF, Repeat
from ..neurons.dynamics import Grid
from .layers import DT, nir_module
from .nir_file import MOST_STEPS, NodeNotes, Notes, finite, read_graph
from .nir_times import time_step

MOST_VALUES = 1 << 28  # of one node for one image, all time steps together


def from_nir(
    path: str | os.PathLike[str],
    time_steps: int | None = None,
    metadata: bool = True,
    time_step: float | None = None,
) -> Network:
    """The network of a NIR file: convolutions, linear layers, pools, LIF and IF neurons, without loops.

    ``metadata``: what :func:`to_nir` noted beside the graph is obeyed (soft reset, initial membranes, max
    pooling, image input, the scale of integer logits); without it, and for files that others wrote, the graph
    alone is run as their readers do, one frame (N, F, C, H, W) a step. ``time_steps``: None is the file's own
    T, or 4.
    Neurons are ``V <- (1 - dt/tau) V + (r dt/tau) I`` (IF: ``V + r dt I``), firing at and above the
    threshold. ``time_step``: dt, in the unit of the file's time constants. None is 1e-4, as other readers
    assume and :func:`to_nir` writes; of a file by others whose neurons could then never fire (r = 1: one step
    is its unit of time), 1, with a warning. Raises :class:`SpikedistillError` for a file that is no such
    graph, naming the node.
    """
    nir = nir_module()
    if time_step is not None and not 0 < time_step < float("inf"):
        raise SpikedistillError(f"time_step must be more than 0, found {time_step}")
    graph, notes = read_graph(nir, path)
    if notes is not None and time_step is None:
        # ours are written for this step: nothing to guess, nothing to warn of
        time_step = DT
    found = notes if notes is not None and metadata else Notes()
    return NIRNetwork(graph, found, time_steps or found.time_steps or 4, time_step, path)


class NIRNetwork(Network):
    """A NIR graph as a network: the modules of ``nodes``, each fed the sum of its edges, in order."""

    head_path = ""

    def __init__(
        self, graph: Any, notes: Notes, time_steps: int, dt: float | None, path: Any = "this NIR graph"
    ) -> None:
        names = {type(node).__name__: name for name, node in graph.nodes.items()}
        if "Input" not in names or "Output" not in names:
            raise SpikedistillError("this NIR graph has no input or no output node")
        self_input, self_output = names["Input"], names["Output"]
        shape = _shape(graph.nodes[self_input].input_type, "input", self_input)
        classes = prod(_shape(graph.nodes[self_output].output_type, "output", self_output))
        image = notes.input.startswith("the same image")
        super().__init__(classes, shape[0], "image" if image else "frames", time_steps)
        if time_steps > MOST_STEPS:
            raise SpikedistillError(f"time_steps: {time_steps}, at most {MOST_STEPS}")
        self.graph_input, self.graph_output = self_input, self_output
        self.dims = len(shape) - 1
        self.logits_scale = notes.logits_scale
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            if source not in self.sources or target not in self.sources:
                raise SpikedistillError(
                    f"this NIR graph has an edge from {source!r} to {target!r}, not both of them nodes"
                )
            self.sources[target].append(source)
        try:
            self.order = list(TopologicalSorter(self.sources).static_order())
        except CycleError as why:
            raise SpikedistillError(
                f"this NIR graph has a loop ({' -> '.join(why.args[1])}); loops are not read"
            ) from None
        unfed = [name for name in self.order if not self.sources[name] and name != self_input]
        if unfed or self.sources[self_input]:
            raise SpikedistillError(
                f"node {(unfed or [self_input])[0]!r} must{' not' * (not unfed)} be fed by others"
            )
        for name, node in graph.nodes.items():
            for what in ("weight", "bias", "tau", "r", "v_threshold", "v_reset", "v_leak", "scale"):
                if getattr(node, what, None) is not None:
                    finite(getattr(node, what), name, what)
        self.repeat = Repeat(time_steps) if image else nn.Identity()
        self.codes = Codes(**notes.codes.model_dump()) if notes.codes else None
        self.nodes = nn.ModuleDict()
        self.keys = _keys(self.order)
        for name in self.order:
            if name not in (self_input, self_output):
                kind = type(graph.nodes[name]).__name__
                if kind not in (*MODULES, "IF", "LIF"):
                    raise SpikedistillError(
                        f"node {name!r} is a {kind}; from_nir reads {', '.join([*MODULES, 'IF', 'LIF'])}"
                    )
        # after the kinds and numbers, on which the guess is built
        dt = time_step(graph, self.order, self.sources, path) if dt is None else dt
        for name in self.order:
            if name not in (self_input, self_output):
                extra = notes.nodes.get(name, NodeNotes())
                self.nodes[self.keys[name]] = _module(name, graph.nodes[name], extra, time_steps, dt)
        if self.codes is not None and "normalise" in self.nodes:
            self.nodes["normalise"] = nn.Identity()  # the codes are past it
        self._try(shape, time_steps)

    def _try(self, shape: tuple[int, ...], time_steps: int) -> None:
        """One step without data, on torch's meta device: shapes must fit, and no map be too large."""
        values = {self.graph_input: torch.empty(1, *shape, device="meta")}
        with torch.no_grad():
            for name in self.order:
                if name == self.graph_input:
                    continue
                given = [values[source] for source in self.sources[name]]
                try:
                    out = sum(given[1:], given[0])
                    # keeps shapes
                    if name != self.graph_output and not isinstance(self.nodes[self.keys[name]], LIF):
                        module = self.nodes[self.keys[name]]
                        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                        nowhere = {
                            key: torch.empty_like(value, device="meta") for key, value in tensors.items()
                        }
                        out = torch.func.functional_call(module, nowhere, (out,))
                except (RuntimeError, ValueError, IndexError, TypeError) as error:
                    shapes = ", ".join(str(tuple(v.shape[1:])) for v in given)
                    words = " ".join(str(error).split())[:160]
                    raise SpikedistillError(
                        f"node {name!r} does not fit its input {shapes}: {words}"
                    ) from None
                if out.numel() * time_steps > MOST_VALUES or out.numel() == 0:
                    raise SpikedistillError(
                        f"node {name!r} gives the shape {tuple(out.shape[1:])} at {time_steps} steps; at "
                        f"most {MOST_VALUES:,} values are run"
                    )
                values[name] = out
        if values[self.graph_output].dim() != 2:
            raise SpikedistillError(
                f"node {self.graph_output!r} gives the shape {tuple(values[self.graph_output].shape[1:])}; "
                "logits have one axis"
            )

    def body(self, x: Tensor) -> Tensor:
        """Each node in order; several edges into one node are summed."""
        values = {self.graph_input: self.repeat(x if self.codes is None else self.codes(x))}
        for name in self.order:
            if name == self.graph_input:
                continue
            total = values[self.sources[name][0]]
            for source in self.sources[name][1:]:
                total = total + values[source]
            values[name] = total if name == self.graph_output else self.nodes[self.keys[name]](total)
        return values[self.graph_output] / self.logits_scale


def _shape(types: Any, what: str, name: str) -> tuple[int, ...]:
    """Shape of the graph's input or output."""
    try:
        shape = tuple(int(s) for s in np.ravel(types[what]))
    except (TypeError, KeyError, ValueError, OverflowError):
        shape = ()
    if not 1 <= len(shape) <= 3 or min(shape) < 1 or prod(shape) > MOST_VALUES:
        raise SpikedistillError(
            f"node {name!r}: the graph's {what} has the shape {shape}; give (C, H, W), (C, L) or (C,)"
        )
    return shape


def _keys(names: list[str]) -> dict[str, str]:
    """Names of the modules of nodes; torch allows no dots, and no two may become one."""
    keys: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "_") or "_"
        while hasattr(nn.ModuleDict, key) or key in keys.values():
            key += "_"
        keys[name] = key
    return keys


def _module(name: str, node: Any, extra: NodeNotes, time_steps: int, dt: float) -> nn.Module:
    kind = type(node).__name__
    if kind in ("LIF", "IF"):
        neuron = _neuron(name, node, extra, time_steps, dt)
        if extra.grid is not None:
            neuron.grid = Grid(**extra.grid.model_dump())
            neuron.initial *= neuron.grid.unit  # in the file it is a code
            # currents are codes: folded multipliers leave fractions, which the network rounds half-up
            neuron.register_forward_pre_hook(lambda _, args: ((args[0] + 0.5).floor(), *args[1:]))
        return neuron
    try:
        module: nn.Module = MODULES[kind](node, extra)
    except SpikedistillError:
        raise
    except Exception as why:  # torch and numpy raise whatever odd options lead them to
        raise SpikedistillError(
            f"node {name!r}, a {kind}, cannot be built: {' '.join(str(why).split())[:160]}"
        ) from None
    step = extra.step
    if step:  # sums of codes, exact in float64, and the one rounding behind them
        module.double().register_forward_pre_hook(lambda _, args: (args[0].double(),))
        module.register_forward_hook(lambda _, __, out: ((out / step + 0.5).floor() * step).float())
    return module


def _neuron(name: str, node: Any, extra: NodeNotes, time_steps: int, dt: float) -> LIF:
    if type(node).__name__ == "IF":
        decay, gain = 1.0, _uniform(name, "r", node.r) * dt
    else:
        tau = _uniform(name, "tau", node.tau)
        # a tau of one step may be a hair below it in files that hold float32
        if not tau * (1 + 1e-6) >= dt:
            raise SpikedistillError(
                f"node {name!r}: its time constant tau = {tau:g} is below the time step {dt:g}; "
                "give another time_step"
            )
        decay, gain = max(0.0, 1 - dt / tau), _uniform(name, "r", node.r) * dt / tau
        if np.any(node.v_leak):
            raise SpikedistillError(f"node {name!r}: v_leak must be 0, found {_few(node.v_leak)}")
    if np.any(node.v_reset):
        raise SpikedistillError(f"node {name!r}: v_reset must be 0, found {_few(node.v_reset)}")
    return LIF(
        decay=decay, gain=gain, threshold=_uniform(name, "v_threshold", node.v_threshold), reset=extra.reset,
        initial=extra.initial, time_steps=time_steps, reset_by=extra.reset_by,
    )  # fmt: skip


def _few(values: Any) -> str:
    """The first different values."""
    return ", ".join(f"{value:g}" for value in np.unique(values)[:4])


class Codes(nn.Module):
    """A quantized network's input as codes: image levels by ``table`` (C, 256); counts half-up, clipped."""

    def __init__(self, kind: str, limit: int, table: list[list[int]] | None) -> None:
        super().__init__()
        self.kind, self.limit = kind, limit
        self.table: torch.Tensor | None
        codes = None if table is None else torch.tensor(table, dtype=torch.float32)
        self.register_buffer("table", codes, persistent=False)  # so that it moves with the network

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
    numbers = tuple(int(v) for v in np.broadcast_to(np.ravel(value), (n,)))
    if max(map(abs, numbers)) > 1 << 24:
        raise ValueError(f"a window of {numbers}")
    return numbers


def _filled(module: Any, node: Any) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.asarray(node.weight, np.float32)))
        if module.bias is not None:
            module.bias.copy_(torch.from_numpy(np.asarray(node.bias, np.float32)))
    return module


def _conv(node: Any, extra: NodeNotes) -> nn.Module:
    out, per_group, *kernel = node.weight.shape
    groups, n = int(node.groups), len(kernel)
    padding = node.padding if isinstance(node.padding, str) else _ints(node.padding, n)
    conv: Any = nn.Conv1d if n == 1 else nn.Conv2d
    return _filled(
        conv(
            per_group * groups, out, tuple(kernel), _ints(node.stride, n), padding, _ints(node.dilation, n),
            groups,
            bias=node.bias is not None,
        ),
        node,
    )  # fmt: skip


def _linear(node: Any, extra: NodeNotes) -> nn.Module:
    out, features = node.weight.shape
    # nir.Linear has no bias, nir.Affine has one
    return _filled(nn.Linear(features, out, bias=hasattr(node, "bias")), node)


def _pool(node: Any, extra: NodeNotes) -> nn.Module:
    window: Any = _ints(node.kernel_size), _ints(node.stride), _ints(node.padding)
    if extra.max:
        return nn.MaxPool2d(*window)
    kernel, stride, padding = window
    return nn.AvgPool2d(
        kernel, stride, padding, divisor_override=1 if type(node).__name__ == "SumPool2d" else None
    )


class Scale(nn.Module):
    """Each value times a constant of its own."""

    scale: Tensor

    def __init__(self, node: Any, extra: NodeNotes) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(np.asarray(node.scale, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, ...) to (T*N, ...)."""
        return x * self.scale


class FromDimension(nn.Module):
    """Flattening whose dimensions count without the batch, as NIR's do."""

    def __init__(self, node: Any, extra: NodeNotes) -> None:
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
