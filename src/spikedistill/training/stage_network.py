"""From a recipe's stage to its untrained network."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import finite, networks
from ..data import DataInfo
from ..distiller import Distiller
from ..errors import at
from ..networks.balancing import balance
from ..networks.base import Network
from ..networks.own import FILLED, Own, make, mark, own_of, parameters
from ..neurons import build as build_neuron
from ..numerics import fitting
from ..randomness import apart, seed_everything
from ..recipe import Recipe, Stage
from .calibration import recalibrate
from .standalone import with_graph
from .store import Factories, find_stage, load_network, own_target


@dataclass
class Product:
    """A finished stage."""

    name: str
    network: nn.Module
    folder: Path | None = None


def build(
    stage: Stage,
    recipe: Recipe,
    info: DataInfo,
    products: Mapping[str, Product],
    factories: Factories,
    calibration: Callable[[], Sequence[Tensor]],
    settling: Callable[[], Sequence[Tensor]],
    seed: int,
) -> nn.Module:
    """The network a stage begins with.

    ``calibration`` gives a few training batches to measure on, ``settling`` the same ones augmented.
    """
    T = stage.time_steps or recipe.time_steps
    for role, other in (
        *(("teacher", name) for name in stage.teachers or {}),
        ("from", stage.from_),
        ("init", stage.init.from_ if stage.init else None),
    ):
        if other is not None and products[other].network is not None:
            what = f"stage {stage.name!r}, {role}: the network of stage {other!r}"
            finite.check(products[other].network, what, "repeat that stage")
    # Of the seed alone: the same weights whatever was drawn before, in a run that goes on too.
    with apart():
        seed_everything(seed, "initial weights")
        if stage.from_ is not None:
            # Who has taught was frozen for it; this copy is to learn.
            network = copy.deepcopy(products[stage.from_].network).requires_grad_(True)
            if stage.time_steps is not None and isinstance(network, Network) and network.spiking:
                network.time_steps = T
        elif stage.convert is not None:
            from ..conversion import convert

            given = stage.convert.model_dump(exclude={"from_"})
            source_ann = products[stage.convert.from_].network
            network = convert(source_ann, list(calibration()), T, **given)
            if (own := own_of(source_ann)) is not None:
                # The graph was of the ANN.
                mark(network, replace(own, graph=None))
        else:
            assert stage.network is not None
            network = named(stage.network, T, info, factories)
        # What comes from an ANN is balanced anew; what comes from a spiking stage is as that stage left it.
        source = products[stage.init.from_].network if stage.init is not None else None
        copied = source is not None and stage.init.method == "copy" and not getattr(source, "spiking", False)  # type: ignore[union-attr]
        finite.check(network, f"stage {stage.name!r}: its initial weights")
        if stage.init is not None:
            initialise(network, products[stage.init.from_].network, stage, calibration)
        if stage.network is not None and isinstance(network, Network) and network.spiking:
            by_data = network.balanced_by == "data" and stage.init is None
            if network.initialisation == "balanced" and (copied or by_data):
                balance(network, calibration())
        if isinstance(network, Network) and wants_recalibration(stage, network, products):
            device = next(network.parameters()).device
            recalibrate(network, [fitting(x, network).to(device) for x in settling()])
        with_graph(network, info)
        if stage.quantize is not None:
            from ..quantization import quantize

            # In the type of the stage that it goes on from.
            batches = [fitting(x, network) for x in calibration()]
            network = quantize(network, **stage.quantize, calibration=batches)  # type: ignore[arg-type]
    return network


def wants_recalibration(stage: Stage, network: Network, products: Mapping[str, Product]) -> bool:
    """Whether norm statistics are measured anew: as the stage says, else if its weights had another T."""
    if stage.recalibrate is not None:
        return stage.recalibrate
    copied = stage.init.from_ if stage.init is not None and stage.init.method == "copy" else stage.from_
    before = getattr(products[copied].network, "time_steps", None) if copied is not None else None
    return before is not None and before != network.time_steps


def named(options: Mapping[str, Any], T: int, info: DataInfo, factories: Factories) -> nn.Module:
    """A network from a recipe's mapping, with what the data set says as defaults."""
    given = dict(options)
    name, ann, weights = given.pop("name"), given.pop("ann", False), given.pop("weights", None)
    steps = None if ann else T
    if (target := own_target(str(name), factories)) is not None:
        network = _own(str(name), target, given, steps, info, name in factories)
    elif str(name).startswith(("timm:", "torchvision:")):
        from ..networks.outside.library import from_name

        spiking = given.pop("spiking", False)
        given.setdefault("num_classes", info.num_classes)
        given.setdefault("in_channels", info.in_channels)
        network = from_name(name, time_steps=steps if spiking else None, **given)
    elif Path(name).is_dir():
        network = load_network(find_stage(Path(name), None))
    else:
        known = networks.options(name)
        defaults: dict[str, Any] = {
            "num_classes": info.num_classes,
            "in_channels": info.in_channels,
            "input": info.input,
        }
        # Other encodings read pixels as rates or times, in [0, 1]: a network with them refuses to normalise.
        if given.get("encoding", "direct") == "direct":
            defaults |= {"mean": info.mean, "std": info.std}
        given.pop("spiking", None)
        network = networks.create(
            name,
            time_steps=steps,
            **{k: v for k, v in defaults.items() if k in known and k not in given},
            **given,
        )
    if weights is not None:
        from ..networks.outside.library import load_weights

        load_weights(network, weights)
    return network


