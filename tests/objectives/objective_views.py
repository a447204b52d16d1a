"""Views and setups of objectives from bare tensors."""

import math

import numpy as np
import torch
from torch import nn

from spikedistill.objectives import Setup, View
from spikedistill.taps import Captures


def captures(tensors=None, thresholds=None, **groups):
    """Captures of named tensors (T, N, ...); ``groups`` name several: ``stages=["a", "b"]``."""
    tensors = dict(tensors or {})
    names = {name: [name] for name in tensors} | {k.replace("every", "*@"): v for k, v in groups.items()}
    return Captures(tensors, names, dict(thresholds or {}))


def view_of(
    logits, target=None, teacher_logits=None, student=None, teacher=None, time_steps=None, progress=0.0
):
    if target is None:
        target = torch.arange(logits.shape[1]) % logits.shape[2]
    return View(
        student or captures(), teacher, target, logits, teacher_logits, progress, time_steps or len(logits)
    )


def setup_of(logits, teacher_logits=None, student=None, teacher=None, time_steps=None, batch_size=None):
    return Setup(
        torch.zeros(logits.shape[1], 1), nn.Identity(), None, student or captures(), teacher, logits,
        teacher_logits,
        batch_size or logits.shape[1], time_steps or len(logits),
    )  # fmt: skip


def ready(objective, view):
    """The objective, set up on the shapes of a view, in float64."""
    objective.setup(
        setup_of(
            view.logits,
            view.teacher_logits,
            view.student,
            view.teacher,
            view.time_steps,
            view.logits.shape[1],
        )
    )
    return objective.double()


def random(*shape, seed=0, positive=False):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if positive else torch.randn
    return draw(*shape, generator=generator, dtype=torch.float64)


def softmax(z, tau=1.0):
    """Of a list of numbers, in plain Python."""
    top = max(z)
    e = [math.exp((v - top) / tau) for v in z]
    return [v / sum(e) for v in e]


def kl(teacher, student, tau):
    """KL of two lists of logits, in plain Python."""
    p, q = softmax(teacher, tau), softmax(student, tau)
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def ce(teacher, student, tau):
    """Cross-entropy of two lists of logits, in plain Python."""
    return -sum(a * math.log(b) for a, b in zip(softmax(teacher, tau), softmax(student, tau)))


def hard_ce(z, y):
    return -math.log(softmax(z)[y])


def numpy(x):
    return np.asarray(x.detach())
