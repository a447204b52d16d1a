"""A turned network is run again: no ReLU is left, and each neuron is read as before."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import SpikedistillError
from ..base import Network
from ..graph import Graph, source_line, trace
from .relu_sites import RELU_FUNCTIONS, Site, reads
from .rows import refuse_mixing


def sharing_copy(module: Any) -> Any:
    """A copy with buffers and structure of its own; parameters, the large part, are the same objects."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


class explained:
    """Adds the example's shape to what a model says about an input that it cannot take."""

    def __init__(self, example: Tensor) -> None:
        self.shape = tuple(example.shape)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, SpikedistillError):
            raise SpikedistillError(
                f"the trial pass on images of shape {self.shape} failed: {error}; the network has to "
                "take the data's images, or those of example="
            ) from error


def verify(network: Network, example: Tensor, before: Graph, sites: list[Site], places: list[str]) -> None:
    """Run the turned network: each neuron reached, read by as many as its ReLU, nothing left, T*N logits."""
    T = network.time_steps or 1
    with explained(example):
        graph = trace(network, example)
    left = [n for n in graph if n.op == "relu"]
    if left:
        raise SpikedistillError(f"a ReLU is left in {left[0].place}{left[0].at and ', called'}{left[0].at}")
    for site, place in zip(sites, places):
        name = f"{place}#0"
        # What a ReLU in place wrote is read under its input's name too, where the neuron's spikes are not.
        was, now = reads(before, site.node.name), reads(graph, name) if name in graph else -1
        if was != now:
            raise SpikedistillError(
                f"{site.node.place}: the ReLU called{site.node.at} "
                "works in place and its result is read under another name; write x = relu(x)"
            )
    images = example if network.input == "image" else example[:, 0]
    rows = graph[graph.output].shape[0]
    if rows != T * len(example):
        raise SpikedistillError(
            f"the turned network gives {rows} rows of logits for {len(example)} images at T = {T}"
        )
    with explained(images):
        refuse_mixing(network, graph, images)
    _verify_training(network, example)


class _Detect(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in RELU_FUNCTIONS:
            self.found.append(source_line())
        return func(*args, **(kwargs or {}))


def _verify_training(network: Network, example: Tensor) -> None:
    """In training mode a model may run other code than in eval mode, where it was traced."""
    twin = sharing_copy(network).train()
    devices = [example.device] if example.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), explained(example), _Detect() as detect:
        twin(example)
    if detect.found:
        raise SpikedistillError(
            "in training mode the model calls a ReLU that it does not call in eval mode, at "
            f"{detect.found[0]}; switch that branch (an auxiliary classifier?) off"
        )
