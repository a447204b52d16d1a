"""The header of an integer network's file as a typed model: every operation, every number in its range."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT, VERSION = "spikedistill-integer", 1
MOST_STEPS, MOST_OPS = 4096, 20_000

Code = Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]
Shift = Annotated[int, Field(ge=0, le=62)]
Level = Annotated[int, Field(ge=-31, le=62)]  # below 0: to the left
Bits = Annotated[int, Field(ge=1, le=62)]
Size = Annotated[int, Field(ge=1, le=1 << 24)]
Place = Annotated[int, Field(ge=0, le=1 << 24)]
Sizes = Annotated[list[Size], Field(min_length=1, max_length=2)]
Places = Annotated[list[Place], Field(min_length=1, max_length=2)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
PlacePair = Annotated[list[Place], Field(min_length=2, max_length=2)]
Index = Annotated[int | None, Field(ge=-(1 << 24), le=1 << 24)]


class Strict(BaseModel):
    """Unknown keys and numbers of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Op(Strict):
    """One operation: what it reads, by the numbers of earlier ones."""

    inputs: Annotated[list[Place], Field(alias="in", max_length=64)]


class Input(Op):
    """The input codes."""

    op: Literal["input"]


class Rescaled(Op):
    """An operation that may end in ``((x * M + 2^(k-1)) >> k) + B``."""

    path: str
    k: Level | None = None
    wide_scale: bool = False


class Layer(Rescaled):
    """A convolution or linear layer."""

    op: Literal["layer"]
    bits: Annotated[int, Field(ge=2, le=8)]
    shape: Annotated[list[Size], Field(min_length=2, max_length=4)]
    wide: bool
    groups: Size
    stride: Sizes | None = None
    padding: Places | None = None
    dilation: Sizes | None = None
    low: Code | None = None
    high: Code | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Layer":
        convolves = len(self.shape) > 2
        for value in (self.stride, self.padding, self.dilation):
            if (value is not None) != convolves or (value is not None and len(value) != len(self.shape) - 2):
                raise ValueError(f"stride, padding and dilation must fit weights of shape {self.shape}")
        if convolves and self.stride and self.padding and self.dilation:
            extents = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.shape[2:])]
            if any(p > max(64, extent) for p, extent in zip(self.padding, extents)):
                raise ValueError(f"padding {self.padding} is larger than the kernel's extent {extents}")
        return _bounds(self)


class Norm(Rescaled):
    """A norm that writes to a stream."""

    op: Literal["norm"]
    low: Code | None = None
    high: Code | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Norm":
        if self.k is not None and self.low is None:
            raise ValueError("a norm with k needs low and high")
        return _bounds(self)


class Neuron(Rescaled):
    """A neuron, and the norm before it."""

    op: Literal["neuron", "norm_neuron"]
    threshold: Code
    leak: Annotated[list[Code], Field(min_length=2, max_length=2)]
    bits: Bits | None
    shift: Shift
    leak_first: bool
    reset: Literal["hard", "soft"] | None
    reset_by: Code | None = None
    encode: bool
    initial: Code
    wide: bool
    ratio: Code
    low: None = None
    high: None = None

    @property
    def by(self) -> int:
        """What a soft reset subtracts."""
        return self.threshold if self.reset_by is None else self.reset_by

    @model_validator(mode="after")
    def _whole(self) -> "Neuron":
        if not 0 <= self.leak[1] + self.shift <= 62:
            raise ValueError(f"shifts of {self.leak[1]} and {self.shift} bits; allowed are 0 to 62 together")
        if not self.wide and max(self.bits or 0, self.leak[1] + self.shift) > 31:
            raise ValueError("numbers of more than 32 bits")
        _fit(self.wide, self.threshold, self.reset_by or 0, self.leak[0], self.initial, self.ratio)
        return _bounds(self)


