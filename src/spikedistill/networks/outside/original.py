"""A network of another library as it came, run in its own way: what an adopted one is compared with."""

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SpikedistillError
from ..base import Input
from ..graph import trace
from . import loops, peers
from .adapter import first_tensor

LAYOUTS = ("step", "TNCHW", "NCHW")


class Truth:
    """What the original gave: logits (T, N, K) or (N, K), spikes by neuron and call, and how it gave them."""

    def __init__(self, logits: Tensor, spikes: dict[str, list[Tensor]]) -> None:
        self.logits, self.spikes = logits, spikes


class Original:
    """The network as it came, run in its own way, its states as new before each pass."""

    def __init__(
        self,
        network: nn.Module,
        neurons: list[str],
        T: int,
        input: Input,
        layout: str | None,
        output: int | str | None,
    ) -> None:
        self.model = copy.deepcopy(network).eval()
        self.neurons, self.T, self.input, self.layout, self.output = neurons, T, input, layout, output
        self.notes: list[str] = []
        needed = [
            p for p in inspect.signature(network.forward).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        # of snnTorch's forward(x, mem1, mem2): None starts, and goes on
        self.states = max(0, len(needed) - 1)
        self.carried = "state" in inspect.signature(network.forward).parameters  # Norse's

    def candidates(self) -> list[str]:
        """Layouts to try."""
        if self.layout is not None:
            return [self.layout]
        if self.input == "frames":
            return ["TNCHW"] if self._multi() else ["step", "TNCHW"]
        return ["NCHW", "TNCHW"] if self._multi() else ["NCHW", "step"]

    def run(self, given: Tensor) -> Truth:
        """The first layout that works; twice, to see that nothing is left from the first pass."""
        said = []
        for layout in self.candidates():
            try:
                truth = self.once(given, layout)
                again = self.once(given, layout)
            except Exception as error:  # whatever somebody else's code raises
                said.append(
                    f"layout {layout!r}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                )
                continue
            if not torch.equal(truth.logits, again.logits):
                raise SpikedistillError(
                    "the network gives something else when it runs a second time on the same input: a state "
                    "that its reset does not reach, or chance (dropout in eval mode)"
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
        """Whether a pass over images held time steps of its own: neurons ran T times, or on (T, N, ...)."""
        N = truth.logits.shape[-2]
        spikes = [s for s in truth.spikes.values() if s]
        looped = min((len(s) for s in spikes), default=0)
        inside = {s[0].shape[0] for s in spikes if s[0].dim() > 2 and s[0].shape[1] == N and self._multi()}
        own = looped if looped > 1 else min(inside, default=1)
        if own > 1 and own != self.T:
            raise SpikedistillError(
                f"the network runs {own} time steps by itself; give time_steps={own}, found {self.T}"
                f"{self._mixed_modes()}"
            )
        return own > 1 or (self.T == 1 and self.layout == "NCHW")

    def _mixed_modes(self) -> str:
        """Neurons that count time steps where others do not, in words; nothing where all are alike."""
        found = {path: getattr(self.model.get_submodule(path), "step_mode", None) for path in self.neurons}
        modes = {mode: [path for path in found if found[path] == mode] for mode in ("s", "m")}
        if not modes["s"] or not modes["m"]:
            return ""
        return f" (step mode 'm' in {', '.join(modes['m'])}, but 's' in {', '.join(modes['s'])})"

    def _multi(self) -> bool:
        return any(getattr(m, "step_mode", "s") == "m" for m in self.model.modules())

    def once(self, given: Tensor, layout: str) -> Truth:
        """One pass over T steps from fresh states."""
        _reset(self.model)
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
        # A model that takes (T, N, ...) also runs on one frame (N, ...), with images for its time steps.
        if layout == "step" and any(s and len(s[0]) != N for s in spikes.values()):
            raise SpikedistillError("its neurons do not see the batch: it loops over the first dimension")
        if (
            logits.dim() not in (2, 3)
            or logits.shape[-2] != N
            or (logits.dim() == 3 and len(logits) != self.T)
        ):
            hint = ""
            if logits.dim() == 3 and logits.shape[1] == N:
                hint = f"; if it runs {len(logits)} time steps by itself, give time_steps={len(logits)}"
            raise SpikedistillError(
                f"its output has shape {tuple(logits.shape)}; logits are ({self.T}, {N}, K) or ({N}, K){hint}"
            )
        return Truth(logits, spikes)

    def _frames(self, given: Tensor) -> Tensor:
        return given if self.input == "frames" else given.unsqueeze(0).repeat(self.T, *[1] * given.dim())

    def _pick(self, out: Any) -> Tensor:
        if self.output is not None:
            return out[self.output]
        if isinstance(out, tuple | list | dict):
            given = {
                k: v
                for k, v in (out.items() if isinstance(out, dict) else enumerate(out))
                if isinstance(v, Tensor)
            }
            if len({v.shape[-1:] for v in given.values()}) > 1:
                shapes = ", ".join(f"{k!r} {tuple(v.shape)}" for k, v in given.items())
                note = f"it returns {shapes}; the first is taken for its logits, output= names another"
                if note not in self.notes:
                    self.notes.append(note)
                    warnings.warn(note, stacklevel=2)
        return first_tensor(out)

    @contextmanager
    def _recorded(self, dtype: torch.dtype) -> Iterator[dict[str, list[Tensor]]]:
        """Spikes of every neuron, call by call; snnTorch's come in float32, and go on in the network's."""
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
            if (
                peers.is_neuron(module)
                or peers.layer_of(module) is not None
                or type(module).__name__ == "VotingLayer"
            ):
                module.graph_leaf = True  # type: ignore[assignment]
        _reset(called)
        graph = trace(called, self._frames(given) if self.layout == "TNCHW" else given)
        made = loops.cut(graph, set(self.neurons), self.T, self.layout == "TNCHW")
        self.notes.append("the network's own loop over time is taken out")
        # ``Step`` reads spikes alone, so that no state has to be returned.
        for path, module in list(converted.named_modules()):
            if isinstance(module, peers.Stateful):
                converted.set_submodule(path, module.site)
        return made(converted)


def _reset(model: nn.Module) -> None:
    """States as before a first pass, in each library's own way."""
    # Norse's cells keep nothing: a pass that is given no state is a first one.
    module: Any
    for module in model.modules():
        if peers.library(module) == "spikingjelly" and hasattr(module, "reset"):
            module.reset()
        elif peers.library(module) == "snntorch" and hasattr(module, "reset_mem"):
            module.reset_mem()


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
