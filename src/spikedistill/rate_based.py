"""Rate-based backpropagation of a distiller's student: for whom it is, in words.

The two passes are in :mod:`.neurons.rates`.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from torch import Tensor, nn

from .errors import SpikedistillError
from .networks.base import Network
from .networks.operations import MOVES, Node
from .networks.outside.foreign import Foreign
from .neurons import layers
from .neurons.rates import POOLINGS
from .objectives import Objective
from .places import graph_of

Backpropagation = Literal["through_time", "rate_based"]
# The average of what they give is what they give for the average.
LINEAR = MOVES | {
    "input", "conv", "conv3d", "linear", "batch_norm", "add", "subtract", "scale", "sum", "mean",
    "average_pool", "adaptive_average_pool",
}  # fmt: skip
KNOWN = {"neuron", "norm_neuron"}  # the first pass leaves their rates
LEAVE_OUT = "leave out backpropagation: rate_based"


def check_terms(terms: Iterable[Objective]) -> None:
    """Raise for objectives that look at time steps one by one."""
    for term in terms:
        if not term.of_rates or any("@membrane" in tap or "@current" in tap for tap in term.student_taps):
            raise SpikedistillError(
                f"objective {term.name!r} is about single time steps, and rates have none; " + LEAVE_OUT
            )


def check_student(student: nn.Module, x: Tensor) -> None:
    """Raise, by path, for a network whose rates do not follow from rates: its input is ``x``."""
    if not isinstance(student, Network) or isinstance(student, Foreign) or not student.spiking:
        raise SpikedistillError(
            "rate-based backpropagation is for spiking networks of ours, found "
            f"{type(student).__name__}; " + LEAVE_OUT
        )
    if student.quantization is not None:
        raise SpikedistillError(
            "rate-based backpropagation: a quantized network's learned scales would get no gradient; "
            + LEAVE_OUT
        )
    for path, neuron in layers(student).items():
        if any(True for _ in neuron.parameters()):
            raise SpikedistillError(
                f"rate-based backpropagation: {path}: what {type(neuron).__name__} learns itself would get "
                "no gradient; take if or lif, or " + LEAVE_OUT
            )
    for node, why in _unfit(graph_of(student, x)):
        raise SpikedistillError(
            f"rate-based backpropagation: {node.place}: {node.kind}{node.at} {why}; " + LEAVE_OUT
        )


def _unfit(graph: Iterable[Node]) -> Iterator[tuple[Node, str]]:
    for node in graph:
        if isinstance(node.module, POOLINGS) or node.op in KNOWN:
            continue
        if node.kind.lower().startswith("dropout"):
            if getattr(node.module, "p", 1.0) > 0:
                yield node, "draws another mask at each step, and rates have none"
        elif node.op in ("max_pool", "adaptive_max_pool"):
            yield node, "is a function: what it gives on average is known of modules alone (nn.MaxPool2d)"
        elif node.op not in LINEAR:
            yield node, "does not give for an average what it gives on average"
