"""Parallel spiking neurons: no reset, so that all time steps are one product with a matrix over time.

    H_t = sum_j W_tj I_j + b_t,    S_t = [H_t >= threshold]

Fang, Yu, Zhou, Chen, Chen, Ma, Masquelier, Tian, "Parallel spiking neurons with high efficiency and ability
to learn long-term dependencies", NeurIPS 2023. ``PSN`` has all of W, so a step sees later ones; ``MaskedPSN``
keeps a band of ``order`` diagonals, ``SlidingPSN`` one weight per lag, the same at every step. W and b are
learned, one of each per layer. The paper's threshold B_t is ``threshold - b_t``; SpikingJelly's bias is ``b_t
- threshold``.
"""

import math
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from .. import simulation
from ..errors import SpikedistillError
from ..numerics import at_least_float32
from ..signatures import tell_whole
from .modules import Neuron
from .surrogate import fire

Init = Literal["exponential", "uniform"]


class Common(TypedDict, total=False):
    """What every parallel neuron takes; :class:`Parallel` has the defaults."""

    threshold: float
    surrogate: Any
    time_steps: int
    encode: bool
    smooth: bool


class Parallel(Neuron):
    """What parallel neurons share: the product over time, streaming, the grid. Use one of its subclasses.

    Quantization sets ``grid`` to a :class:`spikedistill.quantization.temporal.TemporalGrid`.
    """

    grid: Any = None
    kind = ""  # the recipe's name
    tied = False  # whether weights belong to one T
    weight: nn.Parameter
    bias: nn.Parameter

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        tell_whole(cls, Parallel, Common.__annotations__)

    def __init__(
        self,
        init: Init,
        threshold: float = 1.0,
        surrogate: Any = None,
        time_steps: int = 4,
        encode: bool = False,
        smooth: bool = False,
    ) -> None:
        if init not in get_args(Init):
            raise SpikedistillError(f"{self.kind}: init must be 'exponential' or 'uniform', found {init!r}")
        self.init = ""  # no weights yet
        super().__init__(threshold, None, surrogate, time_steps, 0.0, True, encode, smooth)
        self.init = init

    @property
    def taps(self) -> int:
        """Most currents that one H sums."""
        raise NotImplementedError

    @property
    def binary(self) -> bool:
        return type(self).simulate in (Parallel.simulate, MaskedPSN.simulate)

    @property
    def causal(self) -> bool:
        """Whether no step sees a later one, so that the neuron can be streamed."""
        return True

    def whole(self) -> Tensor:
        """All weights that count: (T, T), or (k,) where they slide."""
        return self.weight

    def reset_parameters(self) -> None:
        """Weights and bias as at the start; ``uniform`` ones drawn anew."""
        raise NotImplementedError

    def matrix(self, start: int, T: int, history: bool) -> Tensor:
        """W of steps ``start`` to ``start + T - 1``: (T, T), or with ``history`` (T, taps - 1 + T).

        The latter includes the steps before.
        """
        raise NotImplementedError

    def matrix_bias(self, start: int, T: int) -> Tensor:
        """b of these steps: (T,) or a number."""
        return self.bias

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "type": self.kind}

    @property
    def current_unit(self) -> float:
        return 1.0 if self.grid is None else self.grid.current_unit

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a streamed state: the last ``taps - 1`` currents, (N, taps - 1, ...)."""
        return (shape[0], self.taps - 1, *shape[1:])

    def _check(self, T: int, streaming: bool) -> None:
        if streaming and not self.causal:
            raise SpikedistillError(
                f"{self.kind} {self._needs_all}: it cannot be streamed step by step; {self._instead}"
            )

    _needs_all = "sums over all time steps, later ones included"
    _instead = "run the whole simulation with network(x), or take sliding_psn"

    def simulate(
        self, current: Tensor, state: Tensor | None, T: int, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """All steps at once; current (T, N, ...), or (N, ...) if it encodes; state (N, taps - 1, ...)."""
        sim = simulation.current()
        streaming = state is not None or (sim is not None and sim.streaming)
        start = sim.step if sim is not None and streaming else 0
        self._check(start + T, streaming)
        wide = at_least_float32(current)
        if self.encode:
            wide = wide.expand(T, *wide.shape)
        past = wide
        if streaming:
            shape = self.state_shape(tuple(wide.shape[1:]))
            before = wide.new_zeros(shape) if state is None else state.to(wide.dtype)
            past = torch.cat([before.transpose(0, 1), wide])
        with torch.autocast(current.device.type, enabled=False):
            W, b = self.matrix(start, T, streaming), self.matrix_bias(start, T)
            if self.grid is not None:
                h, threshold = self.grid.charge(W, past, b), self.grid.threshold
            else:
                h, threshold = product(W.to(wide.dtype), past, b.to(wide.dtype)), self.threshold
            spikes = fire(h - threshold, self.surrogate, self.smooth, self.constants.scale)
        # Counted from the front: with one tap [-(taps - 1):] would be everything and not nothing.
        last = past[past.shape[0] - (self.taps - 1) :].transpose(0, 1) if streaming else wide[-1]
        return spikes.to(current.dtype), h if membrane else None, last


def product(W: Tensor, current: Tensor, bias: Tensor) -> Tensor:
    """``W @ current + bias`` over the first axis: W (T, M), (M, N, ...), bias (T,) or () to (T, N, ...).

    The layout of a step in memory is kept (channels last stays so), so that nothing is copied.
    """
    strides: tuple[int, ...] = current.stride()
    order = sorted(range(1, current.dim()), key=lambda d: (-strides[d], d))
    laid = current.permute(0, *order)
    h = torch.addmm(bias.view(-1, 1), W, laid.flatten(1)).view(W.shape[0], *laid.shape[1:])
    return h.permute(0, *(1 + order.index(d) for d in range(1, current.dim())))


def _uniform(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


class _Tied(Parallel):
    """Weights for one T: a matrix, one bias a step."""

    tied = True

    @property
    def time_steps(self) -> int:
        """T; setting another one makes new weights."""
        return self._T

    @time_steps.setter
    def time_steps(self, value: int) -> None:
        if value == self.__dict__.get("_T"):
            return
        self._T = value
        if self.init:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        T = self.time_steps
        old = self._parameters.get("weight")
        # Another T must not bring frozen, moved or double weights back to the defaults.
        like: dict[str, Any] = {} if old is None else {"dtype": old.dtype, "device": old.device}
        learns = old is None or old.requires_grad
        weight = torch.empty(T, T, **like)
        if self.init == "uniform":
            _uniform(weight)
        else:
            with torch.no_grad():
                weight.copy_(band(_halves(T, weight), T))
        self.weight = nn.Parameter(weight, learns)
        self.bias = nn.Parameter(torch.zeros(T, **like), learns)

    @property
    def taps(self) -> int:
        return self.time_steps

    def matrix(self, start: int, T: int, history: bool) -> Tensor:
        W = self.whole()
        if not history:
            return W
        # Columns of zeros stand for the currents before the first step.
        return nn.functional.pad(W, (self.taps - 1, 0))[start : start + T, start : start + T + self.taps - 1]

    def matrix_bias(self, start: int, T: int) -> Tensor:
        return self.bias[start : start + T]

    def _check(self, T: int, streaming: bool) -> None:
        super()._check(T, streaming)
        own = self.time_steps
        if own != T and not (streaming and own > T):
            raise SpikedistillError(
                f"{self.kind} has weights for T = {own} time steps, found T = {T}; make and train the "
                "network at that T, or take sliding_psn, which runs at any"
            )


class PSN(_Tied):
    """The parallel spiking neuron: W (T, T) and b (T,) learned, every step sees all steps.

    ``init``: of W, ``exponential`` (causal, 1/2 per step back) or the paper's ``uniform`` (Kaiming,
    +-1/sqrt(T)), with which a step whose weights come out small starts silent in its whole layer. Tied to its
    T: another one, and streaming, are errors. Shape: (T*N, ...) to (T*N, ...); with ``encode`` (N, ...) to
    (T*N, ...).
    """

    kind = "psn"

    def __init__(self, *, init: Init = "exponential", **common: Unpack[Common]) -> None:
        super().__init__(init, **common)
        self.reset_parameters()

    @property
    def causal(self) -> bool:
        return False


class MaskedPSN(_Tied):
    """The masked parallel spiking neuron: of W only the ``order`` diagonals at and below the main one count.

    The mask may come in slowly: ``W * (lambda * band + 1 - lambda)``, lambda from ``mask_start`` to 1 over
    the first ``anneal`` forward passes in training (the reference's ``lambda_init`` and the paper's
    progressive masking; 0: the band from the start). The passes are counted in the buffer ``passes``. Tied to
    its T; it streams once the mask is whole. Shape: as :class:`PSN`.
    """

    kind = "masked_psn"
    passes: Tensor

    def __init__(
        self,
        order: int = 2,
        anneal: int = 0,
        mask_start: float = 0.0,
        *,
        init: Init = "exponential",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(init, **common)
        _whole(self.kind, "order", order, 1)
        _whole(self.kind, "anneal", anneal, 0)
        if not 0 <= mask_start <= 1:
            raise SpikedistillError(f"masked_psn: mask_start must be between 0 and 1, found {mask_start}")
        self.order, self.anneal, self.mask_start = order, anneal, float(mask_start)
        self.register_buffer("passes", torch.tensor(0, dtype=torch.long))
        self.reset_parameters()

    @property
    def mask(self) -> float:
        """lambda: 1 where the band alone counts."""
        if self.anneal == 0:
            return 1.0
        return min(1.0, self.mask_start + (1 - self.mask_start) * int(self.passes.item()) / self.anneal)

    @property
    def taps(self) -> int:
        return min(self.order, self.time_steps) if self.causal else self.time_steps

    @property
    def causal(self) -> bool:
        return self.mask >= 1.0

    _needs_all = "still sees all steps, its mask is not whole"
    _instead = "train on until `anneal` passes are over"

    def whole(self) -> Tensor:
        m = self.mask
        i = torch.arange(self.time_steps, device=self.weight.device)
        lag = i[:, None] - i
        inside = ((lag >= 0) & (lag < self.order)).to(self.weight.dtype)
        return self.weight * (inside if m >= 1.0 else m * inside + (1 - m))

    def simulate(
        self, current: Tensor, state: Tensor | None, T: int, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        out = super().simulate(current, state, T, membrane)
        if self.training and self.anneal:
            self.passes += 1
        return out


class SlidingPSN(Parallel):
    """Sliding parallel neuron: ``H_t = sum_i w_i I_(t-k+1+i) + b``, k = ``order``, the same at every step.

    ``init``: of w, ``exponential`` (..., 1/4, 1/2, 1) as in the paper, or ``uniform`` (Kaiming, +-1/sqrt(k)).
    Runs at any T and streams: the state is the last k - 1 currents. Shape: as :class:`PSN`.
    """

    kind = "sliding_psn"

    def __init__(self, order: int = 2, *, init: Init = "exponential", **common: Unpack[Common]) -> None:
        super().__init__(init, **common)
        _whole(self.kind, "order", order, 1)
        self.order = order
        self.weight, self.bias = nn.Parameter(torch.empty(order)), nn.Parameter(torch.tensor(0.0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.bias.zero_()
            if self.init == "uniform":
                _uniform(self.weight.view(1, -1))
            else:
                self.weight.copy_(_halves(self.order, self.weight))

    @property
    def taps(self) -> int:
        return self.order

    def matrix(self, start: int, T: int, history: bool) -> Tensor:
        before = self.order - 1
        W = band(self.weight, T + before)[before:]
        return W if history else W[:, before:]


def _halves(count: int, like: Tensor) -> Tensor:
    """(..., 1/4, 1/2, 1), of the weights' type whatever torch's default is."""
    return 0.5 ** torch.arange(count - 1, -1, -1, dtype=like.dtype, device=like.device)


def band(weight: Tensor, T: int) -> Tensor:
    """(T, T) with ``weight[k - 1 - i]`` on the i-th diagonal below the main one. Shape: weight (k,)."""
    i = torch.arange(T, device=weight.device)
    lag = i[:, None] - i
    k = weight.shape[0]
    return torch.where((lag >= 0) & (lag < k), weight[(k - 1 - lag).clamp(0, k - 1)], weight.new_zeros(()))


def _whole(kind: str, name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpikedistillError(f"{kind}: {name} must be a whole number from {least}, found {value!r}")


TIED = frozenset({PSN.kind, MaskedPSN.kind})
"""Types whose weights belong to one T."""

__all__ = ["PSN", "TIED", "MaskedPSN", "Parallel", "SlidingPSN", "band", "product"]
