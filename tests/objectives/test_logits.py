"""Objectives on logits against loops over the equations, in plain Python."""

import math

import pytest
import torch
from objective_views import captures, ce, hard_ce, kl, random, ready, setup_of, softmax, view_of

from spikedistill.errors import SpikedistillError
from spikedistill.objectives import (
    CrossEntropy,
    EntropyRegularization,
    FullRangeDistillation,
    LogitDistillation,
    LogitsRegularization,
    TemporalConsistency,
    TemporalEfficientTraining,
    TemporalKnowledgeSharing,
    WeightedSoftLabels,
)

T, N, K = 3, 5, 4
Z = random(T, N, K, seed=3) * 2
TEACHER = random(2, N, K, seed=2) * 2
Y = torch.tensor([0, 3, 1, 1, 2])
MEAN, TEACHER_MEAN = Z.mean(0).tolist(), TEACHER.mean(0).tolist()


def value(objective, **given):
    view = view_of(Z, **{"target": Y, "teacher_logits": TEACHER, **given})
    return float(ready(objective, view)(view))


def average(values):
    values = list(values)
    return sum(values) / len(values)


def test_cross_entropy():
    assert value(CrossEntropy()) == pytest.approx(
        average(hard_ce(MEAN[b], Y[b]) for b in range(N)), abs=1e-12
    )


def test_cross_entropy_of_soft_targets_and_smoothing():
    soft = random(N, K, seed=3).softmax(-1)
    want = average(
        -sum(p * math.log(q) for p, q in zip(soft[b].tolist(), softmax(MEAN[b]))) for b in range(N)
    )
    assert value(CrossEntropy(), target=soft) == pytest.approx(want, abs=1e-12)
    smooth = 0.9 * average(hard_ce(MEAN[b], Y[b]) for b in range(N)) + 0.1 * average(
        hard_ce(MEAN[b], k) for b in range(N) for k in range(K)
    )
    assert value(CrossEntropy(label_smoothing=0.1)) == pytest.approx(smooth, abs=1e-12)


def test_heads_are_chosen_by_tap():
    heads = {"class_head": random(T, N, K, seed=8), "distillation_head": random(T, N, K, seed=9)}
    student = captures(heads)
    first, second = (h.mean(0).tolist() for h in heads.values())
    found = value(CrossEntropy(tap="class_head"), student=student)
    assert found == pytest.approx(average(hard_ce(first[b], Y[b]) for b in range(N)), abs=1e-12)
    kd = LogitDistillation(temperature=1.0, reduction="elements", tap="distillation_head")
    want = sum(kl(TEACHER_MEAN[b], second[b], 1.0) for b in range(N)) / (N * K)
    assert value(kd, student=student) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("lamb", [0.0, 0.05])
def test_temporal_efficient_training(lamb):
    steps = average(hard_ce(Z[t, b].tolist(), Y[b]) for t in range(T) for b in range(N))
    square = average((v - 0.7) ** 2 for v in Z.flatten().tolist())
    want = (1 - lamb) * steps + lamb * square if lamb else steps
    assert value(TemporalEfficientTraining(lamb=lamb, phi=0.7)) == pytest.approx(want, abs=1e-12)


def test_logit_distillation_over_mean_step_and_both():
    tau = 3.0
    mean = tau**2 * average(kl(TEACHER_MEAN[b], MEAN[b], tau) for b in range(N))
    step = tau**2 * average(kl(TEACHER_MEAN[b], Z[t, b].tolist(), tau) for t in range(T) for b in range(N))
    assert value(LogitDistillation(tau)) == pytest.approx(mean, abs=1e-12)
    assert value(LogitDistillation(tau, over="step")) == pytest.approx(step, abs=1e-12)
    assert value(LogitDistillation(tau, over="both")) == pytest.approx((mean + step) / 2, abs=1e-12)


def test_hard_logit_distillation_learns_the_teachers_decisions():
    decisions = [max(range(K), key=TEACHER_MEAN[b].__getitem__) for b in range(N)]
    want = average(hard_ce(MEAN[b], decisions[b]) for b in range(N))
    assert value(LogitDistillation(hard=True)) == pytest.approx(want, abs=1e-12)


def test_weighted_soft_labels():
    tau = 2.0
    total = 0.0
    for b in range(N):
        ratio = hard_ce(MEAN[b], Y[b]) / (hard_ce(TEACHER_MEAN[b], Y[b]) + 1e-7)
        total += (1 - math.exp(-max(0.0, ratio))) * ce(TEACHER_MEAN[b], MEAN[b], tau)
    assert value(WeightedSoftLabels(tau)) == pytest.approx(tau**2 * total / N, abs=1e-12)


