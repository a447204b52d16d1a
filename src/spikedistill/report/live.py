"""A run that still goes: where it stands, and its page made again and again."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Live:
    """Where a run stands: ``lines`` of (what, value); the page loads itself again after ``seconds``."""

    lines: list[tuple[str, str]]
    seconds: float


def standing(events: list[dict[str, Any]], seed: str) -> list[tuple[str, str]]:
    """The last seed's stage, epoch, time left in the stage, loss and accuracies, from its log."""
    # From the end: the log holds every stage so far.
    begun = next((line for line in reversed(events) if line["event"] == "stage"), None)
    if begun is None:
        return [("seed", seed), ("stage", "not begun")]
    name, total = str(begun.get("stage")), begun.get("epochs")
    # By number: of an epoch that was trained again the later line counts.
    epochs = {e["epoch"]: e for e in events if e["event"] == "epoch" and e["stage"] == name}
    found = [("seed", seed), ("stage", name), ("epoch", f"{max(epochs, default=0)} of {total}")]
    if not epochs:
        return found
    last = epochs[max(epochs)]
    if (left := _left(last, total)) is not None:
        found.append(
            ("time left in the stage", f"about {left:.0f} s" if left < 120 else f"about {left / 60:.0f} min")
        )
    for part in ("train", "validation"):
        values = last.get(part) or {}
        for what, scale, unit in (("loss", 1.0, ""), ("accuracy", 100.0, " %")):
            if values.get(what) is not None:
                found.append(
                    (f"{'training' if part == 'train' else part} {what}", f"{scale * values[what]:.4g}{unit}")
                )
    return found


def _left(line: dict[str, Any], total: Any) -> float | None:
    """Seconds until the stage ends, from the mean time of its steps; None where it is not logged."""
    parts = line.get("step_time")
    step = line.get("step")
    if not isinstance(parts, dict) or not isinstance(step, int) or not isinstance(total, int):
        return None
    # `step` counts on through the stage's epochs, so over the epochs done it is the steps of one.
    return sum(parts.values()) * step / line["epoch"] * (total - line["epoch"])
