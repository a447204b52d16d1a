"""How long the stages of a recipe will take, timed on a few steps of each."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ..data import Data
from ..devices import checked
from ..precision import resolve_precision
from ..randomness import apart
from ..recipe import Recipe, Stage
from .machine import autocast, compiling, saving
from .optim import optimizer
from .reuse import stage_keys
from .stage_network import Factories, Product, build, distiller_of

STEPS = 2  # timed, after one that is not
VALIDATED = 1 / 3  # of a training image's time


def seconds_each(
    recipe: Recipe,
    data: Data,
    factories: Factories,
    device: str | None = None,
    held: Mapping[str, Path] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Seconds of one seed of each stage, uncompiled: an upper bound of a guess.

    0 for a stage that is in ``held`` by key. ``say``: is told of each stage as it begins.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    place = checked(device) or there or torch.device("cpu")
    precision = resolve_precision(recipe.precision, place)
    keys = stage_keys(recipe, asdict(data.info), recipe.seed, precision, factories) if held else {}
    products: dict[str, Product] = {}
    seconds: dict[str, float] = {}
    logging.disable(logging.INFO)  # networks are told of again when they are made for the run
    try:
        with apart(), warnings.catch_warnings(), compiling(False):
            warnings.simplefilter("ignore")
            for k, stage in enumerate(recipe.stages, 1):
                if say:
                    say(f"timing {stage.name} on a few steps ({k} of {len(recipe.stages)})")
                taken = held is not None and keys.get(stage.name) in held
                seconds[stage.name] = _seconds(
                    stage, recipe, data, factories, place, precision, products, taken
                )
    finally:
        logging.disable(logging.NOTSET)
    return seconds


def _seconds(
    stage: Stage,
    recipe: Recipe,
    data: Data,
    factories: Factories,
    device: torch.device,
    precision: str,
    products: dict[str, Product],
    taken: bool,
) -> float:
    batch, sizes = recipe.data.batch_size, data.info.sizes
    x, y = next(iter(data.batches("train", batch, train=True, device=device)))
    x = x.double() if precision == "float64" else x
    # Made even where nothing of it is timed: later stages begin from it or learn from it.
    network = build(stage, recipe, data.info, products, factories, lambda: [x], lambda: [x], recipe.seed).to(
        device
    )
    if precision == "float64":
        network.double()
    products[stage.name] = Product(stage.name, network)
    if taken or not stage.epochs:
        return 0.0
    teachers = {name: products[name].network for name in stage.teachers or {}}
    distiller = distiller_of(stage, network, teachers).to(device)
    distiller.setup(x, recipe.seed)
    distiller.train()
    chosen = optimizer(distiller, recipe.optimizer_of(stage))
    started = 0.0
    # The first step allocates, and chooses algorithms, for those that follow.
    for step in range(STEPS + 1):
        if step == 1:
            started = time.perf_counter()
        with autocast(precision, device), saving(recipe.memory, network):
            losses = distiller(x, y, 0.0)
        losses.total.backward()
        float(losses.total)  # waits for the device
        chosen.zero_grad(set_to_none=True)
    image = (time.perf_counter() - started) / STEPS / len(x)
    return image * stage.epochs * (sizes["train"] + VALIDATED * sizes.get("validation", 0))
