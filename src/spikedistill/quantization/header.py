"""The header of an integer network's file as a typed model, checked whole before anything runs.

Three looks, each cheap whatever the file says: types and ranges of every number (`Header`), tensors against the operations
(:func:`check_tensors`), and one pass without data, which finds every shape and what an image costs (:func:`check_cost`).
"""

from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ..errors import SpikedistillError
from . import executor

FORMAT, VERSION = "spikedistill-integer", 1
MOST_STEPS, MOST_OPS = 4096, 20_000
MOST_VALUES = 1 << 28  # that one operation writes for one image, all steps together
MOST_SUMS = 1 << 42  # that one image adds up in all

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
    encode: bool
    initial: Code
    wide: bool
    ratio: Code
    low: None = None
    high: None = None

    @model_validator(mode="after")
    def _whole(self) -> "Neuron":
        if not 0 <= self.leak[1] + self.shift <= 62:
            raise ValueError(f"shifts of {self.leak[1]} and {self.shift} bits; allowed are 0 to 62 together")
        if not self.wide and max(self.bits or 0, self.leak[1] + self.shift) > 31:
            raise ValueError("numbers of more than 32 bits")
        _fit(self.wide, self.threshold, self.leak[0], self.initial, self.ratio)
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
    Input | Layer | Norm | Neuron | MaxPool | SumPool | Join | MatMul | AdaptiveMax | Replicate | Sum | Permute | Affine
    | Repeat | Reshape | Slice | Pad,
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
            several = {"add": (2, 2), "mul": (2, 2), "matmul": (2, 2), "cat": (1, 64), "norm_neuron": (1, 2)}
            low, high = several.get(op.op, (min(i, 1), min(i, 1)))
            if not low <= len(op.inputs) <= high or any(j >= i for j in op.inputs):
                raise ValueError(f"ops.{i}: {op.op} reads {op.inputs}; it reads {low} to {high} earlier ones")
            factors = getattr(op, "factors", None)
            if factors is not None and len(factors) != len(op.inputs):
                raise ValueError(f"ops.{i}: {len(factors)} factors for {len(op.inputs)} inputs")
        return self


def _bounds(op: Any) -> Any:
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


def read_header(header: Any, tensors: dict[str, Tensor], where: str) -> None:
    """Check a file's header and tensors whole.

    Raises: SpikedistillError that begins with ``where`` and names the operation.
    """
    try:
        checked = Header.model_validate(header)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise SpikedistillError(
            f"{where}: its header is not one of an integer network: {place}: {what} (found {first['input']!r:.60})"
        ) from None
    check_tensors(checked, tensors, where)
    check_cost(header, checked, tensors, where)


