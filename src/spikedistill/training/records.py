"""What a run writes down of its settings: every value in force, so that later defaults change no old run.

``recipe.yaml`` and ``config.json`` carry ``record``, the version of this promise. Record 1 (folders without
the key) held only what had been given; what it left out is filled in here with the defaults of its time,
never with today's. Whoever changes a default changes nothing here. Whoever adds a key adds to ``ADDED`` what
runs without it did.
"""

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import networks, objectives, own_code
from ..data.config import augmentation
from ..errors import SpikedistillError
from ..networks.outside.library import from_name
from ..neurons import IF, TYPES, build
from ..recipe import Recipe, Stage
from ..typed import checked

RECORD = 2

# Record 1: the neurons' defaults, and the neuron that a family of networks had by itself.
_ATAN = {"name": "atan", "alpha": 2.0}
_RECTANGLE = {"name": "rectangle", "alpha": 1.0}
_COMMON = {
    "threshold": 1.0, "reset": "hard", "surrogate": _ATAN, "initial": 0.0, "detach_reset": True,
    "smooth": False,
}  # fmt: skip
NEURONS_1: dict[str, dict[str, Any]] = {"if": _COMMON, "lif": _COMMON, "plif": {**_COMMON, "init_tau": 2.0}}
ALPHAS_1 = {"atan": 2.0, "sigmoid": 4.0, "triangle": 1.0, "rectangle": 1.0, "fast_sigmoid": 25.0}
FAMILIES_1: dict[str, dict[str, Any]] = {
    "ms_resnet": {"type": "lif", "decay": 0.25, "threshold": 0.5, "surrogate": _RECTANGLE},
    "svgg11": {"type": "lif", "tau": 2.0, "reset": "soft"},
    "sew_7b_wide": {"type": "plif", "init_tau": 2.0},
    "dvs_gesture_cnn": {"type": "lif", "decay": 0.93, "reset": "soft"},
    # Every other family; last, since every name begins with it.
    "": {"type": "lif", "tau": 2.0},
}
# Keys that came after record 1, and what runs did before: keys of a stage, of a network's options.
ADDED_TO_STAGES: dict[str, Any] = {"settle": False}
ADDED_TO_NETWORKS: dict[str, Any] = {"initialisation": "plain"}

# Options of a network that the data or the stage gives where the recipe does not.
NOT_THE_RECIPES = ("time_steps", "num_classes", "in_channels", "input", "mean", "std")


# Writing: the whole of what is in force.


def complete(recipe: Recipe, factories: Iterable[str] = ()) -> dict[str, Any]:
    """A recipe with every value in force, as a mapping that loads as the same run under any later default."""
    # What is made from signatures is filled in below: a default there may be a value that JSON has not.
    rest = {"network", "objectives", "quantize"}
    tree: dict[str, Any] = json.loads(
        recipe.model_dump_json(by_alias=True, exclude={"stages": {"__all__": rest}})
    )
    keys = Stage.keys_known()
    tree["stages"] = [{key: written.get(key) for key in keys} for written in tree["stages"]]
    tree["data"]["augment"] = json.loads(augmentation(recipe.data).model_dump_json())
    for stage, written in zip(recipe.stages, tree["stages"]):
        written["optimizer"] = recipe.optimizer_of(stage).model_dump(mode="json")
        written["objectives"] = [_objective(o) for o in stage.objectives]
        if stage.quantize is not None:
            from ..quantization import quantize

            written["quantize"] = {**_defaults(quantize, ("network", "calibration")), **stage.quantize}
        if stage.network is not None:
            written["network"] = _network(stage, recipe, factories)
    # As a file gives it back, lists for tuples: records are compared with each other.
    return dict(json.loads(json.dumps(tree)))


