"""What each call in a network does, in one vocabulary: a module and a function that do the same are one.

Every tool that reads a graph asks a node for its ``op`` and its ``settings``. A new operation is added here,
once: its name in :data:`Operation`, the module classes or functions that compute it, its settings if it has
any, the sets of properties it belongs to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..neurons import Neuron, NormNeuron, Repeat

Operation = Literal[
    "input", "other",
    # modules alone: they have weights, statistics or a membrane
    "conv", "conv3d", "linear", "batch_norm", "norm", "norm_neuron", "neuron",
    # arithmetic
    "relu", "add", "subtract", "multiply", "divide", "scale", "matmul", "sum", "mean",
    # windows
    "max_pool", "average_pool", "sum_pool", "adaptive_max_pool", "adaptive_average_pool", "rate_max_pool",
    "upsample", "pad",
    # places
    "reshape", "permute", "reorder", "slice", "split", "unbind", "concat", "stack", "repeat", "expand",
    "pass", "cast",
]  # fmt: skip

# What readers ask of an operation beside its form; a new one is entered where it belongs.
MOVES: frozenset[Operation] = frozenset({  # values to other places, without arithmetic (upsample: nearest)
    "pass", "cast", "reshape", "permute", "slice", "split", "unbind", "concat", "stack", "repeat", "expand",
    "pad", "upsample",
})  # fmt: skip
HOMOGENEOUS: frozenset[Operation] = frozenset({  # f(c x) = c f(x) for c > 0, of one tensor
    "max_pool", "average_pool", "adaptive_max_pool", "adaptive_average_pool", "mean", "sum", "upsample",
    "pad", "reshape", "permute", "slice", "split", "repeat", "expand", "pass", "cast",
})  # fmt: skip
EVERYWHERE: frozenset[Operation] = frozenset({  # on (T, N, ...) and on (T*N, ...) the same
    "add", "subtract", "multiply", "divide", "relu", "pass", "cast", "scale",
})  # fmt: skip

# By the most derived class that stands here; a leaf of its own kind has a class attribute ``graph_op``.
MODULES: dict[type[nn.Module], Operation] = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv3d",
    nn.Linear: "linear",
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.LayerNorm: "norm",
    nn.GroupNorm: "norm",
    NormNeuron: "norm_neuron",
    Neuron: "neuron",
    nn.ReLU: "relu",
    nn.MaxPool1d: "max_pool",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool1d: "average_pool",
    nn.AvgPool2d: "average_pool",
    nn.LPPool2d: "sum_pool",
    nn.AdaptiveMaxPool1d: "adaptive_max_pool",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool",
    nn.AdaptiveAvgPool1d: "adaptive_average_pool",
    nn.AdaptiveAvgPool2d: "adaptive_average_pool",
    nn.Upsample: "upsample",
    nn.modules.padding._ConstantPadNd: "pad",
    nn.Flatten: "reshape",
    nn.Unflatten: "reshape",
    Repeat: "repeat",
    nn.Identity: "pass",
    nn.Dropout: "pass",
    nn.Dropout1d: "pass",
    nn.Dropout2d: "pass",
}
# Names of functions and tensor methods; those that end in "_" work in place and are the same operation.
_NAMES: dict[Operation, str] = {
    "input": "input",  # the node that stands for what a network is given
    "relu": "relu",
    "add": "add iadd radd",
    "subtract": "sub isub rsub",
    "multiply": "mul imul rmul",
    # No "rtruediv": a number over a tensor is no product with a number.
    "divide": "div idiv truediv itruediv true_divide",
    "matmul": "matmul bmm",
    "sum": "sum",
    "mean": "mean",
    "max_pool": "max_pool1d max_pool2d",
    "average_pool": "avg_pool1d avg_pool2d",
    "adaptive_max_pool": "adaptive_max_pool1d adaptive_max_pool2d",
    "adaptive_average_pool": "adaptive_avg_pool1d adaptive_avg_pool2d",
    "upsample": "interpolate",
    "pad": "pad",
    "reshape": "flatten unflatten reshape reshape_as view view_as squeeze unsqueeze",
    "permute": "permute transpose swapaxes swapdims movedim moveaxis t T",
    "reorder": "flip roll",
    "slice": "getitem",
    "split": "chunk split",
    "unbind": "unbind",
    "concat": "cat concat concatenate",
    "stack": "stack",
    "expand": "expand repeat",
    # Dropout too: networks are traced in eval mode.
    "pass": "contiguous clone detach dropout dropout2d",
    "cast": "float to type_as",
}
FUNCTIONS: dict[str, Operation] = {name: op for op, names in _NAMES.items() for name in names.split()}
_ARGUMENTS: dict[str, tuple[str, ...]] = {  # by position, behind the tensor
    "max_pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "average_pool": (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    "mean": ("dim", "keepdim"),
    "sum": ("dim", "keepdim"),
    "upsample": ("size", "scale_factor", "mode"),
    "pad": ("pad", "mode", "value"),
    "split": ("size", "dim"),
    "concat": ("dim",),
    "slice": ("index",),
    "cast": ("dtype",),
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), ("other",)),
}


@dataclass(frozen=True)
class Ref:
    """In a node's arguments: the output of another node (``index``: which, of several)."""

    name: str
    index: int | None = None


