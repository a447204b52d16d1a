"""Taps: named places in a network whose values are captured during one simulation.

Grammar: ``path[#k][@what]``. ``k``: call of a reused module, from 0. ``what``: nothing (the module's output),
``input``, ``spikes``, ``membrane`` (charged, before the spike is drawn), ``current`` (what charges: after
norm and residual). Aliases: ``logits``; ``stage1``, ``stage2`` ...; ``before_head`` (input of the last global
pool, else of the last linear layer); ``pooled`` (output of the last global pool). Several places at once:
``stages``; ``*@what``, every neuron layer; ``*``, the output of every neuron layer (in an ANN: of every
ReLU); ``*@input``, what enters every convolution and linear layer; ``attention``, the queries and keys of
every attention. Captures are ``(T, N, ...)``; an ANN's T is 1 on images and the number of frames on frames.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from . import simulation
from .errors import SpikedistillError, nearest
from .networks.base import Network, Quantized
from .networks.foreign import Foreign
from .networks.graph import Call, Graph, trace
from .networks.operations import Node
from .networks.wrapped import first_tensor
from .neurons import NormNeuron, neuron_of
from .neurons import layers as neuron_layers
from .neurons.over_time import time_mean
from .numerics import at_least_float32
from .simulation import Simulation

INSIDES = ("spikes", "membrane", "current")
_FORM = re.compile(r"^(?P<path>[^#@]+)(#(?P<call>\d+))?(@(?P<what>\w+))?$")


@dataclass(frozen=True)
class Tap:
    """One place: a module's path, which of its calls, and what of it."""

    path: str
    call: int = 0
    what: str = "output"

    def __str__(self) -> str:
        text = self.path + (f"#{self.call}" if self.call else "")
        return text if self.what == "output" else f"{text}@{self.what}"


