"""Constructors that hand on what all of their kind take: ``def __init__(self, ..., **common): ...``."""

import inspect
from collections.abc import Iterable


def tell_whole(cls: type, base: type, common: Iterable[str]) -> None:
    """Give ``cls`` the signature of its constructor, with ``base``'s parameters ``common`` for ``**common``.

    They stand before those that it takes by name alone. Whoever asks ``inspect.signature(cls)`` (recipes,
    records, ``help``) sees every parameter by name.
    """
    # It inherits a constructor whose signature has been told already.
    if "__init__" not in vars(cls):
        return
    own = dict(list(inspect.signature(vars(cls)["__init__"]).parameters.items())[1:])
    last = list(own.values())[-1:]
    if last and last[0].kind is inspect.Parameter.VAR_KEYWORD:
        del own[last[0].name]
        shared = inspect.signature(vars(base)["__init__"]).parameters
        handed_on = [shared[name] for name in common if name not in own]
        named = {p.name: p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in handed_on}
        late = {name: own.pop(name) for name, p in list(own.items()) if p.kind is p.KEYWORD_ONLY}
        own = own | named | late
    cls.__signature__ = inspect.Signature(list(own.values()))  # type: ignore[attr-defined]
