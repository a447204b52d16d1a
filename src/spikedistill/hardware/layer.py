"""One layer of a workload: what a network asks of a chip, whatever chip it is."""

from dataclasses import field
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic.dataclasses import dataclass


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


Pair = Annotated[tuple[int, int], BeforeValidator(_pair)]
Kind = Literal["conv", "linear", "pool", "norm", "add", "neuron", "other"]
InputKind = Literal["spikes", "integers", "real"]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
LARGEST = 1 << 20  # of channels, sizes, steps and runs: far beyond any network, and sums stay exact
LARGEST_KERNEL = 1 << 12
LARGEST_BITS = 64
LARGEST_INPUT = 1 << 31


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Events:
    """What measured spikes touch in one inference of an image, over time steps (and small integers' levels).

    A row is one input value under one kernel tap at one output site; a patch is one site and one tile of
    input channels.

    ``rows[b]``: rows that hold a spike, for the b-th block of ``block`` input channels; ``patches[w]``:
    patches that hold a spike when tiles are ``w`` channels wide; ``sites``: sites with a spike in any
    channel.
    """

    block: int
    rows: tuple[float, ...]
    patches: dict[int, float]
    sites: float

    @model_validator(mode="after")
    def _sensible(self) -> "Events":
        if not 1 <= self.block <= LARGEST:
            raise ValueError(f"block must be from 1 to {LARGEST:,}, found {self.block}")
        if min(self.sites, *self.rows, *self.patches.values()) < 0:
            raise ValueError("rows, patches and sites must be at least 0")
        return self

    def tile_rows(self, width: int) -> list[float]:
        """Rows of each tile of ``width`` channels, a multiple of ``block``."""
        step = max(1, width // self.block)
        return [sum(self.rows[i : i + step]) for i in range(0, len(self.rows), step)]

    def tile_patches(self, width: int) -> float | None:
        """Patches for tiles of ``width`` channels; sites where one holds all channels; None: not measured."""
        if width >= self.block * len(self.rows):
            return self.sites
        return self.patches.get(width)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Layer:
    """One layer: geometry, precision, kind of input, measured activity (per image), its place in the graph.

    ``in_size`` and ``out_size`` are (H, W); ``out_size`` may be a size after pooling, which `positions`
    ignores. ``far_padding``: rows and columns that the far sides have beyond ``padding``, as those of an
    even kernel with padding `same`. ``executions``: runs per inference, T or, where the input never
    changes, 1. ``input_bits``: bits of a real input value; ``input_max``: largest value of a
    small-integer input. ``spikes_in``: sum of the input's values, ``nonzero_in`` the number of values
    that are not 0, ``spikes_out`` the spikes of the layer (of its ``neuron``), None where not measured.
    ``neuron``: the neuron that the layer feeds one to one, when it is no layer of its own. ``inputs``:
    names of the layers that feed this one; ``shortcut``: on a residual branch; ``operator``: class or
    function that it was read from. ``accumulator_bits``: of the sums that a weight layer makes (or a norm
    reads), ``potential_bits``: of the charged membrane H that a neuron compares (or a weight layer
    charges), as measured in the integer network; None where there is none. ``norm_stored_bits``: of a
    norm's two values a channel as they are kept, beside the layer's bias. ``norm_folded``: of a norm its
    offset alone is added, what it multiplies by is in the weights. 32 bits mean floating point.

    Of a neuron with weights over time and no membrane (`past`): ``terms``, products in one H, averaged over
    steps (0: it has a membrane); ``temporal_weights``, how many weights, of ``weight_bits``; ``kept_steps``
    of ``kept_values`` of ``kept_bits`` bits, what it keeps of the past; ``current_bits``, of its currents as
    measured. ``passes`` of the weight layer and norm before it: how often each sum is computed, more than
    once where past ones are computed again.
    """

    name: str
    kind: Kind = "conv"
    in_channels: int
    out_channels: int
    kernel_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | None = None
    far_padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    in_size: Pair = (1, 1)
    out_size: Pair | None = None
    time_steps: int = 1
    executions: int | None = None
    input_kind: InputKind = "spikes"
    input_bits: int = 32
    input_max: int = 1
    weight_bits: int = 32
    membrane_bits: int = 32
    norm_bits: int = 32
    accumulator_bits: int | None = None
    potential_bits: int | None = None
    norm_stored_bits: int | None = None
    norm_folded: bool = False
    spikes_in: float | None = None
    nonzero_in: float | None = None
    spikes_out: float | None = None
    neuron: str | None = None
    leaky: bool = False
    bias: bool = False
    shortcut: bool = False
    encoding: bool = False
    inputs: tuple[str, ...] = ()
    operator: str = ""
    terms: float = 0.0
    temporal_weights: int = 0
    kept_steps: int = 0
    kept_values: int = 0
    kept_bits: int = 0
    current_bits: int | None = None
    passes: float = 1.0
    events: Events | None = field(default=None, repr=False)

    @model_validator(mode="after")
    def _sensible(self) -> "Layer":
        ranges = {
            "in_channels": ((self.in_channels,), 1, LARGEST),
            "out_channels": ((self.out_channels,), 1, LARGEST),
            "kernel_size": (self.kernel_size, 1, LARGEST_KERNEL),
            "stride": (self.stride, 1, LARGEST),
            "padding": (self.padding or (0,), 0, LARGEST_KERNEL),
            "far_padding": (self.far_padding, 0, LARGEST_KERNEL),
            "dilation": (self.dilation, 1, LARGEST),
            "groups": ((self.groups,), 1, LARGEST),
            "in_size": (self.in_size, 1, LARGEST),
            "out_size": (self.out_size or (1,), 1, LARGEST),
            "time_steps": ((self.time_steps,), 1, LARGEST),
            "executions": ((self.runs,), 1, LARGEST),
            "weight_bits": ((self.weight_bits,), 1, LARGEST_BITS),
            "membrane_bits": ((self.membrane_bits,), 1, LARGEST_BITS),
            "norm_bits": ((self.norm_bits,), 1, LARGEST_BITS),
            "input_bits": ((self.input_bits,), 1, LARGEST_BITS),
            "input_max": ((self.input_max,), 0, LARGEST_INPUT),
            "accumulator_bits": ((self.accumulator_bits or 1,), 1, LARGEST_BITS),
            "potential_bits": ((self.potential_bits or 1,), 1, LARGEST_BITS),
            "norm_stored_bits": ((self.norm_stored_bits or 0,), 0, LARGEST_BITS),
            "current_bits": ((self.current_bits or 1,), 1, LARGEST_BITS),
            "kept_bits": ((self.kept_bits,), 0, LARGEST_BITS),
            "kept_steps": ((self.kept_steps,), 0, LARGEST),
            "kept_values": ((self.kept_values,), 0, LARGEST_INPUT),
            "temporal_weights": ((self.temporal_weights,), 0, LARGEST_INPUT),
            "terms": ((self.terms,), 0, LARGEST),
            "passes": ((self.passes,), 1, LARGEST),
        }
        for key, (values, low, high) in ranges.items():
            if min(values) < low:
                raise ValueError(f"{key} must be at least {low}")
            if max(values) > high:
                raise ValueError(f"{key} must be at most {high:,}, found {max(values):,}")
        for key in ("spikes_in", "nonzero_in", "spikes_out"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"{key} must be at least 0, found {getattr(self, key):g}")
        # after the ranges: `positions` divides by the stride
        if self.kind in ("conv", "pool") and min(self.positions) < 1:
            raise ValueError(f"kernel {self.kernel_size} is larger than its padded input")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"groups={self.groups} must divide in_channels and out_channels")
        return self

    @property
    def runs(self) -> int:
        """Executions per inference."""
        return self.time_steps if self.executions is None else self.executions

    @property
    def taps(self) -> int:
        """Kernel positions, kh * kw."""
        return prod(self.kernel_size)

    @property
    def word_bits(self) -> int:
        """Width of the word that inputs are added to and that becomes H.

        It is the wider of both; unmeasured, the stored bits.
        """
        return max(self.accumulator_bits or 0, self.potential_bits or 0) or self.membrane_bits

    @property
    def norm_memory_bits(self) -> int:
        """Bits of the values that a norm keeps: two a channel, as kept, else of ``norm_bits`` each."""
        kept = 2 * self.norm_bits if self.norm_stored_bits is None else self.norm_stored_bits
        return self.out_channels * kept

    @property
    def kept_memory_bits(self) -> int:
        """Bits that a neuron with weights over time keeps of an image between steps, not a membrane."""
        return self.kept_steps * self.kept_values * self.kept_bits

    @property
    def pads(self) -> tuple[int, int]:
        """Padding; where not given, the one that keeps the size of an odd kernel at stride 1."""
        return self.padding or tuple((k - 1) * d // 2 for k, d in zip(self.kernel_size, self.dilation))  # type: ignore[return-value]

    @property
    def positions(self) -> tuple[int, int]:
        """Output positions (H, W) that the layer itself computes, before any pooling."""
        if self.kind not in ("conv", "pool"):
            return self.in_size
        axes = zip(self.in_size, self.kernel_size, self.stride, self.pads, self.far_padding, self.dilation)
        return tuple((n + 2 * p + far - d * (k - 1) - 1) // s + 1 for n, k, s, p, far, d in axes)

    @property
    def typed_size(self) -> tuple[int, int]:
        """``out_size`` as it was given; the computed positions where it was not."""
        return self.out_size or self.positions

    @property
    def fan_in(self) -> int:
        """Weights of one output: kh * kw * Cin / groups."""
        return self.taps * self.in_channels // self.groups

    @property
    def weights(self) -> int:
        """Number of weights, without biases."""
        return self.fan_in * self.out_channels if self.kind in ("conv", "linear") else 0

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates of one execution, padding included: fan_in * Cout * positions."""
        return self.weights * prod(self.positions)

    @property
    def inputs_per_run(self) -> int:
        """Input values of one execution: Cin * H * W."""
        return self.in_channels * prod(self.in_size)

    @property
    def outputs_per_run(self) -> int:
        """Output values of one execution, before pooling: Cout * positions."""
        return self.out_channels * prod(self.positions)

    @property
    def connections(self) -> int:
        """Pairs of an input value and an output it reaches, edges exact; `macs` without the padding."""
        if self.kind == "linear":
            return self.macs
        if self.kind != "conv":
            return 0
        # edges cut rows and columns independently, so the axes multiply
        per_axis = [
            sum(_met(n, m, s, k * d - p) for k in range(kernel))
            for n, m, kernel, s, p, d in zip(
                self.in_size, self.positions, self.kernel_size, self.stride, self.pads, self.dilation
            )
        ]
        return prod(per_axis) * self.in_channels * self.out_channels // self.groups

    @property
    def fan_out(self) -> float:
        """Outputs that one input value reaches, averaged over the input: connections / inputs."""
        return self.connections / self.inputs_per_run


def _met(size: int, outputs: int, stride: int, offset: int) -> int:
    """How many of ``outputs`` places ``o * stride + offset`` lie in 0..size-1."""
    # -(a // b) is -a / b rounded up
    first, last = max(0, -(offset // stride)), min(outputs - 1, (size - 1 - offset) // stride)
    return max(0, last - first + 1)
