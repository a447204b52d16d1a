"""What the float network shows on calibration batches."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import taps
from ..networks.base import Network
from ..neurons import Neuron, NormNeuron
from .options import Options
from .plan import Plan


def batches_of(calibration: Any) -> Iterator[Tensor]:
    """The inputs of a batch, a pair (x, y), or an iterable of either."""
    if calibration is None:
        return
    if isinstance(calibration, Tensor):
        yield calibration
        return
    if isinstance(calibration, tuple) and len(calibration) == 2 and isinstance(calibration[0], Tensor):
        yield calibration[0]
        return
    for batch in calibration:
        yield batch[0] if isinstance(batch, tuple | list) else batch


class Seen:
    """What the float network shows on calibration batches: largest values of a stream, stored membranes."""

    def __init__(self, network: Network, plan: Plan, batches: list[Tensor], o: Options) -> None:
        self.norms: dict[str, float] = {}
        self.membranes: dict[str, float] = {}
        norms = [path for group in plan.groups.values() for path in group]
        if not batches or (o.unit not in ("max", "percentile") and not norms):
            return
        # Module by module: a network may hold some in another mode than its own.
        training, hooks = {m: m.training for m in network.modules()}, []
        network.eval()
        device = next(network.parameters()).device
        for path in norms:
            hooks.append(network.get_submodule(path).register_forward_hook(self._norm(path)))
        try:
            with torch.no_grad():
                for x in batches:
                    if o.unit not in ("max", "percentile"):
                        network(x.to(device))
                        continue
                    _, found = taps.captures(network, x.to(device), ["*@membrane", "*@spikes"])
                    self._stored(network, found.tensors, o)
        finally:
            for hook in hooks:
                hook.remove()
            for m, flag in training.items():
                m.training = flag

    def _norm(self, path: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            self.norms[path] = max(self.norms.get(path, 0.0), float(out.abs().max()))

        return hook

    def _stored(self, network: Network, found: dict[str, Tensor], o: Options) -> None:
        for key, h in found.items():
            path, what = key.rsplit("@", 1)
            if what != "membrane":
                continue
            neuron = neuron_of(network.get_submodule(path.split("#")[0]))
            s = found[f"{path}@spikes"]
            # Taps show H; what Q has to cover is V, behind the reset.
            by = neuron.threshold * neuron.reset_by
            v = h * (1 - s) if neuron.reset == "hard" else h - by * s if neuron.reset == "soft" else h
            top = v.abs().max() if o.unit == "max" else _percentile(v.abs(), o.percentile)
            self.membranes[path] = max(self.membranes.get(path, 0.0), float(top))


def _percentile(x: Tensor, percentile: float) -> Tensor:
    x = x.flatten().float()
    # Not torch.quantile, which refuses more than 2^24 values: membranes of all steps may be more.
    return x.kthvalue(max(1, math.ceil(x.numel() * percentile / 100))).values


def neuron_of(module: nn.Module) -> Neuron:
    """The neuron itself: of a NormNeuron its inner one."""
    inner = module.neuron if isinstance(module, NormNeuron) else module
    assert isinstance(inner, Neuron)
    return inner
