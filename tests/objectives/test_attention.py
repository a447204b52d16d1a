"""Attention transfer against loops over positions and channels."""

import math

import pytest
import torch
from objective_views import captures, random, ready, view_of

from spikedistill.errors import SpikedistillError
from spikedistill.objectives import AttentionTransfer

T, N = 3, 2
LOGITS = random(T, N, 4)


def attention(x, p):
    """Normalised map of one sample (C, H, W), as a list over positions."""
    C, H, W = x.shape
    a = [sum(abs(x[c, h, w].item()) ** p for c in range(C)) / C for h in range(H) for w in range(W)]
    norm = math.sqrt(sum(v * v for v in a))
    return [v / norm if norm else 0.0 for v in a]


def loss_of(student, teacher, p):
    s, t = student.mean(0), teacher.mean(0)
    pairs = [(attention(s[b], p), attention(t[b], p)) for b in range(N)]
    return sum((u - v) ** 2 for a, c in pairs for u, v in zip(a, c)) / (N * len(pairs[0][0]))


def spikes(*shape, seed):
    return (random(*shape, seed=seed) > 0.3).double()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_stages_against_loops(p):
    student = {"stage1": spikes(T, N, 3, 4, 4, seed=1), "stage2": spikes(T, N, 5, 2, 2, seed=2)}
    teacher = {"layer1": random(1, N, 6, 4, 4, seed=3), "layer2": random(1, N, 2, 2, 2, seed=4)}
    view = view_of(
        LOGITS,
        student=captures(student, stages=["stage1", "stage2"]),
        teacher=captures(teacher, stages=["layer1", "layer2"]),
    )
    parts = [loss_of(s, t, p) for s, t in zip(student.values(), teacher.values())]
    objective = ready(AttentionTransfer(p=p), view)
    assert float(objective(view)) == pytest.approx(sum(parts), abs=1e-12)
    weighted = ready(AttentionTransfer(p=p, layer_weights=[0.25, 3.0]), view)
    assert float(weighted(view)) == pytest.approx(0.25 * parts[0] + 3 * parts[1], abs=1e-12)


def test_the_time_mean_is_taken_before_the_power():
    # Two steps with spikes at alternate positions: rates 1/2 everywhere, a flat map; per step it would not
    # be.
    student = torch.zeros(2, 1, 1, 1, 2, dtype=torch.float64)
    student[0, ..., 0] = student[1, ..., 1] = 1
    view = view_of(
        random(2, 1, 4),
        student=captures({"a": student}),
        teacher=captures({"a": torch.ones(1, 1, 1, 1, 2).double()}),
    )
    assert float(ready(AttentionTransfer(layers=["a"]), view)(view)) == pytest.approx(0, abs=1e-15)


