"""Does a turned network keep images and time steps apart? Its first axis is T*N, time first; code may mix it.

A neuron reads its current as (T, N, ...). Code that puts something in front of the batch (patches, say), or
that looks across the batch, makes it integrate over something else than time, and nothing fails. So the
network is run twice, once over all steps and once step by step, with one image in two batches of other
company, size and order: what enters each neuron has to be the same for this image. Its random spikes are
the same in both runs, so that silent layers hide nothing; its company's are fewer in the second, so that
statistics of the whole batch differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import simulation
from ...errors import SpikedistillError
from ...neurons import PSN, MaskedPSN, Neuron, NormNeuron
from ..base import Network
from ..graph import Graph
from ..operations import Node

STEPS = 2
IMAGES, FEWER = 3, 2  # of the two batches
FIRST, LAST = 0, 1  # where the image that both have stands in them
TOLERANCE = 1e-3  # of the largest value; sums of other batch sizes differ by rounding alone


def refuse_mixing(network: Network, graph: Graph, example: Tensor) -> None:
    """Raise, naming path and source line, where images or time steps of a turned network are mixed.

    ``graph``: its trace. ``example``: its model's input, (N, C, H, W); only shape, type and device are used.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, *example.shape[1:], generator=generator).to(example.device, example.dtype)
    images[FIRST] *= 0.5  # its company is brighter in the first batch and darker in the second
    others = 0.25 * images[1 : 1 + FEWER]
    others[LAST] = images[FIRST]
    own = network.time_steps or 1
    frames = network.input == "frames"
    given = images.unsqueeze(1).repeat(1, own, *[1] * (images.dim() - 1)) if frames else images
    with (
        simulation.eval_mode(network),
        torch.random.fork_rng(devices=[example.device] if example.is_cuda else []),
        torch.no_grad(),
    ):
        with _forced(network, None) as whole, simulation.time_steps(network, STEPS):
            logits = network(given)
        state, parts, outs = None, [], []
        for t in range(STEPS):
            with _forced(network, [_step(spikes, t, STEPS) for _, _, spikes in whole]) as seen:
                out, state = network.step(others, state)
            parts.append(seen)
            outs.append(out)
    for i, (place, current, _) in enumerate(whole):
        # A constant current has no steps: the whole pass and each single step read the same one.
        steps = 1 if current.encodes else STEPS
        for t, part in enumerate(parts):
            if len(part) <= i or not _same(_step(current.value, t % steps, steps), part[i][1].value):
                raise _mixed(graph, f"{place[0]}#{place[1]}")
    for t, out in enumerate(outs):
        if not _same(logits[t], out):
            raise _mixed(graph, graph.output)


class _Current:
    def __init__(self, value: Tensor, encodes: bool) -> None:
        self.value, self.encodes = value, encodes


@contextmanager
def _forced(network: nn.Module, spikes: list[Tensor | None] | None) -> Iterator[list[Any]]:
    """Have neurons give random spikes; the image that stays gets those of ``spikes``, one entry a call.

    Yields, call by call, ((path, call), current, spikes given).
    """
    found: list[Any] = []
    counts: dict[str, int] = {}
    inside = {id(m.neuron) for m in network.modules() if isinstance(m, NormNeuron)}
    generator = torch.Generator().manual_seed(1 if spikes is None else 2)

    def hook(path: str, neuron: Any) -> Any:
        def seen(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            rate = 0.5 if spikes is None else 0.1
            given = (torch.rand(out.shape, generator=generator) < rate).to(out.device, out.dtype)
            before = spikes[len(found)] if spikes is not None and len(found) < len(spikes) else None
            if before is not None and _fit(before, given):
                given.unflatten(0, (FEWER, -1))[LAST] = before.unflatten(0, (IMAGES, -1))[FIRST]
            call = counts.get(path, 0)
            counts[path] = call + 1
            found.append(((path, call), _Current(args[0], bool(getattr(neuron, "encode", False))), given))
            return given

        return seen

    handles, replaced = [], []
    for path, module in network.named_modules():
        if not isinstance(module, Neuron | NormNeuron) or id(module) in inside:
            continue
        neuron = module.neuron if isinstance(module, NormNeuron) else module
        if isinstance(neuron, PSN | MaskedPSN):
            # Tied to another T, and one of them streams at no T; of its output only the shape is asked for.
            module.forward = partial(_silent, neuron)  # type: ignore[method-assign]
            replaced.append(module)
        handles.append(module.register_forward_hook(hook(path, neuron)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for module in replaced:
            del module.forward


def _silent(neuron: Neuron, current: Tensor, *_: Tensor) -> Tensor:
    """No spikes, in the shape of what ``neuron`` gives."""
    steps = simulation.steps(neuron.time_steps) if neuron.encode else 1
    return current.new_zeros(steps * current.shape[0], *current.shape[1:])


def _step(x: Tensor, t: int, steps: int) -> Tensor | None:
    """One step's rows; None where they are not a multiple of the steps."""
    return None if len(x) % steps else x.unflatten(0, (steps, -1))[t]


def _same(whole: Tensor | None, part: Tensor) -> bool:
    """Whether the image that stayed has equal rows in both runs."""
    if whole is None or not _fit(whole, part):
        return False
    a, b = whole.unflatten(0, (IMAGES, -1)), part.unflatten(0, (FEWER, -1))
    bound = TOLERANCE * float(a.abs().amax().clamp(min=1e-6))
    return bool(((a[FIRST] - b[LAST]).abs() <= bound).all())


def _fit(whole: Tensor, part: Tensor) -> bool:
    """Whether both have as many rows an image, of one shape."""
    rows, left = divmod(len(part), FEWER)
    return not left and len(whole) == rows * IMAGES and whole.shape[1:] == part.shape[1:]


def _mixed(graph: Graph, name: str) -> SpikedistillError:
    """The error: which neuron (or the logits), and what before it moves or changes the first dimension."""
    output = name == graph.output
    end = graph[name] if name in graph else graph[graph.output]
    before = [end] if output and not isinstance(end.module, Neuron | NormNeuron) else []
    waiting, known = list(end.inputs), set()
    while waiting:
        at = waiting.pop()
        if at in known or at not in graph or isinstance(graph[at].module, Neuron | NormNeuron):
            continue
        known.add(at)
        before.append(graph[at])
        waiting += graph[at].inputs
    order = [node for node in graph if any(node is b for b in before) and node.kind != "input"]
    suspects = (
        [n for n in order if _suspect(n)] or [n for n in order if n.module is None] or order[-1:] or [end]
    )
    places = [f"{n.place}: {n.kind}{n.at}" for n in suspects[-3:]]
    reader = "the logits mix" if output else f"what the neuron at {end.path} reads mixes"
    return SpikedistillError(
        f"{reader} images or time steps: the first dimension of a spiking network holds T*N, time first, and "
        "every image has to stay in its rows at every step. Look at\n  "
        + "\n  ".join(places)
        + "\nKeep the batch in front: put what you split off (patches, groups) behind it, and use nothing of "
        "other images"
    )


def _suspect(node: Node) -> bool:
    """Whether a call moves or changes the first dimension, or reads statistics of the whole batch."""
    if node.module is not None:
        # A norm that tracks nothing reads the batch's own statistics in eval mode too.
        return getattr(node.module, "running_mean", 0) is None
    return node.op in ("permute", "reorder") or any(
        shape[:1] != node.shape[:1] for shape in node.in_shapes[:1]
    )
