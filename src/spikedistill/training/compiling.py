"""``compile: auto``: compile the neurons' arithmetic where the run outlasts the compiling."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..distiller import Distiller
from ..neurons import Neuron, compilation

# A cold compiler cache costs up to this long on two CPU cores; the fused form saves about this part of an eager step.
COMPILE_SECONDS = 45.0
SAVED = 0.5


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Run with or without compiling; where compiling is forbidden altogether, by the plain equations."""
    allowed = compilation.allowed()
    with compilation.use("compiled" if on and allowed else "uncompiled" if allowed else "eager"):
        yield


def worth_compiling(distiller: Distiller, x: Tensor, y: Tensor, steps: int) -> bool:
    """Whether ``steps`` training steps like this one outlast the compiling; times two, and leaves no trace of them."""
    if not compilation.allowed() or steps < 20 or not any(isinstance(m, Neuron) for m in distiller.student.modules()):
        return False
    state = {k: v.clone() for k, v in distiller.state_dict().items()}
    with torch.random.fork_rng(), compilation.uncompiled():
        distiller.train()
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            distiller(x, y).total.backward()
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    distiller.zero_grad(set_to_none=True)
    distiller.load_state_dict(state)
    return min(seconds) * steps * SAVED > COMPILE_SECONDS
