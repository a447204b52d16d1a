"""The fused arithmetic compiled: equal to the uncompiled, once for all shapes, and never silently not."""

import pytest
import torch
from torch._dynamo.utils import counters

import spikedistill as sd
from spikedistill.neurons import IF, LIF, PLIF, NormNeuron, compilation
from spikedistill.neurons.surrogate import SURROGATES
from spikedistill.simulation import Simulation


def graphs():
    return counters["stats"]["unique_graphs"]


def both(layer, x, residual=None, membrane=False, dtype=None):
    """Outputs and gradients of one forward and backward: compiled, uncompiled."""
    results = []
    for way in ("compiled", "uncompiled"):
        leaves = [t.detach().clone().requires_grad_() for t in (x, residual) if t is not None]
        layer.zero_grad()
        insides = [("", 0, "membrane")] if membrane else []
        with compilation.use(way), Simulation(layer, layer_steps(layer), insides=insides) as sim:
            out = layer(*leaves)
        torch.manual_seed(1)
        loss = (out.float() * torch.randn(out.shape)).sum()
        for h in sim.captured.values():
            loss = loss + (h * torch.randn(h.shape)).sum()
        loss.backward()
        parameters = [p.grad for p in layer.parameters()]
        results.append(
            (
                out.detach(),
                *[h.detach() for h in sim.captured.values()],
                *[l.grad for l in leaves],
                *parameters,
            )
        )
    assert compilation.failure() is None
    return results


def layer_steps(layer):
    return (layer.neuron if isinstance(layer, NormNeuron) else layer).time_steps


def agree(results, tolerance=1e-5):
    mine, theirs = results
    differ = (mine[0] - theirs[0]).abs() > 0.1  # a smooth neuron's output is no whole number
    assert differ.sum() <= 1  # the compiler orders the sums of the statistics in its own way
    if not differ.any():
        for a, b in zip(mine[1:], theirs[1:], strict=True):
            assert (a - b).float().norm() <= tolerance * b.float().norm() + 1e-7


def test_the_smallest_neuron_compiles_once_for_all_shapes():
    neuron = IF(time_steps=2, surrogate="triangle")
    agree(both(neuron, torch.randn(6, 4)))
    compiled = graphs()
    for shape in ((8, 4), (4, 5, 7), (16, 3, 4, 4)):
        mine, theirs = both(neuron, torch.randn(*shape).bfloat16().float())
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])
    assert 0 < graphs() == compiled


CONFIGURATIONS = [
    *[(surrogate, reset, "norm") for surrogate in SURROGATES for reset in ("hard", "soft")],
    ("atan", None, "norm"), ("atan", "hard", "first"), ("triangle", "hard", "residual"),
    ("triangle", "hard", "membrane"),
    ("atan", "soft", "encode"), ("atan", "hard", "alone"), ("triangle", "soft", "alone"),
    ("atan", "hard", "plif"),
    ("atan", "hard", "attached"), ("sigmoid", "hard", "smooth"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twenty_configurations_compile_once_each(dtype):
    assert len(CONFIGURATIONS) == 20
    first_failures = compilation.failure()
    for surrogate, reset, kind in CONFIGURATIONS:
        options = {"surrogate": surrogate, "reset": reset, "time_steps": 3, "encode": kind == "encode"}
        options |= {"detach_reset": kind not in ("attached", "smooth"), "smooth": kind == "smooth"}
        neuron = PLIF(**options) if kind == "plif" else LIF(tau=1.7, **options)

        def run(n, c, size, neuron=neuron, kind=kind):
            x = 2 * torch.randn(n if kind == "encode" else 3 * n, c, size, size)
            x = x.to(dtype) if kind == "first" else x.to(dtype, memory_format=torch.channels_last)
            layer = neuron if kind == "alone" else NormNeuron(c, neuron)
            residual = torch.randn_like(x) if kind == "residual" else None
            agree(both(layer, x, residual, kind == "membrane"), 1e-4 if dtype == torch.float32 else 2e-2)

        run(4, 6, 5)
        compiled = graphs()
        # n == c, T * n == c, sizes of one ...
        for n, c, size in ((5, 6, 5), (4, 8, 8), (8, 8, 8), (3, 12, 7), (1, 6, 5), (4, 6, 1)):
            run(n, c, size)
        neuron.threshold = 0.8  # a neuron's numbers are arguments
        run(4, 12, 2)
        assert graphs() == compiled, (surrogate, reset, kind)
    assert compilation.failure() is first_failures is None


def test_who_counts_operations_gets_plain_ones() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = sd.networks.create("vgg5", time_steps=2, width=0.25)
    x = torch.rand(4, 3, 32, 32)
    counts = []
    for way in ("compiled", "eager"):
        with compilation.use(way), FlopCounterMode(display=False) as counter:
            network(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert compilation.failure() is None
