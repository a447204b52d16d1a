"""When each layer starts and ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from .config import Config
from .layer import Layer
from .spikesim_mapping import Placement

PUBLISHED_DEPTH = 12


@dataclass(frozen=True)
class Times:
    """Start, end and duration of one layer, ns; None where the published code has no answer."""

    start: float | None
    end: float | None
    duration: float | None


def _why_none(mapped: Sequence[tuple[Layer, Placement]], config: Config) -> str | None:
    on, size = config.switches, config.crossbar_size
    fractions = [(layer.in_channels / size) * (layer.out_channels / size) for layer, _ in mapped]
    if not on.any_order and fractions != sorted(fractions):
        return "PE counts (here without rounding up) decrease along the list, where the published code stops"
    if (
        not on.any_order
        and ceil(sum(fractions) / config.pe_per_tile) > 0
        and not any(int(count) for count in fractions)
    ):
        return "every layer fills less than one PE, where the published code never returns"
    if not on.any_depth and len(mapped) > PUBLISHED_DEPTH:
        return f"{len(mapped)} layers, and the published code takes at most {PUBLISHED_DEPTH}"
    return None


def latency(
    mapped: Sequence[tuple[Layer, Placement]], config: Config, reasons: dict[str, str]
) -> dict[str, Times] | None:
    """Times by layer: a layer starts when the one before it is 75 % done, steps run one after another.

    ``N_i = sites * Cout`` PE cycles a step as published, ``sites * planes`` with the switch
    ``latency_cycles``; ``end_i = N_i T_i + sum_{j<i} int(0.75 N_j) T_j``. None, with the reason, where the
    published code has no answer.
    """
    if reason := _why_none(mapped, config):
        reasons["latency_ns"] = reason
        return None
    overlap, cycle = config.technology.layer_overlap, config.cycle_ns
    begun, times = 0, {}
    for layer, placed in mapped:
        cycles = placed.sites * (placed.planes if config.switches.latency_cycles else layer.out_channels)
        total = cycles * placed.executions
        times[layer.name] = Times(begun * cycle, (begun + total) * cycle, total * cycle)
        # cut to whole cycles as in the published code, whose start times are met to 1e-9
        begun += int(overlap * cycles) * placed.executions
    return times
