"""What a notebook shows of an object. Who draws it stands above, and is told here by the package's face."""

from collections.abc import Callable
from typing import Any

DRAWERS: dict[str, Callable[[Any], str]] = {}


def drawn(kind: str) -> Callable[[Any], str]:
    """``_repr_html_`` of a class: the drawing of this ``kind`` of object."""

    def _repr_html_(self: Any) -> str:
        return DRAWERS[kind](self)

    return _repr_html_
