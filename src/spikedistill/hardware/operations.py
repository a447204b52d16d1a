"""Operation counts and the 45 nm energy of multiply-accumulates and accumulates.

``E = E_MAC * MACs + E_AC * ACs``: a real input value costs a MAC for every weight it meets, a spike an AC for
every output it reaches, a small integer as many ACs as its value. Costs: `costs`. Names of the figures are
those of NeuroBench (J. Yik et al., "The neurobench framework for benchmarking neuromorphic computing
algorithms and systems", Nature Communications 2025).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from .costs import add_energy, multiply_energy
from .layer import Layer


def accumulator_bits(layer: Layer, operand_bits: int) -> int:
    """Width that holds every sum of the layer: bits of one operand and of the fan-in, at most 32."""
    return min(32, operand_bits + layer.fan_in.bit_length())


def accumulate_energy(layer: Layer) -> float:
    """Energy of one accumulate, pJ: float32 at 32 weight bits, else an integer add at the sum's width."""
    return add_energy(accumulator_bits(layer, layer.weight_bits), layer.weight_bits >= 32)


def mac_energy(layer: Layer) -> float:
    """Energy of one multiply-accumulate, pJ: float32 at 32 weight bits or 32 input bits, else integer."""
    floating = layer.weight_bits >= 32 or layer.input_bits >= 32
    add = add_energy(accumulator_bits(layer, layer.weight_bits + layer.input_bits), floating)
    return multiply_energy(layer.weight_bits, layer.input_bits, floating) + add


def energy_per_spike(layer: Layer) -> float:
    """Energy that an input spike causes, pJ: fan-out times `accumulate_energy`. Energy objectives use it."""
    return layer.fan_out * accumulate_energy(layer)


@dataclass(frozen=True)
class LayerCount:
    """Operations of one layer per inference and image.

    ``dense``: weight uses if every input were active, padding included (as FLOP counters count). ``macs``,
    ``acs``: what the energy charges; ``effective_macs``: those whose input is not zero (the layer's mean
    fan-out for each), None where not measured. ``measured``: False where spikes were not measured and every
    input counts as active. ``updates``: membranes updated; ``additions``, ``normalisations``: elements of
    residual additions and norms.
    """

    name: str
    kind: str
    dense: int = 0
    macs: int = 0
    acs: float = 0.0
    effective_macs: float | None = 0.0
    updates: int = 0
    additions: int = 0
    normalisations: int = 0
    synaptic_pj: float = 0.0
    neuron_pj: float = 0.0
    residual_pj: float = 0.0
    norm_pj: float = 0.0
    measured: bool = True


@dataclass(frozen=True)
class Operations:
    """Counts and energy of a network per inference and image.

    ``energy_pj`` is the usual estimate, synaptic operations only: ``E_MAC * macs + E_AC * acs``; ``total_pj``
    adds membrane updates, residual additions and norms. ``footprint_bytes``: weights, biases, norms and
    membranes at their bits. ``activation_sparsity``: 1 - spikes / (neurons * T), over neurons with measured
    spikes.
    """

    layers: list[LayerCount]
    dense: int
    macs: int
    acs: float
    effective_macs: float | None
    membrane_updates: int
    energy_pj: float
    neuron_pj: float
    residual_pj: float
    norm_pj: float
    total_pj: float
    footprint_bytes: float
    activation_sparsity: float | None
    unpriced: list[str]

    @property
    def synaptic_operations(self) -> float:
        """Accumulates that spikes cause (SynOps)."""
        return self.acs

    @property
    def neurobench(self) -> dict[str, Any]:
        """The same under NeuroBench's names."""
        return {
            "footprint": self.footprint_bytes,
            "activation_sparsity": self.activation_sparsity,
            "synaptic_operations": {
                "Effective_MACs": self.effective_macs,
                "Effective_ACs": self.acs,
                "Dense": self.dense,
            },
            "membrane_updates": self.membrane_updates,
        }

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON-able values."""
        return {**asdict(self), "neurobench": self.neurobench}


def synaptic_events(layer: Layer) -> float | None:
    """Accumulates per inference: measured rows times outputs of a group, edges exact.

    Where nothing was measured, spikes times mean fan-out.
    """
    if layer.events is not None:
        return sum(layer.events.rows) * layer.out_channels / layer.groups
    return None if layer.spikes_in is None else layer.spikes_in * layer.fan_out


def _weights(layer: Layer) -> LayerCount:
    # `passes` is a mean over steps, so the product may be a fraction
    dense = round(layer.macs * layer.runs * layer.passes)
    if layer.input_kind == "real":
        effective = None if layer.nonzero_in is None else layer.nonzero_in * layer.fan_out
        return LayerCount(
            layer.name, layer.kind, dense, dense, 0.0, effective, synaptic_pj=dense * mac_energy(layer)
        )
    events = synaptic_events(layer)
    acs = (
        float(layer.connections * layer.runs * layer.input_max) if events is None else events
    ) * layer.passes
    return LayerCount(
        layer.name, layer.kind, dense, 0, acs, 0.0, synaptic_pj=acs * accumulate_energy(layer),
        measured=events is not None
    )  # fmt: skip


def membrane_updates(layer: Layer) -> int:
    """Membranes that a layer, or the neuron it feeds, updates per inference: neurons times T."""
    if layer.neuron in (None, "relu"):
        return 0
    # a convolution's neurons stand at its own positions; `typed_size` may be the size behind a pool
    size = layer.positions if layer.kind == "conv" else layer.typed_size
    return layer.out_channels * prod(size) * layer.time_steps


def is_spiking(layers: Sequence[Layer]) -> bool:
    """Whether these are an SNN's: with membranes, or neurons of unknown equations that were seen to fire."""
    return any(
        membrane_updates(one) or (one.kind == "other" and one.spikes_out is not None) for one in layers
    )


