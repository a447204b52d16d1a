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
    begun = next((line for line in reversed(events) if line["event"] == "stage"), None)
    if begun is None:
        return [("seed", seed), ("stage", "not begun")]
    name, total = str(begun.get("stage")), begun.get("epochs")
    epochs = {e["epoch"]: e for e in events if e["event"] == "epoch" and e["stage"] == name}
    found = [("seed", seed), ("stage", name), ("epoch", f"{max(epochs, default=0)} of {total}")]
    if not epochs:
        return found
    last = epochs[max(epochs)]
    times = [(e["epoch"], e["time"]) for e in epochs.values() if isinstance(e.get("time"), int | float)]
    if len(times) > 1 and isinstance(total, int):
        (first, start), (latest, end) = min(times), max(times)
        left = (end - start) / max(latest - first, 1) * (total - last["epoch"])
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
