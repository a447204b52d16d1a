"""Reading a network's graph for quantization: which edges carry what codes, and what cannot be expressed.

Nothing is changed here: a network that cannot be quantized is refused, by the path of the module, before
anything happens.
"""

from dataclasses import dataclass, field
from math import log2
from typing import Any, Literal, NamedTuple

from torch import nn

from ..errors import SpikedistillError
from ..networks.operations import Node, Ref
from .weights import WeightFormat

Base = Literal["step", "layer", "norm"]


@dataclass(frozen=True)
class Edge:
    """What one node gives to the next: integers between ``low`` and ``high``.

    The value of one code is ``share`` times: ``step`` (spikes, counts, image codes), the step of the
    accumulators of ``layer``, or the step of ``group``, whose norms and layers write on one grid.
    ``fraction`` is the float that stands for one code: 1, but where the network's own code has scaled it.
    """

    base: Base
    low: int
    high: int
    step: float = 1.0
    share: float = 1.0
    fraction: float = 1.0
    layer: str = ""
    group: int = -1

    @property
    def bound(self) -> int:
        """Largest magnitude."""
        return max(-self.low, self.high)

    @property
    def spikes(self) -> bool:
        """Whether these are 0 and 1 (or small integers) of value 1."""
        return self.base == "step" and self.step * self.share == self.fraction == 1

    @property
    def real(self) -> bool:
        """Whether floats are the values themselves, in steps of a power of two."""
        value = self.step * self.share
        return self.base == "step" and value == self.fraction and is_power_of_two(value)


class End(NamedTuple):
    """Where a layer's accumulators end: at the norm or neuron at ``path``, on a stream, or as logits.

    The norm or neuron sees ``share`` of them; the stream is the layer's own.
    """

    kind: Literal["norm", "neuron", "stream", "logits"]
    path: str
    share: float


class GroupReader(NamedTuple):
    """Who reads a group's codes, and as what."""

    kind: Literal["layer", "residual", "neuron"]
    path: str


@dataclass
class Op:
    """One node of the plan: the executor runs these in order."""

    name: str
    kind: str
    inputs: list[str]
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """Operations in order, what their outputs carry, and where accumulators and norms end."""

    ops: list[Op] = field(default_factory=list)
    edges: dict[str, Edge] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)  # by the layer's path
    groups: dict[int, list[str]] = field(default_factory=dict)  # group -> paths of its norms and layers
    readers: dict[int, list[GroupReader]] = field(default_factory=dict)  # by group
    real: dict[int, float] = field(default_factory=dict)  # groups that spikes join -> largest step they allow
    products: set[str] = field(default_factory=set)  # paths of modules whose own code multiplies codes
    formats: dict[str, WeightFormat] = field(default_factory=dict)  # layer path -> form of its weights
    output: str = ""

    def op(self, path: str) -> Op:
        """The operation of a module."""
        return next(op for op in self.ops if op.path == path)


def refuse(node: Node, why: str) -> SpikedistillError:
    """The error that names the module."""
    where = node.path if node.path is not None else node.scope or "the network's own forward"
    source = f" ({node.source})" if node.path is None and node.source else ""
    return SpikedistillError(f"cannot quantize {where}{source}: {node.kind} {why}")


def own_code(module: nn.Module, kind: type[nn.Module] | None, *methods: str) -> str | None:
    """The method with which a module computes something of its own: quantization replaces or knows it.

    ``kind``: the class whose methods are known; None: torch's and spikedistill's own classes.
    """
    for name in methods:
        owner = next((cls for cls in type(module).__mro__ if name in vars(cls)), None)
        if owner is None:
            continue
        known = (
            owner is kind if kind is not None else owner.__module__.split(".")[0] in ("torch", "spikedistill")
        )
        # An attribute of the instance counts too: torch calls it in place of the class's method.
        if not known or name in vars(module):
            return name
    return None


def is_power_of_two(value: float) -> bool:
    """Whether a number is a power of two, so that floats hold its multiples exactly."""
    return value > 0 and log2(value).is_integer()


def input_names(node: Node) -> list[str]:
    """Names of what a node reads, in order; of several outputs the i-th is ``name:i``."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, Ref):
            found.append(value.name if value.index is None else f"{value.name}:{value.index}")
        elif isinstance(value, tuple | list):
            for v in value:
                walk(v)

    walk(node.args)
    walk(list(node.kwargs.values()))
    return found
