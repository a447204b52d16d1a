"""Area of the chip by component."""

from collections.abc import Sequence
from math import prod

from .config import Config
from .layer import Layer
from .spikesim_mapping import Placement, input_width

PUBLISHED_MEMBRANES = 5


def areas(
    layers: Sequence[Layer],
    mapped: Sequence[tuple[Layer, Placement]],
    tiles: int | None,
    config: Config,
    reasons: dict[str, str],
) -> dict[str, float] | None:
    """Area by component, um2: every tile is built whole, with ``pe_per_tile`` PEs; no tiles: None and why."""
    if tiles is None:
        reasons["area_um2"] = "no tile count: " + reasons["tiles"]
        return None
    tech, on = config.technology, config.switches
    g = config.crossbar_size / tech.columns_per_adc
    array = tech.sram_array_um2 if config.device == "sram" else tech.rram_array_um2
    if on.array_scaling:
        array *= (config.crossbar_size / tech.array_rows) ** 2
    # PEs of each kernel size, a tile's spare ones included; shared tiles have theirs at the largest kernel.
    if on.tile_sharing:
        pes = [(placed.tiles * config.pe_per_tile, placed.taps) for _, placed in mapped]
    else:
        used = [(placed.pes, placed.taps) for _, placed in mapped]
        spare = tiles * config.pe_per_tile - sum(count for count, _ in used)
        pes = [*used, (spare, max(taps for _, taps in used))]
    arrays = sum(count * taps for count, taps in pes)
    converters = g * (arrays if on.adc_per_array else sum(count for count, _ in pes))
    bits = _memory_bits(layers, mapped, config)
    return {
        "crossbar": array * arrays,
        "adc": tech.adc_um2 * config.adc_factor * converters,
        "mux": tech.mux_um2 * converters,
        "diff": g * tech.diff_um2 * tiles,
        "temporary_buffer": tech.temporary_buffer_um2 * tiles,
        "tile_buffer": tech.sram_bit_um2 * tech.tile_buffer_bits * tiles,
        "htree": tech.htree_um2 * tiles,
        **{name: tech.sram_bit_um2 * count for name, count in bits.items()},
    }


def _memory_bits(
    layers: Sequence[Layer], mapped: Sequence[tuple[Layer, Placement]], config: Config
) -> dict[str, float]:
    on, published = config.switches, config.technology.value_bits
    convolutions = [layer for layer, _ in mapped]
    # Layers of their own hold their membranes; in a layer file a layer's neuron comes with it.
    neurons = [layer for layer in layers if layer.neuron]
    if not on.membrane_all_layers:
        # whatever their `neuron` says: to the published code every convolution has a membrane
        neurons = convolutions[:PUBLISHED_MEMBRANES]
    spiking = [layer for layer in neurons if layer.neuron != "relu"]
    membranes = sum(
        (
            layer.outputs_per_run
            if on.conv_positions and layer.kind != "neuron"
            else layer.out_channels * prod(layer.typed_size)
        )
        * (layer.membrane_bits if on.memory_bits else published)
        for layer in spiking
    )
    bits = {
        "input_memory": sum(
            layer.inputs_per_run * (input_width(layer) if on.memory_bits else published)
            for layer in convolutions
        ),
        "membrane_memory": membranes,
    }
    if on.residual_layers:
        streams = [layer for layer in layers if layer.kind == "add" and layer.input_kind == "real"]
        bits["residual_memory"] = sum(
            layer.out_channels * prod(layer.typed_size) * layer.input_bits for layer in streams
        )
    if on.norm:
        bits["norm_memory"] = sum(layer.norm_memory_bits for layer in layers if layer.kind == "norm")
    return bits
