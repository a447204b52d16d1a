"""An integer network's file is checked whole before anything runs, cheaply whatever it says.

Three looks: types and ranges of every number (:class:`Header`), tensors against the operations
(:func:`check_tensors`), and one pass without data, which finds every shape and what an image costs
(:func:`check_cost`).
"""

from math import prod
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import SpikedistillError
from ..typed import lines
from . import executor
from .header import Header, Layer, MatMul, MaxPool, Neuron, Parallel, Rescaled, SumPool

MOST_VALUES = 1 << 28  # that one operation writes for one image, all steps together
MOST_SUMS = 1 << 42  # that one image adds up in all


def read_header(header: Any, tensors: dict[str, Tensor], where: str) -> tuple[Header, list[tuple[int, ...]]]:
    """Check a file's header and tensors whole; returns it, and operations' shapes.

    Shapes are for one image at one step, (1, ...).

    Raises: SpikedistillError that begins with ``where`` and names the operation.
    """
    try:
        checked = Header.model_validate(header)
    except ValidationError as error:
        raise SpikedistillError(
            f"{where}: its header is not one of an integer network: {lines(error)[0]}"
        ) from None
    check_tensors(checked, tensors, where)
    return checked, check_cost(header, checked, tensors, where)


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
        if isinstance(op, Parallel):
            expected[f"{i}.temporal"] = (torch.uint8,), -(-prod(op.shape) * op.bits // 8)
            expected[f"{i}.offset"] = (torch.int32, torch.int64), op.shape[0] if len(op.shape) == 2 else 1
        if isinstance(op, Rescaled) and op.k is not None:
            # None: one entry may stand for all channels; the pass without data finds what fits.
            expected[f"{i}.M"] = (torch.int16, torch.int32), None
            expected[f"{i}.B"] = (torch.int32, torch.int64), None
    odd = sorted(set(expected) ^ set(tensors))
    if odd:
        raise SpikedistillError(
            f"{where}: the tensor {odd[0]!r} is {'missing' if odd[0] in expected else 'unknown'}"
        )
    for name, (kinds, count) in expected.items():
        tensor = tensors[name]
        flat = (header.input.size[0], 256) if name == "input.table" else (tensor.numel(),)
        if tensor.dtype not in kinds or tensor.numel() != (tensor.numel() if count is None else count):
            raise SpikedistillError(
                f"{where}: the tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if tuple(tensor.shape) != flat or tensor.numel() == 0:
            raise SpikedistillError(
                f"{where}: the tensor {name!r} has the shape {tuple(tensor.shape)}, not {flat}"
            )


def check_cost(
    raw: dict[str, Any], header: Header, tensors: dict[str, Tensor], where: str
) -> list[tuple[int, ...]]:
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
            shape = op.shape if isinstance(op, Layer | Parallel) else None
            # A tensor of sizes alone: a forged header cannot ask for memory here.
            weight = None if shape is None else torch.empty(shape, dtype=torch.int8, device="meta")
            try:
                # The raw mapping: the executor asks whether a key is there, and a model has all its keys.
                out = executor.one_shape(
                    i, plain, {k: v.to("meta") for k, v in _of(tensors, i)}, weight, given
                )
            except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
                words = " ".join(str(error).split())[:160]
                shapes = ", ".join(str(tuple(v.shape)) for v in given)
                raise SpikedistillError(
                    f"{where}: ops.{i} ({op.op}) does not fit its input {shapes}: {words}"
                ) from None
        written = out.numel() * T
        sums += _sums(op, out, values) * T
        if out.dim() < 2 or out.shape[0] != 1 or out.numel() == 0:
            raise SpikedistillError(f"{where}: ops.{i} ({op.op}) gives the shape {tuple(out.shape)}")
        if written > MOST_VALUES or sums > MOST_SUMS:
            raise SpikedistillError(
                f"{where}: ops.{i} ({op.op}) gives {written:.3g} values for one image and brings its sums to "
                f"{sums:.3g}; at most {MOST_VALUES:.3g} and {MOST_SUMS:.3g} are run"
            )
        values.append(out)
    if values[-1].dim() != 2:
        raise SpikedistillError(
            f"{where}: the last operation gives the shape {tuple(values[-1].shape)}, no logits"
        )
    _check_steps(header, frames, where)
    return [tuple(value.shape) for value in values]


def _of(tensors: dict[str, Tensor], i: int) -> list[tuple[str, Tensor]]:
    return [
        (name, tensors[name]) for name in (f"{i}.M", f"{i}.B", f"{i}.bias", f"{i}.offset") if name in tensors
    ]


def _sums(op: Any, out: Tensor, values: list[Tensor]) -> int:
    """Products that an operation adds up."""
    if isinstance(op, Layer):
        return out.numel() * prod(op.shape[1:])
    if isinstance(op, MaxPool | SumPool):
        return out.numel() * prod(op.kernel)
    if isinstance(op, MatMul):
        return out.numel() * values[op.inputs[0]].shape[-1]
    if isinstance(op, Parallel):
        return out.numel() * op.taps
    return sum(values[j].numel() for j in op.inputs)


def _check_steps(header: Header, frames: bool, where: str) -> None:
    """Where steps begin: at the input of frames, or at one encoding neuron or repetition on each way out."""
    unfolded: list[bool] = []
    for i, op in enumerate(header.ops):
        before = {unfolded[j] for j in op.inputs}
        if len(before) > 1:
            raise SpikedistillError(f"{where}: ops.{i} ({op.op}) joins what has steps and what has none")
        starts = op.op == "repeat" or (isinstance(op, Neuron | Parallel) and op.encode)
        unfolds = (isinstance(op, Neuron | Parallel) and not op.encode) or starts
        # What begins steps must find none, every other neuron must find some.
        if unfolds and before == {starts}:
            raise SpikedistillError(
                f"{where}: ops.{i} ({op.op}) {'begins' if starts else 'lacks'} the time "
                f"steps{' again' * starts}"
            )
        unfolded.append(frames if i == 0 else starts or before == {True})
    if not unfolded[-1]:
        raise SpikedistillError(f"{where}: its logits have no time steps")
