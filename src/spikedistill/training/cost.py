"""How long the stages of a recipe will take, timed on a few steps of each."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..data import Data
from ..devices import checked
from ..distiller import Distiller
from ..precision import resolve_precision
from ..randomness import apart
from ..recipe import Recipe, Stage
from .machine import autocast, channels_last, compiling, saving, worth_compiling
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
    """Seconds of one seed of each stage, timed as the stage would run (compiled where that pays): a guess.

    0 for a stage that is in ``held`` by key. ``say``: is told of each stage as it begins.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    place = checked(device) or there or torch.device("cpu")
    precision = resolve_precision(recipe.precision, place)
    keys = stage_keys(recipe, asdict(data.info), recipe.seed, precision, factories) if held else {}
    watch = _Watch(recipe, data, factories, place, precision)
    seconds: dict[str, float] = {}
    logging.disable(logging.INFO)  # networks are told of again when they are made for the run
    try:
        with apart(), warnings.catch_warnings(), compiling(False):
            warnings.simplefilter("ignore")
            for k, stage in enumerate(recipe.stages, 1):
                if say:
                    say(f"timing {stage.name} on a few steps ({k} of {len(recipe.stages)})")
                taken = held is not None and keys.get(stage.name) in held
                seconds[stage.name] = watch.seconds(stage, taken)
    finally:
        logging.disable(logging.NOTSET)
    return seconds


class _Watch:
    """Times stages one after the other; earlier ones stand in, untrained, where later ones need them."""

    def __init__(
        self, recipe: Recipe, data: Data, factories: Factories, device: torch.device, precision: str
    ):
        self.recipe, self.data, self.factories = recipe, data, factories
        self.device, self.precision = device, precision
        self.products: dict[str, Product] = {}
        self.compiles: dict[str, bool] = {}

    def seconds(self, stage: Stage, taken: bool) -> float:
        """Of one stage: 0 where it is taken over or trains nothing."""
        recipe, sizes = self.recipe, self.data.info.sizes
        x, y = next(iter(self.data.batches("train", recipe.data.batch_size, train=True, device=self.device)))
        x = x.double() if self.precision == "float64" else x
        # Made even where nothing of it is timed: later stages begin from it or learn from it.
        info, batches = self.data.info, lambda: [x]
        network = build(stage, recipe, info, self.products, self.factories, batches, batches, recipe.seed)
        network.to(self.device)
        if self.precision == "float64":
            network.double()
        self.products[stage.name] = Product(stage.name, network)
        if taken or not stage.epochs:
            return 0.0
        teachers = {name: self.products[name].network for name in stage.teachers or {}}
        distiller = distiller_of(stage, network, teachers).to(self.device)
        distiller.setup(x, recipe.seed)
        distiller.train()
        compiled = self.compiled(stage, distiller, x, y)
        if channels_last(compiled, self.precision):
            distiller.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        chosen = optimizer(distiller, recipe.optimizer_of(stage))
        started = 0.0
        with compiling(compiled):
            # The first step compiles, allocates, and chooses algorithms, for those that follow.
            for step in range(STEPS + 1):
                if step == 1:
                    started = time.perf_counter()
                with autocast(self.precision, self.device), saving(recipe.memory, network):
                    losses = distiller(x, y, 0.0)
                losses.total.backward()
                float(losses.total)  # waits for the device
                chosen.zero_grad(set_to_none=True)
        image = (time.perf_counter() - started) / STEPS / len(x)
        return image * stage.epochs * (sizes["train"] + VALIDATED * sizes.get("validation", 0))

    def compiled(self, stage: Stage, distiller: Distiller, x: Tensor, y: Tensor) -> bool:
        """Whether the stage would run compiled; of stages that train equal networks the first decides."""
        if self.recipe.compile != "auto":
            return bool(self.recipe.compile)
        network = str((stage.network, stage.from_, stage.quantize))
        if network not in self.compiles:
            steps = stage.epochs * (self.data.info.sizes["train"] // len(x))
            with autocast(self.precision, self.device):
                self.compiles[network] = worth_compiling(distiller, x, y, steps, self.recipe.memory)
        return self.compiles[network]
