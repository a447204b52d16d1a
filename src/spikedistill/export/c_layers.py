"""From an integer network's layers, norms and neurons to calls of C functions."""

from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import SpikedistillError
from ..quantization.bit_packing import pack, unpack
from ..quantization.header import Header, Layer, Neuron, Norm, Op, Rescaled
from .c_numbers import (
    Range,
    braces,
    by,
    hull,
    membrane,
    number,
    per_channel,
    plus,
    range_of,
    sums,
    times,
    width,
)
from .c_operations import Library, neuron_text
from .c_plan import Buffer, Program, Shape, Value, array

MOST_INDEX = (1 << 31) - 1


class LayerBuilder:
    """Reads the operations once; ``shapes``: what each gives for one image and step, (1, ...)."""

    def __init__(self, header: Header, tensors: dict[str, Tensor], shapes: list[Shape]) -> None:
        self.header, self.tensors, self.shapes = header, tensors, [shape[1:] for shape in shapes]
        self.program, self.library = Program(), Library()
        self.values: list[Value] = []
        self.most_places = self.most_columns = 1
        scales = [
            (tensors[f"{i}.M"], tensors[f"{i}.B"]) for i in range(len(header.ops)) if f"{i}.M" in tensors
        ]
        offsets = [b for _, b in scales] + [t for name, t in tensors.items() if name.endswith(".bias")]
        # one type for all layers: `struct scale` holds pointers to it
        self.factor = max((width(range_of(m), least=16) for m, _ in scales), default=16)
        self.offset = max((width(range_of(b), least=32) for b in offsets), default=32)

    def build(self) -> Value:
        """All calls; returns the logits of a step."""
        for i, op in enumerate(self.header.ops):
            path = getattr(op, "path", "")
            self.where = f"ops.{i} ({op.op})" + (f", {path}" if path else "")
            self.i, self.shape, self.given = i, self.shapes[i], [self.values[j] for j in op.inputs]
            self.stepped = any(value.stepped for value in self.given)
            if not hasattr(self, f"_{op.op}"):
                raise self.refused(
                    "has no form in C: it weighs currents over time; LIF, IF and PLIF have one"
                )
            value = getattr(self, f"_{op.op}")(op)
            if value.shape != self.shape or max(value.size, value.buffer.size) > MOST_INDEX:
                raise self.refused(f"gives {value.shape} where {self.shape} is expected")
            self.values.append(value)
        return self.logical(self.values[-1])

    def refused(self, why: str) -> SpikedistillError:
        """A refusal that names the operation."""
        return SpikedistillError(f"to_c: {self.where}: {why}")

    def width(self, *ranges: Range, least: int = 8) -> int:
        """:func:`c_plan.width`, for this operation."""
        return width(*ranges, least=least, where=self.where)

    def made(self, r: Range, shape: Shape | None = None, last: bool = False, least: int = 8) -> Value:
        """A value in memory of its own."""
        shape = self.shape if shape is None else shape
        return Value(Buffer(prod(shape), self.width(r, least=least)), shape, r, self.stepped, last)

    def call(self, function: str, *arguments: Any, comment: str = "", **widths: int) -> None:
        """Call a function of the library."""
        self.program.call(self.stepped, self.library.use(function, **widths), *arguments, comment=comment)

    def constant(self, kind: str, name: str, text: str) -> str:
        """A constant struct; its address."""
        self.program.constants.append(f"static const struct {kind} {name}_{self.i} = {text};\n")
        return f"&{name}_{self.i}"

    def table(self, kind: str, name: str, numbers: Any) -> str:
        """A constant array; its name."""
        self.program.constants.append(array(f"{name}_{self.i}", kind, [int(n) for n in numbers]))
        return f"{name}_{self.i}"

    # -- copies

    def copy(
        self, value: Value, out: Value, shape: Shape, read: list[int], write: list[int],
        starts: tuple[int, int] = (0, 0), factor: int = 1, name: str = "walk",
    ) -> Value:  # fmt: skip
        """Entries of ``shape`` from ``value`` to ``out``, each with its strides."""
        # `struct walk` has room for so many
        if len(shape) > 9:
            raise self.refused(f"has {len(shape)} dimensions; at most 9 are walked")
        walk = self.walk(shape, read, write, starts, name)
        w = self.width(value.range, out.range, (factor, factor), least=32)
        self.call("copy", walk, factor, value.buffer, out.buffer, IN=value.bits, OUT=out.bits, W=w)
        return out

    def walk(
        self, shape: Shape, read: list[int], write: list[int], starts: tuple[int, int], name: str
    ) -> str:
        """A ``struct walk``."""
        rows = [braces(v or [0]) for v in (shape, read, write)]
        # an operation may walk more than once: the count keeps the names apart
        name = f"{name}_{len(self.program.constants)}"
        return self.constant("walk", name, f"{{{len(shape)}, {', '.join(rows)}, {starts[0]}, {starts[1]}}}")

    def logical(self, value: Value) -> Value:
        """With the dimensions in order."""
        if not value.last or value.strides == Value(value.buffer, value.shape, value.range, False).strides:
            return Value(value.buffer, value.shape, value.range, value.stepped)
        out = Value(Buffer(value.size, value.bits), value.shape, value.range, value.stepped)
        return self.copy(value, out, value.shape, value.strides, out.strides, name="order")

    def spread(self, value: Value, shape: Shape) -> Value:
        """Of a larger shape, as torch broadcasts."""
        value = self.logical(value)
        if value.shape == shape:
            return value
        out = Value(Buffer(prod(shape), value.bits), shape, value.range, value.stepped)
        strides = [0] * (len(shape) - len(value.shape)) + value.strides
        sizes = (1,) * (len(shape) - len(value.shape)) + value.shape
        read = [0 if size == 1 else stride for size, stride in zip(sizes, strides)]
        return self.copy(value, out, shape, read, out.strides, name="spread")

    def window(self, channels: int, *pairs: Any) -> str:
        """A ``struct window``: sizes before and after, kernel, stride, padding, dilation; 1-D: height 1."""
        fill = (1, 1, 1, 1, 0, 1)
        both = [[f, *pair] if len(pair) == 1 else list(pair) for f, pair in zip(fill, pairs)]
        return f"{{{channels}, {', '.join(braces(pair) for pair in both)}}}"

    # -- input

    def _input(self, op: Op) -> Value:
        form = self.header.input
        if form.kind == "image":
            table = self.tensors["input.table"]
            out = self.made(range_of(table))
            name = self.table(f"int{out.bits}_t", "levels", table.flatten().tolist())
            places = prod(self.shape[1:])
            self.call(
                "levels", name, self.shape[0], places, "image", out.buffer, comment="input", OUT=out.bits
            )
            return out
        self.stepped = True
        out = self.made((-form.limit, form.limit))
        self.call(
            "clipped", out.size, form.limit, "frame", out.buffer, comment="input", IN=self.frame, OUT=out.bits
        )
        return out

    @property
    def frame(self) -> int:
        """Bits of one count of a frame."""
        return 16 if self.header.input.limit < 1 << 15 else 32

    # -- layers, norms and neurons

    def _layer(self, op: Layer) -> Value:
        x, convolves = self.logical(self.given[0]), len(op.shape) > 2
        weight = unpack(self.tensors[f"{self.i}.weight"], op.bits, tuple(op.shape))
        bias = self.tensors.get(f"{self.i}.bias")
        if not convolves and len(x.shape) > 1 and bias is not None and prod(x.shape[:-1]) > 1:
            raise self.refused("is a linear layer of maps with a bias")
        outputs, inputs, groups = op.shape[0] // op.groups, op.shape[1], op.groups
        # the C code counts bits of the weights in 32 bits
        if prod(op.shape) * op.bits > MOST_INDEX:
            raise self.refused(
                f"has {prod(op.shape):,} weights; at most {MOST_INDEX // op.bits:,} are indexed"
            )
        # [output][input][kernel] to [group and input][kernel][output]
        ordered = weight.reshape(groups, outputs, inputs, -1).permute(0, 2, 3, 1).contiguous()
        # a byte more: two are read at a time, also for the last weight
        packed = [*pack(ordered, op.bits).tolist(), 0]
        codes = weight.numpy().reshape(op.shape[0], -1).astype(np.int64)
        acc = sums(codes, x.range, bias)
        out_shape = self.shape if convolves else (*x.shape[:-1], op.shape[0])
        # as wide as the input: the C code casts its values to the type of the sums
        made = self.made(acc, out_shape, last=convolves, least=max(32, x.bits))
        if convolves:
            maps = (x.shape[1:], self.shape[1:], op.shape[2:], op.stride, op.padding, op.dilation)
            view = f"{{{x.shape[0]}, {prod(x.shape[1:])}, {prod(x.shape[1:])}, 1}}"
            window = self.window(x.shape[0], *maps)
        else:
            places = prod(x.shape[:-1])
            view = f"{{{x.shape[-1]}, {places}, 1, {x.shape[-1]}}}"
            window = self.window(x.shape[-1], [places], [places], [1], [1], [0], [1])
        # all layers share the lists of spikes, so the largest map decides
        self.most_places = max(self.most_places, prod(x.shape[1:]) if convolves else prod(x.shape[:-1]))
        self.most_columns = max(self.most_columns, outputs)
        weights = self.table("uint8_t", "weights", packed)
        biases = "0" if bias is None else self.table(f"int{self.offset}_t", "bias", bias.tolist())
        numbers = f"{weights}, {biases}, {op.bits}, {groups}, {inputs}, {outputs}, {window}, {view}"
        address = self.constant("layer", "layer", f"{{{numbers}}}")
        kind = f"convolution, kernel {by(op.shape[2:])}" if convolves else "linear layer"
        comment = f"{op.path}: {kind}, {by(x.shape)} to {by(out_shape)}, weights of {op.bits} bits"
        self.call("layer", address, x.buffer, made.buffer, comment=comment, IN=x.bits, OUT=made.bits)
        if op.k is None:
            return made
        return self.rescaled(op, made, op.low, op.high)

    def _norm(self, op: Norm) -> Value:
        x = self.given[0]
        if op.k is None:
            return x  # folded into the layer before it
        return self.rescaled(op, x, op.low, op.high)

    def rescaled(self, op: Rescaled, x: Value, low: int | None, high: int | None) -> Value:
        """``((x * M + 2^(k-1)) >> k) + B``, saturated."""
        scale, inner, out = self.scale(op, x)
        if low is None or high is None:
            low, high = out
        out = min(max(out[0], low), high), max(min(out[1], high), low)
        made = self.made(out, x.shape, x.last)
        # in place behind a layer, whose sums nobody else reads; a norm's input may be read again
        if made.bits == x.bits and isinstance(op, Layer):
            made.buffer = x.buffer
        w = self.width(*inner, (low, high), least=32)
        # only the limits need 64 bits: the range of the result cuts the same values in 32
        if w == 64 and self.width(*inner, least=32) == 32:
            w, low, high = 32, *out
        address = self.constant("scale", "norm", scale)
        view = self.constant("view", "norm_view", x.view)
        limits = number(low), number(high)
        comment = f"{op.path}: multiplier and offset, saturated from {low} to {high}"
        self.call(
            "norm",
            address,
            view,
            *limits,
            x.buffer,
            made.buffer,
            comment=comment,
            IN=x.bits,
            OUT=made.bits,
            W=w,
        )
        return made

    def scale(self, op: Rescaled, x: Value) -> tuple[str, list[Range], Range]:
        """A ``struct scale``, the ranges inside, and the range of the result."""
        channels = x.shape[0]
        M, B = (per_channel(self.tensors[f"{self.i}.{name}"], channels) for name in ("M", "B"))
        if M is None or B is None:
            raise self.refused(f"has multipliers for another number of channels than {channels}")
        k = op.k or 0
        products = [times(x.range, (m, m)) for m in M]
        product = hull(products)
        if k > 0:
            half = 1 << (k - 1)
            inner = [product, plus(product, (half, half)), (half, half), x.range, hull([(m, m) for m in M])]
            # channel by channel: the largest product does not meet every channel's offset
            shifted = [((p[0] + half) >> k, (p[1] + half) >> k) for p in products]
        else:
            inner = [product, (1 << -k, 1 << -k), x.range, hull([(m, m) for m in M])]
            shifted = [(p[0] << -k, p[1] << -k) for p in products]
        out = hull([(s[0] + b, s[1] + b) for s, b in zip(shifted, B)])
        inner += [hull(shifted), out, hull([(b, b) for b in B])]
        names = [self.table(f"int{bits}_t", name, codes) for bits, name, codes in (
            (self.factor, "multipliers", M), (self.offset, "offsets", B))]  # fmt: skip
        return f"{{{names[0]}, {names[1]}, {k}}}", inner, out

    def _norm_neuron(self, op: Neuron) -> Value:
        return self._neuron(op)

    def _neuron(self, op: Neuron) -> Value:
        x, scale = self.given[0], "{0, 0, 0}"
        residual: Value | None = None
        norm, ratio, multiplier = op.op == "norm_neuron" and op.k is not None, (op.ratio, op.ratio), op.ratio
        inner, current = [x.range, ratio], x.range
        if norm:
            scale, inner, current = self.scale(op, x)
        if len(self.given) > 1:
            residual = self.given[1]
            if residual.shape != x.shape:
                raise self.refused(f"adds {residual.shape} to {x.shape}")
            charge = times(residual.range, ratio)
            inner += [residual.range, ratio, charge, current]
            current = plus(current, charge)
        elif op.op == "neuron":
            current = times(current, ratio)
        else:
            # what a norm gives is current already: the ratio is that of a residual
            multiplier = 1
        # stepped from here on: membranes move even where the current stands still
        self.stepped = True
        stored, unit, ranges = membrane(op, current, self.header.time_steps)
        w = self.width(current, *inner, *ranges, least=32)
        kept = Buffer(x.size, self.width(stored), kept=True)
        (l, L), q = op.leak, op.shift if op.bits is not None else 0
        low, high = (-(1 << (op.bits - 1)), (1 << (op.bits - 1)) - 1) if op.bits is not None else (0, 0)
        seen = residual.view if residual is not None else "{0, 0, 0, 0}"
        numbers = [
            scale,
            x.view,
            seen,
            *map(number, (multiplier, op.threshold, op.by, low, high)),
            l,
            L,
            q,
            unit,
        ]
        address = self.constant("neuron", "neuron", "{" + ", ".join(map(str, numbers)) + "}")
        text = neuron_text(
            op.reset, (l, L) != (1, 0), op.leak_first, op.bits is not None, norm, residual is not None
        )
        self.program.kept.append((kept, op.initial >> unit))
        out = self.made((0, 1), x.shape)
        buffers = [x.buffer, *([residual.buffer] if residual is not None else []), kept, out.buffer]
        widths = {"IN": x.bits, "V": kept.bits, "W": w} | (
            {"R": residual.bits} if residual is not None else {}
        )
        comment = (
            f"{op.path}: neurons {by(x.shape)}, membranes of {op.bits or kept.bits} bits, "
            f"threshold {op.threshold}"
        )
        self.call(text, address, *buffers, comment=comment, **widths)
        return out
