"""Stopping when asked: schedulers warn with SIGTERM or SIGUSR1; a run saves its state and ends with 75.

75 is EX_TEMPFAIL of sysexits.h, "try again later": what schedulers take as a wish to be started once more.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 75
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(SystemExit):
    """A run that was asked to stop and can be resumed; uncaught, it ends the process with status 75."""

    def __init__(self, number: int) -> None:
        # A SystemExit, which no `except Exception` on the way takes for a fault that can be passed over.
        super().__init__(STATUS)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


class Watch:
    """``asked``: the signal that came, if one did. Outside of :meth:`finishing` it stops the run at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.depth = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        self.asked = number
        if not self.depth:
            raise Stopped(number)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """What looks at ``asked`` by itself, after each step, and writes its state first."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        # A signal behind the last look, as the stage ended: none is lost.
        if self.asked is not None and not self.depth:
            raise Stopped(self.asked)


watch = Watch()


@contextmanager
def watching() -> Iterator[Watch]:
    """Signals reach :data:`watch` meanwhile; other threads than the main one are not asked by the system."""
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    # What an earlier run of this process was asked is not for this one.
    watch.asked, watch.depth = None, 0
    before = {number: signal.signal(number, watch) for number in SIGNALS}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            # None: a handler that Python did not set, and cannot put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