def test_weights_of_soft_labels_have_no_gradient():
    # With the weights held as numbers, the gradient of tau^2 w CE is tau w (q - p) / N.
    tau, z = 2.0, Z.mean(0).clone().requires_grad_()
    view = view_of(z[None], Y, TEACHER)
    ready(WeightedSoftLabels(tau), view)(view).backward()
    for b in range(N):
        w = 1 - math.exp(-hard_ce(MEAN[b], Y[b]) / (hard_ce(TEACHER_MEAN[b], Y[b]) + 1e-7))
        p, q = softmax(TEACHER_MEAN[b], tau), softmax(MEAN[b], tau)
        want = [tau * w * (b_ - a) / N for a, b_ in zip(p, q)]
        assert z.grad[b].tolist() == pytest.approx(want, abs=1e-12)


def test_weighted_soft_labels_have_no_gradient_where_student_equals_teacher():
    z = TEACHER.mean(0, keepdim=True).clone().requires_grad_()
    view = view_of(z, Y, TEACHER)
    loss = ready(WeightedSoftLabels(), view)(view)
    loss.backward()
    assert loss > 0
    assert z.grad.abs().max() < 1e-15


def test_entropy():
    want = -average(
        -sum(p * math.log(p) for p in softmax(Z[t, b].tolist())) for t in range(T) for b in range(N)
    )
    assert value(EntropyRegularization()) == pytest.approx(want, abs=1e-12)
    uniform = view_of(torch.zeros(T, N, K, dtype=torch.float64))
    assert float(EntropyRegularization()(uniform)) == pytest.approx(-math.log(K), abs=1e-12)


def right_steps(b):
    return [t for t in range(T) if max(range(K), key=Z[t, b].tolist().__getitem__) == int(Y[b])]


@pytest.mark.parametrize("reading", ["all", "correct"])
def test_full_range_distillation(reading):
    alpha, beta, tau = 0.2, 0.5, 3.0
    counts = {len(right_steps(b)) for b in range(N)}
    assert counts == {0, 1, 2}  # some samples are right at no step, some at several
    total = 0.0
    for b in range(N):
        steps = list(range(T)) if reading == "all" else right_steps(b)
        own = [sum(Z[t, b, k].item() for t in steps) / max(1, len(steps)) for k in range(K)]
        for t in range(T):
            z = Z[t, b].tolist()
            total += tau**2 * (alpha * kl(TEACHER_MEAN[b], z, tau) + beta * kl(own, z, tau)) / (T * N)
    assert value(FullRangeDistillation(alpha, beta, tau, reading)) == pytest.approx(total, abs=1e-7)


def test_full_range_distillation_needs_no_teacher_at_alpha_0():
    objective = FullRangeDistillation(alpha=0.0)
    assert not objective.needs_teacher
    assert value(objective, teacher_logits=None) > 0


def test_temporal_consistency():
    tau = 4.0
    want = average(
        tau**2 * kl(Z[j, b].tolist(), Z[i, b].tolist(), tau)
        for i in range(T) for j in range(T) for b in range(N) if i != j
    )  # fmt: skip
    assert value(TemporalConsistency(tau)) == pytest.approx(want, abs=1e-12)


def test_temporal_consistency_is_zero_for_equal_steps():
    equal = view_of(Z[:1].expand(T, N, K))
    assert float(ready(TemporalConsistency(), equal)(equal)) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("reading", ["mean", "code"])
def test_temporal_knowledge_sharing(reading):
    tau, total = 3.0, 0.0
    for b in range(N):
        steps = right_steps(b)
        divisor = max(1, len(steps)) if reading == "mean" else 1
        teacher = [sum(Z[t, b, k].item() for t in steps) / divisor for k in range(K)]
        p = softmax(teacher, tau)
        for t in range(T):
            q = softmax(Z[t, b].tolist(), tau if reading == "mean" else 1.0)
            total -= tau**2 * sum(a * math.log(c) for a, c in zip(p, q)) / (T * N)
    assert value(TemporalKnowledgeSharing(tau, reading)) == pytest.approx(total, abs=1e-12)


