"""The ANN twin as a chip sees it, and the firing rate below which the SNN is cheaper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import memory, operations, spikesim
from .config import Config
from .events import at_rate
from .held import MULTIPLIER_BITS
from .layer import Layer


def activation_bits(time_steps: int) -> int:
    """``ceil(log2(T + 1))``: bits that hold the spike counts 0 ... T of a neuron."""
    # in integers: a float logarithm may miss where T + 1 is a power of two
    return time_steps.bit_length()


def twin(layers: Sequence[Layer]) -> list[Layer]:
    """The quantized ANN of the same shape: equal weight bits, run once, ceil(log2(T + 1)) activation bits.

    Where the SNN has spikes or small integers the twin has real values of that many bits (more for a sum of
    small integers), fed bit by bit on a crossbar; what is real in the SNN keeps its bits. Neurons become
    ReLU; widths measured in the SNN are not the twin's.
    """
    out = []
    for layer in layers:
        changed: dict[str, object] = {"executions": 1, "time_steps": 1, "spikes_out": None, "encoding": False}
        changed["passes"] = 1.0
        if layer.kind == "other" and layer.spikes_out is not None:
            changed |= {"kind": "neuron", "neuron": "relu"}  # a neuron of unknown equations
        changed |= {"accumulator_bits": None, "potential_bits": None}
        if layer.norm_folded:  # into weights that count this SNN's membranes
            stored = (layer.norm_stored_bits or 0) + MULTIPLIER_BITS
            changed |= {"norm_folded": False, "norm_stored_bits": stored}
        if layer.kind == "neuron" or layer.neuron is not None:
            changed |= {"neuron": "relu", "leaky": False, "terms": 0.0, "temporal_weights": 0}
            changed |= {"kept_steps": 0, "kept_values": 0, "kept_bits": 0, "current_bits": None}
        if layer.kind in ("conv", "linear", "add") and layer.input_kind != "real":
            # the SNN's counts 0 ... T are the levels of the twin's activation: just the bits that hold them
            bits = activation_bits(layer.time_steps * max(1, layer.input_max))
            changed |= {
                "input_kind": "real",
                "input_bits": bits,
                "spikes_in": None,
                "nonzero_in": None,
                "events": None,
            }
        out.append(replace(layer, **changed))  # type: ignore[arg-type]
    return out


@dataclass(frozen=True)
class BreakEven:
    """Firing rate (spikes per input value and step) below which the SNN beats its ANN twin, by model.

    Spikes are taken as independent and equally frequent in all layers. 0: the SNN never wins; 1: it always
    does.
    """

    operations: float
    memory: float
    spikesim: float


def _crossing(snn: Callable[[float], float], ann: float, steps: int = 30) -> float:
    """Where a rising energy crosses ``ann``, by bisection."""
    if snn(0.0) >= ann:
        return 0.0
    if snn(1.0) <= ann:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if snn(middle) < ann else (low, middle)
    return (low + high) / 2


def _straight(snn: Callable[[float], float], ann: float) -> float:
    """The same for an energy that is linear in the rate."""
    start, end = snn(0.0), snn(1.0)
    # the energy does not rise with the rate (no layer reads spikes): there is no slope to divide by
    if end <= start:
        return 1.0 if start <= ann else 0.0
    return min(1.0, max(0.0, (ann - start) / (end - start)))


def break_even(
    layers: Sequence[Layer], config: Config | None = None, memory_config: memory.MemoryConfig | None = None
) -> BreakEven:
    """Break-even rates against `twin` by operations (all terms), energy with memory and SpikeSim events."""
    # dense energy does not know the rate: there would be nothing to cross
    chip = (config or Config()).model_copy(update={"activity": "event"})
    ann = twin(layers)
    # kept: all three models ask for the rates 0 and 1
    rates: dict[float, list[Layer]] = {}

    def spiking(rate: float) -> list[Layer]:
        return rates.setdefault(rate, at_rate(layers, rate))

    return BreakEven(
        operations=_straight(lambda r: operations.count(spiking(r)).total_pj, operations.count(ann).total_pj),
        memory=_straight(
            lambda r: memory.estimate(spiking(r), memory_config).total_pj,
            memory.estimate(ann, memory_config).total_pj,
        ),
        spikesim=_crossing(
            lambda r: spikesim.evaluate(spiking(r), chip).energy_pj,
            spikesim.evaluate(ann, chip).energy_pj,
            # every step prices the whole network, and a rate is said to 0.1 % only
            steps=16,
        ),
    )
