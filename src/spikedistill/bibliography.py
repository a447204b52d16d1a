"""The papers behind a recipe, as BibTeX."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import SpikedistillError, nearest
from .recipes import cited

# Beginnings of network names, longest first where one begins another.
NETWORKS: dict[str, tuple[str, ...]] = {
    "sew_": ("fang2021deep",),
    "ms_": ("hu2024advancing",),
    "resnet19": ("zheng2021going",),
    "resnet": ("he2016deep",),
    "svgg11": ("louis2024reducing",),
    "sresnet8": ("lemaire2022analytical",),
    "vgg": ("simonyan2015very",),
    "spikformer": ("zhou2023spikformer",),
    "spikingformer": ("zhou2023spikingformer",),
    "spike_driven": ("yao2023spikedriven",),
    "qkformer": ("zhou2024qkformer",),
    "hdkd": ("elassiouti2024hdkd",),
}

NEURONS = dict.fromkeys(("psn", "masked_psn", "sliding_psn"), ("fang2023parallel",))

CONVERSIONS = {
    "threshold_balancing": ("diehl2015fast", "rueckauer2017conversion"),
    "qcfs": ("bu2022optimal",),
    "signed": ("bu2022optimal",),
}


@cache
def entries() -> dict[str, str]:
    """All known papers: key to BibTeX entry."""
    text = files("spikedistill").joinpath("citations.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@\w+\{([^,]+),.*?^\}$", text, re.M | re.S)
    bodies = re.findall(r"^@\w+\{[^,]+,.*?^\}$", text, re.M | re.S)
    return dict(zip(found, bodies))


def keys_of(recipe: Any) -> list[str]:
    """Keys of the papers a checked recipe rests on: its own, its objectives', networks' and quantizers'."""
    keys: list[str] = list(recipe.paper)
    for stage in recipe.stages:
        keys += [key for term in stage.terms for key in term.cites]
        keys += _network_keys(str((stage.network or {}).get("name", "")))
        neuron = (stage.network or {}).get("neuron")
        keys += NEURONS.get(str(neuron.get("type")).lower(), ()) if isinstance(neuron, Mapping) else ()
        if stage.time_inheritance:
            keys.append("deng2022temporal")
        if stage.backpropagation == "rate_based":
            keys.append("yu2024advancing")
        if stage.init is not None and stage.init.method == "threshold_balancing":
            keys.append("diehl2015fast")
        if stage.convert is not None:
            keys += CONVERSIONS[stage.convert.method]
        if (stage.quantize or {}).get("scheme") == "mint":
            keys.append("yin2024mint")
    if "spikesim" in recipe.hardware:
        keys.append("moitra2023spikesim")
    # Each once, in order: a set of texts would have another order in each process.
    return list(dict.fromkeys(keys))


def _network_keys(name: str) -> tuple[str, ...]:
    return next((keys for start, keys in NETWORKS.items() if name.startswith(start)), ())


def citations(of: "str | Path | Mapping[str, Any] | Iterable[str] | Any") -> list[str]:
    """BibTeX entries of a recipe (name, file, mapping or checked one), or of names of objectives or papers.

    ``citations("bkdsnn-cifar10")``, ``citations(["blurred_feature", "fang2021deep"])``. Raises for a name
    that is neither.
    """
    known = entries()
    # Shipped recipes are listed with their papers: to read one of them would import torch.
    if isinstance(of, str) and not Path(of).is_file() and (shipped := cited().get(of)) is not None:
        return [known[key] for key in shipped]
    from . import objectives

    if isinstance(of, str) and (of in objectives.TYPES or of in known):
        of = [of]
    if isinstance(of, str | Path | Mapping) or hasattr(of, "stages"):
        from .recipe import load

        keys = keys_of(of if hasattr(of, "stages") else load(of))
    else:
        keys = [
            key
            for name in of
            for key in (objectives.TYPES[name].cites if name in objectives.TYPES else (name,))
        ]
    for key in keys:
        if key not in known:
            raise SpikedistillError(
                f"no paper or objective {key!r}; {nearest(key, [*known, *objectives.TYPES])}"
            )
    return [known[key] for key in dict.fromkeys(keys)]
