"""The blurred feature against an independent implementation: explicit convolution sums, with gradients."""

import pytest
import torch
from objective_views import captures, random, ready, view_of
from torch.nn import functional as F

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.objectives import BlurredFeature
from spikedistill.objectives.blurred import blur_mask
from spikedistill.objectives.pairs import as_map

T, N, C, D, H = 3, 4, 3, 5, 4
LOGITS = random(T, N, 4)
STUDENT = random(T, N, C, H, H, seed=1, positive=True)
TEACHER = random(2, N, D, H, H, seed=2)


def view(student=STUDENT, teacher=TEACHER):
    return view_of(
        LOGITS, student=captures({"before_head": student}), teacher=captures({"before_head": teacher})
    )


def convolve(x, weight, bias):
    """A 3x3 convolution with padding 1 as nine shifted products."""
    out = bias[None, :, None, None].expand(x.shape[0], -1, *x.shape[2:])
    padded = F.pad(x, (1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out = out + torch.einsum("dc,nchw->ndhw", weight[:, :, i, j], shifted)
    return out


def independent(student, teacher, mask, p, clip=False):
    """The equation, from the parameters of the objective by name."""
    if "align.weight" in p:
        student = torch.einsum("dc,nchw->ndhw", p["align.weight"][:, :, 0, 0], student)
        student = student + p["align.bias"][None, :, None, None]
    if clip:
        teacher = teacher / teacher.max() * student.max()
    hidden = convolve(student * mask, p["restore.0.weight"], p["restore.0.bias"]).clamp_min(0)
    restored = convolve(hidden, p["restore.2.weight"], p["restore.2.bias"])
    if teacher.dim() == 2:
        restored = restored.sum((2, 3)) / (restored.shape[2] * restored.shape[3])
    return sum(((restored[b] - teacher[b]) ** 2).sum() for b in range(len(student))) / len(student)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("blur", ["channel", "spatial"])
@pytest.mark.parametrize("kind", ["map", "vector", "same channels"])
def test_value_and_every_gradient_equal_an_independent_implementation(kind, blur, clip):
    target = {"map": TEACHER, "vector": TEACHER[..., 0, 0], "same channels": TEACHER[:, :, :C]}[kind]
    x = STUDENT.clone().requires_grad_()
    given = view(x, target)
    objective = ready(BlurredFeature(blur_ratio=0.4, blur=blur, clip=clip), given)
    parameters = dict(objective.named_parameters())
    assert ("align.weight" in parameters) == (kind != "same channels")

    torch.manual_seed(7)
    found = objective(given)
    found_gradients = torch.autograd.grad(found, [x, *parameters.values()])
    torch.manual_seed(7)
    draw = (
        torch.rand(N, D if kind != "same channels" else C, 1, 1)
        if blur == "channel"
        else torch.rand(N, 1, H, H)
    )
    mask = (draw >= 0.4).double()
    assert 0 < mask.mean() < 1
    want = independent(x.mean(0), target.mean(0), mask, parameters, clip)
    want_gradients = torch.autograd.grad(want, [x, *parameters.values()])
    assert float((found - want).detach().abs()) < 1e-12 * max(1, float(want.detach()))
    for a, b in zip(found_gradients, want_gradients):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, T])
def test_per_step_blurs_and_compares_each_step(steps):
    target = random(steps, N, D, H, H, seed=5)
    given = view(STUDENT, target)
    objective = ready(BlurredFeature(over="step", blur_ratio=0.3), given)
    parameters = dict(objective.named_parameters())
    torch.manual_seed(3)
    found = objective(given)
    torch.manual_seed(3)
    masks = (torch.rand(T * N, D, 1, 1) >= 0.3).double().unflatten(0, (T, N))
    want = sum(independent(STUDENT[t], target[t % steps], masks[t], parameters) for t in range(T)) / T
    assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-12)


