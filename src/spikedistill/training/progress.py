"""What one sees while training: a live bar with rate and time left, or plain lines without a terminal."""

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any


def bar(console: Any) -> Any:
    """The live bar for a console: what an epoch gave stands below, so bar and time left keep their place."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Lines(Bars):
        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            yield from (
                Text(f"  {task.fields['text']}", style="dim") for task in self.tasks if task.fields["text"]
            )

    return Lines(
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console, expand=True,
    )  # fmt: skip


class Progress:
    """One bar per stage; ``note`` prints a line that stays. Quiet when ``enabled`` is False."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.bar: Any = None
        self.task: Any = None
        self.waiting = False  # for the first stage: a run that is finished draws no empty frames

    def __enter__(self) -> "Progress":
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console

            self.bar, self.waiting = bar(Console(stderr=True)), True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None and not self.waiting:
            self.bar.stop()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A new stage of ``total`` steps."""
        self.name, self.total, self.done, self.first, self.start = (
            name,
            total,
            done,
            done,
            time.perf_counter(),
        )
        if self.bar is not None:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(name, total=total, completed=done, rate="", text="")
            if self.waiting:
                self.bar.start()
                self.waiting = False

    def step(self, images: int) -> None:
        """One step more."""
        self.done += 1
        if self.bar is not None:
            # Of the steps made here: a resumed stage did the others in another process.
            per_second = (self.done - self.first) * images / max(time.perf_counter() - self.start, 1e-9)
            self.bar.update(self.task, completed=self.done, rate=f"{per_second:,.0f} img/s")

    def epoch(self, text: str) -> None:
        """What an epoch gave."""
        if self.bar is not None:
            self.bar.update(self.task, text=text)
        elif self.enabled:
            spent = time.perf_counter() - self.start
            left = spent / max(self.done - self.first, 1) * (self.total - self.done)
            # To stderr, as the bar: stdout is for what a command gives, such as JSON.
            print(f"{self.name}: {text}, {spent:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            # Plain: paths and errors hold brackets, which rich would take for markup.
            self.bar.console.print(text, highlight=False, markup=False)
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)
