"""What a finished stage has to show: test accuracy, rates, membranes, operations, price, integer equality."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data import Data
from ..networks.base import Network
from ..networks.outside.foreign import Foreign
from ..quantization.integer import real_parts
from ..quantization.preparation import DEFAULTS
from ..recipe import Recipe, Stage
from .evaluate import evaluate, evaluate_integer, membrane_histograms, remedy
from .machine import peak_memory_mb
from .summary import Best, Bits, IntegerSummary, LayerSummary, StageSummary, StepTime
from .training_state import TrainingState

PRICED_IMAGES = 128  # images whose spikes are counted for operations and price
MISSED = 1.15  # of the operations aimed at: more is a miss


@dataclass(frozen=True)
class Conditions:
    """Under which a run's stages are measured; ``given``: the recipe as its author wrote it."""

    data: Data
    recipe: Recipe
    given: Recipe
    device: torch.device
    seed: int
    double: bool  # in float64


def stage_summary(
    run: Conditions,
    stage: Stage,
    network: nn.Module,
    teacher: nn.Module | None,
    training: TrainingState | None,
    seconds: float,
) -> StageSummary:
    """The stage's row: everything measured on the test set, once, with the last weights."""
    info, T = run.data.info, getattr(network, "time_steps", None)
    quantized = getattr(network, "config", {}).get("quantize")
    # A quantized network is made for its T, by which its codes have room for sums, and refuses more.
    at = [t for t in stage.accuracy_at if T is None or not quantized or t <= T]

    def batches(split: str) -> Any:
        return batches_of(run, split)

    test = evaluate(network, batches("test"), info.num_classes, time_steps=at, position=("test", run.seed))
    validation = None
    if info.sizes.get("validation"):
        # Drawn as in training, so that the last and the best epoch are measured alike.
        validation = evaluate(
            network, batches("validation"), info.num_classes, rates=False, position=("validation", run.seed)
        )
    rows = test.layers()
    x, _ = next(iter(batches("test")))
    x = x[:PRICED_IMAGES]
    costs = price(network, x, run.recipe.hardware)
    if quantized and quantized["weight_bits"] is not None:  # crossbars hold integer weights
        add_crossbar(costs["hardware"], network, batches, info.num_classes, run.recipe.hardware)
    # Where real numbers remain there is no integer network to compare with.
    whole = quantized and not real_parts(quantized)
    last = (training.position.last if training else None) or {}
    given = run.given.stage(stage.name)  # as its author wrote it; the record holds every value
    spiking = isinstance(network, Network) and network.spiking
    return StageSummary(
        name=stage.name,
        kind="snn" if T else "ann",
        network=dict(given.network) if given.network else _config(network),
        parameters=sum(p.numel() for p in network.parameters()),
        time_steps=T,
        epochs=stage.epochs,
        # Of all sittings: the clock begins anew with each process, the position goes on.
        seconds=training.position.seconds if training else seconds,
        from_=stage.from_,
        teacher=", ".join(stage.teachers) if stage.teachers else None,
        init=stage.init.model_dump(by_alias=True) if stage.init else None,
        convert=stage.convert.model_dump(by_alias=True) if stage.convert else None,
        objectives=given.objectives,
        operations_aim=given.operations,
        accuracy=test.accuracy,
        validation_accuracy=validation.accuracy if validation else None,
        best=Best(**training.position.best) if training and training.position.best else None,
        accuracy_at=test.accuracy_at,
        firing_rate=test.firing_rate,
        layers=rows,
        bits=bits(quantized) if quantized else None,
        confusion=test.confusion.tolist(),
        membranes=membrane_histograms(network, teacher, x[:64]) if spiking else None,
        integer=integer(network, itertools.islice(batches("test"), 8)) if whole else None,
        peak_memory_mb=peak_memory_mb(run.device),
        images_per_second=last.get("images_per_second"),
        step_time=StepTime(**last["step_time"]) if "step_time" in last else None,
        warnings=[
            *_warnings(rows, network),
            *(training.said if training else []),
            *_missed(given.operations, costs.get("synaptic_operations")),
        ],
        **costs,
    )


def _missed(aim: float | None, reached: float | None) -> list[str]:
    """A line where a stage spends far more operations than its training aimed at."""
    if not aim or not reached or reached <= MISSED * aim:
        return []
    return [
        f"{reached:,.0f} operations where training aimed at {aim:,.0f}: train longer, begin nearer "
        f"(network.firing_rate), or let the aim weigh more at once (objectives: {{type: operations_aim, "
        f"operations: {aim:.0f}, weight: 10}} in place of operations)"
    ]


def batches_of(run: Conditions, split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A split as a run measures on it."""
    for x, y in run.data.batches(split, max(run.recipe.data.batch_size, 128), device=run.device):
        yield (x.double() if run.double else x), y


def _warnings(rows: list[LayerSummary], network: nn.Module) -> list[str]:
    """A line for each layer that is dead or saturated, then what to do."""
    found = [
        f"layer {r.path} is {r.warning}: it fires at {100 * r.firing_rate:.2f} %" for r in rows if r.warning
    ]
    return found + sorted({f"{r.warning} layers: {remedy(r.warning, network)}" for r in rows if r.warning})


def _config(network: nn.Module) -> dict[str, Any]:
    """The network's own record, without a conversion's thresholds."""
    return {k: v for k, v in getattr(network, "config", {}).items() if k != "conversion"}


def bits(options: dict[str, Any]) -> Bits:
    """Bits of a quantized network from its options and their defaults; 32 for what stays a float."""
    found = {**DEFAULTS, **options}
    return Bits(**{name: found[f"{name}_bits"] or 32 for name in ("weight", "membrane", "norm")})


def price(network: nn.Module, x: torch.Tensor, hardware: dict[str, Any]) -> dict[str, Any]:
    """Operations per image, their energy, and the chip's price."""
    from ..hardware import layers, operations
    from ..hardware import price as chip

    # somebody else's neurons: what they fire for is not known
    if isinstance(network, Foreign) and network.spiking:
        return {"synaptic_operations": None, "macs": None, "energy_pj": None, "hardware": None}
    found = layers(network, x)
    counted = operations.count(found)
    snn = getattr(network, "time_steps", None) is not None
    return {
        "synaptic_operations": counted.acs if snn else None,
        "macs": counted.macs,
        "energy_pj": counted.energy_pj,
        "hardware": chip(found, hardware) if snn else None,
    }


def add_crossbar(
    tree: dict[str, Any], network: nn.Module, batches: Any, K: int, hardware: dict[str, Any]
) -> None:
    """Beside a price with ADCs of too few bits: the test accuracy that their rounding leaves."""
    from ..hardware.crossbar import simulate
    from ..hardware.pricing import settings

    chip, _ = settings(("recipe", hardware))
    # ADCs of enough bits round nothing: the accuracy is known already.
    if chip.adc_bits is None or chip.adc_bits >= chip.lossless_adc_bits:
        return
    with simulate(network, chip):
        found = evaluate(network, batches("test"), K, rates=False)
    bits = {"adc_bits": chip.adc_bits, "lossless_adc_bits": chip.lossless_adc_bits}
    tree["crossbar"] = {**bits, "accuracy": found.accuracy, "images": found.images}


def integer(network: nn.Module, batches: Any) -> IntegerSummary:
    """Predictions of the integer network beside the fake-quantized one's."""
    found = evaluate_integer(network, batches)
    return IntegerSummary(
        equal_predictions=found.equal == found.images, images=found.images, bytes=found.bytes
    )
