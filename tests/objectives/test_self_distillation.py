"""Self-distillation in time and depth, and among steps, against loops."""

import pytest
import torch
from objective_views import captures, kl, random, ready, setup_of, view_of

from spikedistill.errors import SpikedistillError
from spikedistill.objectives import SpatialSelfDistillation, StrongWeakDistillation, TemporalSelfDistillation
from spikedistill.objectives.strong_weak import confidence

T, N, K = 4, 3, 5
Z = random(T, N, K, seed=1) * torch.tensor([0.5, 2.0, 1.0, 3.0]).double()[:, None, None]


def batch_kl(teacher, student, tau):
    return sum(kl(a, b, tau) for a, b in zip(teacher.tolist(), student.tolist())) / N


def test_the_longer_run_teaches_its_first_steps():
    z = Z.clone().requires_grad_()
    view = view_of(z, time_steps=2)
    objective = ready(TemporalSelfDistillation(time_steps=4, temperature=2.0), view)
    loss = objective(view)
    want = batch_kl(Z.mean(0), Z[:2].mean(0), 2.0)
    assert float(loss.detach()) == pytest.approx(want, abs=1e-12)
    loss.backward()
    assert z.grad[2:].abs().max() == 0  # the teacher's side has no gradient
    assert z.grad[:2].abs().min() > 0


def test_zero_where_all_steps_agree():
    view = view_of(Z[:1].expand(T, N, K), time_steps=2)
    assert float(ready(TemporalSelfDistillation(time_steps=4), view)(view)) == pytest.approx(0, abs=1e-14)


def test_a_run_that_is_not_longer_is_refused():
    with pytest.raises(SpikedistillError, match="time_steps is 4 and the student's own T 4"):
        TemporalSelfDistillation(time_steps=4).setup(setup_of(Z, time_steps=4))
    with pytest.raises(SpikedistillError, match="at least 2"):
        TemporalSelfDistillation(time_steps=1)


def test_the_output_teaches_a_weak_classifier():
    stage = random(T, N, 6, 2, 2, seed=3).requires_grad_()
    z = Z.clone().requires_grad_()
    view = view_of(z, student=captures({"stage2": stage}))
    objective = ready(SpatialSelfDistillation(), view)
    weight, bias = objective.classifier.weight, objective.classifier.bias
    weak = stage.mean((0, 3, 4)) @ weight.T + bias
    loss = objective(view)
    assert float(loss.detach()) == pytest.approx(batch_kl(Z.mean(0), weak.detach(), 2.0), abs=1e-12)
    loss.backward()
    assert z.grad is None
    assert stage.grad.abs().sum() > 0
    assert weight.grad.abs().sum() > 0


def test_confidence_against_a_loop():
    want = [sum(max(torch.softmax(Z[t, b], -1).tolist()) for b in range(N)) / N for t in range(T)]
    assert confidence(Z).tolist() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("direction", ["strong_to_weak", "weak_to_strong"])
@pytest.mark.parametrize("form", ["pair", "cascade", "ensemble", "simultaneous"])
def test_strong_and_weak_forms(direction, form):
    order = sorted(range(T), key=lambda t: -float(confidence(Z)[t]))
    if direction == "weak_to_strong":
        order = order[::-1]
    a, b, c, d = (Z[t] for t in order)
    want = {
        "pair": batch_kl(a, d, 2.0),
        "cascade": (batch_kl(a, b, 2.0) + batch_kl(b, c, 2.0) + batch_kl(c, d, 2.0)) / 3,
        "ensemble": batch_kl((a + b + c) / 3, d, 2.0),
        "simultaneous": (batch_kl(a, b, 2.0) + batch_kl(a, c, 2.0) + batch_kl(a, d, 2.0)) / 3,
    }[form]
    z = Z.clone().requires_grad_()
    loss = StrongWeakDistillation(direction, form)(view_of(z))
    assert float(loss.detach()) == pytest.approx(want, abs=1e-12)
    loss.backward()
    assert z.grad[order[0]].abs().max() == 0  # who teaches only has no gradient
    assert z.grad[order[-1]].abs().max() > 0


@pytest.mark.parametrize("direction", ["strong_to_weak", "weak_to_strong"])
def test_all_forms_are_one_at_two_steps(direction):
    forms = ("pair", "cascade", "ensemble", "simultaneous")
    values = [float(StrongWeakDistillation(direction, form)(view_of(Z[:2]))) for form in forms]
    assert values == pytest.approx([values[0]] * 4, abs=1e-14)


def test_unknown_forms_are_refused():
    with pytest.raises(SpikedistillError, match="form must be one of pair, cascade"):
        StrongWeakDistillation(form="tree")
    with pytest.raises(SpikedistillError, match="'strong_to_weak' or 'weak_to_strong'"):
        StrongWeakDistillation(direction="both")
