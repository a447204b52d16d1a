import pytest
import torch

import spikedistill as sd
from spikedistill.numerics import keep_layout

LAST = torch.channels_last


def gradients(layer, x, keep):
    """Of a mean over a layer's output: of the output as the layer sees it, and of the input."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out, seen = layer(x), []
    out.register_hook(seen.append)
    (keep(out) ** 2).mean().backward()
    return seen[0], x.grad


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_a_gradient_lies_as_its_map_does(layout):
    layer = torch.nn.Conv2d(3, 4, 3).double().to(memory_format=layout)
    x = torch.randn(2, 3, 8, 8, dtype=torch.double).to(memory_format=layout)
    plain, kept = gradients(layer, x, lambda out: out), gradients(layer, x, keep_layout)
    assert kept[0].is_contiguous(memory_format=layout)
    for a, b in zip(plain, kept):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_norm_of_an_adapter_reads_one_layout():
    torch.manual_seed(0)
    student = sd.networks.create("conv6", width=0.25, time_steps=2)
    teacher = sd.networks.create("conv6", width=0.25, time_steps=None)
    x, y = torch.rand(2, 3, 32, 32).to(memory_format=LAST), torch.arange(2)
    terms = [{"type": "feature_distillation", "aligner": "conv3x3_bn"}]
    distiller = sd.Distiller(student, teacher, terms).setup(x).to(memory_format=LAST)
    seen = []
    for module in distiller.objectives.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_full_backward_hook(lambda module, gave, got: seen.append(got[0]))
    distiller(x, y).total.backward()
    assert len(seen) == 3
    assert all(g.is_contiguous(memory_format=LAST) for g in seen)