def _defaults(target: Any, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    return {
        name: p.default
        for name, p in inspect.signature(function).parameters.items()
        if name not in ("self", *leave_out) and p.default is not p.empty and p.kind is not p.VAR_KEYWORD
    }


def _objective(given: Mapping[str, Any]) -> dict[str, Any]:
    cls = objectives.find(given["type"])
    whole = {**_defaults(cls), **{k: v for k, v in given.items() if k != "type"}}
    weight = whole.get("weight")
    if isinstance(weight, Mapping):
        whole["weight"] = {**_defaults(objectives.Schedule), **weight}
    return {"type": given["type"], **_readable(cls, whole)}


def _readable(cls: type, whole: dict[str, Any]) -> dict[str, Any]:
    """Without defaults that the schema itself would not take (a sentinel of an objective of one's own)."""
    try:
        json.dumps(whole)
        checked(cls, whole, "objective")
    except (SpikedistillError, TypeError):
        return {
            k: v for k, v in whole.items() if isinstance(v, str | int | float | bool | list | dict | None)
        }
    return whole


def _network(stage: Stage, recipe: Recipe, factories: Iterable[str]) -> dict[str, Any]:
    given = dict(stage.network or {})
    name, ann = str(given["name"]), bool(given.get("ann"))
    if name in factories or own_code.is_address(name):
        if given.get("spiking"):
            given = {"gates": "refuse", **given, "neuron": build(given.get("neuron"), IF()).spec()}  # type: ignore[operator]
        return given
    if name.startswith(("timm:", "torchvision:")):
        whole = {**_defaults(from_name, ("name", *NOT_THE_RECIPES)), **given}
        if given.get("spiking") and not ann:
            whole["neuron"] = build(given.get("neuron"), IF()).spec()  # type: ignore[operator]
        return whole
    if name not in networks.names():
        return given
    # Asked of a network that was made, not of a signature: what a family fills in itself, such as its neuron,
    # is in force too.
    keys = [key for key in networks.options(name) if key not in NOT_THE_RECIPES or key in given]
    steps = None if ann else stage.time_steps or recipe.time_steps
    made = untrained(name, {k: v for k, v in given.items() if k in networks.options(name)}, steps)
    return {**given, **{key: made.config["options"][key] for key in keys}}


def untrained(name: str, options: dict[str, Any], time_steps: int | None) -> networks.Network:
    """The network without memory for its weights: what it says of itself is asked, nothing else."""
    given = {**options, "time_steps": time_steps}
    # Only the CPU's generator: to save those of a GPU would start it, for a network that has no values.
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return networks.create(name, **given)
        except (SpikedistillError, MemoryError):
            raise
        except Exception:  # initial weights that must look at values
            return networks.create(name, **given)


# Reading: what an older record leaves out.


def upgraded_recipe(tree: Mapping[str, Any], record: int) -> dict[str, Any]:
    """A recorded recipe with the values of its time where it says nothing."""
    whole: dict[str, Any] = json.loads(json.dumps(tree))
    if record >= RECORD:
        return whole
    stages = whole.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict):
            continue
        for key, value in ADDED_TO_STAGES.items():
            if key in Stage.model_fields:
                stage.setdefault(key, value)
        network = stage.get("network")
        if isinstance(network, dict) and isinstance(network.get("name"), str):
            stage["network"] = _network_1(network, network["name"], bool(network.get("ann")))
    return whole


def upgraded_config(config: Mapping[str, Any], record: int) -> dict[str, Any]:
    """A recorded network (``config.json``'s ``network``) with its time's values where it says nothing."""
    whole: dict[str, Any] = json.loads(json.dumps(config))
    if record >= RECORD:
        return whole
    if isinstance(whole.get("spiking"), dict):
        whole["spiking"]["neuron"] = neuron_1(whole["spiking"].get("neuron") or {"type": "if"})
    if isinstance(whole.get("options"), dict):
        ann = whole["options"].get("time_steps", 4) is None
        whole["options"] = _network_1(whole["options"], str(whole.get("name")), ann)
    return whole


def _network_1(options: dict[str, Any], name: str, ann: bool) -> dict[str, Any]:
    out = dict(options)
    neuron = out.get("neuron")
    if name in networks.names():
        for key, value in ADDED_TO_NETWORKS.items():
            if key in networks.options(name):
                out.setdefault(key, value)
        if neuron is None and not ann:
            families = (family for prefix, family in FAMILIES_1.items() if name.startswith(prefix))
            neuron = next(families)
    elif neuron is None and out.get("spiking") and not ann:
        neuron = {"type": "if"}  # what a turned network gets
    if isinstance(neuron, Mapping):
        out["neuron"] = neuron_1(neuron)
    return out


def neuron_1(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A neuron's mapping of record 1, whole."""
    kind = str(spec.get("type", "lif")).lower()
    if kind not in NEURONS_1 or kind not in TYPES:
        return dict(spec)
    out: dict[str, Any] = {**NEURONS_1[kind], **spec, "type": kind}
    if kind == "lif" and out.get("tau") is None and out.get("decay") is None:
        out["tau"] = 2.0
    surrogate = out["surrogate"]
    if isinstance(surrogate, str):
        surrogate = {"name": surrogate}
    out["surrogate"] = {"alpha": ALPHAS_1.get(surrogate.get("name", "atan")), "name": "atan", **surrogate}
    return out