@dataclass
class Node:
    """One call: of a leaf module (``module``, ``path``) or of a function (``scope``: the caller's path).

    ``name``: "path#k" for modules, "scope/op#k" for functions. ``kind``: the module's class name, or the
    function's name. ``inputs``: names of the nodes whose outputs it reads; ``args``, ``kwargs``: as called,
    tensors replaced by :class:`Ref`. ``shape``, ``in_shapes``: of output and inputs, with the batch as
    traced. ``source``: "file:line".

    ``op``: what it does. ``settings``, alike for modules and functions, with one number for each axis of the
    map:

    - conv: kernel, stride, padding, dilation
    - max_pool, average_pool, sum_pool: kernel, stride, padding, dilation, ceil; indices (max);
      include_padding and divisor (None: the window's size; average); power (sum)
    - adaptive_max_pool, adaptive_average_pool: kernel (None where windows overlap), indices
    - add, subtract: number (None: two tensors); alpha, the factor of the second; reversed (second minus
      first)
    - scale (a product with a number, or a quotient by one): factor
    - mean, sum: dims. permute: dims, the order of the axes. concat: dim. split: dim, sizes. slice: index
    - upsample: mode. pad: pad, mode, value. cast: dtype, None where the call does not say it
    """

    name: str
    kind: str
    inputs: list[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    in_shapes: list[tuple[int, ...]]
    source: str
    scope: str
    path: str | None = None
    call: int = 0
    module: nn.Module | None = None
    function: Callable[..., Any] | None = None
    op: Operation = field(init=False, default="other")
    settings: dict[str, Any] = field(init=False, default_factory=dict)

    @property
    def place(self) -> str:
        """The module's path, that of a function's caller, or ``(top)``."""
        return self.path or self.scope or "(top)"

    @property
    def at(self) -> str:
        """`` at file:line``; nothing where torch itself calls the module (in a ``Sequential``)."""
        return f" at {self.source}" if self.source else ""

    def __post_init__(self) -> None:
        self.op = op = self._operation()
        if self.module is not None:
            given = vars(self.module)
        else:
            given = dict(zip(_ARGUMENTS.get(op, ()), self.args[1:])) | self.kwargs
        if op in ("multiply", "divide") and _is_number(given.get("other")):
            number = given["other"]
            self.op = "scale"
            self.settings = {"factor": _inverse(number) if op == "divide" else float(number)}
        elif op in _SETTINGS:
            self.settings = _SETTINGS[op](self, given)

    def _operation(self) -> Operation:
        if self.module is None:
            if self.kwargs.get("rounding_mode") is not None:
                return "other"  # floor(x / n) is no quotient
            return FUNCTIONS.get(self.kind.removesuffix("_"), "other")
        if isinstance(self.module, nn.ReLU) and type(self.module) is not nn.ReLU:
            return "other"  # a bounded or leaky one
        by_class: Operation = next(
            (MODULES[cls] for cls in type(self.module).__mro__ if cls in MODULES), "other"
        )
        return getattr(self.module, "graph_op", by_class)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inverse(number: float) -> float:
    return 1 / number if number else float("inf")


def _axes(value: Any, node: Node) -> tuple[int, ...]:
    """One number for each axis of the map."""
    if isinstance(value, int):
        return (value,) * max(len(node.shape) - 2, 1)
    return tuple(int(v) for v in value)


def _conv(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    found = {"kernel": given["kernel_size"], "stride": given["stride"], "dilation": given["dilation"]}
    padding = given["padding"]
    far = [0 for _ in found["kernel"]]
    if isinstance(padding, str):
        # Of an even kernel the far side gets one more.
        spans = [d * (k - 1) if padding == "same" else 0 for k, d in zip(found["kernel"], found["dilation"])]
        padding, far = [span // 2 for span in spans], [span % 2 for span in spans]
    return {**found, "padding": tuple(padding), "far_padding": tuple(far)}


def _pool(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    kernel = _axes(given["kernel_size"], node)
    return {
        "kernel": kernel,
        # Left out, as None or an empty list, it is the kernel.
        "stride": _axes(given.get("stride") or kernel, node),
        "padding": _axes(given.get("padding", 0), node),
        "dilation": _axes(given.get("dilation", 1), node),
        "ceil": bool(given.get("ceil_mode")),
        "indices": bool(given.get("return_indices")),
        "include_padding": bool(given.get("count_include_pad", True)),
        "divisor": given.get("divisor_override"),
        "power": given.get("norm_type", 1),
    }


def _adaptive(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    sizes = list(zip(node.in_shapes[0][2:], node.shape[2:]))
    kernel = None if any(before % after for before, after in sizes) else tuple(b // a for b, a in sizes)
    return {"kernel": kernel, "indices": bool(given.get("return_indices"))}


def _sum(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    other = given.get("other")
    number = other if _is_number(other) else None
    return {"number": number, "alpha": given.get("alpha", 1), "reversed": node.kind == "rsub"}


def _mean(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    rank, dims = len(node.in_shapes[0]), given.get("dim")
    dims = (dims,) if isinstance(dims, int) else tuple(range(rank)) if dims in (None, ()) else dims
    return {"dims": [d % rank for d in dims]}


def _permute(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    rank = len(node.in_shapes[0])
    if node.kind in ("T", "t"):
        return {"dims": list(range(rank))[::-1]}
    assert node.function is not None
    shape = torch.empty(tuple(range(rank)), device="meta")  # each axis is known by its length
    args = [shape if isinstance(a, Ref) else a for a in node.args]
    kwargs = {key: shape if isinstance(a, Ref) else a for key, a in node.kwargs.items()}
    return {"dims": list(node.function(*args, **kwargs).shape)}


def _concat(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    return {"dim": given.get("dim", given.get("axis", 0)) % len(node.shape)}


def _split(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    dim = given.get("dim", 0) % len(node.in_shapes[0])
    whole = node.in_shapes[0][dim]
    size = next(
        given[key] for key in ("size", "chunks", "split_size", "split_size_or_sections") if key in given
    )
    if isinstance(size, tuple | list):
        return {"dim": dim, "sizes": list(size)}
    # ``chunk`` names how many parts there are, ``split`` how large they are.
    size = -(-whole // size) if node.kind == "chunk" else size
    return {"dim": dim, "sizes": [size] * -(-whole // size)}


def _slice(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    """One entry for each axis that the index names; an ellipsis is the axes that it stands for."""
    index = given["index"]
    index = list(index) if isinstance(index, tuple) else [index]
    at = next((i for i, item in enumerate(index) if item is Ellipsis), None)
    if at is not None:
        # None adds an axis and names none; the ellipsis is one of the others.
        named = sum(item is not None for item in index) - 1
        index[at : at + 1] = [slice(None)] * (len(node.in_shapes[0]) - named)
    return {"index": index}


def _upsample(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    return {"mode": given.get("mode", "nearest")}


def _pad(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    pad = given["padding"] if node.module is not None else given["pad"]
    return {"pad": list(pad), "mode": given.get("mode", "constant"), "value": given.get("value") or 0}


def _cast(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    dtype = torch.float32 if node.kind == "float" else given.get("dtype")
    return {"dtype": dtype if isinstance(dtype, torch.dtype) else None}


_SETTINGS: dict[str, Callable[[Node, dict[str, Any]], dict[str, Any]]] = {
    "conv": _conv,
    **dict.fromkeys(("max_pool", "average_pool", "sum_pool"), _pool),
    **dict.fromkeys(("adaptive_max_pool", "adaptive_average_pool"), _adaptive),
    **dict.fromkeys(("add", "subtract"), _sum),
    "mean": _mean,
    "sum": _mean,
    "permute": _permute,
    "concat": _concat,
    "split": _split,
    "slice": _slice,
    "upsample": _upsample,
    "pad": _pad,
    "cast": _cast,
}
OPERATIONS: frozenset[str] = frozenset(get_args(Operation))
