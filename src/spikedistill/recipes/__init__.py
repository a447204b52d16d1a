"""Recipes that come with the package, and what can be said of them without building anything."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

CITES = "cites.json"  # made from the recipes by `python -m spikedistill.recipes`


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {Path(str(f)).stem: Path(str(f)) for f in files(__name__).iterdir() if f.name.endswith(".yaml")}


def shelf() -> list[dict[str, Any]]:
    """Each shipped recipe's name, title, papers, data set, last network that a stage names, and T."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = []
    for name, path in sorted(shipped().items()):
        tree = yaml.load(path.read_text(encoding="utf-8"), loader)
        networks = [stage["network"]["name"] for stage in tree["stages"] if stage.get("network")]
        found.append(
            {
                "recipe": name,
                "title": tree.get("title", ""),
                "paper": tree.get("paper", []),
                "data": tree.get("data", {}).get("name", "digits"),
                "network": networks[-1] if networks else None,
                "time_steps": tree.get("time_steps", 4),
            }
        )
    return found


def cited() -> dict[str, list[str]]:
    """Keys of the papers that each shipped recipe rests on."""
    return dict(json.loads(files(__name__).joinpath(CITES).read_text(encoding="utf-8")))
