"""``metrics.jsonl``: one line of JSON for everything that happens in a run, readable while it is being written."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spikedistill.errors import SpikedistillError

FILE = "metrics.jsonl"
Event = Literal["start", "stage", "step", "epoch", "stage_end", "warning", "resume"]


@dataclass(frozen=True)
class Metrics:
    """The events of one run, and whether its last line was torn off (a killed process)."""

    events: list[dict[str, Any]] = field(default_factory=list)
    torn: bool = False

    def epochs(self, stage: str) -> list[dict[str, Any]]:
        """The stage's epoch lines in order; an epoch trained again after a resume counts once, as trained last."""
        lines = {line["epoch"]: line for line in self.events if line["event"] == "epoch" and line["stage"] == stage}
        return [lines[epoch] for epoch in sorted(lines)]


def append(folder: str | os.PathLike[str], event: Event, **values: Any) -> None:
    """Add one line; NaN and infinity become null, and a torn last line of an earlier process is cut off first."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite({"event": event, **values}), allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size and _last_byte(file, size) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def read(folder: str | os.PathLike[str]) -> Metrics:
    """All events of a run folder; without a file, none.

    Raises: SpikedistillError for a broken line that is not the last (the file was changed by something else).
    """
    path = Path(folder) / FILE
    if not path.exists():
        return Metrics()
    *lines, tail = path.read_bytes().split(b"\n")
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_event(line))
        except ValueError as error:
            raise SpikedistillError(f"{path}, line {number}: not an event ({line[:60]!r}): remove the line") from error
    return Metrics(events, torn=bool(tail))


def _event(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict) or "event" not in found:
        raise ValueError("an event is an object with the key 'event'")
    return found


def _last_byte(file: Any, size: int) -> bytes:
    file.seek(size - 1)
    return bytes(file.read(1))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
