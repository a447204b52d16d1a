"""Energy, latency and area on a SpikeSim chip: one evaluator for published and corrected formulas.

A. Moitra, A. Bhattacharjee, R. Kuang, G. Krishnan, Y. Cao, P. Panda, "SpikeSim: an end-to-end
compute-in-memory hardware evaluation tool for benchmarking spiking neural networks", IEEE TCAD 2023. Every
`config.Switches` off gives the figures of the published ``ela_spikesim.py``; each one switched on is one
deviation, explained beside the switch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from ..errors import SpikedistillError
from .config import Config
from .costs import add_energy
from .layer import Layer
from .operations import addition_energy, norm_energy
from .spikesim_area import areas
from .spikesim_latency import Times, latency
from .spikesim_mapping import Placement, membrane_factor, place, why_unpriced
from .spikesim_report import HardwareReport, LayerPrice, Unpriced

__all__ = ["HardwareReport", "evaluate", "place"]


@dataclass(frozen=True)
class _Activity:
    """Cycles of one layer per inference that cost: of PEs, tiles, patches, and rows as arrays' worth."""

    pe_cycles: float
    tile_cycles: float
    patches: float
    array_reads: float
    neuron_cycles: float
    measured: bool


def _dense(layer: Layer, placed: Placement, config: Config) -> _Activity:
    cycles = placed.sites * placed.passes
    pe_cycles = float(placed.pes * cycles)
    neuron_cycles = float(ceil(layer.out_channels / config.crossbar_size) * placed.sites * layer.time_steps)
    return _Activity(
        pe_cycles=pe_cycles,
        tile_cycles=float(placed.tiles_a_cycle * cycles),
        patches=float(placed.blocks * placed.input_tiles * cycles),
        array_reads=placed.taps * pe_cycles,
        neuron_cycles=neuron_cycles if config.switches.neuron_updates else pe_cycles,
        measured=False,
    )


def _event(layer: Layer, placed: Placement, config: Config) -> _Activity | None:
    """Activity by measured spikes; None where the input is real or this tile width was not measured."""
    events = layer.events
    if layer.input_kind == "real" or events is None:
        return None
    patches = events.tile_patches(placed.tile_rows)
    grouped = events.tile_patches(placed.tile_rows * placed.input_tiles_a_tile)
    # the remainder: a tile would cut through a measured block, whose rows are one number
    if patches is None or grouped is None or placed.tile_rows % events.block:
        return None
    dense = _dense(layer, placed, config)
    q = placed.output_tiles
    widths = [
        min(placed.tile_rows, layer.in_channels - start)
        for start in range(0, layer.in_channels, placed.tile_rows)
    ]
    # A tile that is not full costs a full array when all its rows are active, as in the dense count.
    reads = sum(rows / width for rows, width in zip(events.tile_rows(placed.tile_rows), widths))
    sites = placed.blocks * placed.input_tiles * q * events.sites
    return _Activity(
        pe_cycles=q * patches,
        tile_cycles=placed.tiles_a_patch * grouped if config.switches.tile_charge else q * patches,
        patches=patches,
        array_reads=q * reads,
        neuron_cycles=dense.neuron_cycles if config.switches.neuron_updates else sites,
        measured=True,
    )


def _array_energy(config: Config) -> float:
    tech, size = config.technology, config.crossbar_size
    published = tech.sram_array_pj if config.device == "sram" else tech.rram_array_pj
    energy = tech.rram_array_pj if config.switches.sram_energy else published
    return energy * (size / tech.array_rows) ** 2 if config.switches.array_scaling else energy


def _energy(layer: Layer, placed: Placement, activity: _Activity, config: Config) -> dict[str, float]:
    """Energy of one layer per inference by component, pJ."""
    tech, on = config.technology, config.switches
    g = config.crossbar_size / tech.columns_per_adc
    turns = tech.columns_per_adc if on.adc_turns else g
    conversions = g * turns * (placed.taps if on.adc_per_array else 1) * activity.pe_cycles
    tile_cycles = activity.tile_cycles if on.tile_charge else activity.pe_cycles
    diff = 1.15 if on.diff_unit else tech.diff_pj
    # the published code charges a neuron in every PE cycle, whatever the layer feeds
    has_neuron = not on.neuron_updates or layer.neuron not in (None, "relu")
    energy = {
        "crossbar": turns * _array_energy(config) * activity.array_reads,
        "adc": conversions * tech.adc_pj * config.adc_factor,
        "mux": conversions * tech.mux_pj,
        "diff": g * tech.diff_uses * diff * activity.pe_cycles,
        "temporary_buffer": g * tech.temporary_buffer_pj * activity.pe_cycles,
        "tile_buffer": tech.tile_buffer_pj * tile_cycles,
        "htree": tech.htree_pj * tile_cycles,
        "memory_fetch": tech.memory_fetch_pj * activity.pe_cycles,
        "neuron": tech.neuron_pj * membrane_factor(layer, config) * activity.neuron_cycles
        if has_neuron
        else 0.0,
    }
    if on.digital_accumulation:
        columns = (
            layer.out_channels / placed.blocks * placed.slices * (placed.taps if on.adc_per_array else 1)
        )
        bits = min(
            32, (config.adc_bits or config.lossless_adc_bits) + placed.slices + layer.fan_in.bit_length()
        )
        energy["accumulation"] = columns * activity.patches * add_energy(bits)
    return energy


