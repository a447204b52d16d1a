"""What one forward pass over T time steps knows.

Modules keep no state between passes. A network's ``forward`` and ``step`` open one :class:`Simulation`;
neurons find it with :func:`current` and ask it for the number of time steps, the membrane they start from,
and whether anybody wants to see their insides. Two forward passes, then backward through both, therefore just
works.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_CURRENT: ContextVar["Simulation | None"] = ContextVar("spikedistill_simulation", default=None)


class Simulation:
    """One forward pass: time steps, call counts of reused modules, states in and out, captures.

    ``insides`` names the neuron internals somebody asked for, as ``(path, call, what)`` with ``what`` one of
    ``"spikes"``, ``"membrane"``, ``"current"``; they are found in ``captured`` afterwards. ``state``
    (streaming only) maps ``"path#k"`` to the membrane a neuron starts from; ``state_out`` collects where it
    ended. ``step`` is the index of the first time step, more than 0 only when streaming. ``tape``: of
    rate-based backpropagation, which makes two passes of one (:mod:`.neurons.rates`).
    """

    def __init__(
        self,
        network: nn.Module,
        time_steps: int | None,
        *,
        insides: Iterable[tuple[str, int, str]] = (),
        state: dict[str, Any] | None = None,
        tape: Any = None,
    ) -> None:
        self.network = network
        self.time_steps = time_steps
        self.insides = frozenset(insides)
        self.state = state
        self.state_out: dict[str, Any] = {}
        self.step: int = state["step"] if state else 0
        self.streaming = state is not None
        self.recomputing = False
        self.tape = tape
        self.captured: dict[tuple[str, int, str], Tensor] = {}
        self._calls: dict[int, int] = {}
        self._paths: dict[int, str] | None = None

    def path(self, module: nn.Module) -> str:
        """Path of ``module`` within the network (its first, if it is registered several times)."""
        # At the first need: most passes ask for no path, and walking a network's modules costs in each.
        if self._paths is None:
            self._paths = {id(m): name for name, m in self.network.named_modules()}
        return self._paths.get(id(module), "")

    def call(self, module: nn.Module) -> int:
        """Count one call of ``module`` and return its number, from 0."""
        k = self._calls.get(id(module), 0)
        self._calls[id(module)] = k + 1
        return k

    def wants(self, module: nn.Module, call: int, what: str) -> bool:
        """Whether somebody asked for ``what`` of this call of ``module``."""
        # The cheap half first: every neuron asks in every pass, and mostly nothing is wanted.
        return bool(self.insides) and (self.path(module), call, what) in self.insides

    def keep(self, module: nn.Module, call: int, what: str, value: Tensor) -> None:
        """Hand over something that was asked for."""
        if not self.recomputing:
            self.captured[(self.path(module), call, what)] = value

    def initial(self, module: nn.Module, call: int) -> Tensor | None:
        """Membrane with which this call of ``module`` starts, or None for the neuron's own initial value."""
        return self.state.get(f"{self.path(module)}#{call}") if self.state else None

    def final(self, module: nn.Module, call: int, membrane: Tensor) -> None:
        """Remember where a neuron ended, when streaming."""
        if self.streaming:
            self.state_out[f"{self.path(module)}#{call}"] = membrane

    def snapshot(self) -> dict[int, int]:
        """The call counts now; recomputation in the backward pass re-enters them with :meth:`reenter`."""
        return dict(self._calls)

    @contextmanager
    def reenter(self, snapshot: dict[int, int]) -> Iterator["Simulation"]:
        """Run a part of this pass again, as at ``snapshot``; statistics and captures are not taken twice."""
        calls, recomputing = self._calls, self.recomputing
        # A copy, in which calls are counted: a second backward enters the same snapshot again.
        self._calls, self.recomputing = dict(snapshot), True
        # Backward comes after the pass has ended, and on a GPU in another thread, whose context is empty.
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)
            self._calls, self.recomputing = calls, recomputing

    def __enter__(self) -> "Simulation":
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.reset(self._token)


def current() -> Simulation | None:
    """The simulation that is running, or None when a module is used alone."""
    return _CURRENT.get()


def steps(own: int) -> int:
    """Time steps of the simulation that is running; ``own`` where there is none, or it leaves them open."""
    sim = current()
    return own if sim is None or sim.time_steps is None else sim.time_steps


_OVERRIDE: ContextVar[tuple[nn.Module, int] | None] = ContextVar("spikedistill_time_steps", default=None)


@contextmanager
def time_steps(network: nn.Module, steps: int) -> Iterator[None]:
    """Run ``network`` for ``steps`` time steps within this context: the first of its simulation, or more.

    On event frames the groups stay those of the network's own T; later steps repeat the frames from the
    start.
    """
    if steps < 1:
        raise ValueError(f"time_steps must be at least 1, found {steps}")
    token = _OVERRIDE.set((network, steps))
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


def steps_for(network: nn.Module, own: int | None) -> int | None:
    """Time steps of the next simulation of ``network``, whose own number is ``own``."""
    override = _OVERRIDE.get()
    # For that network alone: a teacher that runs within keeps its own T, an ANN has none.
    if own is not None and override is not None and override[0] is network:
        return override[1]
    return own


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards each module as it was: a user may have frozen some of them."""
    flags = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
