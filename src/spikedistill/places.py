"""The places that a tap, an alias or a wildcard names in a network; :mod:`.taps` has their grammar."""

import re
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from .errors import SpikedistillError, nearest
from .networks.base import Network
from .networks.graph import Call, Graph, trace
from .networks.operations import Node
from .networks.outside.foreign import Foreign
from .neurons import NormNeuron, neuron_of
from .neurons import layers as neuron_layers

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


# Weak: a graph is kept as long as its network, and does not keep the network.
_GRAPHS: "WeakKeyDictionary[nn.Module, Graph]" = WeakKeyDictionary()


def graph_of(network: nn.Module, example: Tensor | None) -> Graph:
    """The network's graph, traced once on (two samples of) ``example``."""
    graph = _GRAPHS.get(network)
    if graph is None:
        if example is None:
            raise SpikedistillError(
                "aliases such as 'stage1' or 'before_head' need an example input to trace the network"
            )
        # (N, T, C, H, W): it is run on single frames, so it is traced on one.
        if image_ann(network) and example.dim() == 5:
            example = example[:, 0]
        graph = trace(network, example[:2])
        _GRAPHS[network] = graph
    return graph


def image_ann(network: nn.Module) -> bool:
    """Whether it is an ANN that sees images, one at a time."""
    return isinstance(network, Network) and network.input == "image" and network.time_steps is None


def neuron_paths(network: nn.Module) -> list[str]:
    """Paths of all neuron layers (a norm and its neuron: one, at the norm's path), in order of definition."""
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
    # A module that is called so wins over the word for several places: its own name must reach it.
    if path == "stages" and path not in modules:
        return stages(network, example)
    if path == "attention" and path not in modules:
        return _attention(network, what, text)
    aliases: dict[str, str] = getattr(network, "aliases", {})
    if f"{path}#{call}" in aliases:  # one call of a reused module that became a module of its own
        path, call = aliases[f"{path}#{call}"], 0
    path, _, given = aliases.get(path, path).partition("@")
    what = given if given and what == "output" else what
    # Norm and neuron run as one: a spiking neuron within is never called, a hook on it would see nothing.
    if path.endswith(".neuron") and isinstance(modules.get(path[: -len(".neuron")]), NormNeuron):
        path = path[: -len(".neuron")]
    if path in modules and path:
        _check_inside(modules[path], what, text)
        return [Tap(path, call, what)]
    if called := _relu_function(network, path, call, example):
        if what != "output":
            raise SpikedistillError(f"tap {text!r}: a function has only its output: {called}")
        return [called]
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


def _relu_function(network: nn.Module, path: str, call: int, example: Tensor | None) -> Tap | None:
    """The tap of a ReLU that is called as a function, if the path is one's."""
    if path.rpartition("/")[2] not in ("relu", "relu_") or isinstance(network, Foreign):
        return None
    graph = graph_of(network, example)
    name = f"{path}#{call}"
    return Tap(path, call) if name in graph and _is_relu_function(graph[name], graph) else None


def _is_relu_function(node: Node, graph: Graph) -> bool:
    """Of the input, with samples in front; no ReLU of a weight."""
    batched = bool(node.shape) and node.shape[0] % max(graph.batch, 1) == 0
    return node.op == "relu" and node.function is not None and batched and node.name in graph.live


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
    traced = not isinstance(network, Foreign) and (example is not None or network in _GRAPHS)
    called: list[str] = []
    if not paths and what == "output":
        # The twin's norm stands for its ReLU too, so that its taps have the names of the spiking network's.
        inside = {f"{path}.neuron" for path, m in network.named_modules() if isinstance(m, NormNeuron)}
        paths = [
            p for p, m in network.named_modules() if isinstance(m, nn.ReLU | NormNeuron) and p not in inside
        ]
        if traced:
            graph = graph_of(network, example)
            called = [node.name for node in graph if _is_relu_function(node, graph)]
    if not paths and what == "spikes" and isinstance(network, Foreign):
        paths, what = network.spiking_layers(), "output"
    if not paths and not called:
        wanted = "convolutions or linear layers" if what == "input" else "spiking neuron layers"
        raise SpikedistillError(
            f"tap {text!r}: the network has no {wanted} (an ANN has no insides of neurons)"
        )
    if not traced:
        return [Tap(path, 0, what) for path in paths]
    wanted_paths, functions = set(paths), set(called)
    taps = []
    # In the order of calls, not of definition; a module that is called twice gives two taps.
    for node in graph_of(network, example):
        if node.path in wanted_paths:
            taps.append(Tap(node.path or "", node.call, what))
        elif node.name in functions:
            place, _, k = node.name.rpartition("#")
            taps.append(Tap(place, int(k)))
    return taps


def attention_paths(network: nn.Module) -> list[str]:
    """Paths of the modules that attend, in order of definition: with heads, ``q`` and ``k``, or ``qkv``."""
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
        # The last of them counts: blocks with squeeze-and-excitation pool globally too.
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
    """Taps of the stages' outputs: the network's own ``stage_paths()``, else the last at each resolution."""
    own: list[str] = getattr(network, "stage_paths", list)()
    if own:
        return [Tap(path) for path in own]
    graph = graph_of(network, example)
    out: list[tuple[tuple[int, ...], Call]] = []
    for call in graph.calls:
        # Maps of one pixel are behind the global pool: that is no stage.
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
        # What a function gave is no module's output, but a module may read it.
        if call.input == name and call.path:
            return Tap(call.path, call.call, "input")
    raise SpikedistillError(f"no module gives or takes the output of {name!r}; name a path instead")
