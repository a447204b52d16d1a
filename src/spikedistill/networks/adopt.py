"""``adopt``: a network of SpikingJelly, snnTorch or Norse becomes one of ours, and is checked by running both."""

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError, nearest
from ..neurons.event_driven import equip
from ..simulation import Simulation
from . import loops, peers
from .base import Input, Network
from .foreign import Foreign
from .graph import trace
from .rows import refuse_mixing
from .sites import Site, entrance, norm_before
from .surgery import Spiking, explained, repeat_after, sharing_copy, turn, words
from .wrapped import first_tensor

log = logging.getLogger("spikedistill")
LAYOUTS = ("step", "TNCHW", "NCHW")
LEARNED = 1e-4  # share of spikes that may differ in float64 where a learned decay is stored in another form, in float32


class Adopted(Spiking):
    """A peer's network with neurons of ours, made by :func:`adopt`.

    ``differs``: share of spikes on the example that are not the original's, in "float64" and in "float32".
    """

    differs: dict[str, float]

    def extra_repr(self) -> str:
        said = ", ".join(f"{share:.2g} in {kind}" for kind, share in self.differs.items())
        return f"time_steps={self.time_steps}, share of spikes that differ from the original's: {said}"


def adopt(
    network: nn.Module,
    time_steps: int = 4,
    example: Tensor | None = None,
    input: Input = "image",
    layout: str | None = None,
    output: int | str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Network:
    """A copy of a network of SpikingJelly, snnTorch or Norse with our layers and neurons, for everything that follows.

    Neurons: SpikingJelly's IFNode, LIFNode, ParametricLIFNode, snnTorch's Leaky, Norse's LIFBoxCell (:mod:`.peers` has the
    equations); cells with a second state are refused by name. A batch norm read by one neuron becomes a
    :class:`NormNeuron` with it, so that in training its statistics are those of all time steps together.

    ``example``: images (N, C, H, W) in [0, 1], or frames (N, F, C, H, W), F a multiple of T; at least two samples. Other
    spaces too: (N, C), (N, F, C), (N, C, L). On it both networks run, in float64 and in float32: spikes and logits are
    equal in float64, else it is refused; ``.differs`` has the share of spikes that differ, which in float32 rounding makes.

    ``layout``: what the network takes: "step" (one time step, (N, C, H, W)), "TNCHW" (all, time first) or "NCHW" (an image; it
    runs its time steps by itself, which are taken out: T is then ``time_steps`` too). None finds it. ``output``: index or
    key of the spikes or logits where the network returns several things (None: the first). mean, std: None is 0 and 1.

    Shape: (N, C, H, W) in [0, 1], or frames, to logits (T, N, K); a sum or mean over time of the network's own is left to
    ``predict``. Raises :class:`SpikedistillError` naming path and reason of what has no form here.
    """
    if isinstance(network, Foreign):
        layout = layout or {"step": "step", "TNCHW": "TNCHW", "NCHW": "NCHW"}.get(network.layout)
        output = network.output if output is None else output
        mean = network.mean.tolist() if mean is None else mean
        std = network.std.tolist() if std is None else std
        network = network.model
    elif isinstance(network, Network):
        raise SpikedistillError("this network is one of ours already; adopt takes a network of another library")
    if layout is not None and layout not in LAYOUTS:
        raise SpikedistillError(f"unknown layout {layout!r}: {nearest(layout, LAYOUTS)}")
    space = 3 if input == "frames" else 2
    if not isinstance(example, Tensor) or example.dim() < space or len(example) < 2:
        raise SpikedistillError(
            "adopt runs both networks on an example: give example= a batch of at least two images (N, C, H, W) in [0, 1], "
            "or of frames (N, F, C, H, W) with input='frames'"
        )
    for module in network.modules():
        _cut_off(module)
    converted = copy.deepcopy(network).eval()
    cells, notes = peers.translate(converted)
    if not cells:
        raise SpikedistillError(
            f"{type(network).__name__} has no neuron of SpikingJelly, snnTorch or Norse; known are {peers.KNOWN}"
        )
    dims = example.dim() - space
    channels = example.shape[-1 - dims]
    first = next(network.parameters(), example)
    example = example.to(first.device, first.dtype)
    entry = Network(2, channels, input, time_steps, "direct", mean, std)  # its normalisation
    entry.dims = dims
    given = entry.to(first.device).fold(example, Simulation(entry, time_steps))
    if input == "frames":
        given = given.unflatten(0, (time_steps, -1))
    original = Original(network, list(cells), time_steps, input, layout, output)
    truth = original.run(given)
    one = original.one_step(given, converted, truth)
    step = given[0] if input == "frames" else given
    with explained(step):
        graph = trace(one, step)
    sites = [Site(n, norm_before(n, graph, one)) for n in graph if isinstance(n.module, peers.Placeholder)]
    if len({s.node.path for s in sites}) < len(cells):
        missing = set(cells) - {_plain(str(s.node.path)) for s in sites}
        notes.append(f"never called, and left out: {', '.join(sorted(missing))}")
    ways = entrance(graph, sites) if input == "image" else [("frames", "")]
    failure: SpikedistillError | None = None
    for way, where in ways:
        adopted = Adopted(sharing_copy(one), truth.logits.shape[-1], channels, input, time_steps, mean, std)
        adopted.to(first.device)
        adopted.dims = dims
        places = turn(adopted, sites, lambda site: site.node.module.cell[0].neuron, where if way == "encode" else None)  # type: ignore[union-attr]
        for path in cells:
            if f"{path}.site" in adopted.aliases:
                adopted.aliases[path] = adopted.aliases[f"{path}.site"]
        if way == "repeat":
            repeat_after(adopted, where, time_steps)
        adopted.initialisation = "plain"  # its weights are the original's
        try:
            _verify(
                adopted.eval(), original, example, given, truth, sites, places, any(c.learned for c in cells.values())
            )
        except SpikedistillError as error:
            failure = failure or error
            continue
        adopted.notes = [*notes, *original.notes, words(way, where)]
        for note in adopted.notes:
            log.info(note)
        adopted.config = {
            "adopted": {
                "network": type(network).__name__, "time_steps": time_steps, "input": input, "layout": original.layout,
                "mean": adopted.mean.tolist(), "std": adopted.std.tolist(), "example": list(example.shape),
            }
        }  # fmt: skip
        return equip(adopted.train(network.training))
    assert failure is not None
    raise failure


def _plain(path: str) -> str:
    return path.removesuffix(".site")


def _cut_off(module: nn.Module) -> None:
    """A state that hangs on the last pass's gradients cannot be copied."""
    if not peers.library(module):
        return
    memories = module.__dict__.get("_memories", {})
    for kept in (memories, module._buffers):
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                kept[key] = value.detach()


class Truth:
    """What the original gave: logits (T, N, K) or (N, K), spikes by neuron and call, and how it gave them."""

    def __init__(self, logits: Tensor, spikes: dict[str, list[Tensor]]) -> None:
        self.logits, self.spikes = logits, spikes


class Original:
    """The network as it came, run in its own way, its states as new before each pass."""

    def __init__(
        self, network: nn.Module, neurons: list[str], T: int, input: Input, layout: str | None, output: int | str | None
    ) -> None:
        self.model = copy.deepcopy(network).eval()
        self.neurons, self.T, self.input, self.layout, self.output = neurons, T, input, layout, output
        self.notes: list[str] = []
        needed = [
            p for p in inspect.signature(network.forward).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        self.states = max(0, len(needed) - 1)  # of snnTorch's forward(x, mem1, mem2): None starts, and goes on
        self.carried = "state" in inspect.signature(network.forward).parameters  # Norse's

    def candidates(self) -> list[str]:
        """Layouts to try."""
        if self.layout is not None:
            return [self.layout]
        many = any(getattr(m, "step_mode", "s") == "m" for m in self.model.modules())
        if self.input == "frames":
            return ["TNCHW"] if many else ["step", "TNCHW"]
        return ["NCHW", "TNCHW"] if many else ["NCHW", "step"]

    def run(self, given: Tensor) -> Truth:
        """The first layout that works; twice, to see that nothing is left from the first pass."""
        said = []
        for layout in self.candidates():
            try:
                truth = self.once(given, layout)
                again = self.once(given, layout)
            except Exception as error:  # whatever somebody else's code raises
                said.append(f"layout {layout!r}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
                continue
            if not torch.equal(truth.logits, again.logits):
                raise SpikedistillError(
                    "the network gives something else when it runs a second time on the same input: a state that its reset "
                    "does not reach, or chance (dropout in eval mode)"
                )
            calls = max(len(s) for s in truth.spikes.values())
            if layout == "NCHW" and not self._own_time(truth):
                if calls > 1 or self.layout == "NCHW":
                    said.append(f"layout 'NCHW': {calls} calls of a neuron, which are no time steps")
                continue
            self.layout = layout
            return truth
        tried = "\n  ".join(said) or "it gives nothing that changes with time"
        raise SpikedistillError(
            f"the network does not run on input {tuple(given.shape)} ({self.input}); tried\n  {tried}\n"
            f"Say what it takes: layout={', '.join(map(repr, LAYOUTS))}"
        )

    def _own_time(self, truth: Truth) -> bool:
        """Whether a pass over images held time steps of its own: neurons called T times, or once on (T, N, ...)."""
        N = truth.logits.shape[-2]
        spikes = [s for s in truth.spikes.values() if s]
        looped = min((len(s) for s in spikes), default=0)
        inside = {s[0].shape[0] for s in spikes if s[0].dim() > 2 and s[0].shape[1] == N and self._multi()}
        own = looped if looped > 1 else min(inside, default=1)
        if own > 1 and own != self.T:
            raise SpikedistillError(
                f"the network runs {own} time steps by itself; give time_steps={own}, found {self.T}"
            )
        return own > 1 or (self.T == 1 and self.layout == "NCHW")

    def _multi(self) -> bool:
        return any(getattr(m, "step_mode", "s") == "m" for m in self.model.modules())

    def once(self, given: Tensor, layout: str) -> Truth:
        """One pass over T steps from fresh states."""
        for module in self.model.modules():
            if peers.library(module) == "spikingjelly" and hasattr(module, "reset"):
                module.reset()
            elif peers.library(module) == "snntorch" and hasattr(module, "reset_mem"):
                module.reset_mem()
        extra = (None,) * self.states
        with torch.no_grad(), self._recorded(given.dtype) as spikes:
            if layout == "NCHW":
                logits = self._pick(self.model(given, *extra))
            elif layout == "TNCHW":
                logits = self._pick(self.model(self._frames(given), *extra))
            else:
                steps, state = [], None
                for frame in self._frames(given):
                    out = self.model(frame, state) if self.carried else self.model(frame, *extra)
                    state = out[1] if self.carried else None
                    steps.append(self._pick(out))
                logits = torch.stack(steps)
        N = given.shape[1] if self.input == "frames" else given.shape[0]
        if layout == "step" and any(s and len(s[0]) != N for s in spikes.values()):
            raise SpikedistillError("its neurons do not see the batch: it loops over the first dimension")
        if logits.dim() not in (2, 3) or logits.shape[-2] != N or (logits.dim() == 3 and len(logits) != self.T):
            raise SpikedistillError(
                f"its output has shape {tuple(logits.shape)}; logits are ({self.T}, {N}, K) or ({N}, K)"
            )
        return Truth(logits, spikes)

    def _frames(self, given: Tensor) -> Tensor:
        return given if self.input == "frames" else given.unsqueeze(0).repeat(self.T, *[1] * given.dim())

    def _pick(self, out: Any) -> Tensor:
        return first_tensor(out) if self.output is None else out[self.output]

    @contextmanager
    def _recorded(self, dtype: torch.dtype) -> Iterator[dict[str, list[Tensor]]]:
        """Spikes of every neuron, call by call; snnTorch's come in float32, and go on in the network's type."""
        found: dict[str, list[Tensor]] = {path: [] for path in self.neurons}

        def hook(path: str) -> Any:
            def seen(_: nn.Module, __: Any, out: Any) -> Any:
                spikes = (out[0] if isinstance(out, tuple) else out).to(dtype)
                found[path].append(spikes)
                return (spikes, *out[1:]) if isinstance(out, tuple) else spikes

            return seen

        handles = [self.model.get_submodule(path).register_forward_hook(hook(path)) for path in self.neurons]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def one_step(self, given: Tensor, converted: nn.Module, truth: Truth) -> nn.Module:
        """The converted model as a module of one step's (N, ...), which takes (T*N, ...) as well."""
        own = self.layout == "NCHW" or (self.layout == "TNCHW" and max(map(len, truth.spikes.values())) > 1)
        if not own and truth.logits.dim() == 3:
            called = _called(converted, self.output, self.states)
            if self.layout == "step" or _runs(called, self._frames(given).flatten(0, 1), truth.logits):
                return called
        traced = copy.deepcopy(self.model)
        called = _called(traced, self.output, self.states)
        for module in called.modules():
            if peers.is_neuron(module) or peers.layer_of(module) is not None or type(module).__name__ == "VotingLayer":
                module.graph_leaf = True  # type: ignore[assignment]
        self._fresh(called)
        graph = trace(called, self._frames(given) if self.layout == "TNCHW" else given)
        made = loops.cut(graph, set(self.neurons), self.T, self.layout == "TNCHW")
        self.notes.append("the network's own loop over time is taken out")
        for path, module in list(converted.named_modules()):
            if isinstance(module, peers.Stateful):
                parent, _, key = path.rpartition(".")
                converted.get_submodule(parent).add_module(key, module.site)
        return made(converted)

    def _fresh(self, model: nn.Module) -> None:
        for module in model.modules():
            for name in ("reset", "reset_mem"):
                if peers.library(module) and callable(getattr(module, name, None)):
                    getattr(module, name)()


def _runs(model: nn.Module, folded: Tensor, logits: Tensor) -> bool:
    """Whether a model runs on folded time steps."""
    try:
        with torch.no_grad():
            out = model(folded)
    except Exception:  # somebody else's code
        return False
    return first_tensor(out).shape == logits.flatten(0, 1).shape


def _called(model: nn.Module, output: int | str | None, states: int) -> nn.Module:
    """``model`` called with one input, giving one output; its paths stay."""
    if output is None and not states and type(model).__module__.startswith("torch.nn"):
        return model
    cls: Any = type(model)

    def forward(self: Any, x: Tensor) -> Any:
        out = cls.forward(self, x, *[None] * states)
        return first_tensor(out) if output is None else out[output]

    model.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return model


def _verify(
    network: Adopted, original: Original, example: Tensor, given: Tensor, truth: Truth, sites: list[Site], places: list[str],
    learned: bool,
) -> None:  # fmt: skip
    """Both networks on the example, in float64 and in float32, and at another batch size; images and steps stay apart."""
    network.differs = {}
    wide = copy.deepcopy(original)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # states that its code makes are then of its type too
    try:
        wide.model.double()
        exact = wide.once(given.double(), str(wide.layout))
        share, logits, worst = _compare(copy.deepcopy(network).double(), example.double(), exact, sites, places)
    finally:
        torch.set_default_dtype(before)
    limit = LEARNED if learned else 0.0
    if share > limit:
        raise SpikedistillError(
            f"{share:.2%} of the spikes differ from the original's in float64, most at {worst}: the network does something "
            "that its layers and neurons alone do not say (a state or a change between time steps?); sd.foreign takes it as it is"
        )
    network.differs["float64"] = share
    if not _same_logits(logits, exact.logits, 1e-9 if not learned else 1e-5):
        raise SpikedistillError(
            f"all spikes are the original's, but the logits {tuple(logits.shape)} are not, nor is their mean or sum over time; "
            "sd.foreign takes the network as it is"
        )
    if network.std.dtype is not torch.float64:
        network.differs["float32"] = _compare(network, example, truth, sites, places)[0]
    with torch.no_grad():
        alone = copy.deepcopy(network).double()(example[:1].double())
    if not torch.allclose(alone, logits[:, :1], rtol=1e-6, atol=1e-9):
        raise SpikedistillError(
            "an image alone gives other logits than in a batch: the network's code knows the batch size"
        )
    images = example if network.input == "image" else example[:, 0]
    graph = trace(network, example)
    refuse_mixing(network, graph, images)


def _compare(
    network: Adopted, example: Tensor, truth: Truth, sites: list[Site], places: list[str]
) -> tuple[float, Tensor, str]:
    """Share of spikes that differ, our logits, and the neuron where most differ."""
    T = network.time_steps
    assert T is not None
    network.eval()
    try:
        with torch.no_grad(), Simulation(network, T, insides=[(p, 0, "spikes") for p in places]) as sim:
            logits = network(example)
    except Exception as error:  # somebody else's code
        raise SpikedistillError(
            f"the network does not run with all time steps in the batch, as if its code knew the batch size: {error}"
        ) from error
    different = total = 0
    worst, most = "", 0.0
    for site, place in zip(sites, places, strict=True):
        calls = truth.spikes[_plain(str(site.node.path))]
        theirs = (
            calls[site.node.call]
            if len(calls) <= _reused(sites, site)
            else torch.stack(calls[site.node.call :: _reused(sites, site)])
        )
        mine = sim.captured[(place, 0, "spikes")]
        wrong = (
            int((mine.flatten() != theirs.flatten().to(mine.dtype)).sum())
            if mine.numel() == theirs.numel()
            else mine.numel()
        )
        different, total = different + wrong, total + mine.numel()
        if wrong / mine.numel() > most:
            worst, most = str(site.node.path), wrong / mine.numel()
    return different / max(1, total), logits, _plain(worst)


def _reused(sites: list[Site], site: Site) -> int:
    """How often a neuron is called in one step."""
    return sum(s.node.path == site.node.path for s in sites)


def _same_logits(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    forms = [mine] if theirs.dim() == 3 else [mine.mean(0), mine.sum(0)]
    return any(torch.allclose(form, theirs.to(form.dtype), rtol=tolerance, atol=tolerance) for form in forms)
