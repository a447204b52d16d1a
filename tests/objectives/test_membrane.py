"""Membrane distillation against loops."""

import math

import pytest
import torch
from objective_views import captures, random, ready, setup_of, softmax, view_of

from spikedistill.errors import SpikedistillError
from spikedistill.objectives import MembraneDistillation

N, C, H = 2, 3, 2
LOGITS = random(2, N, 4)


def sides(T=2, many=2, thresholds=(1.0, 0.5), teacher_thresholds=(0.5, 0.25)):
    names = ["n1@membrane", "n2@membrane"]
    mine = {n: random(T, N, C, H, H, seed=i) for i, n in enumerate(names, 1)}
    theirs = {n: random(many, N, C, H, H, seed=i) for i, n in enumerate(names, 5)}
    student = captures(mine, dict(zip(names, thresholds)))
    teacher = captures(theirs, dict(zip(names, teacher_thresholds)))
    student.names["*@membrane"] = teacher.names["*@membrane"] = names
    return student, teacher


def loss(student, teacher, **options):
    view = view_of(LOGITS, student=student, teacher=teacher)
    return float(ready(MembraneDistillation(**options), view)(view))


def layers(student, teacher):
    for name in student.tensors:
        yield student[name], teacher[name], student.thresholds[name], teacher.thresholds[name]


def mean_square(a, b):
    values = [(x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist())]
    return sum(values) / len(values)


def test_each_side_in_its_own_thresholds():
    student, teacher = sides()
    want = sum(mean_square(h / a, g / b) for h, g, a, b in layers(student, teacher)) / 2
    assert loss(student, teacher) == pytest.approx(want, abs=1e-12)


def test_without_normalisation_and_chosen_layers():
    student, teacher = sides()
    want = mean_square(student["n2@membrane"], teacher["n2@membrane"])
    assert loss(student, teacher, layers=["n2"], normalize="none") == pytest.approx(want, abs=1e-12)


def test_by_the_teachers_deviation_of_each_channel():
    student, teacher = sides()
    # a channel that never moves: 1/100 of the threshold instead
    teacher.tensors["n1@membrane"][:, :, 1] = 0.25
    total = 0.0
    for h, g, _, threshold in layers(student, teacher):
        for c in range(C):
            values = g[:, :, c].flatten().tolist()
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            total += mean_square(h[:, :, c], g[:, :, c]) / max(deviation, 0.01 * threshold) ** 2 / C / 2
    assert loss(student, teacher, normalize="deviation") == pytest.approx(total, rel=1e-12)


def test_cosine_and_kl_over_channels():
    student, teacher = sides(thresholds=(1.0, 1.0), teacher_thresholds=(1.0, 1.0))
    cosine = divergence = 0.0
    count = 2 * 2 * N * H * H
    for h, g, _, _ in layers(student, teacher):
        for t in range(2):
            for n in range(N):
                for y in range(H):
                    for x in range(H):
                        a, b = h[t, n, :, y, x].tolist(), g[t, n, :, y, x].tolist()
                        dot = sum(u * v for u, v in zip(a, b))
                        cosine += 1 - dot / math.sqrt(sum(u * u for u in a) * sum(v * v for v in b))
                        p, q = softmax(b, 2.0), softmax(a, 2.0)
                        divergence += 4 * sum(u * math.log(u / v) for u, v in zip(p, q))
    assert loss(student, teacher, metric="cosine") == pytest.approx(cosine / count, abs=1e-12)
    assert loss(student, teacher, metric="kl", temperature=2.0) == pytest.approx(
        divergence / count, abs=1e-12
    )


@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("pairing", ["mean", "first", "spread"])
def test_a_teacher_of_4_steps_serves_all_students(T, pairing):
    student, teacher = sides(T, 4, (1.0, 1.0), (1.0, 1.0))
    spread = {1: [2], 2: [1, 3], 3: [0, 2, 3]}[T]  # floor((t + 1/2) 4 / T)
    total = 0.0
    for h, g, _, _ in layers(student, teacher):
        if pairing == "mean":
            total += mean_square(h.sum(0) / T, g.sum(0) / 4)
        else:
            steps = spread if pairing == "spread" else list(range(T))
            total += sum(mean_square(h[t], g[s]) for t, s in enumerate(steps)) / T
    assert loss(student, teacher, pairing=pairing) == pytest.approx(total / 2, abs=1e-12)


@pytest.mark.parametrize("metric", ["mse", "cosine", "kl"])
@pytest.mark.parametrize("normalize", ["threshold", "none", "deviation"])
def test_zero_where_student_equals_teacher(metric, normalize):
    student, _ = sides()
    assert loss(student, student, metric=metric, normalize=normalize) == pytest.approx(0, abs=1e-14)


def test_layers_that_do_not_correspond_are_refused():
    student, teacher = sides()
    less = captures({"n1@membrane": teacher["n1@membrane"]}, {"n1@membrane": 1.0})
    less.names["*@membrane"] = ["n1@membrane"]
    with pytest.raises(SpikedistillError, match=r"differ in neuron layers \(n2@membrane\)"):
        loss(student, less)
    teacher.tensors["n1@membrane"] = random(2, N, 7, H, H)
    with pytest.raises(SpikedistillError, match=r"n1@membrane is \(3, 2, 2\) in the student and \(7, 2, 2\)"):
        loss(student, teacher)
    student, teacher = sides(T=3, many=2)
    objective = MembraneDistillation(pairing="first")
    with pytest.raises(SpikedistillError, match="T = 3 and the teacher T = 2; use pairing: mean or spread"):
        objective.setup(setup_of(random(3, N, 4), student=student, teacher=teacher))
    with pytest.raises(SpikedistillError, match="metric must be one of mse, cosine, kl"):
        MembraneDistillation(metric="l1")


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"metric": "kl"}, {"normalize": "deviation"}])
def test_gradient_against_finite_differences(options):
    student, teacher = sides()
    objective = MembraneDistillation(layers=["n1"], **options)
    x = student["n1@membrane"].clone().requires_grad_()

    def function(x):
        mine = captures({"n1@membrane": x}, student.thresholds)
        return objective(view_of(LOGITS, student=mine, teacher=teacher))

    assert torch.autograd.gradcheck(function, x)
