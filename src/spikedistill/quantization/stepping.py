"""An integer network one time step at a time, with exactly the state that a chip would keep between steps.

A neuron with a membrane keeps V. A neuron with weights over time keeps no membrane: where the layer before it
reads spikes, it keeps the last ``taps - 1`` steps of *these spikes*, packed at their bits, and sums the
layer's weights for them again,

    H_t = sum_i w_i * current(W s_(t-i)) + b

else (behind an image, a sum, a residual) the last ``taps - 1`` integer currents. Behind a constant image it
keeps nothing: its currents are all the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SpikedistillError
from . import executor
from .bit_packing import pack, unpack


@dataclass(frozen=True)
class State:
    """Between two steps: how many have run; by the path of each neuron what it keeps.

    ``membranes`` (N, ...) integers; ``bits``: packed spikes (N, taps - 1, bytes), the latest last;
    ``currents`` (N, taps - 1, ...) integers.
    """

    steps: int
    membranes: dict[str, Tensor]
    bits: dict[str, Tensor]
    currents: dict[str, Tensor]


START = State(0, {}, {}, {})


def packed(x: Tensor, bits: int) -> Tensor:
    """Counts (N, ...) from 0 to ``2^bits - 1`` as bytes (N, B)."""
    flat = x.flatten(1)
    # To whole bytes an image: each one's codes have to be a row of their own.
    flat = F.pad(flat, (0, -flat.shape[1] % 8))
    return pack(flat - (1 << (bits - 1)), bits).view(len(x), -1)


def unpacked(kept: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The counts again, (N, ...); ``shape``: of one image."""
    values = unpack(kept.flatten(), bits, (len(kept), kept.shape[1] * 8 // bits)).to(torch.int32) + (
        1 << (bits - 1)
    )
    count = torch.Size(shape).numel()
    return values[:, :count].reshape(len(kept), *shape)


class Stepper:
    """Runs the operations of an integer network at single steps."""

    def __init__(
        self, ops: list[dict[str, Any]], tensors: dict[str, Tensor], weights: list[Tensor | None]
    ) -> None:
        self.ops, self.tensors, self.weights = ops, tensors, weights
        for op in ops:
            if op["op"] in executor.PARALLEL and not op["causal"]:
                raise SpikedistillError(
                    f"{op['path']} sums over all time steps: it cannot be run step by step"
                )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor], State]:
        """Logits' codes (N, K), spikes (N, ...) by path, and the next state; ``x``: the step's codes."""
        values: list[Tensor] = []
        spikes: dict[str, Tensor] = {}
        after = State(state.steps + 1, {}, {}, {})
        for i, op in enumerate(self.ops):
            if i == 0:
                values.append(x)
                continue
            given = [values[j] for j in op["in"]]
            if op["op"] in executor.NEURONS:
                current = executor.charge(i, op, self.tensors, given)
                parallel = op["op"] in executor.PARALLEL
                out = (
                    self.weigh(i, op, current, values, state, after)
                    if parallel
                    else scan(op, current, state, after)
                )
                spikes[op["path"]] = out
            else:
                out = self.one(i, given)
            values.append(out)
        return values[-1], spikes, after

    def one(self, i: int, given: list[Tensor]) -> Tensor:
        """An operation without a state."""
        return executor.one_shape(i, self.ops[i], self.tensors, self.weights[i], given)

    def weigh(
        self, i: int, op: dict[str, Any], current: Tensor, values: list[Tensor], state: State, after: State
    ) -> Tensor:
        """Spikes of a neuron with weights over time."""
        t, path = state.steps, op["path"]
        w, b = self.weights[i], self.tensors[f"{i}.offset"].to(current.dtype)
        assert w is not None
        if w.dim() == 2 and t >= len(w):
            raise SpikedistillError(f"{path} has weights for {len(w)} time steps, found step {t + 1}")
        past = self.past(i, op, current, values, state, after)
        h = b[min(t, len(b) - 1)]
        for lag, c in enumerate([current, *reversed(past)]):
            h = h + (w[t, t - lag] if w.dim() == 2 else w[len(w) - 1 - lag]).to(c.dtype) * c
        return (h >= op["threshold"]).to(current.dtype)

    def past(
        self, i: int, op: dict[str, Any], current: Tensor, values: list[Tensor], state: State, after: State
    ) -> list[Tensor]:
        """The last ``taps - 1`` currents since the start, the latest last; fills in what is kept from now."""
        before, path = op["taps"] - 1, op["path"]
        # Steps before the first are left out: zero spikes would still be charged with the norm's offset.
        since = before - min(before, state.steps)
        if op["encode"]:
            return [current] * (before - since)
        if op["history"] is None:
            old = state.currents.get(path, current.new_zeros(len(current), before, *current.shape[1:]))
            after.currents[path] = torch.cat([old, current.unsqueeze(1)], 1)[:, 1:]
            return list(old.unbind(1))[since:]
        j, bits = op["history"], op["history_bits"]
        entering = values[self.ops[j]["in"][0]]
        row = packed(entering, bits).unsqueeze(1)
        kept = state.bits.get(path, row.new_zeros(len(row), before, row.shape[2]))
        after.bits[path] = torch.cat([kept, row], 1)[:, 1:]
        shape = tuple(entering.shape[1:])
        return [self.charged(i, j, unpacked(kept[:, lag], bits, shape)) for lag in range(since, before)]

    def charged(self, i: int, layer: int, x: Tensor) -> Tensor:
        """The current of neuron ``i`` from what entered the layer before it: the sums once more."""
        chain, at = [], self.ops[i]["in"][0]
        while at != layer:
            chain.append(at)
            at = self.ops[at]["in"][0]
        for at in [layer, *reversed(chain)]:
            x = self.one(at, [x])
        return executor.charge(i, self.ops[i], self.tensors, [x])


def scan(op: dict[str, Any], current: Tensor, state: State, after: State) -> Tensor:
    """Spikes of a neuron with a membrane."""
    v = state.membranes.get(op["path"], torch.full_like(current, op["initial"]))
    s, after.membranes[op["path"]] = executor.tick(current, v, op)
    return s.to(current.dtype)
