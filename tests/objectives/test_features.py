"""Feature distillation against loops."""

import pytest
import torch
from objective_views import captures, random, ready, view_of

from spikedistill.errors import SpikedistillError
from spikedistill.objectives import FeatureDistillation

T, N = 2, 3
LOGITS = random(T, N, 4)
STUDENT = {"s1": random(T, N, 3, 4, 4, seed=1), "s2": random(T, N, 5, 2, 2, seed=2)}
TEACHER = {"t1": random(1, N, 3, 4, 4, seed=3), "t2": random(1, N, 5, 2, 2, seed=4)}


def view(student=STUDENT, teacher=TEACHER):
    return view_of(
        LOGITS,
        student=captures(student, stages=list(student)),
        teacher=captures(teacher, stages=list(teacher)),
    )


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("reduction", ["mean", "batch"])
def test_stages_without_aligner_against_loops(exponent, reduction):
    want = 0.0
    for i, (s, t) in enumerate(zip(STUDENT.values(), TEACHER.values()), 1):
        s, t = s.sum(0) / T, t[0]
        squares = [(a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist())]
        want += i**exponent * sum(squares) / (len(squares) if reduction == "mean" else N)
    objective = ready(FeatureDistillation(stage_exponent=exponent, reduction=reduction), view())
    assert float(objective(view())) == pytest.approx(want, abs=1e-10)
    assert not list(objective.parameters())


def test_conv1x1_aligner_against_einsum():
    student, teacher = {"a": random(T, N, 3, 2, 2, seed=5)}, {"a": random(1, N, 6, 2, 2, seed=6)}
    objective = ready(FeatureDistillation(aligner="conv1x1"), view(student, teacher))
    weight, bias = objective.aligners[0].weight[:, :, 0, 0], objective.aligners[0].bias
    aligned = torch.einsum("dc,nchw->ndhw", weight, student["a"].mean(0)) + bias[None, :, None, None]
    want = ((aligned - teacher["a"][0]) ** 2).mean()
    assert float(objective(view(student, teacher)).detach()) == pytest.approx(float(want.detach()), abs=1e-12)


def test_conv3x3_bn_aligner_normalises_over_the_batch_in_training():
    student, teacher = {"a": random(T, N, 3, 4, 4, seed=5)}, {"a": random(1, N, 6, 4, 4, seed=6)}
    objective = ready(FeatureDistillation(aligner="conv3x3_bn", layers=["a"]), view(student, teacher)).train()
    conv, norm = objective.aligners[0]
    padded = torch.nn.functional.pad(student["a"].mean(0), (1, 1, 1, 1))
    out = torch.zeros(N, 6, 4, 4, dtype=torch.float64)
    for h in range(4):
        for w in range(4):
            out[:, :, h, w] = torch.einsum("dckl,nckl->nd", conv.weight, padded[:, :, h : h + 3, w : w + 3])
    mean, var = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), keepdim=True, correction=0)
    want = (((out - mean) / (var + norm.eps).sqrt() - teacher["a"][0]) ** 2).mean()
    assert float(objective(view(student, teacher)).detach()) == pytest.approx(float(want.detach()), abs=1e-12)


def test_conv1x1_bn_aligner():
    student, teacher = {"a": random(T, N, 3, 4, 4, seed=5)}, {"a": random(1, N, 6, 4, 4, seed=6)}
    objective = ready(FeatureDistillation(aligner="conv1x1_bn", layers=["a"]), view(student, teacher)).train()
    conv, norm = objective.aligners[0]
    out = torch.einsum("dc,nchw->ndhw", conv.weight[:, :, 0, 0], student["a"].mean(0))
    mean, var = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), keepdim=True, correction=0)
    want = (((out - mean) / (var + norm.eps).sqrt() - teacher["a"][0]) ** 2).mean()
    assert float(objective(view(student, teacher)).detach()) == pytest.approx(float(want.detach()), abs=1e-12)


def test_zero_where_student_equals_teacher():
    rates = {k: v.mean(0, keepdim=True) for k, v in STUDENT.items()}
    assert float(ready(FeatureDistillation(), view(STUDENT, rates))(view(STUDENT, rates))) < 1e-28


def test_features_that_do_not_fit_are_refused_in_words():
    wide = {"a": random(1, N, 7, 4, 4), "b": random(1, N, 5, 2, 2)}
    with pytest.raises(SpikedistillError, match="s1 and a have 3 and 7 channels; give aligner"):
        ready(FeatureDistillation(), view(teacher=wide))
    ready(FeatureDistillation(aligner="conv1x1"), view(teacher=wide))
    large = {"a": random(1, N, 3, 8, 8), "b": random(1, N, 5, 2, 2)}
    with pytest.raises(SpikedistillError, match="equal height and width"):
        ready(FeatureDistillation(aligner="conv1x1"), view(teacher=large))
    with pytest.raises(
        SpikedistillError,
        match="aligner must be one of none, conv1x1, conv1x1_bn, conv3x3_bn, found 'linear'",
    ):
        FeatureDistillation(aligner="linear")


def test_gradient_against_finite_differences():
    x = random(T, N, 3, 2, 2).requires_grad_()
    teacher = {"a": random(1, N, 4, 2, 2, seed=5)}
    objective = ready(FeatureDistillation(aligner="conv1x1"), view({"a": x.detach()}, teacher))
    weight = objective.aligners[0].weight

    def loss(x, w):
        return torch.func.functional_call(objective, {"aligners.0.weight": w}, (view({"a": x}, teacher),))

    assert torch.autograd.gradcheck(loss, (x, weight.detach().clone().requires_grad_()))
