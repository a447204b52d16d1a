"""Reading functions on tensors for quantization: what a network's own code does between modules."""

from dataclasses import replace
from math import prod
from typing import Any

from ..networks.graph import Node
from .arithmetic import FLOAT32
from .joins import Joins
from .plan import Edge, Op, input_names, is_power_of_two, pair, refuse

RESHAPES = ("flatten", "view", "reshape", "unflatten", "contiguous", "squeeze", "unsqueeze", "dropout", "dropout2d")
ROUNDED = 1 << 20  # a mean's sum is read back from a float by rounding; below this it cannot miss


def arguments(node: Node, *names: str) -> dict[str, Any]:
    """A call's arguments behind the tensor, by name."""
    return dict(zip(names, node.args[1:])) | node.kwargs


class Functions(Joins):
    """Puts functions into the plan."""

    def put(self, node: Node, kind: str, edge: Edge, suffix: str = "", **options: Any) -> None:
        """One operation; with ``suffix`` one of several that a node becomes, the first of which read its inputs."""
        name = node.name + suffix
        self.plan.ops.append(Op(name, kind, input_names(node), node.path or "", options))
        self.plan.edges[name] = edge

    def then(self, node: Node, kind: str, before: str, edge: Edge, **options: Any) -> None:
        """The last operation of a node, behind the one that it put as ``before``."""
        self.plan.ops.append(Op(node.name, kind, [node.name + before], "", options))
        self.plan.edges[node.name] = edge

    def function(self, node: Node) -> None:
        """One function."""
        kind = node.kind.removesuffix("_")
        count = len(input_names(node))
        if kind in ("add", "iadd") and count == 2 and node.kwargs.get("alpha", 1) == 1:
            return self.add(node)
        if kind in ("mul", "imul") and count == 2:
            return self.multiply(node)
        if kind in ("mul", "imul", "div", "idiv", "truediv") and count == 1:
            return self.scale(node, divide=kind not in ("mul", "imul"))
        if kind in ("matmul", "bmm"):
            return self.matmul(node)
        if kind in ("rsub", "sub") and count == 1:
            return self.complement(node)
        if kind in RESHAPES:
            return self.reshape(node)
        if kind in ("transpose", "permute", "swapaxes"):
            return self.permute(node)
        if kind in ("chunk", "split"):
            return self.split(node)
        if kind == "getitem" and count == 1:
            return self.getitem(node)
        if kind == "pad" and node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value"):
            return self.put(node, "pad", self.edge(node), pad=list(node.args[1]))
        if kind == "cat":
            return self.cat(node)
        if kind == "max_pool2d":
            return self.max_pool(
                node, arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            )
        if kind == "avg_pool2d":
            a = arguments(
                node, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
            )
            return self.avg_pool(node, a, scaled=True)
        if kind in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            return self.adaptive(node, "max" in kind, scaled=True)
        if kind == "mean":
            return self.mean(node)
        raise refuse(
            node, "has no form on integer codes; allowed between layers: additions, products of spikes, powers of two as "
            "factors, pools, means, reshaping, transposing, slicing, zero padding, concatenation",
        )  # fmt: skip

    # -- sums and products ------------------------------------------------------------------------------------------

    def add(self, node: Node) -> None:
        grid, ranges = self.join(node, [self.edge(node, 0), self.edge(node, 1)])
        low, high = (sum(r[i] for r in ranges) for i in (0, 1))
        self.put(node, "add", replace(grid, low=low, high=high))

    def cat(self, node: Node) -> None:
        dim = arguments(node, "dim").get("dim", 0)
        if dim % len(node.shape) == 0:
            raise refuse(node, "concatenates along the first dimension, which holds T*N")
        grid, ranges = self.join(node, [self.edge(node, i) for i in range(len(input_names(node)))])
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        self.put(node, "cat", replace(grid, low=low, high=high), dim=int(dim))

    def multiply(self, node: Node) -> None:
        a, b = self.edge(node, 0), self.edge(node, 1)
        if not (a.spikes and b.spikes):
            raise refuse(node, "multiplies real values (a gate); only products of spikes are integers")
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        self.put(node, "mul", Edge("step", min(corners), max(corners)))

    def scale(self, node: Node, divide: bool) -> None:
        edge, numbers = self.edge(node), [x for x in node.args if isinstance(x, int | float)]
        factor = float(numbers[0]) if len(numbers) == 1 else 0.0
        if not is_power_of_two(factor) or (divide and isinstance(node.args[0], int | float)) or edge.base == "layer":
            raise refuse(node, "multiplies by a real number; only powers of two keep codes exact")
        factor = 1 / factor if divide else factor
        if edge.base == "norm":
            self.real(edge.group)
        made = replace(edge, share=edge.share * factor, fraction=edge.fraction * factor)
        self.put(node, "reshape", made, shape=list(node.shape[1:]))

    def matmul(self, node: Node) -> None:
        a, b = self.edge(node, 0), self.edge(node, 1)
        if a.base != "step" or b.base != "step" or len(node.shape) < 3 or not node.scope:
            raise refuse(node, "multiplies maps that are not spikes, inside of one module, image by image")
        bound = node.in_shapes[0][-1] * a.bound * b.bound
        if bound >= FLOAT32:
            raise refuse(node, f"sums products of spikes up to {bound:.3g}; float32 holds integers below 2^24")
        self.plan.products.add(node.scope)
        made = Edge(
            "step", -bound if min(a.low, b.low) < 0 else 0, bound, a.step * b.step, a.share * b.share,
            a.fraction * b.fraction,
        )  # fmt: skip
        self.put(node, "matmul", made, wide=bound >= 1 << 31)

    def complement(self, node: Node) -> None:
        edge = self.edge(node)
        numbers = [x for x in node.args if isinstance(x, int | float) and not isinstance(x, bool)]
        if not edge.spikes or len(numbers) != 1 or numbers[0] != int(numbers[0]):
            raise refuse(node, "subtracts on real values; only 1 - spikes is an integer")
        c = int(numbers[0])
        if node.kind == "sub" and not isinstance(node.args[0], int | float):
            return self.put(node, "affine", replace(edge, low=edge.low - c, high=edge.high - c), factor=1, offset=-c)
        return self.put(node, "affine", replace(edge, low=c - edge.high, high=c - edge.low), factor=-1, offset=c)

    # -- shapes -----------------------------------------------------------------------------------------------------

    def reshape(self, node: Node) -> None:
        if node.shape[:1] != node.in_shapes[0][:1]:
            raise refuse(node, "changes the first dimension, which holds T*N")
        self.put(node, "reshape", self.edge(node), shape=list(node.shape[1:]))

    def permute(self, node: Node) -> None:
        rank = len(node.shape)
        if node.kind == "permute":
            given_ = node.args[1:] if len(node.args) > 2 else node.kwargs.get("dims", node.args[-1])
            dims = [d % rank for d in given_]
        else:
            a, b = (d % rank for d in list(arguments(node, "dim0", "dim1").values()))
            dims = list(range(rank))
            dims[a], dims[b] = b, a
        if dims[0] != 0:
            raise refuse(node, "moves the first dimension, which holds T*N")
        self.put(node, "permute", self.edge(node), dims=dims)

    def split(self, node: Node) -> None:
        a = arguments(node, "parts", "dim")
        whole, parts = node.in_shapes[0], a.get("parts", a.get("chunks", a.get("split_size_or_sections", 1)))
        dim = a.get("dim", 0) % len(whole)
        if dim == 0:
            raise refuse(node, "splits the first dimension, which holds T*N")
        size = -(-whole[dim] // parts) if node.kind == "chunk" else parts
        sizes = list(size) if isinstance(size, tuple | list) else [size] * (-(-whole[dim] // size))
        start = 0
        for i, n in enumerate(sizes):
            index = [[None, None, None]] * dim + [[start, start + n, None]]
            self.put(node, "slice", self.edge(node), f":{i}", index=index)
            start += n

    def getitem(self, node: Node) -> None:
        rank, index = len(node.in_shapes[0]), node.args[1]
        index = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index[at : at + 1] = [slice(None)] * (rank - len(index) + 1)
        slices = [_slice(node, s) for s in index]
        if slices[0] != [None, None, None]:
            raise refuse(node, "slices the first dimension, which holds T*N")
        self.put(node, "slice", self.edge(node), ":all", index=slices)
        self.then(node, "reshape", ":all", self.edge(node), shape=list(node.shape[1:]))

    # -- pools ------------------------------------------------------------------------------------------------------

    def max_pool(self, node: Node, a: dict[str, Any]) -> None:
        """``a``: the pool's arguments by name."""
        if a.get("return_indices"):
            raise refuse(node, "returns indices")
        kernel = pair(a["kernel_size"])
        self.put(
            node, "max_pool", self.edge(node), kernel=kernel, stride=pair(a.get("stride") or kernel),
            padding=pair(a.get("padding", 0)), dilation=pair(a.get("dilation", 1)), ceil=bool(a.get("ceil_mode")),
        )  # fmt: skip

    def avg_pool(self, node: Node, a: dict[str, Any], scaled: bool = False) -> None:
        """``a``: the pool's arguments by name; ``scaled``: floats are divided, as a function does it."""
        kernel, padding = pair(a["kernel_size"]), pair(a.get("padding", 0))
        stride, divisor = pair(a.get("stride") or kernel), a.get("divisor_override")
        sizes = zip(node.in_shapes[0][-2:], kernel, stride, padding)
        overhangs = a.get("ceil_mode") and any((n + 2 * p - k) % s for n, k, s, p in sizes)
        if overhangs or (any(padding) and not (a.get("count_include_pad", True) or divisor)):
            raise refuse(
                node, "divides by a number that depends on the place; use ceil_mode=False, count_include_pad=True"
            )
        self.average(node, kernel, stride, padding, divisor or prod(kernel), scaled)

    def adaptive(self, node: Node, largest: bool, scaled: bool = False) -> None:
        """An adaptive pool: of the ``largest`` value, or average."""
        before, after = list(node.in_shapes[0][-2:]), list(node.shape[-2:])
        if largest:
            return self.put(node, "adaptive_max", self.edge(node), size=after)
        if all(b % a == 0 for a, b in zip(before, after)):  # every window is one place
            return self.put(node, "replicate", self.edge(node), times=[b // a for a, b in zip(before, after)])
        if any(a % b for a, b in zip(before, after)):
            raise refuse(
                node, f"has overlapping windows ({tuple(before)} to {tuple(after)}); its divisor is not "
                "one number: choose sizes that divide",
            )  # fmt: skip
        kernel = [a // b for a, b in zip(before, after)]
        return self.average(node, kernel, kernel, [0, 0], prod(kernel), scaled)

    def average(
        self, node: Node, kernel: list[int], stride: list[int], padding: list[int], divisor: int, scaled: bool
    ) -> None:
        """Sums over windows; their divisor is in the value of a code, and in the floats too if ``scaled``."""
        made = self.summed(node, prod(kernel), divisor, scaled)
        size = list(node.in_shapes[0][-2:])
        self.put(node, "sum_pool", made, kernel=kernel, stride=stride, padding=padding, size=size)

    def mean(self, node: Node) -> None:
        a, shape = arguments(node, "dim", "keepdim"), node.in_shapes[0]
        dims = a.get("dim")
        dims = [d % len(shape) for d in ([dims] if isinstance(dims, int) else dims or range(len(shape)))]
        if 0 in dims:
            raise refuse(node, "averages over the first dimension, which holds T*N")
        area = prod(shape[d] for d in dims)
        made = self.summed(node, area, area, scaled=True)
        self.put(node, "sum", made, ":sum", dims=dims, wide=made.bound >= 1 << 31)
        self.then(node, "reshape", ":sum", made, shape=list(node.shape[1:]))

    def summed(self, node: Node, area: int, divisor: int, scaled: bool) -> Edge:
        """``area`` codes in one, divided by ``divisor``."""
        edge = self.edge(node)
        if edge.base == "norm":
            self.pooled.append((edge.group, divisor, node))
            if scaled:
                self.real(edge.group)
        if scaled and not is_power_of_two(divisor) and edge.bound * area >= ROUNDED:
            raise refuse(node, "takes a mean of codes too large to be read back; use a pool as a module")
        fraction = edge.fraction / divisor if scaled else edge.fraction
        return replace(edge, low=edge.low * area, high=edge.high * area, share=edge.share / divisor, fraction=fraction)


def _slice(node: Node, s: Any) -> list[int | None]:
    if isinstance(s, int) and not isinstance(s, bool):
        return [s, s + 1 or None, None]
    if not isinstance(s, slice) or any(v is not None and not isinstance(v, int) for v in (s.start, s.stop, s.step)):
        raise refuse(node, "picks by something else than slices")
    return [s.start, s.stop, s.step]
