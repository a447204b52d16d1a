"""Max-pooling of firing rates: what a converted network needs in place of max-pooling of spikes.

The maximum of single spikes is their OR, whose rate is higher than the largest of the rates: a converted
network with it does not tend to its ANN however long it runs. Rueckauer et al. (Frontiers in Neuroscience
2017) let the input that has fired most so far through. Ours pools the spike counts so far and emits what the
largest count has grown by:

    M_t = pool(s_1 + ... + s_t),   out_t = M_t - M_(t-1),

again 0 or 1 (a count grows by at most 1), and after T steps exactly the largest count of the window.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import simulation
from ..networks.graph import Graph
from ..numerics import at_least_float32

POOLS = ("max_pool", "adaptive_max_pool")


class RateMaxPool(nn.Module):
    """Spikes (T*N, C, ...) to spikes of the most active input of each window; ``pool``: the max-pool module.

    Keeps no state between passes; streamed, it continues from the counts in the simulation's state.
    """

    graph_leaf, graph_op = True, "rate_max_pool"

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(T*N, C, H, W) to (T*N, C, H', W')."""
        sim = simulation.current()
        T = simulation.steps(1)
        k = sim.call(self) if sim else 0
        # bfloat16 counts to 256 and no further.
        counts = at_least_float32(x).unflatten(0, (T, -1)).cumsum(0)
        before = sim.initial(self, k) if sim else None
        if before is None:
            before = torch.zeros_like(counts[0])
        counts = counts + before
        # The counts before the first step are pooled too: out_1 is what they have grown by.
        pooled = self.pool(torch.cat([before, counts.flatten(0, 1)])).unflatten(0, (T + 1, -1))
        if sim is not None:
            sim.final(self, k, counts[-1])
        return (pooled[1:] - pooled[:-1]).flatten(0, 1).to(x.dtype)


def pool_rates(network: nn.Module, paths: Iterable[str]) -> None:
    """Put a :class:`RateMaxPool` around the max-pooling modules at these paths."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, RateMaxPool(network.get_submodule(path)))


def behind_neurons(graph: Graph) -> list[str]:
    """Paths of the max-pooling modules that a neuron stands before; warns of functions, which stay."""
    spiking: set[str] = set()
    found: dict[str, None] = {}
    for node in graph:
        reads_spikes = bool(spiking.intersection(node.inputs))
        if node.op in ("neuron", "norm_neuron") or reads_spikes:
            spiking.add(node.name)
        if node.op in POOLS and reads_spikes:
            if node.path is not None:
                found[node.path] = None
            else:
                warnings.warn(
                    f"{node.source}: {node.kind} of spikes stays as it is, and its rate is higher than the "
                    "largest rate; make it a max-pooling module for conversion to tend to the ANN",
                    stacklevel=2,
                )
    return list(found)
