"""From an integer network's operations to calls of C functions."""

from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import SpikedistillError
from ..quantization.bit_packing import pack, unpack
from ..quantization.header import (
    AdaptiveMax, Affine, Header, Join, Layer, MaxPool, Neuron, Norm, Op, Pad, Permute, Rescaled, Slice, Sum, SumPool,
)  # fmt: skip
from .c_operations import Library, neuron_text
from .c_plan import Buffer, Program, Range, Shape, Value, array, plus, times, width

MOST_INDEX = (1 << 31) - 1


class Builder:
    """Reads the operations once; ``shapes``: what each gives for one image at one step, with a first dimension of 1."""

    def __init__(self, header: Header, tensors: dict[str, Tensor], shapes: list[Shape]) -> None:
        self.header, self.tensors, self.shapes = header, tensors, [shape[1:] for shape in shapes]
        self.program, self.library = Program(), Library()
        self.values: list[Value] = []
        self.most_places = self.most_columns = 1
        scales = [(tensors[f"{i}.M"], tensors[f"{i}.B"]) for i in range(len(header.ops)) if f"{i}.M" in tensors]
        offsets = [b for _, b in scales] + [t for name, t in tensors.items() if name.endswith(".bias")]
        self.factor = max((width(range_of(m), least=16) for m, _ in scales), default=16)
        self.offset = max((width(range_of(b), least=32) for b in offsets), default=32)

    def build(self) -> Value:
        """All calls; returns the logits of a step."""
        for i, op in enumerate(self.header.ops):
            self.where = f"ops.{i} ({op.op})" + (f", {op.path}" if getattr(op, "path", "") else "")
            self.i, self.shape, self.given = i, self.shapes[i], [self.values[j] for j in op.inputs]
            self.stepped = any(value.stepped for value in self.given)
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

    # -- copies -----------------------------------------------------------------------------------------------------

    def copy(
        self, value: Value, out: Value, shape: Shape, read: list[int], write: list[int],
        starts: tuple[int, int] = (0, 0), factor: int = 1, name: str = "walk",
    ) -> Value:  # fmt: skip
        """Entries of ``shape`` from ``value`` to ``out``, each with its strides."""
        if len(shape) > 9:
            raise self.refused(f"has {len(shape)} dimensions; at most 9 are walked")
        walk = self.walk(shape, read, write, starts, name)
        w = self.width(value.range, out.range, (factor, factor), least=32)
        self.call("copy", walk, factor, value.buffer, out.buffer, IN=value.bits, OUT=out.bits, W=w)
        return out

    def walk(self, shape: Shape, read: list[int], write: list[int], starts: tuple[int, int], name: str) -> str:
        """A ``struct walk``."""
        rows = [_braces(v or [0]) for v in (shape, read, write)]
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

    # -- input ------------------------------------------------------------------------------------------------------

    def _input(self, op: Op) -> Value:
        form = self.header.input
        if form.kind == "image":
            table = self.tensors["input.table"]
            out = self.made(range_of(table))
            name = self.table(f"int{out.bits}_t", "levels", table.flatten().tolist())
            places = prod(self.shape[1:])
            self.call("levels", name, self.shape[0], places, "image", out.buffer, comment="input", OUT=out.bits)
            return out
        self.stepped = True
        out = self.made((-form.limit, form.limit))
        self.call("clipped", out.size, form.limit, "frame", out.buffer, comment="input", IN=self.frame, OUT=out.bits)
        return out

    @property
    def frame(self) -> int:
        """Bits of one count of a frame."""
        return 16 if self.header.input.limit < 1 << 15 else 32

    # -- layers, norms and neurons ----------------------------------------------------------------------------------

    def _layer(self, op: Layer) -> Value:
        x, convolves = self.logical(self.given[0]), len(op.shape) > 2
        weight = unpack(self.tensors[f"{self.i}.weight"], op.bits, tuple(op.shape))
        bias = self.tensors.get(f"{self.i}.bias")
        if not convolves and len(x.shape) > 1 and bias is not None and prod(x.shape[:-1]) > 1:
            raise self.refused("is a linear layer of maps with a bias")
        outputs, inputs, groups = op.shape[0] // op.groups, op.shape[1], op.groups
        if prod(op.shape) * op.bits > MOST_INDEX:
            raise self.refused(f"has {prod(op.shape):,} weights; at most {MOST_INDEX // op.bits:,} are indexed")
        # [output][input][kernel] to [group and input][kernel][output]
        ordered = weight.reshape(groups, outputs, inputs, -1).permute(0, 2, 3, 1).contiguous()
        packed = [*pack(ordered, op.bits).tolist(), 0]
        codes = weight.numpy().reshape(op.shape[0], -1).astype(np.int64)
        acc = _sums(codes, x.range, bias)
        out_shape = self.shape if convolves else (*x.shape[:-1], op.shape[0])
        made = self.made(acc, out_shape, last=convolves, least=max(32, x.bits))
        if convolves:
            maps = (x.shape[1:], self.shape[1:], op.shape[2:], op.stride, op.padding, op.dilation)
            view = f"{{{x.shape[0]}, {prod(x.shape[1:])}, {prod(x.shape[1:])}, 1}}"
            window = self.window(x.shape[0], *maps)
        else:
            places = prod(x.shape[:-1])
            view = f"{{{x.shape[-1]}, {places}, 1, {x.shape[-1]}}}"
            window = self.window(x.shape[-1], [places], [places], [1], [1], [0], [1])
        self.most_places = max(self.most_places, prod(x.shape[1:]) if convolves else prod(x.shape[:-1]))
        self.most_columns = max(self.most_columns, outputs)
        weights = self.table("uint8_t", "weights", packed)
        biases = "0" if bias is None else self.table(f"int{self.offset}_t", "bias", bias.tolist())
        numbers = f"{weights}, {biases}, {op.bits}, {groups}, {inputs}, {outputs}, {window}, {view}"
        address = self.constant("layer", "layer", f"{{{numbers}}}")
        kind = f"convolution, kernel {_by(op.shape[2:])}" if convolves else "linear layer"
        comment = f"{op.path}: {kind}, {_by(x.shape)} to {_by(out_shape)}, weights of {op.bits} bits"
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
        if made.bits == x.bits and isinstance(op, Layer):
            made.buffer = x.buffer
        w = self.width(*inner, (low, high), least=32)
        if w == 64 and self.width(*inner, least=32) == 32:
            w, low, high = 32, *out
        address = self.constant("scale", "norm", scale)
        view = self.constant("view", "norm_view", x.view)
        limits = number(low), number(high)
        comment = f"{op.path}: multiplier and offset, saturated from {low} to {high}"
        self.call("norm", address, view, *limits, x.buffer, made.buffer, comment=comment, IN=x.bits, OUT=made.bits, W=w)
        return made

    def scale(self, op: Rescaled, x: Value) -> tuple[str, list[Range], Range]:
        """A ``struct scale``, the ranges inside, and the range of the result."""
        channels = x.shape[0]
        M, B = (_per_channel(self.tensors[f"{self.i}.{name}"], channels) for name in ("M", "B"))
        if M is None or B is None:
            raise self.refused(f"has multipliers for another number of channels than {channels}")
        k = op.k or 0
        products = [times(x.range, (m, m)) for m in M]
        product = _hull(products)
        if k > 0:
            half = 1 << (k - 1)
            inner = [product, plus(product, (half, half)), (half, half), x.range, _hull([(m, m) for m in M])]
            shifted = [((p[0] + half) >> k, (p[1] + half) >> k) for p in products]
        else:
            inner = [product, (1 << -k, 1 << -k), x.range, _hull([(m, m) for m in M])]
            shifted = [(p[0] << -k, p[1] << -k) for p in products]
        out = _hull([(s[0] + b, s[1] + b) for s, b in zip(shifted, B)])
        inner += [_hull(shifted), out, _hull([(b, b) for b in B])]
        names = [self.table(f"int{bits}_t", name, codes) for bits, name, codes in (
            (self.factor, "multipliers", M), (self.offset, "offsets", B))]  # fmt: skip
        return f"{{{names[0]}, {names[1]}, {k}}}", inner, out

    def _norm_neuron(self, op: Neuron) -> Value:
        return self._neuron(op)

    def _neuron(self, op: Neuron) -> Value:
        x, residual, scale = self.given[0], None, "{0, 0, 0}"
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
            multiplier = 1
        self.stepped = True
        stored, unit, ranges = membrane(op, current, self.header.time_steps)
        w = self.width(current, *inner, *ranges, least=32)
        kept = Buffer(x.size, self.width(stored), kept=True)
        (l, L), q = op.leak, op.shift if op.bits is not None else 0
        low, high = (-(1 << (op.bits - 1)), (1 << (op.bits - 1)) - 1) if op.bits is not None else (0, 0)
        seen = residual.view if residual is not None else "{0, 0, 0, 0}"
        numbers = [scale, x.view, seen, *map(number, (multiplier, op.threshold, low, high)), l, L, q, unit]
        address = self.constant("neuron", "neuron", "{" + ", ".join(map(str, numbers)) + "}")
        text = neuron_text(
            op.reset, (l, L) != (1, 0), op.leak_first, op.bits is not None, norm, residual is not None
        )
        self.program.kept.append((kept, op.initial >> unit))
        out = self.made((0, 1), x.shape)
        buffers = [x.buffer, *([residual.buffer] if residual is not None else []), kept, out.buffer]
        widths = {"IN": x.bits, "V": kept.bits, "W": w} | ({"R": residual.bits} if residual is not None else {})
        comment = f"{op.path}: neurons {_by(x.shape)}, membranes of {op.bits or kept.bits} bits, threshold {op.threshold}"
        self.call(text, address, *buffers, comment=comment, **widths)
        return out

    # -- pools ------------------------------------------------------------------------------------------------------

    def window(self, channels: int, *pairs: Any) -> str:
        """A ``struct window``: sizes before and after, kernel, stride, padding, dilation; 1-D as maps of height 1."""
        fill = (1, 1, 1, 1, 0, 1)
        both = [[f, *pair] if len(pair) == 1 else list(pair) for f, pair in zip(fill, pairs)]
        return f"{{{channels}, {', '.join(_braces(pair) for pair in both)}}}"

    def maps(self) -> Value:
        """The input of a pool."""
        x = self.logical(self.given[0])
        if len(x.shape) not in (2, 3):
            raise self.refused(f"pools maps of shape {x.shape}")
        return x

    def _max_pool(self, op: MaxPool) -> Value:
        x = self.maps()
        out = self.made(x.range, least=x.bits)
        for size, count, k, s, p, d in zip(x.shape[-2:], self.shape[-2:], op.kernel, op.stride, op.padding, op.dilation):
            if any(not any(0 <= i * s - p + j * d < size for j in range(k)) for i in range(count)):
                raise self.refused("has a window that lies in the padding alone")
        window = self.window(
            prod(x.shape[:-2]), x.shape[-2:], self.shape[-2:], op.kernel, op.stride, op.padding, op.dilation
        )
        address = self.constant("window", "pool", window)
        comment = f"largest of {_by(op.kernel)}, {_by(x.shape)} to {_by(self.shape)}"
        self.call("max_pool", address, x.buffer, out.buffer, comment=comment, IN=x.bits)
        return out

    def _sum_pool(self, op: SumPool) -> Value:
        x, area = self.maps(), prod(op.kernel)
        out = self.made((min(0, x.range[0] * area), max(0, x.range[1] * area)), least=x.bits)
        window = self.window(prod(x.shape[:-2]), x.shape[-2:], self.shape[-2:], op.kernel, op.stride, op.padding, [1, 1])
        address = self.constant("window", "pool", window)
        comment = f"sums over {_by(op.kernel)}, {_by(x.shape)} to {_by(self.shape)}"
        self.call("sum_pool", address, x.buffer, out.buffer, comment=comment, IN=x.bits, OUT=out.bits)
        return out

    def _adaptive_max(self, op: AdaptiveMax) -> Value:
        x = self.maps()
        out = self.made(x.range, least=x.bits)
        if max(a * b for a, b in zip(x.shape[-2:], self.shape[-2:])) > MOST_INDEX // 2:
            raise self.refused("has maps too large to index")
        window = self.window(prod(x.shape[:-2]), x.shape[-2:], self.shape[-2:], [1, 1], [1, 1], [0, 0], [1, 1])
        address = self.constant("window", "pool", window)
        comment = f"largest values, {_by(x.shape)} to {_by(self.shape)}"
        self.call("adaptive_max", address, x.buffer, out.buffer, comment=comment, IN=x.bits)
        return out

    # -- sums, products and shapes ----------------------------------------------------------------------------------

    def _add(self, op: Join) -> Value:
        a, b = (self.spread(v, self.shape) for v in self.given)
        factors = op.factors or [1, 1]
        parts = [times(v.range, (f, f)) for v, f in zip((a, b), factors)]
        out = self.made(plus(*parts))
        w = self.width(*parts, plus(*parts), *((f, f) for f in factors), a.range, b.range, least=32)
        numbers = out.size, *map(number, factors), a.buffer, b.buffer, out.buffer
        self.call("add", *numbers, comment=f"sum of {_by(self.shape)}", A=a.bits, B=b.bits, OUT=out.bits, W=w)
        return out

    def _mul(self, op: Join) -> Value:
        a, b = (self.spread(v, self.shape) for v in self.given)
        if op.factors is not None:
            fa, fb = op.factors
            if (fa, fb) != (1, 1):
                raise self.refused("multiplies with factors")
        out = self.made(times(a.range, b.range))
        w = self.width(a.range, b.range, out.range, least=32)
        buffers = a.buffer, b.buffer, out.buffer
        self.call("mul", out.size, *buffers, comment=f"product of {_by(self.shape)}", A=a.bits, B=b.bits, OUT=out.bits, W=w)
        return out

    def _cat(self, op: Join) -> Value:
        rank = len(self.shape) + 1
        dim = (op.dim + rank if op.dim < 0 else op.dim) - 1
        factors = op.factors or [1] * len(self.given)
        out = self.made(_hull([times(v.range, (f, f)) for v, f in zip(self.given, factors)]))
        if dim < 0:
            raise self.refused("concatenates along the first dimension, of steps and images")
        start = 0
        for j, (v, f) in enumerate(zip(self.given, factors)):
            self.copy(v, out, v.shape, v.strides, out.strides, (0, start), f, name=f"part_{j}")
            start += v.shape[dim] * out.strides[dim]
        return out

    def _matmul(self, op: Any) -> Value:
        a, b = self.given
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise self.refused(f"multiplies {a.shape} by {b.shape}; matrices of each image are multiplied")
        rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        a, b = self.spread(a, (*self.shape[:-2], rows, inner)), self.spread(b, (*self.shape[:-2], inner, columns))
        one = times(a.range, b.range)
        out = self.made((min(0, one[0] * inner), max(0, one[1] * inner)), least=max(a.bits, b.bits, 32))
        numbers = prod(self.shape[:-2]), rows, inner, columns
        comment = f"{_by(a.shape)} by {_by(b.shape)}"
        buffers = a.buffer, b.buffer, out.buffer
        self.call("matmul", *numbers, *buffers, comment=comment, A=a.bits, B=b.bits, OUT=out.bits)
        return out

    def _sum(self, op: Sum) -> Value:
        x = self.given[0]
        dims = {d - 1 for d in op.dims}
        area = prod(x.shape[d] for d in dims)
        out = self.made((min(0, x.range[0] * area), max(0, x.range[1] * area)), least=x.bits)
        left = iter(out.strides)
        write = [0 if d in dims else next(left) for d in range(len(x.shape))]
        walk = self.walk(x.shape, x.strides, write, (0, 0), "sum")
        self.call("fill", out.size, 0, out.buffer, OUT=out.bits)
        self.call("sum", walk, x.buffer, out.buffer, comment=f"sum over {op.dims}", IN=x.bits, OUT=out.bits)
        return out

    def _permute(self, op: Permute) -> Value:
        x, out = self.given[0], self.made(self.given[0].range)
        return self.copy(x, out, out.shape, [x.strides[d - 1] for d in op.dims[1:]], out.strides)

    def _slice(self, op: Slice) -> Value:
        x, out = self.given[0], self.made(self.given[0].range)
        picked = [slice(*op.index[d + 1]) if d + 1 < len(op.index) else slice(None) for d in range(len(x.shape))]
        every = [s.indices(n) for s, n in zip(picked, x.shape)]
        read = [stride * step for stride, (_, _, step) in zip(x.strides, every)]
        start = sum(stride * first for stride, (first, _, _) in zip(x.strides, every))
        return self.copy(x, out, out.shape, read, out.strides, (start, 0))

    def _pad(self, op: Pad) -> Value:
        x = self.given[0]
        out = self.made((min(0, x.range[0]), max(0, x.range[1])))
        before, size, read_start, write_start = [0] * len(x.shape), list(x.shape), 0, 0
        after = [0] * len(x.shape)
        if len(op.pad) // 2 > len(x.shape):
            raise self.refused("pads the first dimension, of steps and images")
        for d in range(len(op.pad) // 2):
            before[-1 - d], after[-1 - d] = op.pad[2 * d], op.pad[2 * d + 1]
        for d, n in enumerate(x.shape):
            size[d] = n + min(0, before[d]) + min(0, after[d])
            read_start += max(0, -before[d]) * x.strides[d]
            write_start += max(0, before[d]) * out.strides[d]
        self.call("fill", out.size, 0, out.buffer, OUT=out.bits)
        if min(size) > 0:
            self.copy(x, out, tuple(size), x.strides, out.strides, (read_start, write_start))
        return out

    def _replicate(self, op: Any) -> Value:
        x, out = self.given[0], self.made(self.given[0].range)
        if len(x.shape) < 2:
            raise self.refused(f"repeats places of {x.shape}")
        *lead, h, w = x.shape
        *step, dh, dw = x.strides
        shape = (*lead, h, op.times[0], w, op.times[1])
        write = Value(out.buffer, shape, out.range, out.stepped).strides
        return self.copy(x, out, shape, [*step, dh, 0, dw, 0], write)

    def _affine(self, op: Affine) -> Value:
        x = self.logical(self.given[0])
        factor, offset = (op.factor, op.factor), (op.offset, op.offset)
        out = self.made(plus(times(x.range, factor), offset))
        w = self.width(times(x.range, factor), out.range, factor, offset, x.range, least=32)
        numbers = out.size, number(op.factor), number(op.offset), x.buffer, out.buffer
        self.call("affine", *numbers, comment=f"x * {op.factor} + {op.offset}", IN=x.bits, OUT=out.bits, W=w)
        return out

    def _repeat(self, op: Op) -> Value:
        x = self.given[0]
        return Value(x.buffer, x.shape, x.range, True, x.last)

    def _reshape(self, op: Any) -> Value:
        x = self.logical(self.given[0])
        return Value(x.buffer, self.shape, x.range, x.stepped)


def membrane(op: Neuron, current: Range, T: int) -> tuple[Range, int, list[Range]]:
    """Range of what is stored between steps, its unit as a shift, and the ranges on the way, over T steps."""
    (l, L), q, threshold = op.leak, op.shift, op.threshold
    coded = op.bits is not None and op.initial % (1 << q) == 0
    v, seen = (op.initial, op.initial), [(threshold, threshold), (l, l), (1 << q if op.bits else 1,) * 2]
    stored = v
    limits = (-(1 << (op.bits - 1)) << q, ((1 << (op.bits - 1)) - 1) << q) if op.bits is not None else None
    for _ in range(T):
        before = v
        if not op.leak_first:
            product = times(v, (l, l))
            seen.append(product)
            v = product[0] >> L, product[1] >> L
        h = plus(v, current)
        seen.append(h)
        if op.reset == "hard":
            v = min(0, h[0]), max(0, min(h[1], threshold - 1))
        elif op.reset == "soft":
            v = min(0, h[0]), max(0, min(h[1], threshold - 1), h[1] - threshold)
            seen.append((h[0] - threshold, h[1] - threshold))
        else:
            v = h
        shift = q
        if op.leak_first:
            v, shift = times(v, (l, l)), L + q if limits else L
            seen.append(v)
        if limits is not None:
            half = 1 << (shift - 1) if shift else 0
            seen += [plus(v, (half, half)), limits]
            low, high = (min(max((x + half) >> shift << q, limits[0]), limits[1]) for x in v)
            v = low, high
        elif op.leak_first:
            v = v[0] >> L, v[1] >> L
        stored = min(stored[0], v[0]), max(stored[1], v[1])
        if v == before:
            break
        v = stored
    if coded:
        return (stored[0] >> q, stored[1] >> q), q, [*seen, stored]
    return stored, 0, [*seen, stored]


def _sums(codes: np.ndarray, x: Range, bias: Tensor | None) -> Range:
    """Range of all sums on the way of an accumulator: products of a column, in any order, zeros among them."""
    low, high = min(x[0], 0), max(x[1], 0)
    positive, negative = np.maximum(codes, 0).sum(1), np.minimum(codes, 0).sum(1)
    b = [0] * len(codes) if bias is None else bias.tolist()
    lows = [int(p) * low + int(n) * high + min(c, 0) for p, n, c in zip(positive, negative, b)]
    highs = [int(p) * high + int(n) * low + max(c, 0) for p, n, c in zip(positive, negative, b)]
    return min(*lows, low), max(*highs, high)


def range_of(t: Tensor) -> Range:
    return int(t.min()), int(t.max())


def _hull(ranges: list[Range]) -> Range:
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def _per_channel(t: Tensor, channels: int) -> list[int] | None:
    if t.numel() == 1:
        return [int(t)] * channels
    return [int(x) for x in t.tolist()] if t.numel() == channels else None


def _braces(numbers: Any) -> str:
    return "{" + ", ".join(str(int(n)) for n in numbers) + "}"


def _by(shape: Any) -> str:
    return "x".join(str(n) for n in shape) or "1"


def number(n: int) -> str:
    """A constant of up to 64 bits."""
    if n == -(1 << 63):
        return "INT64_MIN"
    return str(n) if abs(n) < 1 << 31 else f"INT64_C({n})"
