"""Typed settings of the hardware models: every constant with its source, every correction a named switch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..reading import MAX_YAML_BYTES, parse_yaml, read_text
from ..typed import Strict, parse


class Technology(Strict):
    """Constants of the published evaluator (energies in pJ, areas in um2); each description is its source.

    SpikeSim: A. Moitra, A. Bhattacharjee, R. Kuang, G. Krishnan, Y. Cao, P. Panda, "SpikeSim: an end-to-end
    compute-in-memory hardware evaluation tool for benchmarking spiking neural networks", IEEE TCAD 2023, 65
    nm.
    """

    rram_array_pj: float = 1.76423
    """read of one 64x64 RRAM array; SpikeSim, ela_spikesim.py."""
    sram_array_pj: float = 671.089
    """SpikeSim, ela_spikesim.py: the same number as its area, unexplained in the source."""
    adc_pj: float = 2.03084
    """one conversion; SpikeSim, ela_spikesim.py."""
    mux_pj: float = 0.094245
    """one turn of one multiplexer; SpikeSim, ela_spikesim.py."""
    diff_pj: float = 1.15e-6
    """one DIFF unit; SpikeSim, ela_spikesim.py, unexplained in the source (a slip of units?)."""
    diff_uses: float = 16.0
    """DIFF uses of a PE cycle; SpikeSim, ela_spikesim.py, unexplained in the source."""
    temporary_buffer_pj: float = 0.2
    """SpikeSim, ela_spikesim.py."""
    tile_buffer_pj: float = 397.0
    """SpikeSim, ela_spikesim.py."""
    htree_pj: float = 19.64 * 8
    """SpikeSim, ela_spikesim.py; the factor 8 is unexplained in the source."""
    memory_fetch_pj: float = 4.64
    """SpikeSim, ela_spikesim.py."""
    neuron_pj: float = 1.274 * 4
    """SpikeSim, ela_spikesim.py; the factor 4 is unexplained in the source."""
    rram_array_um2: float = 26.2144
    """SpikeSim, ela_spikesim.py: 4096 cells of 4 (0.04 um)^2."""
    sram_array_um2: float = 671.089
    """SpikeSim, ela_spikesim.py: 4096 cells of 160 (0.032 um)^2."""
    adc_um2: float = 693.633
    """SpikeSim, ela_spikesim.py."""
    mux_um2: float = 45.9
    """SpikeSim, ela_spikesim.py."""
    diff_um2: float = 13411.41498
    """SpikeSim, ela_spikesim.py."""
    temporary_buffer_um2: float = 484.643999
    """SpikeSim, ela_spikesim.py."""
    tile_buffer_bits: float = 64 * 128
    """SpikeSim, ela_spikesim.py."""
    htree_um2: float = 216830 * 2
    """SpikeSim, ela_spikesim.py; the factor 2 is unexplained in the source."""
    sram_bit_um2: float = 0.7391
    """one bit of a buffer or memory; SpikeSim, ela_spikesim.py."""
    value_bits: float = 22
    """bits of a stored value; SpikeSim, ela_spikesim.py, unexplained in the source."""
    columns_per_adc: float = 8
    """columns that share one ADC; SpikeSim, ela_spikesim.py."""
    cycle_clocks: float = 26
    """clocks of a PE cycle; SpikeSim, ela_spikesim.py, unexplained in the source."""
    layer_overlap: float = 0.75
    """part of a layer after which the next one starts; SpikeSim, ela_spikesim.py, unexplained in the
    source.
    """
    array_rows: float = 64
    """array size that the array constants are for; SpikeSim's README."""
    adc_reference_bits: float = 4
    """bits of the ADC that the constants are for: our reading of --ADC_precision 4 in SpikeSim's README."""

    @model_validator(mode="after")
    def _sensible(self) -> "Technology":
        divisors = ("value_bits", "columns_per_adc", "cycle_clocks", "array_rows", "adc_reference_bits")
        for key, value in self:
            # what others are divided by must not come near 0
            low = 1e-3 if key in divisors else 0
            if not low <= value <= 1e9:
                raise ValueError(f"{key} must be from {low:g} to 1e9, found {value:g}")
        return self


