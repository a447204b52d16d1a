"""Neurons as modules: thin shells over :mod:`.dynamics` that fold time into the batch.

Tensors are ``(T*N, ...)``, time-major. An encoding neuron takes a constant current ``(N, ...)`` and gives
``(T*N, ...)``.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import own_code, simulation
from ..errors import SpikedistillError
from ..numerics import at_least_float32
from ..signatures import tell_whole
from . import dynamics, fused
from .dynamics import Constants, Grid, Number, Reset
from .simulate import simulate
from .surrogate import Surrogate

RESETS = ("hard", "soft", None)


class Neuron(nn.Module):
    """What all neurons share: constants, time's view, streaming, captures. Use a subclass.

    ``surrogate``: None is ``atan``, and in a balanced network the one that suits the neuron. ``reset_by``: a
    soft reset subtracts so many thresholds (snnTorch subtracts one undecayed threshold a step later:
    ``reset_by = 1 / decay``). A subclass may hand on these options as ``**common``.
    """

    grid: Grid | None = None  # set by quantization: then current, H and V are integer codes
    recipe_type: str | None = None  # under which a recipe asked for it
    seldom: Mapping[str, Any] = {"encode": False, "reset_by": 1.0}  # left out of a record where they are so
    suited: Surrogate | None = None  # the surrogate that a balance chose; its width is told in thresholds
    stretch = 1.0  # what the surrogate's width is multiplied by, after the threshold that a balance moved

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        tell_whole(cls, Neuron, list(inspect.signature(Neuron.__init__).parameters)[1:])

    def __init__(
        self,
        threshold: float = 1.0,
        reset: Reset = "hard",
        surrogate: str | Surrogate | Mapping[str, Any] | None = None,
        time_steps: int = 4,
        initial: float = 0.0,
        detach_reset: bool = True,
        encode: bool = False,
        smooth: bool = False,
        reset_by: float = 1.0,
    ) -> None:
        super().__init__()
        if not threshold > 0:
            raise SpikedistillError(f"threshold must be more than 0, found {threshold}")
        if reset not in RESETS:
            raise SpikedistillError(f"reset must be 'hard', 'soft' or None, found {reset!r}")
        if time_steps < 1:
            raise SpikedistillError(f"time_steps must be at least 1, found {time_steps}")
        self.threshold, self.reset = float(threshold), reset
        # A balanced network chooses the surrogate where the user has not (networks/balanced.py).
        self.surrogate_chosen = surrogate is not None
        self.surrogate = Surrogate.of("atan" if surrogate is None else surrogate)
        self.time_steps, self.initial = time_steps, float(initial)
        self.detach_reset, self.encode, self.smooth = detach_reset, encode, smooth
        if not 0 < reset_by < math.inf:
            raise SpikedistillError(f"reset_by must be a number of thresholds above 0, found {reset_by}")
        if reset_by != 1 and reset != "soft":
            raise SpikedistillError(
                f"reset_by is what a soft reset subtracts; found {reset_by} with reset={reset!r}"
            )
        self.reset_by = float(reset_by)

    def move_threshold(self, threshold: float) -> None:
        """Another threshold; where the neuron starts is told in thresholds and moves along."""
        self.initial *= threshold / self.threshold
        self.threshold = threshold

    @property
    def decay(self) -> Number:
        """What is left of the membrane after a step."""
        return 1.0

    @property
    def gain(self) -> Number:
        """Factor on the current."""
        return 1.0

    @property
    def constants(self) -> Constants:
        """All but decay, gain and initial value."""
        return Constants(
            self.threshold,
            self.reset,
            self.surrogate,
            self.detach_reset,
            self.smooth,
            self.grid,
            self.reset_by,
            self.stretch,
        )

    @property
    def leaky(self) -> bool:
        """Whether the membrane decays."""
        return not (isinstance(self.decay, float) and self.decay == 1.0)

    @property
    def unit(self) -> float:
        """Value of one unit of H: 1 unless the membrane lies on a grid."""
        return 1.0 if self.grid is None else self.grid.unit

    @property
    def current_unit(self) -> float:
        """Value of one unit of the current that charges it."""
        return self.unit

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a streamed state, where one step's current is ``shape`` (N, ...)."""
        return shape

    def spec(self) -> dict[str, Any]:
        """The neuron as a recipe's mapping, every value in force: ``build(neuron.spec())`` makes its like.

        ``encode``, which is the site's matter, and what few neurons have are named only where they are not as
        usual.
        """
        cls = type(self)
        shipped = cls.__module__.startswith("spikedistill.")
        # Of a script's class an address that finds nothing elsewhere, not a name that may be another's.
        kind = cls.__name__.lower() if shipped else f"{cls.__module__}:{cls.__qualname__}"
        out: dict[str, Any] = {"type": self.recipe_type or kind}
        for name in inspect.signature(type(self)).parameters:
            if name == "time_steps":
                continue
            value = self._spec_value(name)
            if name in self.seldom and value == self.seldom[name]:
                continue
            out[name] = {"name": value.name, "alpha": value.alpha} if isinstance(value, Surrogate) else value
        return out

    def _spec_value(self, name: str) -> Any:
        value = getattr(self, name)
        # Only a rectangle is stretched, whose alpha is its width.
        stretched = name == "surrogate" and self.stretch != 1
        return Surrogate(value.name, value.alpha * self.stretch) if stretched else value

    def forward(self, current: Tensor) -> Tensor:
        """Current (T*N, ...) to spikes (T*N, ...); with ``encode`` from a constant current (N, ...)."""
        return simulate(current, self, self)

    @property
    def rebuilds(self) -> bool:
        """Whether ``build`` makes its like of :meth:`spec`: not of a class of a script or function."""
        cls = type(self)
        return cls.__module__.startswith("spikedistill.") or own_code.address_of(cls) is not None

    @property
    def standard(self) -> bool:
        """Whether it computes by the equations of :mod:`.dynamics`; with a ``simulate`` of its own: no."""
        return type(self).simulate is Neuron.simulate

    @property
    def priced(self) -> bool:
        """Whether the chip models know what one step of it costs."""
        return self.standard

    @property
    def binary(self) -> bool:
        """Whether its spikes are known to be zeros and ones."""
        return self.standard

    def fusable(self, current: Tensor) -> bool:
        """Whether the fused arithmetic knows this neuron, and runs here now."""
        return self.standard and (self.grid is None or self.grid.fusable) and fused.usable(current)

    def simulate(
        self, current: Tensor, state: Tensor | None, T: int, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Scan over T; current (T, N, ...), or (N, ...) for an encoding neuron; state in at least float32."""
        wide = at_least_float32(current)
        if state is None:
            like = wide if self.encode else wide[0]
            # Half-up, as the integer file has it: both forms must start from the same code.
            initial = self.initial if self.grid is None else math.floor(self.initial / self.grid.unit + 0.5)
            state = torch.full_like(like, initial)
        with torch.autocast(current.device.type, enabled=False):
            spikes, charged, last = dynamics.scan(
                wide, state, self.decay, self.gain, self.constants, membrane, T if self.encode else None
            )
        return spikes.to(current.dtype), charged, last

    def extra_repr(self) -> str:
        said = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = None if name == "time_steps" else self._spec_value(name)
            if isinstance(value, Surrogate):
                plain = value == Surrogate(value.name)
                value = value.name if plain else {"name": value.name, "alpha": value.alpha}
            if name != "time_steps" and value != parameter.default:
                said.append(f"{name}={value!r}")
        return ", ".join(said)


class IF(Neuron):
    """Integrate and fire: ``H_t = V_{t-1} + I_t``.

    Shape: (T*N, ...) to (T*N, ...); with ``encode`` (N, ...) to (T*N, ...).
    """


class LIF(Neuron):
    """Leaky integrate and fire: ``H_t = decay * V_{t-1} + gain * I_t``.

    ``LIF(tau)`` has decay ``1 - 1/tau`` and gain ``1/tau`` (SpikingJelly's default form, tau = 2);
    ``LIF(decay=0.25)`` has gain 1 (the MS-ResNet convention). Giving both tau and decay is an error.
    Shape: (T*N, ...) to (T*N, ...); with ``encode`` (N, ...) to (T*N, ...).
    """

    def __init__(
        self,
        tau: float | None = None,
        decay: float | None = None,
        gain: float | None = None,
        threshold: float = 1.0,
        reset: Reset = "hard",
        surrogate: str | Surrogate | Mapping[str, Any] | None = None,
        time_steps: int = 4,
        initial: float = 0.0,
        detach_reset: bool = True,
        encode: bool = False,
        smooth: bool = False,
        reset_by: float = 1.0,
    ) -> None:
        super().__init__(
            threshold, reset, surrogate, time_steps, initial, detach_reset, encode, smooth, reset_by
        )
        if tau is not None and decay is not None:
            raise SpikedistillError(f"LIF takes tau or decay, not both; found tau={tau}, decay={decay}")
        if decay is None:
            tau = 2.0 if tau is None else float(tau)
            if not tau >= 1:
                raise SpikedistillError(f"LIF: tau must be at least 1, found {tau}")
            self._decay, self._gain = 1 - 1 / tau, 1 / tau if gain is None else float(gain)
        else:
            if not 0 <= decay <= 1:
                raise SpikedistillError(f"LIF: decay must be between 0 and 1, found {decay}")
            self._decay, self._gain = float(decay), 1.0 if gain is None else float(gain)
        self.tau = tau
        # As given: a gain that follows from tau is not recorded as a choice.
        self._given_gain = gain

    @property
    def decay(self) -> Number:
        return self._decay

    @property
    def gain(self) -> Number:
        return self._gain

    def _spec_value(self, name: str) -> Any:
        if name == "decay":
            return self._decay if self.tau is None else None
        if name == "gain":
            return self._given_gain
        return super()._spec_value(name)


class PLIF(Neuron):
    """LIF with a learned time constant, one per layer: ``1/tau = sigmoid(w)``, ``w = -ln(init_tau - 1)``.

    Decay ``1 - 1/tau``, gain ``1/tau``, or a constant ``gain`` (1: SpikingJelly's ``decay_input=False``).
    Fang et al., "Incorporating learnable membrane time constant to enhance learning of spiking neural
    networks", ICCV 2021. Shape: (T*N, ...) to (T*N, ...).
    """

    seldom = {**Neuron.seldom, "gain": None}

    def __init__(
        self,
        init_tau: float = 2.0,
        threshold: float = 1.0,
        reset: Reset = "hard",
        surrogate: str | Surrogate | Mapping[str, Any] | None = None,
        time_steps: int = 4,
        initial: float = 0.0,
        detach_reset: bool = True,
        encode: bool = False,
        smooth: bool = False,
        reset_by: float = 1.0,
        gain: float | None = None,
    ) -> None:
        super().__init__(
            threshold, reset, surrogate, time_steps, initial, detach_reset, encode, smooth, reset_by
        )
        if not init_tau > 1:
            raise SpikedistillError(f"PLIF: init_tau must be more than 1, found {init_tau}")
        self.init_tau, self._given_gain = float(init_tau), None if gain is None else float(gain)
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1)))

    @property
    def decay(self) -> Number:
        return 1 - torch.sigmoid(self.w)

    @property
    def gain(self) -> Number:
        return torch.sigmoid(self.w) if self._given_gain is None else self._given_gain

    def extra_repr(self) -> str:
        present = f"tau={float(1 + torch.exp(-self.w.detach())):.4g}"
        return ", ".join(said for said in (super().extra_repr(), present) if said)

    def _spec_value(self, name: str) -> Any:
        return self._given_gain if name == "gain" else super()._spec_value(name)


class Repeat(nn.Module):
    """Gives every time step the same tensor: (N, ...) to (T*N, ...)."""

    def __init__(self, time_steps: int = 4) -> None:
        super().__init__()
        self.time_steps = time_steps

    def forward(self, x: Tensor) -> Tensor:
        T = simulation.steps(self.time_steps)
        return x.unsqueeze(0).expand(T, *x.shape).flatten(0, 1)
