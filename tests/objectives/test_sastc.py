"""SASTC against loops over steps, samples and pairs of layers."""

import math

import pytest
import torch
from objective_views import captures, random, ready, view_of
from torch.nn import functional as F

from spikedistill.errors import SpikedistillError
from spikedistill.objectives import SpatioTemporalCalibration

T, N = 2, 4
STUDENT = {"s1": random(T, N, 3, 4, 4, seed=1), "s2": random(T, N, 5, 2, 2, seed=2)}
TEACHER = {
    "t1": random(1, N, 2, 4, 4, seed=3),
    "t2": random(1, N, 6, 2, 2, seed=4),
    "t3": random(1, N, 3, 2, 2, seed=5),
}


def view(student=STUDENT, teacher=TEACHER):
    first = next(iter(student.values()))
    return view_of(
        random(T, first.shape[1], 4),
        student=captures(student, stages=list(student)),
        teacher=captures(teacher, stages=list(teacher)),
    )


def embed(module, row):
    hidden = [
        max(0.0, sum(w * r for w, r in zip(ws, row)) + b)
        for ws, b in zip(module.linear1.weight.tolist(), module.linear1.bias.tolist())
    ]
    out = [
        sum(w * h for w, h in zip(ws, hidden)) + b
        for ws, b in zip(module.linear2.weight.tolist(), module.linear2.bias.tolist())
    ]
    norm = math.sqrt(sum(v * v for v in out))
    return [v / norm for v in out]


def gram_row(x, b):
    return [float((x[b] * x[a]).sum()) for a in range(len(x))]


def test_against_loops():
    objective = ready(SpatioTemporalCalibration(), view()).eval()
    total = 0.0
    teachers = [t[0] for t in TEACHER.values()]
    for t in range(T):
        for i, stage in enumerate(STUDENT.values()):
            s = stage[t]
            errors = []
            for j, target in enumerate(teachers):
                if s.shape[-1] > target.shape[-1]:
                    mapped = objective.regressors[i][j](F.max_pool2d(s, 2))
                elif s.shape[-1] < target.shape[-1]:
                    mapped, target = objective.regressors[i][j](s), F.avg_pool2d(target, 2)
                else:
                    mapped = objective.regressors[i][j](s)
                errors.append(((mapped - target) ** 2).mean((1, 2, 3)).tolist())
            for b in range(N):
                q = embed(objective.queries[i], gram_row(s, b))
                keys = [embed(objective.keys[j], gram_row(target, b)) for j, target in enumerate(teachers)]
                e = [math.exp(sum(u * v for u, v in zip(q, k))) for k in keys]
                total += sum(w / sum(e) * errors[j][b] for j, w in enumerate(e))
    want = total / (N * T * len(STUDENT))
    assert float(objective(view()).detach()) == pytest.approx(want, abs=1e-11)


def test_smaller_batches_are_filled_and_larger_refused():
    objective = ready(SpatioTemporalCalibration(), view())
    small = view({k: v[:, :3] for k, v in STUDENT.items()}, {k: v[:, :3] for k, v in TEACHER.items()})
    assert torch.isfinite(objective(small))
    large = view(
        {k: v.repeat(1, 2, 1, 1, 1) for k, v in STUDENT.items()},
        {k: v.repeat(1, 2, 1, 1, 1) for k, v in TEACHER.items()},
    )
    with pytest.raises(SpikedistillError, match="batches of 4 and got 8; give batch_size: 8"):
        objective(large)
    with pytest.raises(SpikedistillError, match="at least 4"):
        ready(SpatioTemporalCalibration(batch_size=2), view())


def test_queries_keys_and_regressors_learn():
    x = {k: v.clone().requires_grad_() for k, v in STUDENT.items()}
    objective = ready(SpatioTemporalCalibration(), view(x))
    objective(view(x)).backward()
    for name, p in objective.named_parameters():
        assert p.grad is not None, name
    assert all(v.grad.abs().sum() > 0 for v in x.values())
