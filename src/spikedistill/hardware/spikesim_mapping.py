"""How a layer lies on crossbars, PEs and tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from .config import Config
from .layer import Layer


@dataclass(frozen=True)
class Placement:
    """Where one layer lies. A PE holds ``taps`` arrays: one kernel position each, X input rows by X columns.

    ``blocks``: sets of groups packed block-diagonally into one PE (1 without groups); ``input_tiles`` and
    ``output_tiles``: PEs along input and output of one block; ``tile_rows``: input channels of one PE;
    ``sites``: output positions; ``executions``: runs per inference; ``passes``: PE cycles of one site per
    inference (executions times fed planes).
    """

    blocks: int
    input_tiles: int
    output_tiles: int
    tile_rows: int
    taps: int
    slices: int
    sites: int
    executions: int
    planes: int
    pe_per_tile: int

    @property
    def pes(self) -> int:
        """PEs of the layer."""
        return self.blocks * self.input_tiles * self.output_tiles

    @property
    def tiles(self) -> int:
        """Tiles that the layer needs for itself."""
        return ceil(self.pes / self.pe_per_tile)

    @property
    def passes(self) -> int:
        """PE cycles of one site per inference."""
        return self.executions * self.planes

    @property
    def input_tiles_a_tile(self) -> int:
        """Input tiles whose PEs share one chip tile, a power of two (our placement).

        Measured patches exist for those.
        """
        return 2 ** max(0, (self.pe_per_tile // self.output_tiles).bit_length() - 1)

    @property
    def tiles_a_patch(self) -> int:
        """Chip tiles that one group of input tiles occupies."""
        return ceil(self.output_tiles / self.pe_per_tile)

    @property
    def tiles_a_cycle(self) -> int:
        """Chip tiles at work in one PE cycle when all inputs are active."""
        return ceil(self.blocks * self.input_tiles / self.input_tiles_a_tile) * self.tiles_a_patch


def place(layer: Layer, config: Config) -> Placement:
    """Lay a convolution or linear layer out: ``PEs = blocks * ceil(Cin / X) * ceil(Cout * slices / X)``."""
    on, size = config.switches, config.crossbar_size
    slices = ceil(layer.weight_bits / config.cell_bits) if on.bit_slicing else 1
    c_in, c_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    packed = 1
    if layer.groups > 1:
        # a power of two of groups: patches are measured for tiles of a block times a power of two
        packed = 2 ** max(0, min(size // c_in, size // (c_out * slices)).bit_length() - 1)
    input_tiles = ceil(c_in / size)
    return Placement(
        blocks=ceil(layer.groups / packed),
        input_tiles=input_tiles,
        output_tiles=ceil(c_out * packed * slices / size),
        tile_rows=size if layer.groups == 1 else min(c_in * packed, size),
        taps=layer.taps,
        slices=slices,
        sites=prod(layer.positions if on.conv_positions else layer.typed_size),
        executions=layer.runs if on.run_once else layer.time_steps,
        planes=planes(layer) if on.bit_serial_inputs else 1,
        pe_per_tile=config.pe_per_tile,
    )


def planes(layer: Layer) -> int:
    """Cycles that feed one input value: 1 for 0/1 spikes, the largest of small integers, b for reals."""
    return {"spikes": 1, "integers": max(1, layer.input_max), "real": layer.input_bits}[layer.input_kind]


def input_width(layer: Layer) -> int:
    """Bits that store one input value."""
    return {"spikes": 1, "integers": max(1, layer.input_max).bit_length(), "real": layer.input_bits}[
        layer.input_kind
    ]


def membrane_factor(layer: Layer, config: Config) -> float:
    """The neuron's datapath against the published one: bits of H (or stored membrane) over 22.

    Linear, as an adder's.
    """
    if not config.switches.memory_bits:
        return 1.0
    bits = (config.switches.potential_bits and layer.potential_bits) or layer.membrane_bits
    return bits / config.technology.value_bits


def why_unpriced(layer: Layer, layers: Sequence[Layer], config: Config) -> str | None:
    """Why the evaluator cannot price a layer under these settings; None when it can."""
    on = config.switches
    first = next((other for other in layers if other.kind == "conv"), None)
    if layer.kind == "other":
        return f"{layer.operator or 'this operator'} is not supported by the hardware models"
    if layer.terms:
        return (
            f"{layer.neuron} has no membrane that SpikeSim's neuron module could hold; what it keeps and "
            "computes again is in `operations` and `memory`"
        )
    if layer.kind == "pool":
        return "pooling has no arithmetic in this model"
    switch = {
        "linear": on.linear_layers,
        "norm": on.norm,
        "add": on.residual_layers,
        "neuron": on.neuron_updates,
    }
    if layer.kind != "conv" and not switch[layer.kind]:
        own_cost = "charged with its convolution by the published code"
        return own_cost if layer.kind == "neuron" else "not modelled by the published code"
    if layer.kind == "conv" and layer.groups > 1 and not on.grouped_layers:
        return "grouped convolutions are not modelled by the published code"
    if layer.kind == "conv" and first and layer.kernel_size != first.kernel_size and not on.layer_kernels:
        return (
            f"kernel {layer.kernel_size} differs from the first layer's {first.kernel_size}; "
            "the published code has one"
        )
    return None