@dataclass
class Captures:
    """Captured tensors ``(T, N, ...)`` by tap; aliases and wildcards stay usable as keys.

    ``widen``: hand them out in at least float32, whatever precision the network ran in. Where an average over
    time is all that is wanted, :meth:`mean` and :meth:`means` are cheaper: they widen nothing but the
    average.
    """

    tensors: dict[str, Tensor]
    names: dict[str, list[str]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    widen: bool = False

    def __getitem__(self, text: str) -> Tensor:
        return _only(text, self.all(text))

    def all(self, text: str) -> dict[str, Tensor]:
        """All tensors a tap names, by concrete tap, in the order of the network."""
        return {name: at_least_float32(x) if self.widen else x for name, x in self._named(text)}

    def mean(self, text: str) -> Tensor:
        """The average over T of the one tensor a tap names, in at least float32: (N, ...)."""
        return _only(text, self.means(text))

    def means(self, text: str) -> dict[str, Tensor]:
        """The averages over T of all tensors a tap names."""
        return {name: time_mean(x) for name, x in self._named(text)}

    def _named(self, text: str) -> list[tuple[str, Tensor]]:
        return [(name, self.tensors[name]) for name in self.names.get(text, [text])]

    def cut(self, steps: int) -> "Captures":
        """The first ``steps`` time steps."""
        # A slice of everything would cost a copy in backward, in another order of dimensions.
        return replace(self, tensors={k: v[:steps] if len(v) > steps else v for k, v in self.tensors.items()})


def _only(text: str, found: dict[str, Tensor]) -> Tensor:
    if len(found) != 1:
        raise SpikedistillError(f"tap {text!r} names {len(found)} places; one was expected")
    return next(iter(found.values()))


_GRAPHS: "WeakKeyDictionary[nn.Module, Graph]" = WeakKeyDictionary()


def graph_of(network: nn.Module, example: Tensor | None) -> Graph:
    """The network's graph, traced once on (two samples of) ``example``."""
    graph = _GRAPHS.get(network)
    if graph is None:
        if example is None:
            raise SpikedistillError(
                "aliases such as 'stage1' or 'before_head' need an example input to trace the network"
            )
        if _image_ann(network) and example.dim() == 5:
            example = example[:, 0]
        graph = trace(network, example[:2])
        _GRAPHS[network] = graph
    return graph


def _image_ann(network: nn.Module) -> bool:
    return isinstance(network, Network) and network.input == "image" and network.time_steps is None


def neuron_paths(network: nn.Module) -> list[str]:
    """Paths of all neuron layers (a norm and its neuron count as one, under the norm's path), in order of
    definition.
    """
    return list(neuron_layers(network))


def has_spikes(network: nn.Module) -> bool:
    """Whether ``*@spikes`` names anything."""
    return bool(neuron_paths(network)) or (isinstance(network, Foreign) and bool(network.spiking_layers()))


def resolve(network: nn.Module, text: str, example: Tensor | None = None) -> list[Tap]:
    """Concrete taps for a tap, alias or wildcard; an unknown one raises and names the nearest."""
    match = _FORM.match(text)
    if match is None:
        raise SpikedistillError(f"tap {text!r} is not of the form path[#k][@what]")
    path, call, what = str(match["path"]), int(match["call"] or 0), match["what"] or "output"
    if what not in (*INSIDES, "output", "input"):
        raise SpikedistillError(
            f"tap {text!r}: unknown '@{what}'; {nearest(what, [*INSIDES, 'input', 'output'])}"
        )
    if path == "*":
        return _every(network, what, text, example)
    modules = dict(network.named_modules())
    if path == "stages" and path not in modules:
        return stages(network, example)
    if path == "attention" and path not in modules:
        return _attention(network, what, text)
    aliases: dict[str, str] = getattr(network, "aliases", {})
    if f"{path}#{call}" in aliases:  # one call of a reused module that became a module of its own
        path, call = aliases[f"{path}#{call}"], 0
    path, _, given = aliases.get(path, path).partition("@")
    what = given if given and what == "output" else what
    if path.endswith(".neuron") and isinstance(modules.get(path[: -len(".neuron")]), NormNeuron):
        path = path[: -len(".neuron")]
    if path in modules and path:
        _check_inside(modules[path], what, text)
        return [Tap(path, call, what)]
    alias = _alias(network, path, example)
    if alias is None:
        known = [*modules, "logits", "attention", "before_head", "pooled", "stage1", "stage2", "stage3"]
        raise SpikedistillError(
            f"tap {text!r}: the network has no {path!r}; {nearest(path, [k for k in known if k])}"
        )
    if what != "output":
        _check_inside(modules[alias.path], what, text)
        return [Tap(alias.path, alias.call, what)]
    return [alias]


def _check_inside(module: nn.Module, what: str, text: str) -> None:
    if what in INSIDES and neuron_of(module) is None:
        raise SpikedistillError(
            f"tap {text!r}: {type(module).__name__} is not a spiking neuron layer and has no {what}; "
            "an ANN has only outputs"
        )


def _every(network: nn.Module, what: str, text: str, example: Tensor | None) -> list[Tap]:
    if what == "input":
        paths = [p for p, m in network.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
    else:
        paths = neuron_paths(network)
    if not paths and what == "output":
        inside = {f"{path}.neuron" for path, m in network.named_modules() if isinstance(m, NormNeuron)}
        paths = [
            p for p, m in network.named_modules() if isinstance(m, nn.ReLU | NormNeuron) and p not in inside
        ]
    if not paths and what == "spikes" and isinstance(network, Foreign):
        paths, what = network.spiking_layers(), "output"
    if not paths:
        wanted = "convolutions or linear layers" if what == "input" else "spiking neuron layers"
        raise SpikedistillError(
            f"tap {text!r}: the network has no {wanted} (an ANN has no insides of neurons)"
        )
    if isinstance(network, Foreign) or (example is None and network not in _GRAPHS):
        return [Tap(path, 0, what) for path in paths]
    wanted_paths = set(paths)
    nodes = [n for n in graph_of(network, example) if n.path in wanted_paths]
    return [Tap(n.path or "", n.call, what) for n in nodes]


def attention_paths(network: nn.Module) -> list[str]:
    """Paths of the modules that attend, in order of definition: they have heads, and ``q`` and ``k``, or
    ``qkv``, inside.
    """
    return [
        path
        for path, m in network.named_modules()
        if (hasattr(m, "heads") or hasattr(m, "num_heads"))
        and ({"q", "k"} <= (inside := dict(m.named_children()).keys()) or "qkv" in inside)
    ]


def _attention(network: nn.Module, what: str, text: str) -> list[Tap]:
    paths = attention_paths(network)
    if not paths:
        raise SpikedistillError(
            f"tap {text!r}: the network has no attention (a module with heads and q, k or qkv)"
        )
    return [
        Tap(f"{path}.{name}", 0, what)
        for path in paths
        for name in (("q", "k") if hasattr(network.get_submodule(path), "q") else ("qkv",))
    ]


def _alias(network: nn.Module, name: str, example: Tensor | None) -> Tap | None:
    if name == "logits":
        return Tap("", 0, "output")
    stage = re.fullmatch(r"stage(\d+)", name)
    if stage:
        paths = stages(network, example)
        index = int(stage[1])
        if not 1 <= index <= len(paths):
            raise SpikedistillError(f"tap {name!r}: the network has stages 1 to {len(paths)}")
        return paths[index - 1]
    if name in ("before_head", "pooled"):
        graph = graph_of(network, example)
        pools = [n for n in graph if _is_global_pool(n)]
        if pools and name == "pooled":
            return _tap_of(graph, pools[-1].name)
        if pools:
            return _tap_of(graph, pools[-1].inputs[0])
        linear = [n for n in graph if n.kind in ("Linear", "linear")]
        if linear and name == "before_head" and linear[-1].path:
            return Tap(linear[-1].path, linear[-1].call, "input")
        lacks = (
            "global pooling" if name == "pooled" else "global pooling and no linear layer that is a module"
        )
        raise SpikedistillError(f"tap {name!r}: the network has no {lacks}; name a path instead")
    return None


def stages(network: nn.Module, example: Tensor | None = None) -> list[Tap]:
    """Taps of the stages' outputs: the network's own ``stage_paths()``, else the last output at each
    resolution.
    """
    own: list[str] = getattr(network, "stage_paths", list)()
    if own:
        return [Tap(path) for path in own]
    graph = graph_of(network, example)
    out: list[tuple[tuple[int, ...], Call]] = []
    for call in graph.calls:
        if len(call.shape) != 4 or call.shape[-1] * call.shape[-2] <= 1 or not call.path:
            continue
        if out and out[-1][0] == call.shape[-2:]:
            out[-1] = (call.shape[-2:], call)
        else:
            out.append((call.shape[-2:], call))
    return [Tap(call.path, call.call) for _, call in out]


def _is_global_pool(node: Node) -> bool:
    if node.op not in ("adaptive_average_pool", "mean"):
        return False
    before, after = node.in_shapes[0], node.shape
    return (
        len(after) >= 2 and len(before) >= 3 and (len(after) < len(before) or all(s == 1 for s in after[2:]))
    )


def _tap_of(graph: Graph, name: str) -> Tap:
    """A module whose output, or else input, is the named node's output."""
    for call in graph.calls:
        if call.output == name and call.path:
            return Tap(call.path, call.call)
    for call in graph.calls:
        if call.input == name and call.path:
            return Tap(call.path, call.call, "input")
    raise SpikedistillError(f"no module gives or takes the output of {name!r}; name a path instead")


class Recording:
    """Hooks for a set of concrete taps on one network; use :func:`run`."""

    def __init__(self, network: nn.Module, taps: Iterable[Tap]) -> None:
        self.network = network
        self.taps = list(dict.fromkeys(taps))
        self.found: dict[str, Tensor] = {}
        # of a foreign network, whose modules may be called once a time step
        self.every: dict[str, list[Tensor]] = {}

    def __enter__(self) -> "Recording":
        self.exits = ExitStack()
        modules = dict(self.network.named_modules())
        for path in {t.path for t in self.taps if t.what in ("output", "input") and t.path}:
            self._hook(path, modules[path])
        return self

    def _hook(self, path: str, module: nn.Module) -> None:
        wanted = {(t.call, t.what): str(t) for t in self.taps if t.path == path}
        count = 0

        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            nonlocal count
            sim = simulation.current()
            if sim is not None and sim.recomputing:
                return
            if isinstance(self.network, Foreign):
                if not self.network.checking:
                    for tap in self.taps:
                        if tap.path == path and tap.what in ("output", "input"):
                            self.every.setdefault(str(tap), []).append(
                                first_tensor(out if tap.what == "output" else args)
                            )
                return
            if (count, "output") in wanted:
                self.found[wanted[count, "output"]] = out
            if (count, "input") in wanted:
                self.found[wanted[count, "input"]] = args[0]
            count += 1

        self.exits.callback(module.register_forward_hook(hook).remove)

    def __exit__(self, *exc: Any) -> None:
        self.exits.close()


def run(
    network: nn.Module, x: Tensor, taps: Iterable[Tap] = (), time_steps: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """One simulation of ``network`` on ``x``, with captures.

    Returns logits (T, N, K), an ANN's with T = 1 (or the number of frames where it sees event frames one by
    one), and the captures ``(T, N, ...)`` by tap. An ANN made for images sees each event frame.
    """
    taps = list(taps)
    N = x.shape[0]
    own = network.time_steps if isinstance(network, Network) else None
    if _image_ann(network) and x.dim() == 5:
        x = x.transpose(0, 1).flatten(0, 1)
    steps = time_steps if own is not None and time_steps else simulation.steps_for(network, own)
    insides = [(t.path, t.call, t.what) for t in taps if t.what in INSIDES]
    with Recording(network, taps) as recording, Simulation(network, steps, insides=insides) as sim:
        out = network(x)
    logits = out if out.dim() == 3 else out.unflatten(0, (-1, N))
    found = recording.found
    if found and isinstance(network, Network) and network.quantization is not None:
        found = _values(network, network.quantization, taps, found, x)
    captures = {tap: _unfold(value, N, steps) for tap, value in found.items()}
    if isinstance(network, Foreign):
        captures = {tap: network.timed(calls, N, steps) for tap, calls in recording.every.items()}
    captures |= {str(Tap(*key)): value for key, value in sim.captured.items()}
    missing = [str(t) for t in taps if str(t) not in captures and str(t)]
    if missing:
        raise SpikedistillError(
            f"tap {missing[0]!r} was not reached in this forward pass; check its call number"
        )
    if "" in {str(t) for t in taps}:
        captures[""] = logits
    return logits, captures


def _values(
    network: Network, quantization: Quantized, taps: list[Tap], found: dict[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """Real values for the integer codes that flow in a quantized network."""
    graph = graph_of(network, x)
    nodes: dict[tuple[str, int, str], str | None] = {}
    for call in graph.calls:
        nodes[call.path, call.call, "output"], nodes[call.path, call.call, "input"] = call.output, call.input
    out = {}
    for tap in taps:
        if str(tap) in found:
            codes, node = found[str(tap)], nodes.get((tap.path, tap.call, tap.what))
            value = quantization.value(node) if node is not None else None
            out[str(tap)] = (
                codes if value is None else codes * value.to(codes).view(-1, *[1] * (codes.dim() - 2))
            )
    return out


def _unfold(x: Tensor, N: int, steps: int | None) -> Tensor:
    """Time to the front; what ran once for all steps is repeated (as a view)."""
    if steps is not None and steps > 1 and x.shape[0] == N:
        return x.unsqueeze(0).expand(steps, *x.shape)
    return x.unflatten(0, (-1, N))


def captures(
    network: nn.Module,
    x: Tensor,
    texts: Iterable[str],
    time_steps: int | None = None,
    example: Tensor | None = None,
) -> tuple[Tensor, Captures]:
    """:func:`run` for taps as text: logits and :class:`Captures`."""
    return run_resolved(
        network, x, {t: resolve(network, t, example if example is not None else x) for t in texts}, time_steps
    )


def run_resolved(
    network: nn.Module, x: Tensor, resolved: dict[str, list[Tap]], time_steps: int | None = None
) -> tuple[Tensor, Captures]:
    """:func:`run` for taps that :func:`resolve` has turned into places before."""
    logits, tensors = run(network, x, [t for taps in resolved.values() for t in taps], time_steps)
    modules = dict(network.named_modules())
    thresholds = {}
    for taps in resolved.values():
        for tap in taps:
            neuron = neuron_of(modules.get(tap.path))
            if neuron is not None:
                thresholds[str(tap)] = (
                    neuron.threshold if neuron.grid is None else neuron.grid.threshold * neuron.unit
                )
    return logits, Captures(
        tensors, {t: [str(tap) for tap in taps] for t, taps in resolved.items()}, thresholds
    )


__all__ = [
    "Captures",
    "Tap",
    "attention_paths",
    "captures",
    "graph_of",
    "has_spikes",
    "neuron_paths",
    "resolve",
    "run",
    "run_resolved",
    "stages",
]
