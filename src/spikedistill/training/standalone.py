"""A finished network that stands alone: made of its graph, it behaves as the one that its code made."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data import DataInfo
from ..networks.base import Network
from ..networks.graph_file import NoFormError, describe
from ..networks.interpreter import network_of
from ..networks.own import mark, own_of
from ..neurons import eager
from ..numerics import floating_type

BATCHES = (1, 5)  # images in a check; the graph was traced on two and on three


def with_graph(network: nn.Module, info: DataInfo) -> nn.Module:
    """Hang its graph on a network of somebody's own, before it is quantized; returns the network."""
    own = own_of(network)
    if (
        own is None
        or own.graph is not None
        or (isinstance(network, Network) and network.input_codes is not None)
    ):
        return network
    size = (info.in_channels, *info.size) if not isinstance(network, Network) or network.dims == 2 else None
    try:
        if size is None:
            raise NoFormError("takes sequences")
        frames = info.frames if info.input == "frames" else None
        twin = copy.deepcopy(network).cpu()  # where the graph's examples are, and where it is compared
        mark(network, replace(own, graph=describe(twin, size, frames), why=""))
    except NoFormError as error:
        mark(network, replace(own, graph=None, why=str(error)))
    return network


def difference(
    network: nn.Module, graph: Mapping[str, Any], formed: Callable[[nn.Module], nn.Module]
) -> str | None:
    """How a network made of its graph differs: keys, or outputs at two batch sizes; None: in nothing."""
    # As a file gives it back: trained weights lie channels last, and some processors' convolutions round
    # otherwise there.
    original = copy.deepcopy(network).cpu().eval().to(memory_format=torch.contiguous_format)
    state = original.state_dict()
    try:
        made = formed(network_of(graph, "graph", sum(t.numel() for t in state.values())))
    except ValueError as error:
        return str(error)
    made = made.to(floating_type(original)).eval()
    sizes = {key: value.shape for key, value in made.state_dict().items()}
    # Looked at before, since strict=False forgives keys and not sizes; weights that somebody put into a layer
    # need not be of the size in its settings.
    if wrong := [key for key, value in state.items() if sizes.get(key, value.shape) != value.shape]:
        return f"of the graph the state dict has other sizes: {', '.join(wrong[:4])}"
    missing, unexpected = made.load_state_dict(state, strict=False)
    if missing or unexpected:
        return f"of the graph the state dict has other keys: {', '.join([*missing, *unexpected][:4])}"
    for images in BATCHES:
        outs = [_out(one, images, graph["size"]) for one in (original, made)]
        if isinstance(outs[1], str):
            return f"of the graph a pass on {images} images fails: {outs[1]}"
        # To the bit: both run the same operations in the same order, so any difference is another network.
        if isinstance(outs[0], str) or not torch.equal(outs[0], outs[1]):
            return f"of the graph other logits come out for {images} images"
    return None


def _out(network: nn.Module, images: int, size: Sequence[int]) -> Tensor | str:
    """Logits of random images, or what was said instead."""
    frames = (network.time_steps or 1,) if isinstance(network, Network) and network.input == "frames" else ()
    generator = torch.Generator().manual_seed(images)
    x = torch.rand(images, *frames, *size, generator=generator)
    x = x.to(floating_type(network, x.dtype))
    if frames:
        # Frames are counts of events.
        x = (4 * x).floor()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), eager():
            # For encodings that draw. The one generator that the fork puts back: torch.manual_seed would seed
            # a GPU's too.
            torch.default_generator.manual_seed(0)
            out = network(x)
    # Own code may raise anything; here it is only a reason to keep needing it.
    except Exception as error:
        return str(error)
    while not isinstance(out, Tensor):
        out = next(iter(out.values())) if isinstance(out, dict) else out[0]
    return out