def check_tensors(header: Header, tensors: dict[str, Tensor], where: str) -> None:
    """Exactly the tensors that the operations need, in their types; raises SpikedistillError."""
    expected: dict[str, tuple[tuple[torch.dtype, ...], int | None]] = {}
    if header.input.kind == "image":
        expected["input.table"] = (torch.int8, torch.int16, torch.int32), 256 * header.input.size[0]
    for i, op in enumerate(header.ops):
        if isinstance(op, Layer):
            expected[f"{i}.weight"] = (torch.uint8,), -(-prod(op.shape) * op.bits // 8)
            if op.k is None and f"{i}.bias" in tensors:
                expected[f"{i}.bias"] = (torch.int32, torch.int64), op.shape[0]
        if isinstance(op, Rescaled) and op.k is not None:
            expected[f"{i}.M"] = (torch.int16, torch.int32), None
            expected[f"{i}.B"] = (torch.int32, torch.int64), None
    odd = sorted(set(expected) ^ set(tensors))
    if odd:
        raise SpikedistillError(f"{where}: the tensor {odd[0]!r} is {'missing' if odd[0] in expected else 'unknown'}")
    for name, (kinds, count) in expected.items():
        tensor = tensors[name]
        flat = (header.input.size[0], 256) if name == "input.table" else (tensor.numel(),)
        if tensor.dtype not in kinds or tensor.numel() != (tensor.numel() if count is None else count):
            raise SpikedistillError(f"{where}: the tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if tuple(tensor.shape) != flat or tensor.numel() == 0:
            raise SpikedistillError(f"{where}: the tensor {name!r} has the shape {tuple(tensor.shape)}, not {flat}")


def check_cost(raw: dict[str, Any], header: Header, tensors: dict[str, Tensor], where: str) -> None:
    """Find every shape without computing a value, and what one image costs; raises SpikedistillError."""
    T = header.time_steps
    values: list[Tensor] = []
    sums = 0
    frames = header.input.kind != "image"
    for i, (op, plain) in enumerate(zip(header.ops, raw["ops"])):
        if i == 0:
            # one image; with frames one a step. A single step stands for all: shapes do not depend on it.
            out = torch.empty(1, *header.input.size, dtype=torch.int32, device="meta")
        else:
            given = [values[j] for j in op.inputs]
            weight = torch.empty(op.shape, dtype=torch.int8, device="meta") if isinstance(op, Layer) else None
            try:
                out = executor.one_shape(i, plain, {k: v.to("meta") for k, v in _of(tensors, i)}, weight, given)
            except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
                words = " ".join(str(error).split())[:160]
                shapes = ", ".join(str(tuple(v.shape)) for v in given)
                raise SpikedistillError(f"{where}: ops.{i} ({op.op}) does not fit its input {shapes}: {words}") from None
        written = out.numel() * T
        sums += _sums(op, out, values) * T
        if out.dim() < 2 or out.shape[0] != 1 or out.numel() == 0:
            raise SpikedistillError(f"{where}: ops.{i} ({op.op}) gives the shape {tuple(out.shape)}")
        if written > MOST_VALUES or sums > MOST_SUMS:
            raise SpikedistillError(
                f"{where}: ops.{i} ({op.op}) gives {written:.3g} values for one image and brings its sums to {sums:.3g}; at most "
                f"{MOST_VALUES:.3g} and {MOST_SUMS:.3g} are run"
            )
        values.append(out)
    if values[-1].dim() != 2:
        raise SpikedistillError(f"{where}: the last operation gives the shape {tuple(values[-1].shape)}, no logits")
    _check_steps(header, frames, where)


def _of(tensors: dict[str, Tensor], i: int) -> list[tuple[str, Tensor]]:
    return [(name, tensors[name]) for name in (f"{i}.M", f"{i}.B", f"{i}.bias") if name in tensors]


def _sums(op: Any, out: Tensor, values: list[Tensor]) -> int:
    """Products that an operation adds up."""
    if isinstance(op, Layer):
        return out.numel() * prod(op.shape[1:])
    if isinstance(op, MaxPool | SumPool):
        return out.numel() * prod(op.kernel)
    if isinstance(op, MatMul):
        return out.numel() * values[op.inputs[0]].shape[-1]
    return sum(values[j].numel() for j in op.inputs)


def _check_steps(header: Header, frames: bool, where: str) -> None:
    """Where steps begin: at the input of frames, else at one encoding neuron or repetition on each way to the output."""
    unfolded: list[bool] = []
    for i, op in enumerate(header.ops):
        before = {unfolded[j] for j in op.inputs}
        if len(before) > 1:
            raise SpikedistillError(f"{where}: ops.{i} ({op.op}) joins what has steps and what has none")
        starts = op.op == "repeat" or (isinstance(op, Neuron) and op.encode)
        unfolds = (isinstance(op, Neuron) and not op.encode) or starts
        if unfolds and before == {starts}:
            raise SpikedistillError(f"{where}: ops.{i} ({op.op}) {'begins' if starts else 'lacks'} the time steps{' again' * starts}")
        unfolded.append(frames if i == 0 else starts or before == {True})
    if not unfolded[-1]:
        raise SpikedistillError(f"{where}: its logits have no time steps")
