"""Overrides of a recipe: ``path=value``, a stage addressed by its name, an objective by stage and name."""

from typing import Any

from .errors import SpikedistillError, nearest
from .reading import parse_yaml

RESERVED = (
    "title",
    "paper",
    "data",
    "hardware",
    "seed",
    "seeds",
    "time_steps",
    "stages",
    "precision",
    "compile",
    "memory",
    "checkpoint",
    "optimizer",
)


def apply_override(tree: dict[str, Any], text: str) -> None:
    """Set ``path=value`` in a recipe's mapping; stages go by name, objectives by stage and name (or type)."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise SpikedistillError(f"override {text!r} is not of the form path=value, such as student.epochs=5")
    parts = path.split(".")
    here: Any = tree
    if parts[0] == "stages" and len(parts) > 1:
        parts = parts[1:]
    # A stage may not be named like a key of the recipe: one word of a path means one thing.
    if parts[0] not in RESERVED:
        here, parts = _named(tree.get("stages") or [], parts[0], "stage", text), parts[1:]
        if not parts:
            raise SpikedistillError(f"override {text!r} names a stage but none of its keys")
    for i, part in enumerate(parts[:-1]):
        if isinstance(here, list):
            here = _named(here, part, "objective", text)
            continue
        # Also where the file has the key and nothing behind it, which YAML reads as null.
        if here.get(part) is None:
            here[part] = {}
        if not isinstance(here[part], dict | list):
            raise SpikedistillError(
                f"override {text!r}: {'.'.join(parts[: i + 1])} is {here[part]!r}, which has no keys"
            )
        here = here[part]
    if isinstance(here, list):
        raise SpikedistillError(f"override {text!r} names an objective but none of its keys")
    here[parts[-1]] = parse_yaml(value, f"override {text!r}")


def _named(items: list[Any], name: str, what: str, text: str) -> dict[str, Any]:
    names = [str(item.get("name", item.get("type"))) for item in items if isinstance(item, dict)]
    for item in items:
        if isinstance(item, dict) and name in (item.get("name"), item.get("type")):
            return item
    raise SpikedistillError(
        f"override {text!r}: no {what} {name!r}; "
        f"{nearest(name, [*names, *RESERVED] if what == 'stage' else names)}"
    )
