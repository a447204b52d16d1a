"""Papers behind a recipe."""

from typing import Any


def citations(recipe: Any) -> list[str]:
    """BibTeX entries of the papers that a recipe uses."""
    return []
