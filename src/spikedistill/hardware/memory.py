"""Energy with memory accesses: synapses, potentials, parameters, messages and addressing.

E. Lemaire, L. Cordone, A. Castagnetti, P.-E. Novac, J. Courtois, B. Miramond, "An analytical estimation of
spiking neural networks energy efficiency", ICONIP 2022 (arXiv 2210.13107). For one spiking convolution with
theta input spikes::

    adds        theta ceil(kh/s) ceil(kw/s) Cout + T Cout H W + theta_out    leaks (multiply-add) T Cout H W
    weights     theta Cout kh kw reads        potentials  theta Cout kh kw + T Cout H W reads, as many writes
    messages    theta reads, theta_out writes        addresses   2 theta multiply-adds, theta Cout kh kw adds

A neuron with weights over time keeps no potentials. It keeps bits of spikes, or currents, of past steps
(`past`): words of them are read at each step (all) and written (the newest); the sums of the layer before it
are made, with all their accesses, once more for each past step that they are needed for; its own products are
multiply-adds (ours; the paper has no such neurons).

A layer with real inputs (the first one) does ``macs`` multiply-adds and reads an input and a weight for each.
Operations are integers at the layer's bits (`costs`); norms are folded, pools and residual additions are not
part of the model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from typing import Any, Literal

from pydantic import Field

from ..typed import Strict
from .costs import add_energy, multiply_energy
from .layer import Layer
from .operations import is_spiking, membrane_updates, synaptic_events

# bytes, pJ a 32-bit word
POINTS = ((0.0, 0.0), (8 * 1024.0, 10.0), (32 * 1024.0, 20.0), (1024 * 1024.0, 100.0))

WORD = 32  # bits of what is kept of past steps that one access moves


class MemoryConfig(Strict):
    """Where the paper, its code and SpikingJelly's counter differ; the defaults follow the authors' code.

    The authors' code is Qualia's ``EnergyEstimationMetric`` (qualia-plugin-snn).
    """

    sram_law: Literal["interpolated", "linear", "blocks"] = "interpolated"
    """``interpolated``: 10, 20, 100 pJ a 32-bit word at 8 KiB, 32 KiB, 1 MiB (after Horowitz, ISSCC 2014),
    straight lines between, 0 at 0, constant above, in proportion to the word's bits; ``linear``: 1.09e-5 pJ a
    bit of capacity + 13.2 pJ a word (the authors' first code); ``blocks``: 10 pJ for each 64-bit access that
    holds 64 // bits words (T. Louis).
    """
    fifo_elements: int = Field(1000, ge=1)
    """Messages that a layer's input and output queue holds: the paper's experiments have 1000."""
    message_bits: int = Field(32, ge=1)
    """Bits of one message and of one address."""
    adds_without_bias: bool = True
    """T Cout H W additions (bias, or the charge of the step) are counted in layers without a bias too."""
    bias_each_step: bool = True
    """A bias is read at each step, as it is added; the authors' code reads it once an inference."""
    addresses_of_channels: bool = True
    """An input spike computes an address for each output channel (equation 16.3); the authors' code leaves
    Cout out.
    """
    dense_linear_addresses: Literal["product", "sum"] = "product"
    """Addresses of a linear layer with real inputs: N_in N_out (the authors' code) or N_in + N_out
    (SpikingJelly).
    """
    exact_synapses: bool = False
    """Additions, weight reads and potential accesses as measured (strides and edges exact) instead of
    theta k k Cout.
    """
    reset_adds: bool = True
    """theta_out additions for the resets."""
    potentials: Literal["held", "stored"] = "held"
    """``held``: potentials are added, read and written at the width that the integer network holds: the wider
    of a layer's sums and the charged membrane H, as measured; ``stored``: at the bits of the membrane between
    steps, as the papers do.
    """

    def word_bits(self, layer: Layer) -> int:
        """Bits of one potential of a layer."""
        return layer.word_bits if self.potentials == "held" or layer.terms else layer.membrane_bits

    def access(self, capacity_bits: float, word_bits: float) -> float:
        """Energy of one access to one word in a memory, pJ."""
        if self.sram_law == "linear":
            return 1.09e-5 * capacity_bits + 13.2
        if self.sram_law == "blocks":
            return 10.0 / max(1, 64 // int(word_bits)) * ceil(word_bits / 64)
        size = min(capacity_bits / 8, POINTS[-1][0])
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(POINTS) if size <= pair[1][0])
        return (y0 + (y1 - y0) * (size - x0) / (x1 - x0)) * word_bits / 32


SPIKINGJELLY = MemoryConfig(adds_without_bias=False, dense_linear_addresses="sum")
"""SpikingJelly's ``estimate_lemaire_energy``, which has 32 bits everywhere."""


TERMS = ("operations_pj", "addressing_pj", "messages_pj", "parameters_pj", "potentials_pj", "history_pj")


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """Energy per inference and image, pJ, by term; ``counts``: operations, accesses behind it."""

    operations_pj: float
    addressing_pj: float
    messages_pj: float
    parameters_pj: float
    potentials_pj: float
    history_pj: float = 0.0
    counts: dict[str, float]

    @property
    def memory_pj(self) -> float:
        """Messages, parameters, potentials and what is kept of past steps."""
        return self.messages_pj + self.parameters_pj + self.potentials_pj + self.history_pj


@dataclass(frozen=True, kw_only=True)
class LayerMemory(MemoryTerms):
    """One layer's terms; ``potential_bits``: the width at which its potentials were priced."""

    name: str
    kind: str
    potential_bits: int = 32

    @property
    def total_pj(self) -> float:
        """Sum of the terms."""
        return self.operations_pj + self.addressing_pj + self.memory_pj


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate(MemoryTerms):
    """A network's terms, which are sums over its layers, as are ``counts``."""

    total_pj: float
    layers: list[LayerMemory]
    notes: list[str]
    sram_law: str

    def as_dict(self) -> dict[str, Any]:
        """The estimate as JSON-able values."""
        return {**asdict(self), "memory_pj": self.memory_pj}


def _operations(layer: Layer, counts: dict[str, float], address_bits: int, bits: int) -> tuple[float, float]:
    """Energy of operations, on potentials of ``bits``, and of addressing, pJ."""
    product = multiply_energy(layer.weight_bits, layer.input_bits) + add_energy(
        min(32, layer.weight_bits + layer.input_bits)
    )
    operations = (
        counts.get("adds", 0.0) * add_energy(bits)
        + counts.get("leaks", 0.0) * (multiply_energy(bits, bits) + add_energy(bits))
        + counts.get("macs", 0.0) * product
        + counts.get("temporal_macs", 0.0)
        * (multiply_energy(layer.weight_bits, layer.current_bits or 32) + add_energy(bits))
    )
    one = add_energy(address_bits)
    addressing = counts.get("address_adds", 0.0) * one
    addressing += counts.get("address_macs", 0.0) * (multiply_energy(address_bits, address_bits) + one)
    return operations, addressing


def _real(layer: Layer, config: MemoryConfig, ann: bool) -> dict[str, float]:
    runs = layer.runs * layer.passes  # sums made again do all of it again
    outputs = float(layer.outputs_per_run * runs)
    macs = float(layer.macs * runs)
    inputs = float(layer.inputs_per_run * runs)
    counts = {"macs": macs, "weight_reads": macs, "bias_reads": outputs if layer.bias else 0.0}
    counts["adds"] = outputs if layer.bias or config.adds_without_bias else 0.0
    if layer.kind == "conv":
        counts["input_reads"] = macs
        counts["address_adds"] = inputs + outputs + layer.out_channels * layer.taps * runs
    else:
        counts["input_reads"] = inputs
        counts["address_adds"] = macs if config.dense_linear_addresses == "product" else inputs + outputs
    if ann:
        counts["output_writes"] = outputs
    return counts


def _spiking(layer: Layer, config: MemoryConfig, spikes: float) -> dict[str, float]:
    per_group = layer.out_channels // layer.groups
    uses = spikes * per_group * layer.taps
    strided = spikes * per_group
    for kernel, stride in zip(layer.kernel_size, layer.stride):
        strided *= ceil(kernel / stride)
    exact = synaptic_events(layer)
    if config.exact_synapses and exact is not None:
        uses = strided = exact
    outputs = float(layer.outputs_per_run * layer.runs)
    addresses = (
        spikes * layer.taps * (per_group if config.addresses_of_channels or layer.kind == "linear" else 1)
    )
    # Past sums are made again from kept spikes, which are no messages.
    uses, strided, addresses, outputs = (n * layer.passes for n in (uses, strided, addresses, outputs))
    return {
        "adds": strided + (outputs if layer.bias or config.adds_without_bias else 0.0),
        "input_reads": spikes,
        "weight_reads": uses,
        "bias_reads": outputs / (1 if config.bias_each_step else layer.runs) if layer.bias else 0.0,
        "potential_reads": uses,
        "potential_writes": uses,
        "address_adds": addresses,
        "address_macs": 2 * spikes * layer.passes if layer.kind == "conv" else 0.0,
    }


def _neuron(layer: Layer, config: MemoryConfig) -> dict[str, float]:
    updates = float(membrane_updates(layer))
    fired = layer.spikes_out or 0.0
    if layer.terms:
        words = layer.kept_values * layer.kept_bits / WORD * layer.time_steps
        return {
            "temporal_macs": updates * layer.terms,
            "weight_reads": float(layer.temporal_weights),  # once an inference: they are few
            "history_reads": words * layer.kept_steps,
            "history_writes": words if layer.kept_steps else 0.0,
            "output_writes": fired,
        }
    return {
        "adds": fired if config.reset_adds else 0.0,
        "leaks": updates if layer.leaky else 0.0,
        "potential_reads": updates,
        "potential_writes": updates,
        "output_writes": fired,
    }


def _price(layer: Layer, counts: dict[str, float], config: MemoryConfig, real: bool) -> LayerMemory:
    word = config.word_bits(layer)
    operations, addressing = _operations(layer, counts, config.message_bits, word)
    fifo, message = config.fifo_elements * config.message_bits, config.message_bits
    # real inputs lie in a memory of their own size; spikes come as messages through a queue
    input_bits, input_size = (
        (layer.input_bits, layer.inputs_per_run * layer.input_bits) if real else (message, fifo)
    )
    weights = layer.weights + layer.temporal_weights
    parameters = weights * layer.weight_bits + (layer.out_channels * layer.membrane_bits if layer.bias else 0)
    membranes = layer.outputs_per_run * word
    written = (layer.outputs_per_run * layer.input_bits, layer.input_bits) if real else (fifo, message)
    accesses = counts.get("potential_reads", 0.0) + counts.get("potential_writes", 0.0)
    messages = counts.get("input_reads", 0.0) * config.access(input_size, input_bits)
    messages += counts.get("output_writes", 0.0) * config.access(*written)
    return LayerMemory(
        name=layer.name,
        kind=layer.kind,
        operations_pj=operations,
        addressing_pj=addressing,
        messages_pj=messages,
        parameters_pj=counts.get("weight_reads", 0.0) * config.access(parameters, layer.weight_bits)
        + counts.get("bias_reads", 0.0) * config.access(parameters, layer.membrane_bits),
        potentials_pj=accesses * config.access(membranes, word),
        counts=counts,
        potential_bits=word,
        history_pj=(counts.get("history_reads", 0.0) + counts.get("history_writes", 0.0))
        * config.access(layer.kept_memory_bits, WORD),
    )


def estimate(layers: Sequence[Layer], config: MemoryConfig | None = None) -> MemoryEstimate:
    """Price every weight layer and neuron; unmeasured inputs count as active, and a note says so."""
    config = config or MemoryConfig()
    # an ANN's layers write their outputs themselves; those of an SNN are its neurons' messages
    ann = not is_spiking(layers)
    priced: list[LayerMemory] = []
    notes: list[str] = []
    for layer in layers:
        if layer.kind in ("conv", "linear"):
            if layer.input_kind == "real":
                priced.append(_price(layer, _real(layer, config, ann), config, real=True))
            else:
                spikes = layer.spikes_in
                if spikes is None:
                    notes.append(f"{layer.name}: spikes not measured, every input counts as active")
                    spikes = float(layer.inputs_per_run * layer.runs * layer.input_max)
                priced.append(_price(layer, _spiking(layer, config, spikes), config, real=False))
        # no elif: in a layer file a weight layer carries its neuron
        if membrane_updates(layer):
            if layer.spikes_out is None:
                notes.append(f"{layer.name}: output spikes not measured, none counted")
            priced.append(_price(layer, _neuron(layer, config), config, real=False))
    unseen = [layer for layer in layers if membrane_updates(layer) and layer.potential_bits is None]
    if config.potentials == "held" and any(layer.membrane_bits < 32 for layer in unseen):
        notes.append(
            "charged membranes were not measured: their potentials have the stored bits, which is too few"
        )
    if beyond := [layer.name for layer in layers if layer.kind in ("add", "other")]:
        notes.append(f"not part of this model: {', '.join(beyond)}")
    counts: dict[str, float] = {}
    for item in priced:
        for key, value in item.counts.items():
            counts[key] = counts.get(key, 0.0) + value
    return MemoryEstimate(
        **{term: sum(getattr(item, term) for item in priced) for term in ("total_pj", *TERMS)},
        counts=counts,
        layers=priced,
        notes=notes,
        sram_law=config.sram_law,
    )
