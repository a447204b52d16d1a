"""How wide a quantized network's values are on a batch: what its integer form holds, not what it stores."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import simulation, taps
from ..networks.graph import Graph
from ..neurons import Neuron, Parallel, neuron_of
from ..quantization.layers import CodedLayer
from ..quantization.quantized import Quantization
from .layer import Layer

MULTIPLIER_BITS, OFFSET_BITS = 16, 32  # a channel's, as an integer network's file keeps them


def signed_bits(low: int, high: int) -> int:
    """Bits of two's complement numbers from ``low`` to ``high``."""
    return 1 + max(high.bit_length() if high > 0 else 0, (-low - 1).bit_length() if low < 0 else 0)


@dataclass
class Widths:
    """Bits by name of the graph's node: accumulators of weight layers, charged membranes H of neurons.

    Also the currents of neurons with weights over time.
    """

    accumulators: dict[str, int] = field(default_factory=dict)
    potentials: dict[str, int] = field(default_factory=dict)
    currents: dict[str, int] = field(default_factory=dict)


def _bits(codes: Tensor) -> int:
    low, high = codes.aminmax()
    # rounded: a tap's value over the unit is whole but for the last bits of a float
    return signed_bits(round(float(low)), round(float(high)))


@contextmanager
def _accumulators(layers: dict[str, CodedLayer], found: dict[str, int]) -> Iterator[None]:
    """Note the width of every accumulator tensor of a quantized network."""

    def watch(path: str, coded: Any) -> None:
        # the instance's own entry apart from the class's method: `restore` must not leave one where none was
        accumulate, calls, before = coded.accumulate, 0, coded.__dict__.get("accumulate")

        def seen(x: Tensor, w: Tensor) -> Tensor:
            nonlocal calls
            acc: Tensor = accumulate(x, w)
            found[f"{path}#{calls}"] = _bits(acc)
            calls += 1
            return acc

        def restore() -> None:
            del coded.accumulate
            if before is not None:  # on a simulated crossbar
                coded.accumulate = before

        coded.accumulate = seen
        exits.callback(restore)

    with ExitStack() as exits:
        for path, coded in layers.items():
            # sums of real weights have no width in integers
            if coded.format.bits is not None:
                watch(path, coded)
        yield


@torch.no_grad()
def measure(network: nn.Module, batch: Tensor, graph: Graph) -> Widths:
    """Widths on ``batch``, in one forward pass in eval mode; none where the network is not quantized.

    They are those of the integer network on the same batch, whose integers are the same. Generators are left
    as they were.
    """
    widths = Widths()
    quantization: Quantization | None = getattr(network, "quantization", None)
    if quantization is None:
        return widths
    neurons: dict[str, tuple[taps.Tap, Neuron]] = {}
    for node in graph:
        inner = neuron_of(node.module)
        if inner is not None:
            neurons[node.name] = taps.Tap(node.path or "", node.call, "membrane"), inner
    with (
        # an encoding may draw at random, and measuring must not move a training's generator
        simulation.eval_mode(network),
        torch.random.fork_rng(devices=[batch.device] if batch.is_cuda else []),
        _accumulators(quantization.layers, widths.accumulators),
    ):
        currents = {
            name: replace(tap, what="current")
            for name, (tap, n) in neurons.items()
            if isinstance(n, Parallel)
        }
        _, captured = taps.run(network, batch, [*(tap for tap, _ in neurons.values()), *currents.values()])
    for name, (tap, neuron) in neurons.items():
        if neuron.grid is not None:
            widths.potentials[name] = _bits(captured[str(tap)].double() / neuron.grid.unit)
            if name in currents:
                widths.currents[name] = _bits(captured[str(currents[name])].double() / neuron.current_unit)
    return widths


def with_potentials(layers: list[Layer]) -> list[Layer]:
    """Give layers and norms the width of the potential that they charge, and norms their accumulators'."""
    by_name = {layer.name: layer for layer in layers}
    potentials: dict[str, int] = {}
    for layer in layers:
        if layer.kind == "neuron" and layer.potential_bits is not None:
            waiting = list(layer.inputs)
            while waiting:
                above = by_name.get(waiting.pop())
                if above is None or above.kind not in ("norm", "add", "pool", "conv", "linear"):
                    continue
                charged = layer.current_bits or layer.potential_bits
                # the widest of all readers; also the end of walks that meet again behind a residual
                if charged > potentials.get(above.name, 0):
                    potentials[above.name] = charged
                    # sums begin at a weight layer: what stands before it charges other neurons
                    waiting += [] if above.kind in ("conv", "linear") else above.inputs
    out = []
    for layer in layers:
        if layer.kind in ("conv", "linear", "norm"):
            layer = replace(layer, potential_bits=potentials.get(layer.name))
        if layer.kind == "norm":
            read = [by_name[name].accumulator_bits for name in layer.inputs if name in by_name]
            layer = replace(layer, accumulator_bits=max((bits for bits in read if bits), default=None))
        out.append(layer)
    return out
