"""Recipe ``recommended-cifar10`` on the device: images a second, peak memory by stage, on generated images.

The loop, the loader, augmentation, validation and quantization are those of a training; accuracies mean
nothing. The last of two epochs counts: compiling is in the first.
"""

import time
from typing import Any

import numpy as np
import torch
from gpu import attempt, row

from spikedistill import data as datasets
from spikedistill.precision import resolve_precision
from spikedistill.recipe import Recipe, Stage, load
from spikedistill.training.calibration import calibration_batches, settling_batches
from spikedistill.training.evaluate import evaluate_integer
from spikedistill.training.loop import Training
from spikedistill.training.machine import compiling, peak_memory_mb
from spikedistill.training.progress import Progress
from spikedistill.training.settings import Settings
from spikedistill.training.stage_network import Product, build, distiller_of

RECIPE = "recommended-cifar10"


def generated(recipe: Recipe, images: int) -> datasets.Data:
    """Noise of CIFAR-10's shape."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"class_names": [str(i) for i in range(10)]}
    for part, n in {
        "train": images,
        "validation": max(images // 20, 4),
        "test": max(images // 20, 4),
    }.items():
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(n) % 10
    config = recipe.data.model_copy(update={"name": "arrays", "root": None})
    return datasets.from_arrays(arrays, config, recipe.all_time_steps())


def trained(
    stage: Stage,
    recipe: Recipe,
    data: datasets.Data,
    products: dict[str, Product],
    device: torch.device,
    compiled: bool,
) -> dict[str, Any]:
    """Train one stage as a run does; its product joins ``products``."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    precision, size, seed = resolve_precision(recipe.precision, device), recipe.data.batch_size, recipe.seed

    def calibration() -> list[torch.Tensor]:
        return calibration_batches(data, size, 1024, device)

    def settling(epoch: int = 0) -> list[torch.Tensor]:
        return settling_batches(data, size, 1024, device, epoch)

    network = build(stage, recipe, data.info, products, {}, calibration, settling, seed).to(device)
    products[stage.name] = Product(stage.name, network)
    teachers = {name: products[name].network for name in stage.teachers or {}}
    distiller = distiller_of(stage, network, teachers).to(device)
    distiller.setup(next(iter(data.batches("train", size, device=device)))[0], seed)
    settings = Settings(stage.name, stage.epochs, size, seed, recipe.optimizer_of(stage), device, precision)
    training = Training(distiller, data, settings, Progress(False), None, settling)
    training.channels_last = compiled or precision == "bfloat16"
    with compiling(compiled):
        training.run()
    last = training.position.last
    assert last is not None
    found = {key: last[key] for key in ("images_per_second", "step_time")}
    return {
        "ok": bool(np.isfinite(last["train"]["loss"])), **found, "peak_mb": peak_memory_mb(device),
        "precision": precision,
        "loss": last["train"]["loss"], "batch": size, "seconds": training.position.seconds,
    }  # fmt: skip


def inference(network: Any, data: datasets.Data, device: torch.device, compiled: bool) -> dict[str, Any]:
    """Images per second of the finished network, the second pass of two."""
    network.eval()
    batches = [x for x, _ in data.batches("test", 256, device=device)]
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad(), compiling(compiled):
            for x in batches:
                last = network.predict(x)
        float(last.sum())  # waits for the device
        seconds = time.perf_counter() - start
    return {"images_per_second": sum(map(len, batches)) / seconds}


def integer(network: Any, data: datasets.Data, device: torch.device) -> dict[str, Any]:
    """Predictions of the integer network beside those of the device."""
    found = evaluate_integer(network, list(data.batches("test", 64, device=device))[:2])
    return {
        "ok": found.equal == found.images,
        "equal": found.equal,
        "images": found.images,
        "bytes": found.bytes,
    }


def run(name: str, device: str, quick: bool) -> None:
    """All stages in order; one that fails is a row, and what needs it fails too."""
    overrides = (
        ["data.batch_size=8", "teacher.network.width=0.125", "student.network.width=0.125"] if quick else []
    )
    recipe = load(RECIPE, overrides)
    recipe = load(RECIPE, [*overrides, *(f"{s.name}.epochs={1 if quick else 2}" for s in recipe.stages)])
    data, place = generated(recipe, 32 if quick else 20_000), torch.device(device)
    products: dict[str, Product] = {}
    row("settings", recipe=RECIPE, images=data.info.sizes, overrides=overrides)
    for stage in recipe.stages:
        attempt(stage.name, trained, stage, recipe, data, products, place, not quick)
        if stage.name in products:
            attempt(
                f"{stage.name}, inference", inference, products[stage.name].network, data, place, not quick
            )
    if "quantized" in products:
        attempt("integer network", integer, products["quantized"].network, data, place)
