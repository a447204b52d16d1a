"""For the site alone: docstrings speak of names by Sphinx's roles, pages are Markdown."""

import re
from typing import Any

from griffe import Docstring, Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?\.*([^`]+)`")


class Roles(Extension):
    """``:class:`Name``` becomes a name in code, ``::`` before an indented block a colon."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every module, class and function that is read."""
        if obj.docstring is not None:
            text = re.sub(r"::$", ":", ROLE.sub(r"`\1`", obj.docstring.value), flags=re.M)
            obj.docstring = Docstring(text, parent=obj, parser=None)