class Parallel(Rescaled):
    """A neuron that weighs its currents over time, and the norm before it."""

    op: Literal["parallel", "norm_parallel"]
    threshold: Code
    encode: bool
    ratio: Code
    wide: bool
    bits: Annotated[int, Field(ge=2, le=8)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST_STEPS)]], Field(min_length=1, max_length=2)]
    taps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    causal: bool
    history: Place | None
    history_bits: Bits | None
    low: None = None
    high: None = None

    @model_validator(mode="after")
    def _whole(self) -> "Parallel":
        T = self.shape[-1]
        if len(self.shape) == 2 and self.shape[0] != T:
            raise ValueError(f"weights over time of shape {self.shape}; a square, or one weight a lag")
        if self.taps > T or (len(self.shape) == 1 and not (self.causal and self.taps == T)):
            raise ValueError(f"{self.taps} steps are summed by weights of shape {self.shape}")
        if (self.history is None) != (self.history_bits is None):
            raise ValueError("history and history_bits belong together")
        _fit(self.wide, self.threshold, self.ratio)
        return _bounds(self)


class MaxPool(Op):
    """Largest value of windows."""

    op: Literal["max_pool"]
    kernel: Pair
    stride: Pair
    padding: PlacePair
    dilation: Pair
    ceil: bool


class SumPool(Op):
    """Sums over windows."""

    op: Literal["sum_pool"]
    kernel: Pair
    stride: Pair
    padding: PlacePair
    size: Pair
    wide: bool


class Join(Op):
    """A sum, product or concatenation."""

    op: Literal["add", "mul", "cat"]
    wide: bool
    factors: list[Code] | None = None
    dim: Annotated[int, Field(ge=-8, le=8)] = 1

    @model_validator(mode="after")
    def _whole(self) -> "Join":
        if ("factors" in self.model_fields_set and self.factors is None) or (
            self.op == "cat" and "dim" not in self.model_fields_set
        ):
            raise ValueError("factors are null, or a concatenation has no dim")
        _fit(self.wide, *(self.factors or ()))
        return self


class MatMul(Op):
    """A product of two maps of spikes."""

    op: Literal["matmul"]
    wide: bool


class AdaptiveMax(Op):
    """Largest values of windows that cover a map."""

    op: Literal["adaptive_max"]
    size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]


class Replicate(Op):
    """Every value several times."""

    op: Literal["replicate"]
    times: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]


class Sum(Op):
    """Sums over dimensions."""

    op: Literal["sum"]
    dims: Annotated[list[Annotated[int, Field(ge=1, le=8)]], Field(min_length=1, max_length=8)]
    wide: bool


class Permute(Op):
    """Dimensions in another order, the first in its place."""

    op: Literal["permute"]
    dims: Annotated[list[Annotated[int, Field(ge=0, le=8)]], Field(min_length=1, max_length=9)]

    @model_validator(mode="after")
    def _first(self) -> "Permute":
        if self.dims[0] != 0:
            raise ValueError("the first dimension, of steps and images, stays")
        return self


class Affine(Op):
    """A factor and an offset."""

    op: Literal["affine"]
    factor: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
    offset: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
    wide: bool


class Repeat(Op):
    """The same at each step."""

    op: Literal["repeat"]


class Reshape(Op):
    """Another shape of each image."""

    op: Literal["reshape"]
    shape: Annotated[list[Size], Field(max_length=8)]


class Slice(Op):
    """A part of each dimension but the first."""

    op: Literal["slice"]
    index: Annotated[
        list[Annotated[list[Index], Field(min_length=3, max_length=3)]], Field(min_length=1, max_length=9)
    ]

    @model_validator(mode="after")
    def _first(self) -> "Slice":
        if self.index[0] != [None, None, None]:
            raise ValueError("the first dimension, of steps and images, stays")
        if any(step is not None and step < 1 for _, _, step in self.index):
            raise ValueError("steps must be at least 1")
        return self