def _own(
    name: str, target: Any, given: dict[str, Any], steps: int | None, info: DataInfo, by_name: bool
) -> nn.Module:
    """A network of somebody's own, turned into a spiking one where the recipe says so."""
    size = {"num_classes": info.num_classes, "in_channels": info.in_channels, "input": info.input}
    known = {**size, "time_steps": steps, "mean": info.mean, "std": info.std}
    taken, turn = parameters(target), given.pop("spiking", False)
    options = {key: value for key, value in given.items() if key in taken}
    recorded = {key: known[key] for key in FILLED if key in taken} | options
    network = make(name, target, options, known)
    if turn:
        # What takes a neuron itself has placed it already.
        neuron = None if "neuron" in taken else given.get("neuron")
        network = networks.spiking(
            network, steps or 1, None if neuron is None else build_neuron(neuron),
            (2, info.in_channels, *info.size),
            info.mean, info.std, given.get("gates", "refuse"),
            "frames" if info.input == "frames" else "image",
            initialisation=given.get("initialisation", "balanced"), firing_rate=given.get("firing_rate"),
        )  # fmt: skip
    own = Own(f"custom:{name}" if by_name else name, json.loads(json.dumps(recorded, default=str)))
    mark(network, own)
    if isinstance(network, Network):
        network.config = {**network.config, "name": own.name}
    return network


def distiller_of(stage: Stage, network: nn.Module, teachers: Mapping[str, nn.Module]) -> Distiller:
    """What trains a stage's network; ``teachers`` by the names of their stages."""
    return Distiller(
        network, dict(teachers) or None, stage.objectives, stage.teachers, stage.teacher_heads,
        stage.backpropagation,
    )  # fmt: skip


def initialise(
    network: nn.Module, source: nn.Module, stage: Stage, calibration: Callable[[], Sequence[Tensor]]
) -> None:
    """Initial weights from another stage's network: parameters of equal names."""
    assert stage.init is not None
    if stage.init.method == "threshold_balancing":
        from ..conversion import balance_thresholds

        balance_thresholds(network, source, list(calibration()), percentile=stage.init.percentile)  # type: ignore[arg-type]
        return
    from ..conversion import copy_weights

    with at(f"stages.{stage.name}.init"):
        copy_weights(network, source)


__all__ = ["Product", "build", "named"]
