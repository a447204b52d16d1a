"""The one error that users are meant to read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


# A ValueError: pydantic turns one that a validator raises into a complaint with its place.
class SpikedistillError(ValueError):
    """Something the user gave cannot work; the message says what was found, what is allowed and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def nearest(found: str, allowed: Iterable[str], limit: int = 3) -> str:
    """Words for an error: the known names nearest to ``found``, or all when none is near and they are few.

    Never ``found`` itself: a name that is known and yet not there is no help.
    """
    names = sorted(set(allowed) - {found})
    close = get_close_matches(found, names, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    if len(names) <= 20:
        return "known: " + ", ".join(names)
    return f"known: {', '.join(names[:20])}, ... ({len(names)} in all)"


@contextmanager
def at(where: str) -> Iterator[None]:
    """Errors of what stands at ``where`` say so."""
    try:
        yield
    except SpikedistillError as error:
        raise SpikedistillError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
