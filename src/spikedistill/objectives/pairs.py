"""Which student layer learns from which teacher layer, and features of any network as maps (N, C, H, W)."""

from math import isqrt
from typing import Literal, NamedTuple

from torch import Tensor

from ..taps import Captures
from .base import Objective, refuse

Layers = Literal["stages", "names"] | list[str] | dict[str, str]
PREFIX = 5  # at most so many class, distillation and register tokens stand before the patches


class Pair(NamedTuple):
    """A student's and a teacher's capture averaged over T, each (N, ...), and their names for errors."""

    student: Tensor
    teacher: Tensor
    names: str


def taps_of(layers: Layers) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Student and teacher taps of a choice of layers.

    "stages": stage i with stage i; "names": every neuron layer with the teacher's layer of the same path; a
    list of taps: the same in both; a mapping: student tap to teacher tap.
    """
    if layers == "stages":
        return ("stages",), ("stages",)
    if layers == "names":
        return ("*",), ("*",)
    if isinstance(layers, dict):
        return tuple(layers), tuple(layers.values())
    return tuple(layers), tuple(layers)


def paired(objective: Objective, layers: Layers, student: Captures, teacher: Captures) -> list[Pair]:
    """The pairs of captures that a choice of layers means; raises where they do not correspond."""
    if layers == "stages":
        mine, theirs = student.means("stages"), teacher.means("stages")
        if len(mine) != len(theirs):
            raise refuse(
                objective,
                f"the student has {len(mine)} stages and the teacher {len(theirs)}; name the pairs, such as "
                "layers: {stage1: stage1, stage2: stage3}",
            )
        return [Pair(s, t, f"{a} and {b}") for (a, s), (b, t) in zip(mine.items(), theirs.items())]
    if layers == "names":
        mine, theirs = student.means("*"), teacher.means("*")
        common = [name for name in mine if name in theirs]
        if not common:
            raise refuse(
                objective,
                f"student and teacher share no layer names ({', '.join(list(mine)[:3])} ...; "
                f"{', '.join(list(theirs)[:3])} ...); use layers: stages or name the pairs",
            )
        return [Pair(mine[name], theirs[name], name) for name in common]
    chosen = layers.items() if isinstance(layers, dict) else [(name, name) for name in layers]
    return [Pair(student.mean(a), teacher.mean(b), f"{a} and {b}") for a, b in chosen]


def as_map(objective: Objective, x: Tensor) -> Tensor:
    """A feature as (N, C, H, W): a vector (N, C) is one pixel, tokens (N, L, D) a square map of D channels.

    Tokens beyond the largest square number are class, distillation or register tokens, which stand first, and
    are left out.
    """
    if x.dim() == 4:
        return x
    if x.dim() == 2:
        return x[:, :, None, None]
    if x.dim() != 3:
        raise refuse(
            objective,
            f"a feature is (N, C, H, W), tokens (N, L, D) or a vector (N, C), found {tuple(x.shape)}",
        )
    side = isqrt(x.shape[1])
    extra = x.shape[1] - side * side
    if extra > PREFIX:
        raise refuse(objective, f"{x.shape[1]} tokens are no square map with up to {PREFIX} tokens before it")
    return x[:, extra:].transpose(1, 2).unflatten(2, (side, side))