class Pad(Op):
    """Zeros around."""

    op: Literal["pad"]
    pad: Annotated[list[Annotated[int, Field(ge=-4096, le=4096)]], Field(max_length=14)]


AnyOp = Annotated[
    Input | Layer | Norm | Neuron | Parallel | MaxPool | SumPool | Join | MatMul | AdaptiveMax | Replicate
    | Sum | Permute | Affine | Repeat | Reshape | Slice | Pad,
    Field(discriminator="op"),
]  # fmt: skip


class Form(Strict):
    """The input: kind, largest code, shape of one sample."""

    kind: Literal["image", "frames", "spikes"]
    limit: Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
    size: Annotated[list[Size], Field(min_length=1, max_length=4)]


class Header(Strict):
    """Operations in order, the last of which gives the logits; T; the value of one unit of the logits."""

    format: Literal["spikedistill-integer"]
    version: Literal[1]
    ops: Annotated[list[AnyOp], Field(min_length=2, max_length=MOST_OPS)]
    time_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    scale: Annotated[float, Field(gt=0)]
    input: Form

    @model_validator(mode="after")
    def _order(self) -> "Header":
        for i, op in enumerate(self.ops):
            if (op.op == "input") != (i == 0):
                raise ValueError(f"ops.{i}: the first operation is the input, and no other")
            several = {
                "add": (2, 2),
                "mul": (2, 2),
                "matmul": (2, 2),
                "cat": (1, 64),
                "norm_neuron": (1, 2),
                "norm_parallel": (1, 2),
            }
            low, high = several.get(op.op, (min(i, 1), min(i, 1)))
            if not low <= len(op.inputs) <= high or any(j >= i for j in op.inputs):
                raise ValueError(f"ops.{i}: {op.op} reads {op.inputs}; it reads {low} to {high} earlier ones")
            factors = getattr(op, "factors", None)
            if factors is not None and len(factors) != len(op.inputs):
                raise ValueError(f"ops.{i}: {len(factors)} factors for {len(op.inputs)} inputs")
            if isinstance(op, Parallel):
                _check_parallel(self, i, op)
        return self


BETWEEN = ("reshape", "permute", "max_pool", "sum_pool")  # a layer and the neuron that keeps its past


def _check_parallel(header: Header, i: int, op: Parallel) -> None:
    """Weights for T, and a history that the layer before the neuron reads."""
    if len(op.shape) == 2 and op.shape[0] != header.time_steps:
        raise ValueError(f"ops.{i}: weights for {op.shape[0]} steps in a network of {header.time_steps}")
    if op.history is None:
        return
    j = op.inputs[0]
    while j != op.history and header.ops[j].op in BETWEEN:
        j = header.ops[j].inputs[0]
    if j != op.history or header.ops[j].op != "layer" or len(op.inputs) > 1 or op.encode:
        raise ValueError(f"ops.{i}: {op.history} is not the layer that charges it alone")


def _bounds(op: Any) -> Any:
    # The executor asks whether a key is there: one that is null would be computed with.
    empty = [key for key in ("k", "low", "high") if key in op.model_fields_set and getattr(op, key) is None]
    if empty or (op.k is not None and "wide_scale" not in op.model_fields_set):
        raise ValueError(f"{empty[0]} is null" if empty else "k without wide_scale")
    if (op.low is None) != (op.high is None) or (op.low is not None and op.low > op.high):
        raise ValueError(f"low {op.low} and high {op.high} are no range")
    if not op.wide_scale:
        if (op.k or 0) > 31:
            raise ValueError(f"a shift of {op.k} bits in 32 bits")
        if op.k is not None or not getattr(op, "wide", True):
            _fit(False, op.low or 0, op.high or 0)
    return op


def _fit(wide: bool, *numbers: int) -> None:
    """Constants must fit into the integers that they meet."""
    limit = 1 << 62 if wide else (1 << 31) - 1
    if any(abs(number) > limit for number in numbers):
        raise ValueError(f"a constant beyond {limit}")
