"""How a command ends: its status, and what of an error people read."""

import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

from .errors import SpikedistillError
from .interrupt import STATUS as INTERRUPTED
from .interrupt import going

TRY_AGAIN = 75  # a run that was asked to stop (training.signals)


def ended(app: Callable[..., Any], argv: Sequence[str] | None = None) -> int:
    """Run a command of ``app``; returns the status: 0, 2 for the user to mend, 75 and 130 when stopped.

    docs/reliability.md has them all.
    """
    going.folder = None
    try:
        with warnings.catch_warnings():
            # Within catch_warnings, which puts the old one back.
            warnings.showwarning = _warn  # type: ignore[assignment]
            # Not standalone: click would print errors in its own way and exit the process itself.
            result = app(list(argv) if argv is not None else None, standalone_mode=False)
        return _interrupted() if result == INTERRUPTED else int(result or 0)
    except SpikedistillError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    # What a run raises that was asked to stop; its base class lets it end a script with its status, too.
    except SystemExit as stop:
        if not isinstance(stop.code, int) or stop.code != TRY_AGAIN:
            raise
        print(f"{stop}; the state is kept: {_on()} goes on", file=sys.stderr)
        return TRY_AGAIN
    except OSError as error:
        # Raised by a library without the system's error: a fault to be seen whole.
        if error.strerror is None:
            raise
        return _fail(
            f"{error.strerror}: {error.filename or ''}; what was written before is kept, resume continues it"
        )
    except Exception as error:
        # Wrong usage. Typer brings click's errors from a place that differs between its versions.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # a group named without a command: its help
            print(message(), file=sys.stderr)
            return 2
        return _fail(message())


def _interrupted() -> int:
    """After Ctrl-C, which some versions of typer hand on as KeyboardInterrupt and others as this status."""
    print(f"stopped; what was finished is kept: {_on()} goes on", file=sys.stderr)
    return INTERRUPTED


def _on() -> str:
    """The command that continues the run, with its folder where there is one."""
    return f"`spikedistill resume {shlex.quote(going.folder) if going.folder else 'RUN'}`"


def _warn(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _fail(words: str) -> int:
    print(f"error: {words}", file=sys.stderr)
    return 2
