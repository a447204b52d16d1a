"""In training a quantized norm and its neuron run as one operation: the same integers, the same gradients."""

import copy

import pytest
import torch
from lively import images, lively
from torch.nn import functional as F

from spikedistill.neurons import LIF, PLIF, compilation, fused
from spikedistill.quantization import quantize
from spikedistill.training.machine import saving

LAYOUTS = torch.contiguous_format, torch.channels_last
CASES = {  # network, its options, options of quantize
    "norms": ("conv6", {}, {}),
    "another image at each step": ("conv6", {"input": "frames"}, {}),
    "residuals on the neuron's grid": ("resnet20", {}, {}),
    "residuals in units of their own": ("sew_resnet20", {}, {"weight_bits": 2, "membrane_bits": 2}),
    "a stream": ("ms_resnet20", {}, {}),
    "soft reset, learned leak": ("vgg5", {"neuron": PLIF(2.0, reset="soft")}, {}),
    "frozen statistics": ("vgg5", {"neuron": LIF()}, {"freeze_norms": True}),
}


@pytest.mark.parametrize(
    ("case", "layout", "way"),
    [(case, layout, "uncompiled") for case in CASES for layout in LAYOUTS]
    + [("residuals on the neuron's grid", torch.channels_last, "compiled")],
)
def test_one_operation_gives_the_integers_and_gradients_of_several(case, layout, way, monkeypatch):
    name, options, bits = CASES[case]
    torch.manual_seed(0)
    x, y = images(6), torch.arange(6)
    if options.get("input") == "frames":
        x = torch.stack([x, x.roll(1, 3), x.flip(3)], 1).round()
    network = lively(name, x, width=0.25, time_steps=3, **options)
    network = quantize(network, calibration=x, norm_bits=8, **bits)
    ran = []
    original = fused.run
    monkeypatch.setattr(
        fused, "run", lambda *a, **k: ran.append(k["affine"] is not None) or original(*a, **k)
    )
    found = {}
    for mode in (way, "eager"):
        q = copy.deepcopy(network).train().to(memory_format=layout)
        with compilation.use(mode):
            logits = q(x)
            F.cross_entropy(logits.mean(0), y).backward()
        found[mode] = logits, q
    assert any(ran)  # norms and neurons together
    (one, a), (several, b) = found.values()
    assert torch.equal(one, several)
    gradients = {n: p.grad for n, p in b.named_parameters() if p.grad is not None}
    assert len(gradients) > 10
    for key, value in a.named_parameters():
        if key in gradients:
            # Of the whole tensor: behind a norm single sums cancel to nothing but their rounding.
            assert (value.grad - gradients[key]).norm() < 1e-4 * gradients[key].norm(), key
    for key, value in b.named_buffers():
        torch.testing.assert_close(a.get_buffer(key), value, rtol=1e-5, atol=1e-6, msg=key)


def test_moments_have_the_gradient_of_mean_and_variance():
    x = torch.randn(5, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused.differentiable_moments, x)
    var, mean = torch.var_mean(x, (0, 2, 3), unbiased=False)
    torch.testing.assert_close(fused.differentiable_moments(x), (mean, var))


@pytest.mark.parametrize("memory", ["packed", "lean"])
def test_recomputed_and_packed_passes_are_the_same(memory):
    torch.manual_seed(0)
    x, y = images(6), torch.arange(6)
    network = lively("resnet20", x, width=0.25, time_steps=3)
    network = quantize(network, calibration=x, norm_bits=8).train()
    found = []
    for how in ("default", memory):
        q = copy.deepcopy(network)
        with compilation.uncompiled(), saving(how, q):
            F.cross_entropy(q(x).mean(0), y).backward()
        found.append([*(p.grad for p in q.parameters() if p.grad is not None), *q.buffers()])
    assert len(found[0]) > 40
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
