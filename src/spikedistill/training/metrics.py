"""``metrics.jsonl``: one line of JSON for everything that happens in a run, readable while written."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import SpikedistillError
from ..reading import parse_json

FILE = "metrics.jsonl"
Event = Literal["start", "stage", "step", "epoch", "stage_end", "warning", "resume"]


@dataclass(frozen=True)
class Metrics:
    """The events of one run, and whether its last line was torn off (a killed process)."""

    events: list[dict[str, Any]] = field(default_factory=list)
    torn: bool = False

    def epochs(self, stage: str) -> list[dict[str, Any]]:
        """The stage's epoch lines in order; an epoch trained again counts once, as trained last."""
        lines = {
            line["epoch"]: line for line in self.events if line["event"] == "epoch" and line["stage"] == stage
        }
        return [lines[epoch] for epoch in sorted(lines)]


def append(folder: str | os.PathLike[str], event: Event, **values: Any) -> None:
    """Add one line; NaN and infinity become null, a torn last line of an earlier process is cut off first."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite({"event": event, **values}), allow_nan=False) + "\n"
    # Read and appended in one: nothing may be written behind a torn line before it is cut off.
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
    try:
        # What stands behind the last line feed is no line yet: nothing, or one that is torn or being written.
        *lines, tail = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SpikedistillError(f"{path}: cannot be read ({error.strerror or error})") from None
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_event(line))
        except SpikedistillError as error:
            raise SpikedistillError(
                f"{path}, line {number}: not an event ({line[:60]!r}; {error}): remove the line"
            ) from None
    return Metrics(events, torn=bool(tail))


def _event(line: bytes) -> dict[str, Any]:
    found = parse_json(line, "this line")
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        raise SpikedistillError("an event is an object with the key 'event'")
    if found["event"] == "epoch":
        epoch, stage = found.get("epoch"), found.get("stage")
        if not isinstance(stage, str) or not isinstance(epoch, int) or isinstance(epoch, bool):
            raise SpikedistillError("an epoch has its stage's name and a number")
        for part in ("train", "validation"):
            values = found.get(part) or {}
            if not isinstance(values, dict) or not all(
                _number(values.get(key)) for key in ("loss", "accuracy")
            ):
                raise SpikedistillError(f"an epoch's {part} has numbers as loss and accuracy")
    return found


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _last_byte(file: Any, size: int) -> bytes:
    file.seek(size - 1)
    return bytes(file.read(1))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    # JSON has no NaN and no infinity; Python's own spelling of them is refused by other readers.
    if isinstance(value, float) and value - value != 0:
        return None
    return value