def test_shared_knowledge_has_a_gradient_only_in_the_code_reading():
    def gradient(reading, detach):
        z = Z.clone().requires_grad_()
        given = z if not detach else z.detach()
        hard = (given.argmax(-1) == Y).double().unsqueeze(-1)
        teacher = (hard * given).sum(0)
        teacher = teacher if reading == "code" else teacher / hard.sum(0).clamp_min(1)
        q = (z if reading == "code" else z / 3).log_softmax(-1)
        (-9 * ((teacher / 3).softmax(-1) * q).sum(-1).mean()).backward()
        return z.grad

    for reading, detach in (("mean", True), ("code", False)):
        z = Z.clone().requires_grad_()
        TemporalKnowledgeSharing(3.0, reading)(view_of(z, Y)).backward()
        torch.testing.assert_close(z.grad, gradient(reading, detach), rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_logits_regularization(norm):
    flat = [v for row in MEAN for v in row]
    want = average(abs(v) if norm == "l1" else v * v for v in flat)
    assert value(LogitsRegularization(norm)) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    "objective",
    [LogitDistillation(), LogitDistillation(over="step"), FullRangeDistillation(beta=0.0)],
    ids=["mean", "step", "full_range"],
)
def test_divergences_are_zero_where_student_equals_teacher(objective):
    view = view_of(TEACHER[:1], Y, TEACHER[:1])
    assert float(ready(objective, view)(view)) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("objective", [LogitDistillation(), WeightedSoftLabels(), FullRangeDistillation()])
def test_another_number_of_classes_is_refused(objective):
    with pytest.raises(SpikedistillError, match="4 classes and the teacher 7"):
        objective.setup(setup_of(Z, torch.zeros(1, N, 7)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogitDistillation(temperature=0), "temperature must be more than 0, found 0"),
        (lambda: LogitDistillation(over="last"), "one of mean, step, both, found 'last'"),
        (lambda: TemporalEfficientTraining(lamb=2), "lamb must be in"),
        (lambda: FullRangeDistillation(beta=-1), "at least 0"),
        (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing"),
        (lambda: TemporalKnowledgeSharing(reading="both"), "'mean' or 'code'"),
        (lambda: LogitsRegularization(norm="l3"), "'l1' or 'l2'"),
    ],
)
def test_wrong_options_are_refused_in_words(make, words):
    with pytest.raises(SpikedistillError, match=words):
        make()


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(label_smoothing=0.1), TemporalEfficientTraining(0.3), LogitDistillation(over="both"),
        EntropyRegularization(), LogitsRegularization("l2"),
    ],
    ids=lambda o: o.name,
)  # fmt: skip
def test_gradients_against_finite_differences(objective):
    z = Z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: objective(view_of(z, Y, TEACHER)), (z,))


def test_smoothed_targets_in_the_weights_of_soft_labels():
    def smooth(z, y):
        return 0.9 * hard_ce(z, y) + 0.1 * average(hard_ce(z, k) for k in range(K))

    # a teacher that is sure
    tau, sharp = 2.0, [[20.0 if k == int(Y[b]) else 0.0 for k in range(K)] for b in range(N)]
    given = {"teacher_logits": torch.tensor([sharp], dtype=torch.float64)}
    weights = [1 - math.exp(-smooth(MEAN[b], Y[b]) / (smooth(sharp[b], Y[b]) + 1e-7)) for b in range(N)]
    want = tau**2 * average(w * ce(sharp[b], MEAN[b], tau) for b, w in enumerate(weights))
    assert value(WeightedSoftLabels(tau, label_smoothing=0.1), **given) == pytest.approx(want, abs=1e-12)
    assert average(weights) < 0.9
    plain = tau**2 * average(ce(sharp[b], MEAN[b], tau) for b in range(N))  # every weight 1
    assert value(WeightedSoftLabels(tau), **given) == pytest.approx(plain, rel=0.01)
    with pytest.raises(SpikedistillError, match=r"label_smoothing must be in \[0, 1\), found 1.5"):
        WeightedSoftLabels(label_smoothing=1.5)


@pytest.mark.parametrize("objective", [CrossEntropy(tap="pooled"), LogitDistillation(tap="pooled")])
def test_a_tap_that_gives_no_logits_is_refused(objective):
    setup = setup_of(Z, TEACHER, student=captures({"pooled": torch.rand(T, N, 16, 1, 1)}))
    with pytest.raises(SpikedistillError, match=r"'pooled' gives \(3, 5, 16, 1, 1\), where logits are"):
        objective.setup(setup)


def test_hard_labels_with_options_of_soft_ones_are_refused():
    for more in ({"temperature": 2.0}, {"reduction": "elements"}):
        with pytest.raises(SpikedistillError, match="hard labels know neither temperature nor reduction"):
            LogitDistillation(hard=True, **more)
