"""One vocabulary: module and function that compute the same have one operation and one set of settings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedistill.networks.graph import trace
from spikedistill.networks.operations import (
    EVERYWHERE,
    FUNCTIONS,
    HOMOGENEOUS,
    MODULES,
    MOVES,
    OPERATIONS,
    Node,
)
from spikedistill.neurons import IF, NormNeuron, Repeat


class Own(nn.Module):
    """A module whose own code is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def node_of(what: Any, shape: tuple[int, ...] = (2, 4, 8, 8)) -> Node:
    network = nn.Sequential(what if isinstance(what, nn.Module) else Own(what))
    graph = trace(network, torch.rand(shape))
    return graph.nodes[1]


PAIRS = [
    (nn.MaxPool2d(3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1), "max_pool"),
    (nn.MaxPool2d((3, 2), ceil_mode=True), lambda x: F.max_pool2d(x, (3, 2), ceil_mode=True), "max_pool"),
    (nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, 2), "average_pool"),
    (
        nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=5),
        lambda x: F.avg_pool2d(x, 3, 2, 1, False, False, 5),
        "average_pool",
    ),
    (nn.AdaptiveAvgPool2d(2), lambda x: F.adaptive_avg_pool2d(x, 2), "adaptive_average_pool"),
    (nn.AdaptiveAvgPool2d(3), lambda x: F.adaptive_avg_pool2d(x, 3), "adaptive_average_pool"),
    (nn.AdaptiveMaxPool2d((4, 1)), lambda x: F.adaptive_max_pool2d(x, (4, 1)), "adaptive_max_pool"),
    (nn.ReLU(), F.relu, "relu"),
    (nn.ReLU(), lambda x: F.relu(x, inplace=True), "relu"),
    (nn.ReLU(), lambda x: x.relu_(), "relu"),
    (nn.Flatten(), lambda x: x.flatten(1), "reshape"),
    (nn.Unflatten(1, (2, 2)), lambda x: x.unflatten(1, (2, 2)), "reshape"),
    (nn.ZeroPad2d((1, 0, 2, 0)), lambda x: F.pad(x, (1, 0, 2, 0)), "pad"),
    (nn.Dropout(0.5), lambda x: F.dropout(x, 0.5, False), "pass"),
    (nn.Upsample(scale_factor=2), lambda x: F.interpolate(x, scale_factor=2), "upsample"),
]


@pytest.mark.parametrize(("module", "function", "op"), PAIRS)
def test_module_and_function_say_the_same(module: nn.Module, function: Any, op: str) -> None:
    left, right = node_of(module), node_of(function)
    assert left.op == right.op == op
    assert left.settings == right.settings
    assert left.shape == right.shape
    assert left.module is module
    assert right.module is None


@pytest.mark.parametrize(
    ("function", "op", "settings"),
    [
        (lambda x: x + 2, "add", {"number": 2, "alpha": 1, "reversed": False}),
        (lambda x: x.add_(x), "add", {"number": None, "alpha": 1, "reversed": False}),
        (lambda x: torch.add(x, x, alpha=3), "add", {"number": None, "alpha": 3, "reversed": False}),
        (lambda x: 1 - x, "subtract", {"number": 1, "alpha": 1, "reversed": True}),
        (lambda x: x - 1, "subtract", {"number": 1, "alpha": 1, "reversed": False}),
        (lambda x: x * x, "multiply", {}),
        (lambda x: x / x, "divide", {}),
        (lambda x: 4 * x, "scale", {"factor": 4.0}),
        (lambda x: x / 4, "scale", {"factor": 0.25}),
        (lambda x: torch.div(x, 4, rounding_mode="floor"), "other", {}),
        (lambda x: x.mean((-2, -1)), "mean", {"dims": [2, 3]}),
        (lambda x: x.mean(dim=1, keepdim=True), "mean", {"dims": [1]}),
        (lambda x: x.mean(), "mean", {"dims": [0, 1, 2, 3]}),
        (lambda x: x.permute(0, 2, 3, 1), "permute", {"dims": [0, 2, 3, 1]}),
        (lambda x: x.permute(dims=(0, 2, 3, 1)), "permute", {"dims": [0, 2, 3, 1]}),
        (lambda x: x.transpose(1, -1), "permute", {"dims": [0, 3, 2, 1]}),
        (lambda x: torch.movedim(x, 1, 3), "permute", {"dims": [0, 2, 3, 1]}),
        (lambda x: torch.cat([x, x], -3), "concat", {"dim": 1}),
        (lambda x: x.chunk(3, 1)[0], "split", {"dim": 1, "sizes": [2, 2]}),
        (lambda x: torch.split(x, [1, 3], dim=-3)[0], "split", {"dim": 1, "sizes": [1, 3]}),
        (lambda x: x[..., ::2], "slice", {"index": [slice(None)] * 3 + [slice(None, None, 2)]}),
        (lambda x: x.float(), "cast", {"dtype": torch.float32}),
        (lambda x: x.to(torch.float64), "cast", {"dtype": torch.float64}),
        (lambda x: x.tanh(), "other", {}),
    ],
)
def test_settings_of_a_call(function: Any, op: str, settings: dict[str, Any]) -> None:
    node = node_of(function)
    assert (node.op, node.settings) == (op, settings)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_windows_have_a_number_for_each_axis() -> None:
    found = node_of(nn.MaxPool2d(3, 2)).settings
    assert (found["kernel"], found["stride"], found["padding"], found["dilation"]) == (
        (3, 3),
        (2, 2),
        (0, 0),
        (1, 1),
    )
    assert node_of(nn.AvgPool1d(2), (2, 4, 8)).settings["kernel"] == (2,)
    conv = node_of(nn.Conv2d(4, 2, 3, 2, "valid", 2)).settings
    pads = {"padding": (0, 0), "far_padding": (0, 0)}
    assert conv == {"kernel": (3, 3), "stride": (2, 2), "dilation": (2, 2), **pads}
    assert node_of(nn.Conv1d(4, 2, 5, padding="same"), (2, 4, 8)).settings["padding"] == (2,)
    even = node_of(nn.Conv1d(4, 2, 4, padding="same", dilation=3), (2, 4, 8)).settings
    assert (even["padding"], even["far_padding"]) == ((4,), (1,))
    assert node_of(nn.AdaptiveAvgPool2d(2)).settings["kernel"] == (4, 4)
    assert node_of(nn.AdaptiveAvgPool2d(3)).settings["kernel"] is None


