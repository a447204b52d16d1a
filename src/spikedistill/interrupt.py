"""Ctrl-C for the command: quiet while it is still importing, quiet when pressed a second time."""

import os
import signal
import sys
import threading
from types import FrameType

STATUS = 130  # 128 + SIGINT, as shells have it


class Going:
    """The run that is going on in this process, or was when it was stopped: its ``folder``, if there is."""

    folder: str | None = None


going = Going()


def _leave(number: int, frame: FrameType | None) -> None:
    # No exception, which an import would show as a traceback, and no handlers that run at exit.
    os._exit(STATUS)


def _first(number: int, frame: FrameType | None) -> None:
    # At once: the second Ctrl-C ends the process even while the first is being handled.
    signal.signal(signal.SIGINT, _leave)
    if _still_importing():
        _leave(number, frame)
    raise KeyboardInterrupt


def _still_importing() -> bool:
    """Whether torch is not there yet, and so nothing has begun."""
    # A module is entered there before its code has run; _initializing is importlib's mark of that.
    torch = sys.modules.get("torch")
    return torch is None or bool(getattr(torch.__spec__, "_initializing", False))


def while_importing() -> None:
    """Where this process is the command, end at once and without a traceback: nothing has begun."""
    # With -m sys.argv[0] is still "-m" while the package is imported.
    started = sys.orig_argv[1:3]
    command = started == ["-m", "spikedistill.cli"] or os.path.basename(sys.argv[0] or "") == "spikedistill"
    if command and _free():
        signal.signal(signal.SIGINT, _leave)


def while_running() -> None:
    """The first Ctrl-C raises KeyboardInterrupt, a second one ends the process."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _first)


def _free() -> bool:
    # Only the main thread may set handlers, and one that somebody has set is left to them.
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