def _digital(layer: Layer, config: Config) -> dict[str, float]:
    """Energy of a layer without arrays (neuron, norm, residual addition) per inference by component, pJ."""
    values = layer.out_channels * prod(layer.typed_size)
    if layer.kind == "neuron":
        if layer.neuron == "relu":
            return {"neuron": 0.0}
        updates = ceil(layer.out_channels / config.crossbar_size) * prod(layer.typed_size) * layer.time_steps
        return {"neuron": config.technology.neuron_pj * membrane_factor(layer, config) * updates}
    if layer.kind == "norm":
        return {"norm": norm_energy(layer) * values * layer.runs}
    return {"residual": addition_energy(layer) * values * layer.runs}


def _sum(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total


def _nothing_to_price(layers: Sequence[Layer], unpriced: Sequence[Unpriced]) -> SpikedistillError:
    kinds = ", ".join(f"{item.name}: {item.reason}" for item in unpriced[:3]) or "the list is empty"
    return SpikedistillError(
        f"none of {len(layers)} layers can be priced ({kinds}); give at least one conv layer"
    )


def evaluate(layers: Sequence[Layer], config: Config | None = None) -> HardwareReport:
    """Price layers on one chip: PEs, tiles, energy (pJ), latency (ns), area (um2) and what follows from them.

    ``EDAP = energy * latency * area`` (uJ ms mm2); ``TOPS = 2 * dense MACs of an inference / latency``;
    TOPS/W is operations over energy, TOPS/mm2 is TOPS over area. With ``activity="event"`` a layer whose
    spikes were not measured, or whose input is real, is charged densely; a note names it. Latency is that of
    a fixed schedule in both activities.

    Raises: SpikedistillError when no layer can be priced.
    """
    config = config or Config()
    unpriced = [
        Unpriced(layer.name, layer.kind, reason)
        for layer in layers
        if (reason := why_unpriced(layer, layers, config))
    ]
    skipped = {item.name for item in unpriced}
    priced = [layer for layer in layers if layer.name not in skipped]
    mapped = [(layer, place(layer, config)) for layer in priced if layer.kind in ("conv", "linear")]
    if not mapped:
        raise _nothing_to_price(layers, unpriced)
    reasons: dict[str, str] = {}
    notes: list[str] = []

    # before the areas, which need the count or the reason why there is none
    pes, tiles = _count_tiles([placed for _, placed in mapped], config, reasons)
    times = latency(mapped, config, reasons)
    area = areas(priced, mapped, tiles, config, reasons)

    placements = {layer.name: placed for layer, placed in mapped}
    rows = []
    for layer in priced:
        placed = placements.get(layer.name)
        if placed is None:
            energy, time = _digital(layer, config), Times(0.0, 0.0, 0.0)
        else:
            activity = _event(layer, placed, config) if config.activity == "event" else None
            if activity is None and config.activity == "event":
                cause = (
                    "its input is real"
                    if layer.input_kind == "real"
                    else "no events measured for this crossbar size"
                )
                notes.append(f"{layer.name}: charged densely in event mode ({cause})")
            energy = _energy(layer, placed, activity or _dense(layer, placed, config), config)
            time = times[layer.name] if times else Times(None, None, None)
        rows.append(
            LayerPrice(
                name=layer.name,
                kind=layer.kind,
                pes=placed.pes if placed else 0,
                tiles=placed.tiles if placed else 0,
                energy_pj=sum(energy.values()),
                latency_ns=time.duration,
                start_ns=time.start,
                end_ns=time.end,
                components=energy,
            )
        )
    if config.device == "sram":
        stand_in = (
            "the RRAM array's energy stands in" if config.switches.sram_energy else "it is the array's area"
        )
        notes.append(f"no source gives the SRAM array's energy: {stand_in}")
    if config.switches.adc_bits and config.adc_bits and config.adc_bits < config.lossless_adc_bits:
        notes.append(
            f"{config.adc_bits}-bit ADCs lose information (lossless: {config.lossless_adc_bits} bits): read "
            "this price beside the accuracy that `spikedistill evaluate RUN --crossbar` gives"
        )
    ends = [time.end for time in times.values() if time.end is not None] if times else []
    return HardwareReport.build(
        config=config,
        pes=pes,
        tiles=tiles,
        latency_ns=(max(ends) if config.switches.latest_end else ends[-1]) if ends else None,
        area=area,
        dense_operations=2
        * sum(layer.weights * placed.sites * placed.executions for layer, placed in mapped),
        layers=rows,
        components=_sum([row.components for row in rows]),
        unpriced=unpriced,
        reasons=reasons,
        notes=notes,
    )


def _count_tiles(
    placed: Sequence[Placement], config: Config, reasons: dict[str, str]
) -> tuple[int | None, int | None]:
    counts = [place.pes for place in placed]
    if not config.switches.any_order and counts != sorted(counts):
        reasons["pes"] = reasons["tiles"] = (
            "PE counts decrease along the list, where the published code stops"
        )
        return None, None
    if config.switches.tile_sharing:
        return sum(counts), sum(place.tiles for place in placed)
    return sum(counts), ceil(sum(counts) / config.pe_per_tile)
