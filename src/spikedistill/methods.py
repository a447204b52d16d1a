"""Methods that ship, by name: the objectives of each, their weights, read off the recipes `digits-NAME`.

Of those that have a stage `student`; others compare something else. These recipes are the one place where a
method's weights stand, with the remarks on what a paper leaves open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .errors import SpikedistillError, nearest
from .recipe import read_yaml
from .recipes import shipped

RECIPES, STUDENT = "digits-", "student"


@dataclass(frozen=True)
class Method:
    """``objectives`` as a recipe has them, made for ``time_steps``; ``paper``: keys of the papers."""

    name: str
    title: str
    paper: tuple[str, ...]
    objectives: tuple[Mapping[str, Any], ...]
    time_steps: int

    def at(self, time_steps: int) -> list[dict[str, Any]]:
        """Objectives for another T: where one asks for a longer simulation, it is as many times as long."""
        scaled = [dict(objective) for objective in self.objectives]
        for objective in scaled:
            if isinstance(objective.get("time_steps"), int):
                objective["time_steps"] = max(
                    1, round(objective["time_steps"] * time_steps / self.time_steps)
                )
        return scaled


@cache
def catalogue() -> dict[str, Method]:
    """Every shipped method by name, in the order of their names."""
    found: dict[str, Method] = {}
    # Sorted, so that of recipes with equal objectives it is always the same one that names the method.
    for recipe, path in sorted(shipped().items()):
        if not recipe.startswith(RECIPES):
            continue
        tree = read_yaml(path)
        student = next((stage for stage in tree["stages"] if stage["name"] == STUDENT), None)
        if student is None:  # a recipe that compares something else
            continue
        name, title = recipe.removeprefix(RECIPES), str(tree["title"]).replace(" on digits", "").rstrip(",")
        steps = int(student.get("time_steps", tree["time_steps"]))
        method = Method(name, title, tuple(tree.get("paper", ())), tuple(student["objectives"]), steps)
        # With another network or encoding it is the same method.
        if all(method.objectives != other.objectives for other in found.values()):
            found[name] = method
    return found


def chosen(methods: str | Sequence[str]) -> list[Method]:
    """``"all"``, ``"a,b"`` or names; raises for an unknown one with the nearest."""
    known = catalogue()
    names = [n.strip() for n in methods.split(",")] if isinstance(methods, str) else [str(n) for n in methods]
    if names == ["all"]:
        return list(known.values())
    for name in names:
        if name not in known:
            raise SpikedistillError(f"unknown method {name!r}; {nearest(name, known)}")
    return [known[name] for name in dict.fromkeys(names)]
