"""Chip models of other packages and of one's own: functions from layers to figures, beside those here.

A recipe names them under ``hardware.chips``, by the name of an entry point of the group
``spikedistill.chips`` or by ``module:function``, each with its options::

    hardware: {chips: {my_chip: {clock_mhz: 100}, "mine:chip": {}}}
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

from .. import own_code
from ..errors import SpikedistillError, nearest
from ..typed import checked
from .layer import Layer

Chip = Callable[..., Mapping[str, Any]]
TYPES: dict[str, Chip] = own_code.installed("chips")


def find(name: str) -> Chip:
    """The function of a name or an address. Raises: SpikedistillError for what is none."""
    if name not in TYPES and not own_code.is_address(name):
        known = f"; {nearest(name, TYPES)}" if TYPES else ""
        raise SpikedistillError(
            f"hardware.chips: unknown chip model {name!r}{known}; give module:function, "
            "or install its package"
        )
    found: Any = TYPES.get(name) or own_code.find(name, "hardware.chips:")
    if not callable(found) or not inspect.signature(found).parameters:
        raise SpikedistillError(
            f"hardware.chips: {name!r} is no function of layers, found {type(found).__name__}"
        )
    return found


def check(chips: Any, where: str) -> None:
    """Names and options of a recipe's chips, checked before anything runs; code not imported stays unseen."""
    if not isinstance(chips, Mapping) or not all(
        isinstance(options, Mapping | None) for options in chips.values()
    ):
        raise SpikedistillError(
            f"{where}: a mapping of chip models to their options is needed, found {chips!r:.80}"
        )
    for name, options in chips.items():
        if name in TYPES or not own_code.is_shut():
            # partial takes the layers' place, so that the options are held against the other parameters alone
            checked(partial(find(str(name)), ()), options or {}, f"{where}.{name}")


def evaluate(layers: Sequence[Layer], chips: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each chip model says of the layers, by its name.

    Raises: SpikedistillError for a model that fails, or whose result is not JSON-able with an ``energy_pj``
    of at least 0.
    """
    found = {}
    for name, options in chips.items():
        model, where = find(name), f"hardware.chips.{name}"
        given = checked(partial(model, ()), options or {}, where)
        try:
            # the figures go into a run's JSON, which knows no NaN: said here, where the model has a name
            figures = dict(model(layers, **given))
            json.dumps(figures, allow_nan=False)
        except SpikedistillError:
            raise
        except Exception as error:  # whatever somebody's model does
            raise SpikedistillError(f"{where}: {type(error).__name__}: {error}") from error
        energy = figures.get("energy_pj")
        if (
            # True is an int to Python
            isinstance(energy, bool)
            or not isinstance(energy, int | float)
            or not isfinite(energy)
            or energy < 0
        ):
            raise SpikedistillError(
                f"{where}: a number `energy_pj` of at least 0 is needed, pJ per inference of one image; "
                f"found {energy!r}"
            )
        found[name] = figures
    return found


__all__ = ["TYPES", "check", "evaluate", "find"]
