"""Evaluate a finished stage again: other T, recalibrated, as an integer network, on a crossbar."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn

from .. import data as datasets
from .. import heap, own_code
from ..data import Data
from ..devices import checked
from ..errors import SpikedistillError
from ..networks.base import Network
from ..recipe import Recipe
from .calibration import CALIBRATION_IMAGES, recalibrated, settling_batches
from .calibration import recalibrate as recalibrate_norms
from .evaluate import evaluate, evaluate_integer
from .run_folder import FILE, check_data, read_claim
from .store import find_stage, load_network, split_best


@dataclass
class Reading:
    """Accuracies by T (fractions), on ``images`` test images; ``columns`` by what was asked for."""

    run: str
    stage: str
    images: int
    columns: dict[str, dict[int | None, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Wanted(TypedDict, total=False):
    """What :func:`reevaluate` can be asked besides the run, and the device to do it on."""

    time_steps: Sequence[int]
    integer: bool
    recalibrate: bool
    rebin: bool
    crossbar: bool
    device: str


def split_run(text: str) -> tuple[Path, str | None]:
    """``folder[/seed-N][:STAGE[@best]]`` into folder and stage; a run of one seed has no folder for it."""
    before, colon, after = text.rpartition(":")
    # A path that exists is one, colon or not.
    folder, stage = (Path(before), after) if colon and not Path(text).exists() else (Path(text), None)
    if not folder.exists() and (folder.parent / "recipe.yaml").exists():
        _, recipe = read_claim(folder.parent)
        if recipe.seeds == 1 and folder.name == f"seed-{recipe.seed}":
            folder = folder.parent
    return folder, stage


def open_run(text: str, data: Data | None = None) -> tuple[Path, Recipe, Data, Any]:
    """Stage folder, recipe, data and network of a run as the command line names it."""
    place, recipe, network = open_stage(text)
    with own_code.reading():
        opened = data if data is not None else datasets.open(recipe.data, recipe.all_time_steps())
    # With --data the caller says which data are meant: then others than the run's are no mistake.
    if not datasets.moved():
        check_data(place.parents[1], opened.info)
    return place, recipe, opened, network


def open_stage(text: str) -> tuple[Path, Recipe, Any]:
    """Stage folder, recipe and network of a run as the command line names it."""
    folder, stage = split_run(text)
    if not folder.exists():
        raise SpikedistillError(f"no run at {folder}; give the folder that `spikedistill train` wrote")
    stage, best = split_best(stage)
    # Whole: of a folder named from inside, the run would not be among the parents.
    place = find_stage(folder, stage).resolve()
    if not any((parent / FILE).exists() for parent in (*place.parents[1:3], place)):
        raise SpikedistillError(
            f"{place} is a network without its run, which says what data and time steps it is measured on; "
            "give the run's folder, or load it in Python with sd.load"
        )
    _, recipe = read_claim(place.parents[1])
    with own_code.reading():
        return place, recipe, load_network(place, best=best)


def reevaluate(
    text: str,
    time_steps: Sequence[int] = (),
    integer: bool = False,
    recalibrate: bool = False,
    rebin: bool = False,
    crossbar: bool = False,
    device: str = "cpu",
    data: Data | None = None,
) -> Reading:
    """Test accuracy of a stage; T up to the network's own are the first steps of one simulation.

    Further columns: ``recalibrate``, norm statistics of that T; ``rebin``, each recording cut anew into T
    frames, statistics recalibrated; ``integer``, the integer network; ``crossbar``, partial sums through the
    ADCs of the recipe's chip.
    """
    device = str(checked(device))
    place, recipe, opened, network = open_run(text, data)
    stage = place.name
    heap.keep()
    network.to(device)
    own = network.time_steps if isinstance(network, Network) else None
    if own is None and time_steps:
        raise SpikedistillError(f"stage {stage!r} is an ANN: it has no time steps")
    quantized = getattr(network, "config", {}).get("quantize")
    if quantized and own is not None and any(own < T for T in time_steps):
        raise SpikedistillError(
            f"stage {stage!r} is quantized for T up to {own}; it cannot run {max(time_steps)} steps"
        )
    batch = max(recipe.data.batch_size, 128)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return opened.batches("test", batch, device=device)

    found = evaluate(network, batches(), opened.info.num_classes, time_steps=time_steps, rates=False)
    reading = Reading(text, stage, found.images)
    reading.columns["accuracy"] = {**{T: found.accuracy_at[T] for T in time_steps}} or {own: found.accuracy}
    if recalibrate:
        if own is None or quantized:
            raise SpikedistillError("--recalibrate is for full-precision spiking networks with batch norms")
        batches_of_norms = _settling(opened, recipe, device)
        column: dict[int | None, float] = {}
        for T in time_steps or [own]:
            # A copy for each T: the statistics of one are not those of the next.
            fresh = recalibrated(network, batches_of_norms, T)
            at = evaluate(fresh, batches(), opened.info.num_classes, time_steps=[T], rates=False)
            column[T] = at.accuracy_at[T]
        reading.columns["recalibrated"] = column
    if rebin:
        each: Sequence[int | None] = time_steps or [own]
        reading.columns["rebinned"] = {T: _rebinned(network, recipe, T, device, stage) for T in each}
    if crossbar:
        reading.columns["crossbar"] = {
            own: _crossbar(network, batches(), opened.info.num_classes, recipe, reading)
        }
    if integer:
        reading.columns["integer"] = {own: _integer(network, batches(), stage, quantized, reading)}
    return reading


def _settling(data: Data, recipe: Recipe, device: str) -> list[Tensor]:
    return settling_batches(data, recipe.data.batch_size, 4 * CALIBRATION_IMAGES, device)


def _rebinned(network: nn.Module, recipe: Recipe, T: int | None, device: str, stage: str) -> float:
    refusal = f"--rebin is for full-precision spiking networks on event frames; stage {stage!r} is none"
    if not isinstance(network, Network) or network.input != "frames" or "quantize" in network.config:
        raise SpikedistillError(refusal)
    if T is None:  # an ANN that sees frames
        raise SpikedistillError(refusal)
    data = datasets.open(recipe.data, [T])
    # The columns that follow measure the network as it was saved.
    copied = copy.deepcopy(network)
    copied.time_steps = T
    recalibrate_norms(copied, _settling(data, recipe, device))
    batches = data.batches("test", max(recipe.data.batch_size, 128), device=device)
    return evaluate(copied, batches, data.info.num_classes, rates=False).accuracy


def _crossbar(
    network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], K: int, recipe: Recipe, reading: Reading
) -> float:
    from ..hardware.crossbar import simulate
    from ..hardware.pricing import settings

    chip, _ = settings(("recipe", recipe.hardware))
    bits = chip.adc_bits or chip.lossless_adc_bits
    reading.notes.append(
        f"crossbar: {chip.crossbar_size} rows, {chip.cell_bits} bits a cell, ADCs of {bits} bits "
        f"(lossless: {chip.lossless_adc_bits})"
    )
    with simulate(network, chip):
        return evaluate(network, batches, K, rates=False).accuracy


def _integer(
    network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], stage: str, quantized: Any, reading: Reading
) -> float:
    if not quantized:
        raise SpikedistillError(f"stage {stage!r} is not quantized; --integer needs a stage with `quantize:`")
    found = evaluate_integer(network, batches)
    reading.notes.append(
        f"integer network: {found.equal} of {found.images} predictions equal to the fake-quantized "
        f"network's, {found.bytes:,} bytes"
    )
    return found.right / found.images