def test_pooled_features_are_maps_of_one_pixel():
    student, teacher = STUDENT.mean((3, 4)), TEACHER.mean((3, 4))
    given = view(student, teacher)
    objective = ready(BlurredFeature(blur_ratio=0.0), given)
    p = dict(objective.named_parameters())
    x = student.mean(0) @ p["align.weight"][:, :, 0, 0].T + p["align.bias"]
    for i in (0, 2):  # of a 3x3 kernel only the centre meets one pixel
        x = x @ p[f"restore.{i}.weight"][:, :, 1, 1].T + p[f"restore.{i}.bias"]
        x = x.clamp_min(0) if i == 0 else x
    want = ((x - teacher.mean(0)) ** 2).sum() / N
    assert float(objective(given).detach()) == pytest.approx(float(want.detach()), rel=1e-12)


def test_tokens_of_both_sides():
    tokens, theirs = STUDENT.flatten(3).transpose(2, 3), TEACHER.flatten(3).transpose(2, 3)
    theirs = torch.cat([random(2, N, 1, D), theirs], 2)  # a class token stands first
    by_map = ready(BlurredFeature(), view())
    by_token = ready(BlurredFeature(), view(tokens, theirs))
    by_token.load_state_dict(by_map.state_dict())
    torch.manual_seed(0)
    want = by_map(view())
    torch.manual_seed(0)
    torch.testing.assert_close(by_token(view(tokens, theirs)), want, rtol=1e-12, atol=0)


def test_patches_of_the_hybrid_network_are_a_map_and_its_class_token_a_vector():
    """Its tokens come after class and distillation token, patch by patch along the rows of the image."""
    torch.manual_seed(0)
    networks = {
        T: sd.networks.create("hdkd_student", time_steps=T, width=0.125, image_size=64) for T in (None, 2)
    }
    x = torch.rand(4, 3, 64, 64)
    for T, network in networks.items():
        network.eval()
        _, found = taps.captures(network, x, ["transformer", "before_head", "pooled"])
        tokens = found["transformer"].mean(0)
        assert tokens.shape == (4, 2 + 16, 32)
        assert torch.equal(found["pooled"].mean(0), tokens[:, 0])
        features = as_map(BlurredFeature(), found["before_head"].mean(0))
        assert features.shape == (4, 32, 4, 4)
        for row in range(4):
            for column in range(4):
                assert torch.equal(features[:, :, row, column], tokens[:, 2 + 4 * row + column]), T
    for tap in ("before_head", "pooled"):
        distiller = sd.Distiller(networks[2], networks[None], [{"type": "blurred_feature", "tap": tap}])
        assert torch.isfinite(distiller(x, torch.arange(4)).total)
        assert isinstance(distiller.terms[0].align, torch.nn.Identity)
    teacher = sd.networks.create("hdkd_teacher", width=0.125)
    with pytest.raises(
        SpikedistillError, match=r"student's map is \(32, 4, 4\) and the teacher's \(24, 8, 8\)"
    ):
        sd.Distiller(networks[2], teacher, [{"type": "blurred_feature"}]).setup(x)


def test_mask_is_drawn_at_the_ratio_and_not_rescaled():
    torch.manual_seed(0)
    mask = blur_mask(torch.ones(200, 500, 2, 2), 0.15)
    assert mask.shape == (200, 500, 1, 1)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.mean()) == pytest.approx(0.85, abs=5 * (0.15 * 0.85 / 1e5) ** 0.5)


def test_maps_of_different_sizes_are_refused():
    with pytest.raises(
        SpikedistillError, match=r"student's map is \(3, 4, 4\) and the teacher's \(5, 2, 2\)"
    ):
        ready(BlurredFeature(), view(teacher=TEACHER[..., :2, :2]))
    with pytest.raises(SpikedistillError, match="blur_ratio must be in"):
        BlurredFeature(blur_ratio=1.0)
    with pytest.raises(SpikedistillError, match="'channel' or 'spatial'"):
        BlurredFeature(blur="pixel")


def test_gradients_against_finite_differences():
    given = view(STUDENT[..., :2, :2], TEACHER[..., :2, :2])
    objective = ready(BlurredFeature(blur_ratio=0.3), given)
    x = STUDENT[..., :2, :2].clone().requires_grad_()
    w = objective.restore[0].weight.detach().clone().requires_grad_()

    def loss(x, w):
        torch.manual_seed(1)
        return torch.func.functional_call(
            objective, {"restore.0.weight": w}, (view(x, TEACHER[..., :2, :2]),)
        )

    assert torch.autograd.gradcheck(loss, (x, w))
