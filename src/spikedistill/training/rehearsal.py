"""Everything is checked before anything runs: two images go through all stages, losses, optimizers, results.

Earlier stages stand in untrained, nothing is compiled, the generators are put back. What fails here would
have failed after the stages before it had trained.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import nn

from .. import networks
from ..data import Data
from ..data.stores import Split
from ..errors import SpikedistillError, at
from ..randomness import apart
from ..recipe import Recipe, Stage
from .bfloat16 import trainable_precision
from .machine import available
from .optim import optimizer
from .records import untrained
from .stage_measures import Conditions, stage_summary
from .stage_network import Product, build, distiller_of
from .store import Factories

IMAGES, CALIBRATION = 2, 16


def rehearse(
    recipe: Recipe,
    data: Data,
    factories: Factories,
    optional: Collection[str] = (),
    say: Callable[[str], None] | None = None,
    device: str | None = None,
) -> dict[str, str]:
    """Raises :class:`SpikedistillError`, naming the stage, for what a run of this recipe would fail at.

    Of ``optional`` stages, which no other rests on, the error's words are given back instead, by stage.
    ``say``: is told of each stage as it begins. ``device``: the kind that the run will train on,
    where that is known; all this is done on the CPU.
    """
    refused: dict[str, str] = {}
    _labels(data)
    few = _few(data)
    products: dict[str, Product] = {}
    logging.disable(logging.INFO)  # networks are told of again when they are made for the run
    try:
        with apart(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with at("data"):
                # As in training: what the augmentation cannot do with these images shows too.
                x, y = _explained(lambda: next(iter(few.batches("train", IMAGES, train=True))))
            for k, stage in enumerate(recipe.stages, 1):
                if say:
                    say(f"trying {stage.name} on {IMAGES} images ({k} of {len(recipe.stages)})")
                try:
                    with at(f"stages.{stage.name}"):
                        # First: making a network that memory does not hold may end the process without an
                        # error.
                        _fits(stage, recipe)
                        network = _explained(
                            lambda stage=stage: _stage(stage, recipe, few, products, factories, x, y, device)
                        )
                except SpikedistillError as error:
                    if stage.name not in optional:
                        raise
                    refused[stage.name] = str(error).removeprefix(f"stages.{stage.name}").lstrip(".: ")
                    continue
                products[stage.name] = Product(stage.name, network)
    finally:
        logging.disable(logging.NOTSET)
    return refused


def _explained(work):  # type: ignore[no-untyped-def]
    """What the libraries say of a shape, a label or a memory that does not fit, in one line."""
    try:
        return work()
    except (SpikedistillError, OSError):
        raise
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SpikedistillError(f"two images do not pass: {said.strip()} ({type(error).__name__})") from error


def _stage(
    stage: Stage,
    recipe: Recipe,
    data: Data,
    products: Mapping[str, Product],
    factories: Factories,
    x: torch.Tensor,
    y: torch.Tensor,
    device: str | None,
) -> nn.Module:
    def calibration() -> list[torch.Tensor]:
        return [next(iter(data.batches("train", CALIBRATION)))[0]]

    double = recipe.precision == "float64"
    network = build(stage, recipe, data.info, products, factories, calibration, calibration, recipe.seed)
    teachers = {name: copy.deepcopy(products[name].network) for name in stage.teachers or {}}
    x = x.double() if double else x
    if double:
        network.double()
    if stage.epochs:
        if recipe.precision == "bfloat16" and device == "cpu":
            trainable_precision("bfloat16", "bfloat16", network, x, stage.name)
        distiller = distiller_of(stage, network, teachers)
        distiller.setup(
            x[:1].expand(recipe.data.batch_size, *x.shape[1:]), recipe.seed
        )  # adapters know the batch's size
        distiller.train()
        losses = distiller(x, y, 0.0)
        _classes(losses.logits, data)
        if losses.total.requires_grad:
            losses.total.backward()
        optimizer(distiller, recipe.optimizer_of(stage))
        distiller.zero_grad(set_to_none=True)
    network.eval()
    with torch.no_grad():
        out = network(x)
        _classes(out.mean(0) if out.dim() == 3 else out, data)
    run = Conditions(data, recipe, recipe, torch.device("cpu"), recipe.seed, double)
    row = stage_summary(run, stage, network, next(iter(teachers.values()), None), None, 0.0)
    # The row has to go into a file: what JSON does not take shows here, not after the training.
    json.loads(row.model_dump_json())
    return network


def _few(data: Data) -> Data:
    """The data set with so few images in each split, read in this process."""
    few = {
        name: min(CALIBRATION if name == "train" else IMAGES, size) for name, size in data.info.sizes.items()
    }
    splits = {}
    for name, split in data.splits.items():
        left, pieces = few[name], []
        for part, rows in split.pieces:
            pieces.append((part, rows[:left]))
            left -= len(pieces[-1][1])
        splits[name] = Split(pieces)
    # No workers: starting them takes longer than reading so few images.
    return Data(replace(data.info, sizes=few), splits, data.augment, 0)


def _labels(data: Data) -> None:
    for name in data.splits:
        labels = data.labels(name)
        if len(labels) and int(labels.max()) >= data.info.num_classes:
            raise SpikedistillError(
                f"data: the {name} part has the label {int(labels.max())}; there are {data.info.num_classes} "
                "classes, counted from 0"
            )
    if not len(data.labels("train")) or not len(data.labels("test")):
        raise SpikedistillError(
            "data: the train or the test part is empty; lower data.validation, or give more images"
        )


def _classes(logits: torch.Tensor, data: Data) -> None:
    if logits.shape[-1] < data.info.num_classes:
        raise SpikedistillError(
            f"the network tells {logits.shape[-1]} classes apart, the data have {data.info.num_classes}; "
            "leave num_classes out"
        )


def _fits(stage: Stage, recipe: Recipe) -> None:
    """Weights, gradients and one optimizer state of a network known by name, against the memory there is."""
    options = dict(stage.network or {})
    if options.get("name") not in networks.names():
        return
    known = networks.options(options["name"])
    given = {key: value for key, value in options.items() if key in known and key != "name"}
    made = untrained(
        options["name"], given, None if options.get("ann") else stage.time_steps or recipe.time_steps
    )
    # Against the computer's memory wherever it trains: a network is made on the CPU and moved then.
    needed = 3 * sum(p.numel() * 4 for p in made.parameters())
    free = available(torch.device("cpu"))
    if free is not None and needed > free:
        raise SpikedistillError(
            f"network {options['name']!r} takes {needed / 1e9:,.1f} GB with gradients and optimizer, "
            f"{free / 1e9:,.1f} GB are free; lower its width"
        )


__all__ = ["rehearse"]
