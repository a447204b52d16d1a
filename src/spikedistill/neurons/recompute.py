"""Less memory for training: blocks of which only the inputs are kept, computed a second time in backward.

The gradients stay the same bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import simulation
from ..errors import SpikedistillError
from . import compilation
from .modules import Neuron
from .parallel import MaskedPSN


@contextmanager
def _untracked(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Norms that stand alone leave their running statistics as they are; those of ours ask the simulation."""
    norms = [m for root in modules for m in root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    held = [(m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        # Momentum 0 moves no average, without a counter nothing is counted; the batch still normalises.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


Passes = list[tuple[MaskedPSN, Tensor]]


def _passes(modules: tuple[nn.Module, ...]) -> Passes:
    """How many passes those neurons have counted whose masks come in with them."""
    neurons = [m for root in modules for m in root.modules() if isinstance(m, MaskedPSN)]
    return [(m, m.passes.clone()) for m in neurons if m.anneal]


def _put_back(passes: Passes) -> None:
    for neuron, count in passes:
        neuron.passes.copy_(count)


@contextmanager
def _with_masks_of(then: Passes) -> Iterator[None]:
    """Masks that come in with the passes are those of the first time; no pass is counted twice."""
    now = _passes(tuple(neuron for neuron, _ in then))
    _put_back(then)
    try:
        yield
    finally:
        _put_back(now)


@contextmanager
def _again(
    sim: simulation.Simulation | None,
    snapshot: dict[int, int] | None,
    mode: compilation.Mode,
    modules: tuple[nn.Module, ...],
    passes: Passes,
) -> Iterator[None]:
    inside: AbstractContextManager[Any] = nullcontext() if sim is None else sim.reenter(snapshot or {})
    with inside, compilation.use(mode), _untracked(modules), _with_masks_of(passes):
        yield


def checkpointed(function: Callable[..., Any], *args: Any, modules: tuple[nn.Module, ...] = ()) -> Any:
    """``function(*args)`` of which only the arguments are kept; backward computes it a second time.

    The second time re-enters the simulation as it was: calls are counted, running statistics moved and
    captures taken once, and masks that come in slowly are the same. ``modules`` are those that ``function``
    runs. Dropout draws the same masks again.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    sim = simulation.current()
    snapshot = None if sim is None else sim.snapshot()
    # Backward may be called under other switches; other arithmetic could give other bits.
    mode = compilation.mode()
    passes = _passes(modules)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _again(sim, snapshot, mode, modules, passes)

    # Torch takes contexts for the second pass only where it does not re-enter autograd.
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def _has_neurons(module: nn.Module) -> bool:
    return any(isinstance(m, Neuron) for m in module.modules())


def _sequences(module: nn.Module) -> Iterator[nn.Sequential]:
    """The outermost sequences that contain neurons."""
    if (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and len(module) > 1
    ):
        if _has_neurons(module):
            yield module
    else:
        for child in module.children():
            yield from _sequences(child)


def _by_runs(sequence: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The forward of a sequence that recomputes its children in runs, each up to a child with a neuron."""
    # Sequences that the network never sees: its paths and its state dict stay what they are.
    runs = [nn.Sequential()]
    for child in sequence:
        runs[-1].append(child)
        if _has_neurons(child):
            runs.append(nn.Sequential())

    def forward(x: Tensor) -> Tensor:
        for run in runs:
            x = checkpointed(run, x, modules=(run,)) if len(run) else x
        return x

    return forward


def _as_a_whole(block: nn.Module) -> Callable[..., Any]:
    """The forward of a block that recomputes all of it."""
    own = block.forward
    return lambda *args: checkpointed(own, *args, modules=(block,))


@contextmanager
def lean(network: nn.Module, blocks: list[nn.Module] | None = None) -> Iterator[None]:
    """Recompute blocks in backward: passes of ``network`` within this context keep inputs of blocks only.

    ``blocks``: the modules to recompute each as a whole; default: every run of layers up to a neuron in the
    outermost ``nn.Sequential`` that contain neurons (a convolution with its neuron in VGGs, a residual block
    in ResNets).

    Raises:
        SpikedistillError: when there are no blocks given and no such sequences.
    """
    changed = list(_sequences(network)) if blocks is None else blocks
    if not changed:
        raise SpikedistillError(
            f"{type(network).__name__} has no nn.Sequential of spiking layers to recompute; name its blocks: "
            "lean(network, blocks=[...])"
        )
    # A quantized layer already has a forward as its own attribute; it must have it again afterwards.
    attributes = [module.__dict__.get("forward") for module in changed]
    try:
        for module in changed:
            module.forward = (
                _by_runs(module)
                if isinstance(module, nn.Sequential) and blocks is None
                else _as_a_whole(module)
            )
        yield
    finally:
        for module, own in zip(changed, attributes, strict=True):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own
