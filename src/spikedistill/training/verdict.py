"""What a comparison of methods shows: drawn from the validation part, corrected for how many were tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..terminal import amount
from .summary import paired_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """A method's validation accuracy minus the baseline's, paired by seed, and corrected interval (0..1)."""

    method: str
    mean: float
    low: float | None
    high: float | None

    @property
    def better(self) -> bool:
        """Whether a difference in its favour is shown."""
        return self.low is not None and self.low > 0


def judge(
    accuracies: Mapping[str, Sequence[float]],
    baseline: Sequence[float],
    images: int,
    confidence: float = CONFIDENCE,
) -> list[Verdict]:
    """A verdict for each of M methods, the largest mean difference first.

    d_s = x_s - y_s over seeds s; mean(d) ± max(t(1 - a / (2 M), n - 1) * std(d) / sqrt(n), 1 / images), a = 1
    - confidence: Bonferroni's correction, and never finer than one of the ``images`` of the validation part,
    of which a few seeds can all have won the same. Without an interval for fewer than two seeds.
    """
    found = []
    for method, values in accuracies.items():
        differences = [x - y for x, y in zip(values, baseline, strict=True)]
        mean = fmean(differences)
        interval = paired_interval(differences, 1 - (1 - confidence) / len(accuracies))
        low = high = None
        if interval is not None:
            half = max((interval[1] - interval[0]) / 2, 1 / images)
            low, high = mean - half, mean + half
        found.append(Verdict(method, mean, low, high))
    return sorted(found, key=lambda verdict: -verdict.mean)


def sentence(verdicts: Sequence[Verdict], seeds: int, baseline: str = "alone") -> str:
    """What to take."""
    if not verdicts:
        return f"No difference shown: no method was compared with {baseline}."
    first = verdicts[0]
    if first.low is None:
        largest = f"largest: {first.method}, {_points(first.mean)} points"
        return f"No difference shown: one seed has no interval ({largest}); give more seeds."
    many = amount(len(verdicts), "method")
    interval = f"95 % interval, corrected for {many}, over {amount(seeds, 'seed')}"
    better = [verdict for verdict in verdicts if verdict.better]
    if not better:
        return (
            f"No difference shown: no method beats {baseline} on the validation part (nearest: "
            f"{first.method}, {_range(first)} points; {interval}); take {baseline}, or give more seeds."
        )
    # The largest mean of those that are shown: one that lies higher may vary too much to show anything.
    take = better[0]
    others = (
        f" Shown to be better than {baseline} too: {', '.join(v.method for v in better[1:])}."
        if better[1:]
        else ""
    )
    return (
        f"Take {take.method}: {_range(take)} points over {baseline} on the validation part "
        f"({interval}).{others}"
    )


def _range(verdict: Verdict) -> str:
    assert verdict.low is not None
    assert verdict.high is not None
    return f"{_points(verdict.mean)} [{_points(verdict.low)}, {_points(verdict.high)}]"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"