def test_a_dead_map_gives_zero_and_no_gradient():
    student = torch.zeros(T, N, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = random(1, N, 3, 4, 4)
    view = view_of(LOGITS, student=captures({"a": student}), teacher=captures({"a": teacher}))
    loss = ready(AttentionTransfer(layers=["a"]), view)(view)
    assert float(loss.detach()) == pytest.approx(1 / 16, abs=1e-12)  # the teacher's map alone has unit norm
    loss.backward()
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled(larger):
    big, small = random(T, N, 3, 4, 4, seed=1), random(T, N, 3, 2, 2, seed=2)
    student, teacher = (big, small) if larger == "student" else (small, big)

    def pooled(x):
        a = (x.mean(0) ** 2).mean(1)
        if a.shape[-1] == 4:
            a = (a[:, 0::2, 0::2] + a[:, 1::2, 0::2] + a[:, 0::2, 1::2] + a[:, 1::2, 1::2]) / 4
        a = a.flatten(1)
        return a / (a**2).sum(1, keepdim=True).sqrt()

    want = ((pooled(student) - pooled(teacher)) ** 2).mean()
    view = view_of(LOGITS, student=captures({"a": student}), teacher=captures({"b": teacher}))
    found = ready(AttentionTransfer(layers={"a": "b"}), view)(view)
    assert float(found) == pytest.approx(float(want), abs=1e-12)


def test_names_pair_what_both_have():
    mine = {"n1": random(T, N, 3, 4, 4, seed=1), "n2": random(T, N, 3, 4, 4, seed=2)}
    theirs = {"n2": random(1, N, 3, 4, 4, seed=3), "n3": random(1, N, 3, 4, 4, seed=4)}
    student, teacher = captures(mine), captures(theirs)
    student.names["*"], teacher.names["*"] = list(mine), list(theirs)
    view = view_of(LOGITS, student=student, teacher=teacher)
    found = ready(AttentionTransfer(layers="names"), view)(view)
    assert float(found) == pytest.approx(loss_of(mine["n2"], theirs["n2"], 2), abs=1e-12)
    teacher.names["*"] = ["n3"]
    with pytest.raises(SpikedistillError, match="share no layer names"):
        ready(AttentionTransfer(layers="names"), view)


def test_other_numbers_of_stages_are_refused():
    x = random(T, N, 3, 4, 4)
    view = view_of(
        LOGITS,
        student=captures({"a": x, "b": x}, stages=["a", "b"]),
        teacher=captures({"a": x}, stages=["a"]),
    )
    with pytest.raises(SpikedistillError, match="student has 2 stages and the teacher 1; name the pairs"):
        ready(AttentionTransfer(), view)
    with pytest.raises(SpikedistillError, match="3 layer_weights for 1 pairs"):
        ready(AttentionTransfer(layers=["a"], layer_weights=[1, 2, 3]), view)
    with pytest.raises(SpikedistillError, match="p must be at least 1"):
        AttentionTransfer(p=0.5)


def test_tokens_are_square_maps_without_the_prefix():
    patches, prefix = random(T, N, 9, 5, seed=1), random(T, N, 2, 5, seed=2)
    as_map = patches.transpose(2, 3).reshape(T, N, 5, 3, 3)
    teacher = random(1, N, 4, 3, 3, seed=3)
    want = loss_of(as_map, teacher, 2)
    for tokens in (patches, torch.cat([prefix, patches], 2)):
        view = view_of(LOGITS, student=captures({"a": tokens}), teacher=captures({"a": teacher}))
        assert float(ready(AttentionTransfer(layers=["a"]), view)(view)) == pytest.approx(want, abs=1e-12)
    view = view_of(LOGITS, student=captures({"a": random(T, N, 15, 5)}), teacher=captures({"a": teacher}))
    with pytest.raises(SpikedistillError, match="15 tokens"):
        ready(AttentionTransfer(layers=["a"]), view)


def test_gradient_against_finite_differences():
    x = random(T, N, 3, 2, 2, positive=True).requires_grad_()
    teacher = captures({"a": random(1, N, 3, 2, 2, seed=5)})
    objective = AttentionTransfer(layers=["a"])
    assert torch.autograd.gradcheck(
        lambda x: objective(view_of(LOGITS, student=captures({"a": x}), teacher=teacher)), x
    )


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_nearly_dead_map_has_a_bounded_gradient(p):
    teacher = captures({"a": random(1, N, 3, 4, 4, seed=5)})

    def slope(rate, **given):
        x = (random(T, N, 3, 4, 4, seed=1, positive=True) * 2 * rate).requires_grad_()
        objective = AttentionTransfer(layers=["a"], p=p, **given)
        loss = objective(view_of(LOGITS, student=captures({"a": x}), teacher=teacher))
        return float(torch.autograd.grad(loss, x)[0].abs().max())

    assert slope(1e-5, epsilon=1e-30) > 5e3 * slope(0.1)  # what it was
    assert max(slope(10.0**-k) for k in range(2, 9)) < 100 * slope(0.1)
    assert slope(0.1) == pytest.approx(slope(0.1, epsilon=1e-30), rel=1e-12)  # a living map is not touched
