"""Divergences between softened distributions, shared by the objectives on logits."""

from torch import Tensor
from torch.nn import functional as F


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """``KL(softmax(teacher/tau) || softmax(student/tau))`` along ``dim``, mean over all other dimensions."""
    return divergences(student, teacher, temperature, dim).mean()


def divergences(student: Tensor, teacher: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """The same, not averaged: without ``dim``."""
    # Not detached: stable_spike teaches both sides. Who wants a fixed teacher detaches it before.
    log_p = F.log_softmax(teacher / temperature, dim)
    log_q = F.log_softmax(student / temperature, dim)
    return (log_p.exp() * (log_p - log_q)).sum(dim)


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``tau^2 KL(softmax(teacher/tau) || softmax(student/tau))``: gradients do not fade with temperature."""
    return temperature**2 * divergence(student, teacher, temperature)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``CE(softmax(teacher/tau), softmax(student/tau))`` over the last dimension, not averaged."""
    return -(F.softmax(teacher / temperature, -1) * F.log_softmax(student / temperature, -1)).sum(-1)
