"""The whole price of a network, never one number alone: what summary, report page and terminal show."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..drawn import drawn
from ..errors import SpikedistillError
from ..typed import parse
from . import chips as chip_models
from . import floorline, memory, operations, spikesim
from .ann import activation_bits, break_even, twin
from .config import Config, read_config
from .files import check_geometry, read_layers, resolve
from .floorline import FloorlineConfig
from .layer import Layer
from .memory import MemoryConfig
from .operations import is_spiking

Tree = dict[str, Any]
FIGURES = (
    "pes",
    "tiles",
    "area_um2",
    "energy_pj",
    "latency_ns",
    "edap",
    "tops",
    "tops_per_w",
    "tops_per_mm2",
)
DEFINITIONS = {
    "energy_pj": "pJ per inference of one image",
    "latency_ns": "ns per inference of one image",
    "area_um2": "um2 of the whole chip",
    "edap": "energy x latency x area, uJ ms mm2",
    "tops": "dense operations (2 per multiply-accumulate, zero inputs included) per second, 1e12",
    "tops_per_w": "dense operations per joule, 1e12",
    "tops_per_mm2": "TOPS per mm2",
}


class Price(dict[str, Any]):
    """A price: plain JSON-able values by name, shown in a notebook as tables."""

    _repr_html_ = drawn("price")


def _chips(layers: Sequence[Layer], config: Config) -> Tree:
    """Reports for dense activity, and for events where anything was measured."""
    found: Tree = {
        "dense": spikesim.evaluate(layers, config.model_copy(update={"activity": "dense"})).as_dict()
    }
    if any(layer.events is not None for layer in layers):
        event = spikesim.evaluate(layers, config.model_copy(update={"activity": "event"})).as_dict()
        counted = operations.count(layers)
        effective = 2 * (counted.acs + counted.macs)  # zero spikes left out
        found["event"] = {
            **event,
            "effective_operations": effective,
            "effective_tops_per_w": effective / event["energy_pj"] if event["energy_pj"] else None,
        }
    return found


def _all(
    layers: Sequence[Layer], config: Config, memory_config: MemoryConfig, chips: Mapping[str, Any] | None
) -> Tree:
    return {
        "spikesim": _chips(layers, config),
        "operations": operations.count(layers).as_dict(),
        "memory": memory.estimate(layers, memory_config).as_dict(),
        **({"chips": chip_models.evaluate(layers, chips)} if chips else {}),
    }


def price(
    layers: Sequence[Layer],
    config: Config | Mapping[str, Any] | None = None,
    memory_config: MemoryConfig | None = None,
    floorline_config: FloorlineConfig | None = None,
    chips: Mapping[str, Any] | None = None,
) -> Tree:
    """All that this package says of a network, as JSON-able values; keys are those of ``docs/run_folder.md``.

    ``config``: the chip, or a recipe's ``hardware`` section (``{spikesim: ..., memory: ..., floorline: ...,
    chips: ...}``), over which the other arguments go. ``chips``: chip models of your own by name or address,
    each with its options (:mod:`.chips`).

    ``spikesim.dense`` and ``.event``, ``operations``, ``memory``, ``floorline``; for an SNN in corrected mode
    also ``ann_twin`` (all but the last at equal bits, activations of ceil(log2(T + 1)) bits) and
    ``break_even`` (firing rates).

    Raises: SpikedistillError when no layer can be priced.
    """
    if isinstance(config, Mapping):
        floorline_config = floorline_config or parse(
            FloorlineConfig, config.get("floorline") or {}, "hardware: floorline"
        )
        chips = chips or config.get("chips")
        config, of_recipe = settings(("hardware", config))
        memory_config = memory_config or of_recipe
    config, memory_config = config or Config(), memory_config or MemoryConfig()
    tree = Price(_all(layers, config, memory_config, chips))
    tree["floorline"] = floorline.evaluate(layers, floorline_config).as_dict()
    tree["config"] = config.model_dump()
    tree["definitions"] = DEFINITIONS
    if is_spiking(layers) and config.mode == "corrected":
        steps = max(layer.time_steps for layer in layers)
        tree["ann_twin"] = {
            "activation_bits": activation_bits(steps),
            **_all(twin(layers), config, memory_config, chips),
        }
        tree["break_even"] = asdict(break_even(layers, config, memory_config))
    return tree


def headline(tree: Mapping[str, Any], activity: str = "dense") -> Tree:
    """The ``--json`` object: the figures of one SpikeSim report at the top, the rest of `price` beside."""
    report = tree["spikesim"].get(activity) or tree["spikesim"]["dense"]
    return Price({**report, **{key: value for key, value in tree.items() if key not in report}})


def settings(*sources: tuple[str, Mapping[str, Any] | None]) -> tuple[Config, MemoryConfig]:
    """Chip and memory settings from ``hardware`` sections, later over earlier.

    Keys ``spikesim``, ``memory``, ``floorline`` and ``chips``, of which the last two are only checked here.

    Raises: SpikedistillError for unknown keys.
    """
    given = [(name, source) for name, source in sources if source]
    for name, source in given:
        if unknown := set(source) - {"chips", "spikesim", "memory", "floorline"}:
            raise SpikedistillError(
                f"{name}: unknown key {sorted(unknown)[0]!r}; known: 'chips', 'floorline', 'memory', "
                "'spikesim'"
            )
        # source by source, before anything is merged: an error names the one that holds the key
        parse(FloorlineConfig, source.get("floorline") or {}, f"{name}: floorline")
        chip_models.check(source.get("chips") or {}, f"{name}: chips")
    chip = resolve(
        *((f"{name}: spikesim", source["spikesim"]) for name, source in given if source.get("spikesim"))
    )
    merged: dict[str, Any] = {}
    for name, source in given:
        parse(MemoryConfig, source.get("memory") or {}, f"{name}: memory")
        merged |= source.get("memory") or {}
    return chip, parse(MemoryConfig, merged, "memory")


def price_file(path: str | Path, config_path: str | Path | None = None) -> Tree:
    """`headline` of a layer file; ``--config`` over the file. ``reasons``: why a figure has no value.

    Raises: SpikedistillError for anything wrong in either file; in corrected mode also for sizes that do not
    fit.
    """
    layers, chip = read_layers(path)
    over = {"spikesim": read_config(config_path)} if config_path else None
    config, memory_config = settings((str(path), {"spikesim": chip}), (str(config_path), over))
    if config.mode == "corrected":
        check_geometry(layers, str(path))
    return headline(price(layers, config, memory_config), config.activity)


def against(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float | None]:
    """Figures of one report divided by those of another, A / B; below 1 A needs less (TOPS: gives less)."""
    ratios: dict[str, float | None] = {}
    for key in FIGURES:
        a, b = mine.get(key), theirs.get(key)
        ratios[key] = a / b if a is not None and b else None
    return ratios


def iso_accuracy(
    accuracy: float, others: Sequence[tuple[str, float, Mapping[str, Any]]], figure: str = "energy_pj"
) -> tuple[str, float, Mapping[str, Any]]:
    """The cheapest by ``figure`` of (name, accuracy, report) whose accuracy reaches ``accuracy``.

    Raises: SpikedistillError when none reaches it.
    """
    reaching = [item for item in others if item[1] >= accuracy and item[2].get(figure) is not None]
    if not reaching:
        best = max((item[1] for item in others), default=float("nan"))
        raise SpikedistillError(
            f"none of {len(others)} runs reaches accuracy {accuracy:.4f} (best {best:.4f}); add runs, "
            "or leave --iso-accuracy out"
        )
    return min(reaching, key=lambda item: item[2][figure])
