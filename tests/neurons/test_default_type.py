"""Native code, and weights over time, where torch's default type or device is not float32 on the CPU."""

import subprocess
import sys

import pytest
import torch

from spikedistill.networks.mean_field import normals
from spikedistill.neurons import MaskedPSN, native

# Modules and inputs are made first, then the default is another. Each result beside the plain equations'.
SCRIPT = """
import copy, sys
import torch
from torch import nn
import spikedistill as sd
from spikedistill.neurons import compilation, event_driven

event_driven.cpu_bf16_units = lambda: "AVX512-BF16"
last = {"memory_format": torch.channels_last}
torch.manual_seed(0)
spikes = (torch.rand(16, 64, 16, 16) < 0.05).float().contiguous(**last)
whole = torch.randint(-4, 5, (8, 16, 16, 16)).float().contiguous(**last)
modules = {
    "convolution": (sd.equip(nn.Conv2d(64, 128, 3, padding=1)), spikes),
    "strided": (sd.equip(nn.Conv2d(64, 32, 3, 2, bias=False)), spikes),
    "pooling": (sd.equip(nn.Sequential(nn.MaxPool2d(2))), whole),
}
neurons = {
    "neuron": (sd.LIF(time_steps=2), torch.full((2, 8), 3.0)),
    "norm": (sd.NormNeuron(16, sd.LIF(time_steps=2)).eval(), whole),
    "channels first": (sd.NormNeuron(16, sd.PLIF(time_steps=4)).eval(), whole.contiguous()),
}
probes = {n: torch.randint(-4, 5, m(x).shape).float() for n, (m, x) in modules.items()}


def run(module, x, g):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(g.to(y.dtype))
    return y.grad_fn.name(), [y.detach(), x.grad, *(p.grad for p in module.parameters())]


kind, value = sys.argv[1:]
if kind == "type":
    torch.set_default_dtype(getattr(torch, value))
else:
    torch.set_default_device(value)
for name, (module, x) in modules.items():
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (copy.deepcopy(module).to(dtype) for _ in range(2))
        with compilation.compiled():
            node, found = run(ours, x.to(dtype), probes[name])
        assert node in ("_EventConvolutionBackward", "_MaxPoolBackward"), (name, node)
        with compilation.eager():
            node, expected = run(theirs, x.to(dtype), probes[name])
        assert not node.startswith("_"), (name, node)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype == dtype, (name, a.dtype, b.dtype)
            close = 1e-4 if dtype == torch.float32 else 0.05
            scale = float(b.float().abs().max())
            assert float((a.float() - b.float()).abs().max()) <= close * scale, (name, dtype)
for name, (module, x) in neurons.items():
    with torch.no_grad():
        with compilation.compiled():
            found = module(x)
        with compilation.eager():
            expected = module(x)
    assert found.dtype == torch.float32, name
    assert found.any(), name
    assert torch.equal(found, expected), name
"""


@pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    "given",
    [("type", "float64"), ("type", "bfloat16"), ("type", "float16"), ("device", "meta")],
    ids="-".join,
)
def test_native_code_computes_the_same(given: tuple[str, str]) -> None:
    # By itself: memory of the wrong size is written past its end, which ends a process at any later moment.
    done = subprocess.run([sys.executable, "-c", SCRIPT, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_weights_over_time_have_their_own_type() -> None:
    neuron, held = MaskedPSN(time_steps=30, order=30), torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        neuron.time_steps = 40
    finally:
        torch.set_default_dtype(held)
    assert torch.equal(neuron.weight, MaskedPSN(time_steps=40, order=30).weight)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_balance_is_the_same_whatever_the_default_type(kind: torch.dtype) -> None:
    normals.cache_clear()
    want = normals(4, 1)
    normals.cache_clear()
    torch.set_default_dtype(kind)
    try:
        found = normals(4, 1)
    finally:
        torch.set_default_dtype(torch.float32)
        normals.cache_clear()
    assert torch.equal(found, want)
