"""Evaluation: accuracy, confusion, firing rates, accuracy over T, membrane histograms."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import simulation, taps
from ..conversion import correct_over_time
from ..drawn import drawn
from ..networks.base import Network
from ..randomness import apart, seed_of
from .summary import LayerSummary, MembraneSummary

DEAD, SATURATED = 0.001, 0.9


@dataclass
class Evaluation:
    """One pass over a split. Accuracies are fractions; ``rates``: spikes per neuron and step, by layer."""

    accuracy: float
    loss: float
    images: int
    confusion: Tensor
    accuracy_at: dict[int, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)

    @property
    def firing_rate(self) -> float | None:
        """Mean over all neurons of the network; None for an ANN."""
        total = sum(self.neurons.values())
        return sum(self.rates[k] * n for k, n in self.neurons.items()) / total if total else None

    _repr_html_ = drawn("evaluation")

    def layers(self) -> list[LayerSummary]:
        """Rates as rows of the summary, dead and saturated layers marked."""
        return [
            LayerSummary(path=k, firing_rate=r, neurons=self.neurons[k], warning=verdict(r))
            for k, r in self.rates.items()
        ]


def verdict(rate: float) -> Any:
    """``"dead"`` below 0.1 % firing, ``"saturated"`` above 90 %."""
    return "dead" if rate < DEAD else "saturated" if rate > SATURATED else None


def remedy(warning: str, network: nn.Module) -> str:
    """What to do about a layer that is dead or saturated."""
    if getattr(network, "initialisation", "balanced") == "plain":
        return "start balanced (network.initialisation: balanced), or name a neuron with a larger gain"
    way, terms = ("raise", "; a price on spikes that is lighter") if warning == "dead" else ("lower", "")
    return (
        f"lower optimizer.lr, {way} network.firing_rate{terms}; networks on raw counts: "
        "sd.balance(network, batch)"
    )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, random state and each module's mode as they were afterwards."""
    # The generators are put back: a training that is measured more or less often draws the same.
    with simulation.eval_mode(network), torch.no_grad(), apart():
        yield


def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    time_steps: Sequence[int] = (),
    rates: bool = True,
    position: tuple[int | str, ...] = ("evaluate",),
) -> Evaluation:
    """One pass over ``batches`` of (x, y (N,)); accuracy also at ``time_steps``: the first of a simulation.

    T above the network's own runs longer simulations, without recalibration; those of a converted network,
    which may need hundreds of steps, are streamed. Each batch is seeded by its position.
    """
    own = network.time_steps if isinstance(network, Network) else None
    converted = isinstance(network, Network) and "conversion" in network.config
    # Not of a converted network: hundreds of steps at once would need the memory of them all.
    longest = max([own, *time_steps]) if own is not None and not converted else own
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
    loss, images = 0.0, 0
    right = dict.fromkeys(time_steps, 0)
    spikes: dict[str, float] = {}
    neurons: dict[str, int] = {}
    wanted: dict[str, list[taps.Tap]] | None = None
    with evaluating(network):
        for i, (x, y) in enumerate(batches):
            torch.manual_seed(seed_of(*position, i))
            # Resolved once, on the first batch: a wildcard traces the network.
            if wanted is None:
                known = rates and own is not None and taps.has_spikes(network)
                wanted = {"*@spikes": taps.resolve(network, "*@spikes", x)} if known else {}
            logits, seen = taps.run_resolved(network, x, wanted, longest if longest != own else None)
            mean = logits[: own or len(logits)].float().mean(0)
            loss += float(F.cross_entropy(mean, y, reduction="sum"))
            images += len(y)
            confusion += _confusion(y, mean.argmax(-1), num_classes)
            if converted:
                right = {T: right[T] + n for T, n in correct_over_time(network, x, y, time_steps).items()}  # type: ignore[arg-type]
            else:
                for T in time_steps:
                    right[T] += int((logits[:T].float().mean(0).argmax(-1) == y).sum())
            for tap, s in seen.tensors.items():
                name = tap.removesuffix("@spikes")
                # A simulation made longer for accuracies at other T does not count in the rates.
                s = s[:own]
                spikes[name] = spikes.get(name, 0.0) + float(s.float().mean()) * len(y)
                neurons[name] = s[0, 0].numel()
    if not images:
        return Evaluation(0.0, 0.0, 0, confusion)
    return Evaluation(
        int(confusion.diagonal().sum()) / images,
        loss / images,
        images,
        confusion,
        {T: n / images for T, n in right.items()},
        {k: v / images for k, v in spikes.items()},
        neurons,
    )


@dataclass
class IntegerEvaluation:
    """Counts of images: all, those the integer network classifies rightly, and as the fake-quantized one.

    ``bytes``: its size.
    """

    images: int
    right: int
    equal: int
    bytes: int


def evaluate_integer(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> IntegerEvaluation:
    """The integer network of a fake-quantized one, prediction by prediction beside it.

    Batches are seeded as in :func:`evaluate`, so that an encoding's draws are those of the accuracy beside
    it.
    """
    from ..quantization import to_integer
    from ..quantization.integer import entering

    whole = to_integer(network)
    images = right = equal = 0
    with evaluating(network):
        for i, (x, y) in enumerate(batches):
            torch.manual_seed(seed_of("evaluate", i))
            found = whole.predict(entering(network, x)).argmax(-1)  # type: ignore[arg-type]
            equal += int((found == network.predict(x).argmax(-1)).sum())  # type: ignore[operator]
            right += int((found == y).sum())
            images += len(y)
    return IntegerEvaluation(images, right, equal, whole.nbytes)


def _confusion(target: Tensor, found: Tensor, K: int) -> Tensor:
    return torch.bincount(target.cpu() * K + found.cpu(), minlength=K * K).view(K, K)


def membrane_histograms(
    network: nn.Module,
    teacher: nn.Module | None,
    x: Tensor,
    bins: int = 60,
    span: tuple[float, float] = (-3.0, 3.0),
) -> list[MembraneSummary]:
    """Histograms of the charged membrane in thresholds, per layer, beside the teacher's in the same layer.

    What lies outside of ``span`` is counted in the first and last bin.
    """
    mine = _membranes(network, x)
    theirs = _membranes(teacher, x) if teacher is not None and getattr(teacher, "time_steps", None) else {}
    edges = torch.linspace(*span, bins + 1)

    def counts(h: Tensor) -> list[int]:
        # histc leaves out what lies beyond its ends.
        return torch.histc(h.clamp(*span), bins, *span).long().tolist()

    return [
        MembraneSummary(
            path=k,
            edges=edges.tolist(),
            student=counts(h),
            teacher=counts(theirs[k]) if k in theirs else None,
        )
        for k, h in mine.items()
    ]


def _membranes(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    if not taps.neuron_paths(network):  # somebody else's neurons show their spikes alone
        return {}
    with evaluating(network):
        _, seen = taps.captures(network, x, ["*@membrane"])
    return {
        k.removesuffix("@membrane"): h.float().cpu() / seen.thresholds.get(k, 1.0)
        for k, h in seen.tensors.items()
    }
