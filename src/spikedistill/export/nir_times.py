"""The time step of a NIR graph, which the file does not say."""

import warnings
from typing import Any

import numpy as np

from ..errors import SpikedistillError
from .layers import DT

NEVER = 1e-3  # a charge of one input, in thresholds, below which a neuron waits for a thousand steps
TOGETHER = 1e-2  # the charge of all inputs at once, in thresholds, that goes with it


def time_step(graph: Any, order: list[str], sources: dict[str, list[str]], path: Any) -> float:
    """1e-4; where neurons could then never fire, 1, with a warning.

    NIR's equations are in seconds; sinabs and others write one step as their unit of time, so that an IF has
    r = 1 and a LIF's tau counts steps. A neuron could never fire if at 1e-4 a single input of 1 charges it by
    less than 1/1000 of its threshold, and all inputs at once (the weights before it say how much that is) by
    less than 1/100. A LIF counts only if its tau is at least 1: less cannot count steps.
    """
    bounds: dict[str, float] = {}
    silent, short = [], []
    for name in order:
        node = graph.nodes[name]
        kind = type(node).__name__
        # the input itself is taken for spikes of 1
        bound = sum(bounds[source] for source in sources[name]) if sources[name] else 1.0
        if kind in ("IF", "LIF"):
            tau = float(np.min(node.tau)) if kind == "LIF" else 1.0
            # a tau of 0 or less is left to the reader, which refuses it by name
            charge = float(np.max(np.abs(node.r))) * DT / tau if tau > 0 else np.inf
            threshold = float(np.min(node.v_threshold))
            if tau < 1:
                short.append(name)
            elif charge < NEVER * threshold and bound * charge < TOGETHER * threshold:
                silent.append(name)
        bounds[name] = _bound(node, kind, bound)
    if not silent:
        return DT
    words = f"{path}: at a time step of 1e-4 the neurons {', '.join(map(repr, silent[:4]))} could never fire"
    if short:
        raise SpikedistillError(
            f"{words}, and at a step of 1 {short[0]!r} has a time constant below the step; give "
            "time_step=..., in the unit of the file's time constants"
        )
    warnings.warn(
        f"{words}: read with time_step=1, one step as the unit of time; give time_step=... to choose",
        # the caller of from_nir
        stacklevel=4,
    )
    return 1.0


def _bound(node: Any, kind: str, bound: float) -> float:
    """Largest output of a node whose inputs are at most ``bound``."""
    if kind in ("IF", "LIF"):
        return 1.0
    if kind in ("Affine", "Linear", "Conv1d", "Conv2d"):
        weight = np.asarray(node.weight)
        positive = float(np.maximum(weight.reshape(len(weight), -1), 0).sum(1).max(initial=0))
        bias = getattr(node, "bias", None)
        return positive * bound + (0.0 if bias is None else float(np.max(bias)))
    if kind == "Scale":
        return float(np.max(np.abs(node.scale))) * bound
    return bound * float(np.prod(node.kernel_size)) if kind == "SumPool2d" else bound