class Switches(Strict):
    """Deviations from the published code: all off is ``released``; the defaults below are ``corrected``."""

    any_order: bool = True
    """The published tile count gives up when PE counts decrease along the list; the sum needs no order."""
    any_depth: bool = True
    """The published overlap list has 12 entries; every layer gets the same 0.75."""
    layer_kernels: bool = True
    """The published call has one kernel size; each layer gets arrays for its own kernel."""
    linear_layers: bool = True
    """Linear layers run on the arrays too: a 1x1 convolution at one site."""
    grouped_layers: bool = True
    """Grouped convolutions fill arrays block-diagonally with as many groups as fit; the published code has
    none.
    """
    residual_layers: bool = True
    """Residual additions cost one add an element and a stream of real values is stored; the published code
    has none.
    """
    conv_positions: bool = True
    """A layer computes every output position of its convolution; the published example lists sizes after
    pooling and charges a quarter of them.
    """
    run_once: bool = True
    """A layer whose input is the same at every step (the stem on a still image) runs once, not T times."""
    bit_serial_inputs: bool = True
    """Arrays take 0/1 rows: a real value of b bits is fed in b cycles, a small integer in as many as its
    largest value; the published code charges one.
    """
    bit_slicing: bool = True
    """A weight of b bits needs ceil(b / bits per cell) columns; the published code gives every weight one
    column.
    """
    array_scaling: bool = True
    """Array energy and area grow with the number of cells; the published constants are those of a 64x64 array
    at every size.
    """
    adc_turns: bool = True
    """Eight columns share an ADC, so a cycle has 8 turns; the published code uses X/8 turns, right only for X
    = 64.
    """
    adc_bits: bool = True
    """ADC energy and area follow the ADC's bits by a stated law; the published constants never change."""
    adc_per_array: bool = True
    """Each of a PE's k*k arrays has its partial sum converted, as the accuracy evaluation rounds it; the
    published energy converts one column set a PE.
    """
    digital_accumulation: bool = True
    """Partial sums of arrays, input tiles, bit planes and weight slices are added by adders; the published
    code adds them for nothing.
    """
    tile_charge: bool = True
    """Tile buffer and H-tree belong to a tile (the H-tree's factor 8 is the PEs of a tile: our reading); the
    published code charges both for every PE."""
    tile_sharing: bool = True
    """A tile holds only one layer, as the paper says; the published code lets layers share tiles."""
    neuron_updates: bool = True
    """A neuron is updated once a step, after the partial sums of all input tiles; the published code charges
    it for every PE cycle.
    """
    membrane_all_layers: bool = True
    """Membranes of all layers are stored; the published code stores those of the first five."""
    memory_bits: bool = True
    """Input memory is 1 bit a spike (b bits a real value), membrane memory and the neuron's datapath have the
    membrane's bits; the published code has 22 bits everywhere."""
    potential_bits: bool = True
    """The neuron's datapath has the bits of the charged membrane H as the integer network was seen to hold
    it, not those that are stored between steps; where H was not measured nothing changes.
    """
    norm: bool = True
    """A norm costs a multiplication (none where it is folded) and an addition an output and stores its
    values; the published code has none.
    """
    sram_energy: bool = True
    """The published SRAM array energy is the array's area; no value is published, so the RRAM array's energy
    stands in and the report says so."""
    latency_cycles: bool = True
    """A layer takes as many PE cycles as it has sites to feed, all PEs and columns working at once; the
    published latency counts every output element.
    """
    latest_end: bool = True
    """The inference ends with the layer that ends last; the published code takes the last in the list."""
    diff_unit: bool = False
    """DIFF energy read as 1.15 pJ instead of 1.15e-6 pJ; off, because no source says which is meant."""


RELEASED = Switches(**dict.fromkeys(Switches.model_fields, False))


class Config(Strict):
    """Settings of one pricing: ``mode`` picks the defaults of all switches, ``switches`` overrides some.

    ``activity``: ``dense`` charges every cycle, ``event`` only what measured spikes touch. ``cell_bits``:
    bits a memory cell holds. ``adc_bits``: None means the lossless number for ``crossbar_size`` rows.
    ``adc_law``: how ADC energy and area grow with bits: ``walden`` 2^bits (R. H. Walden, "Analog-to-digital
    converter survey and analysis", IEEE JSAC 1999: energy a conversion at a constant figure of merit; we let
    the area follow, as the comparators of a flash and the capacitors of a SAR converter double a bit),
    ``linear`` bits, or ``constant``.
    """

    mode: Literal["released", "corrected"] = "corrected"
    activity: Literal["dense", "event"] = "dense"
    crossbar_size: int = Field(64, ge=1, le=65536)
    pe_per_tile: int = Field(8, ge=1, le=1_000_000)
    clock_mhz: float = Field(250.0, gt=0, le=1e6)
    device: Literal["rram", "sram"] = "rram"
    cell_bits: int = Field(1, ge=1, le=8)
    adc_bits: int | None = Field(None, ge=1, le=16)
    adc_law: Literal["walden", "linear", "constant"] = "walden"
    switches: Switches = Switches()
    technology: Technology = Technology()

    @model_validator(mode="before")
    @classmethod
    def _mode_sets_switches(cls, data: Any) -> Any:
        given = data.get("switches") if isinstance(data, dict) else None
        # a Switches object is whole already: the mode must not change what its maker set
        if not isinstance(data, dict) or isinstance(given, Switches):
            return data
        # before validation: afterwards a switch left out looks like one set to its default
        if data.get("mode") == "released" and (given is None or isinstance(given, dict)):
            return {**data, "switches": {**RELEASED.model_dump(), **(given or {})}}
        return data

    @property
    def cycle_ns(self) -> float:
        """Duration of a PE cycle, ns."""
        return self.technology.cycle_clocks * (1000 / self.clock_mhz)

    @property
    def lossless_adc_bits(self) -> int:
        """Bits for any sum of ``crossbar_size`` 0/1 rows x cells: ``ceil(log2(X (2^cell_bits - 1) + 1))``."""
        # bit_length of n is ceil(log2(n + 1)) without a rounding
        return (self.crossbar_size * (2**self.cell_bits - 1)).bit_length()

    @property
    def adc_factor(self) -> float:
        """The ADC law on the published ADC's energy and area; 1 when the switch ``adc_bits`` is off."""
        if not self.switches.adc_bits or self.adc_law == "constant":
            return 1.0
        bits, reference = self.adc_bits or self.lossless_adc_bits, self.technology.adc_reference_bits
        return 2.0 ** (bits - reference) if self.adc_law == "walden" else bits / reference


def read_yaml(path: str | Path) -> Any:
    """The content of one YAML file.

    Raises: SpikedistillError when the file is missing or no YAML.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES), str(path), "not YAML", column=False)


def read_config(path: str | Path) -> dict[str, Any]:
    """Raw settings of a ``--config`` file: keys of `Config`, at the top or under ``spikesim``.

    Raises: SpikedistillError.
    """
    data = read_yaml(path) or {}
    if isinstance(data, dict) and set(data) == {"spikesim"}:
        data = data["spikesim"]
    parse(Config, data, str(path))
    # raw, not the parsed Config: `resolve` must know which keys were given
    return dict(data)
