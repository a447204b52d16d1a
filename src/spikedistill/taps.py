"""Taps: named places in a network whose values are captured during one simulation.

Grammar: ``path[#k][@what]``. ``k``: call of a reused module, from 0. ``what``: nothing (the module's output),
``input``, ``spikes``, ``membrane`` (charged, before the spike is drawn), ``current`` (what charges: after
norm and residual). Aliases: ``logits``; ``stage1``, ``stage2`` ...; ``before_head`` (input of the last global
pool, else of the last linear layer); ``pooled`` (output of the last global pool). Several places at once:
``stages``; ``*@what``, every neuron layer; ``*``, the output of every neuron layer (in an ANN: of every
ReLU, those called as functions too); ``*@input``, what enters every convolution and linear layer;
``attention``, the queries and keys of every attention. A ReLU that the code of a module calls as a function
has the path ``module/relu``. Captures are ``(T, N, ...)``; an ANN's T is 1 on images and the number of frames
on frames.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from . import simulation
from .errors import SpikedistillError
from .networks.base import Network, Quantized
from .networks.function_calls import FunctionCalls
from .networks.outside.adapter import first_tensor
from .networks.outside.foreign import Foreign
from .neurons import neuron_of
from .neurons.over_time import time_mean, weighted_sum
from .neurons.rates import spiking_pass, watched
from .numerics import at_least_float32, keep_layout
from .places import (
    INSIDES,
    Tap,
    attention_paths,
    graph_of,
    has_spikes,
    image_ann,
    neuron_paths,
    resolve,
    stages,
)
from .simulation import Simulation


@dataclass(repr=False)
class Captures:
    """Captured tensors ``(T, N, ...)`` by tap; aliases and wildcards stay usable as keys.

    ``widen``: hand them out in at least float32, whatever precision the network ran in. Where an average over
    time or a sum is all that is wanted, :meth:`mean`, :meth:`means` and :meth:`weighted_sum` are cheaper:
    they widen nothing but what they give.
    """

    tensors: dict[str, Tensor]
    names: dict[str, list[str]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    widen: bool = False

    def __repr__(self) -> str:
        forms = (f"{name}: {' x '.join(map(str, x.shape))}" for name, x in self.tensors.items())
        return f"Captures({', '.join(forms)})"

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

    def weighted_sum(self, text: str, weight: Tensor) -> Tensor:
        """``sum(x * weight)`` of the one tensor a tap names; the weight is of its last dimensions."""
        return weighted_sum(_only(text, dict(self._named(text))), weight)

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
        # One hook a module, however many taps it has: the hook counts the calls.
        for path in {t.path for t in self.taps if t.what in ("output", "input") and t.path}:
            if path in modules:
                self._hook(path, modules[path])
        called = {f"{t.path}#{t.call}": str(t) for t in self.taps if t.path and t.path not in modules}
        if called:
            keep = lambda name, out: self.found.__setitem__(called[name], out)  # noqa: E731
            self.exits.enter_context(FunctionCalls(self.network, called, keep))
        return self

    def _hook(self, path: str, module: nn.Module) -> None:
        wanted = {(t.call, t.what): str(t) for t in self.taps if t.path == path}
        count = 0

        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            nonlocal count
            sim = simulation.current()
            # Backward runs the block again: its values were captured, and counting on would shift the calls.
            if sim is not None and sim.recomputing:
                return
            if isinstance(self.network, Foreign):
                if not self.network.checking:
                    for tap in self.taps:
                        if tap.path == path and tap.what in ("output", "input"):
                            self.every.setdefault(str(tap), []).append(
                                first_tensor(out if tap.what == "output" else args or named)
                            )
                return
            if (count, "output") in wanted:
                self.found[wanted[count, "output"]] = out
            if (count, "input") in wanted:
                self.found[wanted[count, "input"]] = args[0] if args else next(iter(named.values()))
            count += 1

        self.exits.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

    def __exit__(self, *exc: Any) -> None:
        self.exits.close()


def run(
    network: nn.Module,
    x: Tensor,
    taps: Iterable[Tap] = (),
    time_steps: int | None = None,
    rate_based: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One simulation of ``network`` on ``x``, with captures.

    Returns logits (T, N, K), an ANN's with T = 1 (or the number of frames where it sees event frames one by
    one), and the captures ``(T, N, ...)`` by tap. An ANN made for images sees each event frame.
    ``rate_based``: what is given is rates, averages over all steps, T = 1, to be learned from by rate-based
    backpropagation (:mod:`.neurons.rates`).
    """
    taps = list(taps)
    N, frames = x.shape[0], 1
    own = network.time_steps if isinstance(network, Network) else None
    if image_ann(network) and x.dim() == 5:
        # Frames as a batch, time in front: only so `unflatten(0, (-1, N))` gives (T, N, ...) below.
        frames = x.shape[1]
        x = x.transpose(0, 1).flatten(0, 1)
    steps = time_steps if own is not None and time_steps else simulation.steps_for(network, own)
    insides = [(t.path, t.call, t.what) for t in taps if t.what in INSIDES]
    with ExitStack() as stack:
        tape = None
        if rate_based:
            tape, steps = spiking_pass(network, x, steps), 1
            stack.enter_context(watched(network))
        recording = stack.enter_context(Recording(network, taps))
        sim = stack.enter_context(Simulation(network, steps, insides=insides, tape=tape))
        out = first_tensor(network(x))
        if tape is not None:
            tape.finish(out)
    logits = out if out.dim() == 3 else out.unflatten(0, (-1, N))
    found = recording.found
    # Hooks see the codes that flow; insides come from the neurons, which hand out real units.
    if found and isinstance(network, Network) and network.quantization is not None:
        found = _values(network, network.quantization, taps, found, x)
    seen = x.shape[1] if x.dim() == 5 else 1  # frames that an ANN sees one by one
    rows = {N * times for times in (1, steps or 1, seen, frames, logits.shape[0])}
    captures = {tap: _unfold(value, N, steps, tap, rows) for tap, value in found.items()}
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


def _unfold(value: Any, N: int, steps: int | None, tap: str, rows: set[int]) -> Tensor:
    """Time to the front; what ran once for all steps is repeated (as a view)."""
    x = keep_layout(first_tensor(value))
    # Windows or patches beside the images: their order is the network's own, and would be taken for time.
    if x.shape[0] not in rows:
        raise SpikedistillError(
            f"tap {tap!r} gives {x.shape[0]} rows for {N} images: its rows are parts of images (windows, "
            "patches) and not images; name a layer whose first axis is the batch"
        )
    # N rows where T*N were due: the layers before the first neuron run once on a constant input.
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
    network: nn.Module,
    x: Tensor,
    resolved: dict[str, list[Tap]],
    time_steps: int | None = None,
    rate_based: bool = False,
) -> tuple[Tensor, Captures]:
    """:func:`run` for taps that :func:`resolve` has turned into places before."""
    places = [t for taps in resolved.values() for t in taps]
    logits, tensors = run(network, x, places, time_steps, rate_based)
    modules = dict(network.named_modules())
    thresholds = {}
    for taps in resolved.values():
        for tap in taps:
            neuron = neuron_of(modules.get(tap.path))
            if neuron is not None:
                # On a grid the threshold is in codes; membranes are captured in real units.
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