def update_energy(layer: Layer) -> float:
    """Energy of one membrane update, pJ: a multiply-add where it leaks, else an addition; at the bits of H.

    With weights over time and no membrane: a product of a weight and a current, added to H, for each of its
    ``terms``.
    """
    if layer.terms:
        current, real = layer.current_bits or 32, layer.weight_bits >= 32
        product = multiply_energy(layer.weight_bits, current, real) + add_energy(
            layer.potential_bits or 32, real
        )
        return layer.terms * product
    bits, floating = layer.potential_bits or layer.membrane_bits, layer.membrane_bits >= 32
    return add_energy(bits, floating) + (multiply_energy(bits, bits, floating) if layer.leaky else 0.0)


def _count(layer: Layer) -> LayerCount:
    counted = _weights(layer) if layer.kind in ("conv", "linear") else LayerCount(layer.name, layer.kind)
    values = round(layer.out_channels * prod(layer.typed_size) * layer.runs * layer.passes)
    fields: dict[str, Any] = {}
    if updates := membrane_updates(layer):
        fields |= {"updates": updates, "neuron_pj": updates * update_energy(layer)}
    if layer.kind == "norm":
        fields |= {"normalisations": values, "norm_pj": values * norm_energy(layer)}
    if layer.kind == "add":
        fields |= {"additions": values, "residual_pj": values * addition_energy(layer)}
    return LayerCount(**{**asdict(counted), **fields})


def addition_energy(layer: Layer) -> float:
    """Energy of one residual addition, pJ, at the stream's bits (of small integers: those of the largest)."""
    if layer.input_kind == "real":
        return add_energy(layer.input_bits, layer.input_bits >= 32)
    return add_energy((2 * layer.input_max).bit_length())


def norm_energy(layer: Layer) -> float:
    """Energy of one normalised value, pJ: a sum times a value of ``norm_bits``, added to the potential.

    Of a folded norm the addition alone, of integers.
    """
    bits, floating = layer.norm_bits, layer.norm_bits >= 32 and not layer.norm_folded
    read, written = layer.accumulator_bits or layer.membrane_bits, layer.potential_bits or layer.membrane_bits
    product = 0.0 if layer.norm_folded else multiply_energy(bits, read, floating)
    return product + add_energy(written, floating)


def footprint(layers: Sequence[Layer]) -> float:
    """Bytes of weights, biases (32 bits), norms (two values a channel, as kept) and stored membranes.

    Neurons without a membrane count what they keep of the past.
    """
    bits = 0
    for layer in layers:
        bits += layer.weights * layer.weight_bits + (32 * layer.out_channels if layer.bias else 0)
        if layer.terms:
            bits += layer.kept_memory_bits + layer.temporal_weights * layer.weight_bits
        else:
            # updates are neurons times T
            bits += membrane_updates(layer) // layer.time_steps * layer.membrane_bits
        bits += layer.norm_memory_bits if layer.kind == "norm" else 0
    return bits / 8


def _sparsity(layers: Sequence[Layer]) -> float | None:
    fired = [layer for layer in layers if layer.spikes_out is not None and membrane_updates(layer)]
    places = sum(membrane_updates(layer) for layer in fired)
    return 1 - sum(layer.spikes_out or 0.0 for layer in fired) / places if places else None


def count(layers: Sequence[Layer]) -> Operations:
    """Count the operations of one inference; layers of kind ``other`` are listed in ``unpriced``."""
    counts = [_count(layer) for layer in layers if layer.kind not in ("other", "pool")]
    effective = [item.effective_macs for item in counts]
    energy = {
        key: sum(getattr(item, key) for item in counts)
        for key in ("synaptic_pj", "neuron_pj", "residual_pj", "norm_pj")
    }
    return Operations(
        layers=counts,
        dense=sum(item.dense for item in counts),
        macs=sum(item.macs for item in counts),
        acs=sum(item.acs for item in counts),
        # one layer that was not measured leaves the sum unknown, not smaller
        effective_macs=None if None in effective else sum(value or 0.0 for value in effective),
        membrane_updates=sum(item.updates for item in counts),
        energy_pj=energy["synaptic_pj"],
        neuron_pj=energy["neuron_pj"],
        residual_pj=energy["residual_pj"],
        norm_pj=energy["norm_pj"],
        total_pj=sum(energy.values()),
        footprint_bytes=footprint(layers),
        activation_sparsity=_sparsity(layers),
        unpriced=[f"{layer.name} ({layer.operator})" for layer in layers if layer.kind == "other"],
    )
