"""The one way from a current to spikes, for a neuron that stands alone and for one behind a norm.

What the running simulation asks for decides how: nothing, or membranes alone, and norm, residual and neuron
run as one operation (:mod:`.fused`); currents, or states that stream, and they run one after the other, the
neuron by its own ``simulate`` (the equations of :mod:`.dynamics`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import simulation
from ..errors import SpikedistillError
from . import fused, packing, rates, single_step
from .dynamics import Constants, Number


class Firing(Protocol):
    """What is asked of a neuron: :class:`.modules.Neuron` says what each means."""

    time_steps: int
    encode: bool
    smooth: bool
    initial: float
    detach_reset: bool
    grid: Any

    @property
    def decay(self) -> Number: ...
    @property
    def gain(self) -> Number: ...
    @property
    def constants(self) -> Constants: ...
    @property
    def leaky(self) -> bool: ...
    @property
    def standard(self) -> bool: ...
    @property
    def binary(self) -> bool: ...
    @property
    def unit(self) -> float: ...
    @property
    def current_unit(self) -> float: ...
    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...
    def fusable(self, current: Tensor) -> bool: ...
    def simulate(
        self, current: Tensor, state: Tensor | None, T: int, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]: ...


class Charging(Protocol):
    """What is asked of the norm before it: :class:`.norm_neuron.NormNeuron`."""

    def fusable(self, x: Tensor) -> bool: ...
    def current(self, x: Tensor, residual: Tensor | None) -> Tensor: ...
    def for_fused(self, x: Tensor, residual: Tensor | None) -> Any: ...


def simulate(
    current: Tensor, neuron: Firing, owner: nn.Module, norm: Charging | None = None,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Spikes (T*N, ...) of ``neuron`` from the current (T*N, ...), or a constant one (N, ...) if it encodes.

    ``owner``: the module whose path captures and streamed states are filed under. With ``norm`` what charges
    the neuron is ``norm.current(current, residual)``.
    """
    sim = simulation.current()
    if sim is None:
        _check_alone(owner)
    elif not torch.compiler.is_compiling():
        # What running alone would not give again.
        owner.__dict__["_needs_simulation"] = sim.tape is not None or sim.time_steps not in (
            None, neuron.time_steps,
        )  # fmt: skip
    T = simulation.steps(neuron.time_steps)
    if not neuron.encode and current.shape[0] % T:
        raise SpikedistillError(
            f"{type(neuron).__name__}: the first dimension of the current is T*N; found "
            f"{tuple(current.shape)}, not a multiple of T = {T}; set time_steps, or open a simulation with "
            "the right T"
        )
    # Calls are counted in the order of execution, so that a module used twice has two states.
    k = sim.call(owner) if sim else 0
    if sim is not None and sim.tape is not None:
        spikes = _of_rates(sim.tape, current, neuron, owner, norm, residual, T)
        _capture(sim, owner, k, neuron, current, spikes, None, T)
        return spikes
    state = sim.initial(owner, k) if sim else None
    shape = neuron.state_shape((current.shape[0] // (1 if neuron.encode else T), *current.shape[1:]))
    if state is not None and state.shape != shape:
        own = "" if neuron.standard else " (where a state is no membrane, state_shape has to say its shape)"
        raise SpikedistillError(
            f"{type(neuron).__name__}: the streamed state has shape {tuple(state.shape)}, the input asks for "
            f"{shape}; start a new stream with state=None when the batch changes{own}"
        )
    membrane = sim is not None and sim.wants(owner, k, "membrane")
    stepwise = sim is not None and (sim.streaming or sim.wants(owner, k, "current"))
    constant = neuron.encode and residual is not None  # rare enough not to have kernels of its own
    # The norm first: one that is quantized puts the neuron on its grid.
    if norm is not None and (
        stepwise or constant or not norm.fusable(current) or not neuron.fusable(current)
    ):
        current, norm, residual = norm.current(current, residual), None, None
    # Asked again: the current is another one.
    fusable = not stepwise and neuron.fusable(current)
    single = fusable and T == 1 and not membrane
    if single and single_step.applies(current, norm, neuron.decay, neuron.gain, neuron.constants):
        charged = None
        spikes = single_step.run(
            current, norm, residual, neuron.decay, neuron.gain, neuron.initial, neuron.constants
        )
    elif fusable:
        affine, batch = None, None
        if norm is not None:
            affine, batch, residual = norm.for_fused(current, residual)
        spikes, charged = fused.run(
            current, T, neuron.encode, neuron.decay, neuron.gain, neuron.initial, neuron.constants,
            affine=affine, batch=batch, residual=residual, membrane=membrane,
        )  # fmt: skip
    else:
        steps = current if neuron.encode else current.unflatten(0, (T, -1))
        spikes, charged, last = neuron.simulate(steps, state, T, membrane)
        spikes = spikes.flatten(0, 1)
        if sim is not None:
            sim.final(owner, k, last)
    # Zeros and ones only: the packer keeps one bit a value and would lose anything else.
    if not neuron.smooth and neuron.binary:
        packing.emitted(spikes)
    if sim is not None:
        _capture(sim, owner, k, neuron, current, spikes, charged, T)
    return spikes


def _check_alone(owner: nn.Module) -> None:
    """Refuse to be computed a second time in backward where the simulation that was running is gone."""
    if owner.__dict__.get("_needs_simulation") and torch._C._current_graph_task_id() != -1:
        raise SpikedistillError(
            f"{type(owner).__name__}: torch.utils.checkpoint computes it a second time in backward, where "
            "its time steps are no longer known; make the network with the T that it runs at, or take "
            "a recipe's memory: lean in place of checkpoint"
        )


def _of_rates(
    tape: rates.Tape, current: Tensor, neuron: Firing, owner: nn.Module, norm: Charging | None,
    residual: Tensor | None, T: int,
) -> Tensor:  # fmt: skip
    """Rate-based backpropagation: spikes (T*N, ...) in its first pass, the rate (N, ...) in its second."""
    if not tape.recording:
        return tape.rate(owner, current if norm is None else norm.current(current, residual))
    constant = neuron.encode and residual is not None  # as in simulate
    if norm is not None and (constant or not norm.fusable(current) or not neuron.fusable(current)):
        current, norm, residual = norm.current(current, residual), None, None
    with _reset_attached(neuron):
        if neuron.fusable(current):
            affine, batch = None, None
            if norm is not None:
                affine, batch, residual = norm.for_fused(current, residual)
            spikes, *kept = fused.rates(
                current, T, neuron.encode, neuron.decay, neuron.gain, neuron.initial, neuron.constants,
                affine=affine, batch=batch, residual=residual,
            )  # fmt: skip
        else:

            def spikes_of(leaf: Tensor) -> Tensor:
                steps = leaf if neuron.encode else leaf.unflatten(0, (T, -1))
                return neuron.simulate(steps, None, T, False)[0].flatten(0, 1)

            spikes, *kept = rates.differentiated(current, spikes_of, tape)
    tape.keep(owner, *kept)
    return spikes


@contextmanager
def _reset_attached(neuron: Firing) -> Iterator[None]:
    """A neuron without a leak is differentiated through its reset within this context.

    With a detached one the derivative of its rate grows with every step, and gradients with every layer.
    """
    held = neuron.detach_reset
    neuron.detach_reset = held and neuron.leaky
    try:
        yield
    finally:
        neuron.detach_reset = held


def _capture(
    sim: simulation.Simulation, owner: nn.Module, k: int, neuron: Firing, current: Tensor, spikes: Tensor,
    charged: Tensor | None, T: int,
) -> None:  # fmt: skip
    """Hand over what was asked for, as (T, N, ...); currents and membranes in real units."""
    unit = neuron.unit if neuron.grid else None
    if charged is not None:
        sim.keep(owner, k, "membrane", charged if unit is None else charged * unit)
    if sim.wants(owner, k, "spikes"):
        sim.keep(owner, k, "spikes", spikes.unflatten(0, (T, -1)))
    if sim.wants(owner, k, "current"):
        kept = (
            current.unsqueeze(0).expand(T, *current.shape) if neuron.encode else current.unflatten(0, (T, -1))
        )
        sim.keep(owner, k, "current", kept if unit is None else kept * neuron.current_unit)