@pytest.mark.parametrize(
    ("module", "op"),
    [
        (nn.BatchNorm2d(4), "batch_norm"),
        (nn.GroupNorm(2, 4), "norm"),
        (NormNeuron(4, IF()), "norm_neuron"),
        (IF(), "neuron"),
        (Repeat(2), "repeat"),
        (nn.ReLU6(), "other"),
        (nn.GELU(), "other"),
        (nn.LPPool2d(1, 2), "sum_pool"),
    ],
)
def test_modules_by_class(module: nn.Module, op: str) -> None:
    assert node_of(module, (4, 4, 8, 8)).op == op  # T = 4


def test_a_subclass_of_relu_is_no_relu() -> None:
    class Bounded(nn.ReLU):
        graph_leaf = True

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(max=6)

    assert node_of(Bounded()).op == "other"


def test_a_module_can_say_its_operation() -> None:
    class Rate(nn.Module):
        graph_leaf, graph_op = True, "rate_max_pool"

        def forward(self, x: Tensor) -> Tensor:
            return x.round()

    assert node_of(Rate()).op == "rate_max_pool"


def test_tables_name_known_operations() -> None:
    assert {*MODULES.values(), *FUNCTIONS.values()} <= OPERATIONS


def test_readers_count_each_read_and_after_follows_all() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            doubled = self.scale * 2
            return (x + x) * doubled

    graph = trace(Twice(), torch.rand(1, 3))
    names = [node.name for node in graph]
    scale, add, out = names[1:]
    assert [node.name for node in graph.readers("input")] == [add, add]
    assert graph.readers(out) == []
    assert graph.after("input") == {add, out}
    assert graph.after(scale) == {out}
    assert graph.live == {"input", add, out}


# What neither moves values nor scales with its input: with weights, a state or a nonlinearity, or of several
# tensors, which may come in units of their own.
OTHERWISE = {
    "input", "other", "conv", "conv3d", "linear", "batch_norm", "norm", "norm_neuron", "neuron",
    "relu", "add", "subtract", "multiply", "divide", "scale", "matmul", "sum_pool", "rate_max_pool",
    "reorder",
}  # fmt: skip


def test_every_operation_is_entered_where_it_belongs() -> None:
    """A new one is in a set of properties, or here: conversion, prices and peers' loops ask these alone."""
    assert set(OPERATIONS) == MOVES | HOMOGENEOUS | OTHERWISE
    assert not (MOVES | HOMOGENEOUS) & OTHERWISE
    assert set(OPERATIONS) >= EVERYWHERE


@pytest.mark.parametrize("module", [module for module, _, op in PAIRS if op in HOMOGENEOUS], ids=repr)
def test_homogeneous_operations_scale_with_their_input(module: nn.Module) -> None:
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(module.eval()(3 * x), 3 * module(x))
