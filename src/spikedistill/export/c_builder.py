"""From an integer network's operations to calls of C functions: pools, sums, products and shapes."""

from math import prod
from typing import Any

from ..quantization.header import AdaptiveMax, Affine, Join, MaxPool, Op, Pad, Permute, Slice, Sum, SumPool
from .c_layers import MOST_INDEX, LayerBuilder
from .c_numbers import by, hull, number, plus, times
from .c_plan import Value


class Builder(LayerBuilder):
    """All operations."""

    # -- pools

    def maps(self) -> Value:
        """The input of a pool."""
        x = self.logical(self.given[0])
        if len(x.shape) not in (2, 3):
            raise self.refused(f"pools maps of shape {x.shape}")
        return x

    def _max_pool(self, op: MaxPool) -> Value:
        x = self.maps()
        out = self.made(x.range, least=x.bits)
        # torch says -inf of a window in the padding alone, which no integer is
        for size, count, k, s, p, d in zip(
            x.shape[-2:], self.shape[-2:], op.kernel, op.stride, op.padding, op.dilation
        ):
            if any(not any(0 <= i * s - p + j * d < size for j in range(k)) for i in range(count)):
                raise self.refused("has a window that lies in the padding alone")
        window = self.window(
            prod(x.shape[:-2]), x.shape[-2:], self.shape[-2:], op.kernel, op.stride, op.padding, op.dilation
        )
        address = self.constant("window", "pool", window)
        comment = f"largest of {by(op.kernel)}, {by(x.shape)} to {by(self.shape)}"
        self.call("max_pool", address, x.buffer, out.buffer, comment=comment, IN=x.bits)
        return out

    def _sum_pool(self, op: SumPool) -> Value:
        x, area = self.maps(), prod(op.kernel)
        # 0 belongs to the range: a window at an edge adds up fewer values
        out = self.made((min(0, x.range[0] * area), max(0, x.range[1] * area)), least=x.bits)
        window = self.window(
            prod(x.shape[:-2]), x.shape[-2:], self.shape[-2:], op.kernel, op.stride, op.padding, [1, 1]
        )
        address = self.constant("window", "pool", window)
        comment = f"sums over {by(op.kernel)}, {by(x.shape)} to {by(self.shape)}"
        self.call("sum_pool", address, x.buffer, out.buffer, comment=comment, IN=x.bits, OUT=out.bits)
        return out

    def _adaptive_max(self, op: AdaptiveMax) -> Value:
        x = self.maps()
        out = self.made(x.range, least=x.bits)
        # the C code multiplies places of the input by sizes of the output in 32 bits
        if max(a * b for a, b in zip(x.shape[-2:], self.shape[-2:])) > MOST_INDEX // 2:
            raise self.refused("has maps too large to index")
        window = self.window(
            prod(x.shape[:-2]), x.shape[-2:], self.shape[-2:], [1, 1], [1, 1], [0, 0], [1, 1]
        )
        address = self.constant("window", "pool", window)
        comment = f"largest values, {by(x.shape)} to {by(self.shape)}"
        self.call("adaptive_max", address, x.buffer, out.buffer, comment=comment, IN=x.bits)
        return out

    # -- sums, products and shapes

    def _add(self, op: Join) -> Value:
        a, b = (self.spread(v, self.shape) for v in self.given)
        factors = op.factors or [1, 1]
        parts = [times(v.range, (f, f)) for v, f in zip((a, b), factors)]
        out = self.made(plus(*parts))
        # operands and factors are cast to W before they are multiplied: each must fit, not the sum alone
        w = self.width(*parts, plus(*parts), *((f, f) for f in factors), a.range, b.range, least=32)
        numbers = out.size, *map(number, factors), a.buffer, b.buffer, out.buffer
        self.call("add", *numbers, comment=f"sum of {by(self.shape)}", A=a.bits, B=b.bits, OUT=out.bits, W=w)
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
        self.call(
            "mul",
            out.size,
            *buffers,
            comment=f"product of {by(self.shape)}",
            A=a.bits,
            B=b.bits,
            OUT=out.bits,
            W=w,
        )
        return out

    def _cat(self, op: Join) -> Value:
        rank = len(self.shape) + 1
        # the header counts the dimension of images, shapes here do not
        dim = (op.dim + rank if op.dim < 0 else op.dim) - 1
        factors = op.factors or [1] * len(self.given)
        out = self.made(hull([times(v.range, (f, f)) for v, f in zip(self.given, factors)]))
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
        a, b = (
            self.spread(a, (*self.shape[:-2], rows, inner)),
            self.spread(b, (*self.shape[:-2], inner, columns)),
        )
        one = times(a.range, b.range)
        # at least the operands' width: the C code casts them to that of the sums
        out = self.made((min(0, one[0] * inner), max(0, one[1] * inner)), least=max(a.bits, b.bits, 32))
        numbers = prod(self.shape[:-2]), rows, inner, columns
        comment = f"{by(a.shape)} by {by(b.shape)}"
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
        picked = [
            slice(*op.index[d + 1]) if d + 1 < len(op.index) else slice(None) for d in range(len(x.shape))
        ]
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
        # a walk does its statement before it looks at a size: nothing to copy must not be walked
        if min(size) > 0:
            self.copy(x, out, tuple(size), x.strides, out.strides, (read_start, write_start))
        return out

    def _replicate(self, op: Any) -> Value:
        x, out = self.given[0], self.made(self.given[0].range)
        if len(x.shape) < 2:
            raise self.refused(f"repeats places of {x.shape}")
        *lead, h, w = x.shape
        *step, dh, dw = x.strides
        # a step of 0 in the input reads one entry for each of its copies
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
        # filled once and left alone; stepped, so that whatever reads it runs at every step
        return Value(x.buffer, x.shape, x.range, True, x.last)

    def _reshape(self, op: Any) -> Value:
        x = self.logical(self.given[0])
        return Value(x.buffer, self.shape, x.range, x.stepped)
