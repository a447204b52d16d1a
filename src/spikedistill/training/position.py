"""Where a stage's training stands, and where its time went."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

PARTS = ("data", "teacher", "forward", "backward", "optimizer")


@dataclass
class Position:
    """Where training stands, and the sums of the running epoch: what a resumed run needs beside tensors."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    peak: float = 0.0  # the best epoch's training accuracy
    sums: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    images: int = 0
    last: dict[str, Any] | None = None  # the last epoch's line, which the finished stage shows

    def totals(self, processes: int, device: torch.device) -> tuple[dict[str, float], int]:
        """The running epoch's sums and images of all processes together; each of them has to ask."""
        sums, images = self.sums, self.images
        if processes > 1:
            # One order everywhere: the numbers are added by place.
            names = sorted(sums)
            # float64 counts images and adds losses without rounding that shows; mps has none.
            kind = torch.float32 if device.type == "mps" else torch.float64
            each = torch.tensor([images, *(sums[name] for name in names)], dtype=kind, device=device)
            torch.distributed.all_reduce(each)
            images, sums = int(each[0]), dict(zip(names, each[1:].tolist()))
        return sums, max(images, 1)


class Clock:
    """Splits a step's time into parts; ``lap(name)`` books what has passed since the last one (host time)."""

    def __init__(self, times: dict[str, float]) -> None:
        self.times = times
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.times[name] = self.times.get(name, 0.0) + now - self.last
        self.last = now
