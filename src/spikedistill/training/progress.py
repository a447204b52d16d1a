"""What a person sees while training: a live bar with rate and time left, or plain lines where there is no terminal."""

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """One bar per stage; ``note`` prints a line that stays. Quiet when ``enabled`` is False."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"),
                TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A new stage of ``total`` steps."""
        self.name, self.total, self.done, self.first, self.start = name, total, done, done, time.perf_counter()
        if self.bar is not None:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(name, total=total, completed=done, rate="", text="")

    def step(self, images: int) -> None:
        """One step more."""
        self.done += 1
        if self.bar is not None:
            per_second = (self.done - self.first) * images / max(time.perf_counter() - self.start, 1e-9)
            self.bar.update(self.task, completed=self.done, rate=f"{per_second:,.0f} img/s")

    def epoch(self, text: str) -> None:
        """What an epoch gave."""
        if self.bar is not None:
            self.bar.update(self.task, text=text)
        elif self.enabled:
            spent = time.perf_counter() - self.start
            left = spent / max(self.done - self.first, 1) * (self.total - self.done)
            print(f"{self.name}: {text}, {spent:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)
