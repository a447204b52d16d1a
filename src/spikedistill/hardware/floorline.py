"""Floorline: a step lasts as long as its busiest core, in synaptic operations, neuron updates or messages.

J. Yik et al., "Modeling and optimizing performance bottlenecks for neuromorphic accelerators" (arXiv
2511.21549), from runs on AKD1000, Speck and Loihi 2: network-wide sparsity does not tell the time of a step,
the largest load of one core does::

    step = max over cores of  max(synop_ns synops, update_ns updates, message_ns messages)

The paper's constants are not known to us: each is a setting, None until given, and without all three the
model says loads, not times. Loads are averages over the T steps of an inference; a single step may be busier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import SpikedistillError, nearest
from ..typed import Strict
from .layer import Layer
from .operations import membrane_updates, synaptic_events

BOUNDS: dict[str, Literal["memory", "compute", "traffic"]] = {
    "synops": "memory",
    "updates": "compute",
    "messages": "traffic",
}


class FloorlineConfig(Strict):
    """Settings of the model (recipe key ``hardware.floorline``).

    Constants are None: no public source of them was found.
    """

    synop_ns: float | None = Field(None, gt=0)
    """Time of one synaptic operation in a core: a weight is fetched and added."""
    update_ns: float | None = Field(None, gt=0)
    """Time of one neuron update in a core."""
    message_ns: float | None = Field(None, gt=0)
    """Time of one message that a core sends."""
    cores: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Cores of a weight layer and the neurons it charges, by the layer's name; others have as many as they
    need.
    """
    neurons_per_core: int | None = Field(None, ge=1)
    """A layer that ``cores`` does not name has one core for so many outputs; None: one core in all."""
    multicast: bool = False
    """One message reaches all cores of the next layer; else each of them gets its own (our reading of
    both).
    """

    @property
    def timed(self) -> bool:
        """Whether all three constants are given."""
        return None not in (self.synop_ns, self.update_ns, self.message_ns)


@dataclass(frozen=True)
class Load:
    """What one layer's busiest core does in a step, on average; ``time_ns``, ``bound`` need constants."""

    name: str
    cores: int
    synops: float
    updates: float
    messages: float
    time_ns: float | None = None
    bound: Literal["memory", "compute", "traffic"] | None = None


@dataclass(frozen=True)
class Floorline:
    """Loads by layer, and of the whole network the largest of each.

    ``step_ns``: time of a step, ``inference_ns``: of T steps (layers work at once, each on its own step),
    ``slowest``: the layer that decides, ``bound`` by what; None without constants. ``busiest``: the layer
    with the largest load of each kind.
    """

    layers: list[Load]
    cores: int
    synops: float
    updates: float
    messages: float
    busiest: dict[str, str]
    step_ns: float | None
    inference_ns: float | None
    slowest: str | None
    bound: str | None
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class _Whole:
    """A weight layer and the neurons it charges, per inference; ``next``: weight layers that read it."""

    layer: Layer
    synops: float
    updates: float
    messages: float
    next: tuple[str, ...]


def _weighted(layer: Layer) -> bool:
    return layer.kind in ("conv", "linear")


def _sources(layer: Layer, by_name: Mapping[str, Layer]) -> list[str]:
    """The weight layers whose outputs reach a layer's inputs, through whatever has no weights."""
    waiting, found, seen = list(layer.inputs), [], set()
    while waiting:
        name = waiting.pop()
        # paths meet again behind a residual
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        if _weighted(by_name[name]):
            found.append(name)
        else:
            waiting += by_name[name].inputs
    return found


def _readers(layers: Sequence[Layer]) -> dict[str, list[str]]:
    """For each weight layer the weight layers that its output reaches."""
    by_name = {layer.name: layer for layer in layers}
    out: dict[str, list[str]] = {layer.name: [] for layer in layers if _weighted(layer)}
    for layer in layers:
        for name in _sources(layer, by_name) if _weighted(layer) else ():
            out[name].append(layer.name)
    return out


def _owner(layer: Layer, by_name: Mapping[str, Layer], order: Mapping[str, int]) -> str | None:
    """The weight layer on whose cores a neuron lives: the last that charges it."""
    return max(_sources(layer, by_name), key=order.__getitem__, default=None)


def _wholes(layers: Sequence[Layer], notes: list[str]) -> list[_Whole]:
    by_name = {layer.name: layer for layer in layers}
    order = {layer.name: i for i, layer in enumerate(layers)}
    readers = _readers(layers)
    neurons: dict[str, list[Layer]] = {name: [] for name in readers}
    for layer in layers:
        if membrane_updates(layer):
            owner = layer.name if _weighted(layer) else _owner(layer, by_name, order)
            if owner is None:
                notes.append(f"{layer.name}: no weight layer feeds it, so no core is its; left out")
            else:
                neurons[owner].append(layer)
    out = []
    for layer in layers:
        if not _weighted(layer):
            continue
        synops = float(layer.connections * layer.runs)
        if layer.input_kind != "real":
            events = synaptic_events(layer)
            if events is None:
                notes.append(f"{layer.name}: spikes not measured, every input counts as active")
            synops = synops * layer.input_max if events is None else events
        synops *= layer.passes
        mine = neurons[layer.name]
        dense = float(layer.outputs_per_run * layer.runs)
        sent = [n.spikes_out for n in mine if n.spikes_out is not None]
        if mine and not sent:
            notes.append(f"{layer.name}: output spikes not measured, every neuron counts as firing")
        updates = float(sum(membrane_updates(n) * max(1.0, n.terms) for n in mine)) or dense
        messages = sum(sent) if sent else float(sum(membrane_updates(n) for n in mine)) or dense
        out.append(_Whole(layer, synops, updates, messages, tuple(readers[layer.name])))
    return out


def _cores(layer: Layer, config: FloorlineConfig) -> int:
    if layer.name in config.cores:
        return config.cores[layer.name]
    return ceil(layer.outputs_per_run / config.neurons_per_core) if config.neurons_per_core else 1


def _load(whole: _Whole, cores: Mapping[str, int], steps: int, config: FloorlineConfig) -> Load:
    name, outputs = whole.layer.name, whole.layer.outputs_per_run
    share = ceil(outputs / cores[name]) / outputs / steps  # the fullest core, one step
    # at least one: the last layer has no reader and still sends its outputs
    copies = 1 if config.multicast else max(1, sum(cores[n] for n in whole.next))
    loads = {
        "synops": whole.synops * share,
        "updates": whole.updates * share,
        "messages": whole.messages * copies * share,
    }
    if not config.timed:
        return Load(name, cores[name], loads["synops"], loads["updates"], loads["messages"])
    factors = {"synops": config.synop_ns, "updates": config.update_ns, "messages": config.message_ns}
    # `timed` has ruled None out; the 0.0 is for the type checker
    times = {key: load * (factors[key] or 0.0) for key, load in loads.items()}
    slowest = max(times, key=times.__getitem__)
    return Load(
        name,
        cores[name],
        loads["synops"],
        loads["updates"],
        loads["messages"],
        times[slowest],
        BOUNDS[slowest],
    )


def evaluate(layers: Sequence[Layer], config: FloorlineConfig | None = None) -> Floorline:
    """Loads and, with constants, times of one inference of one image.

    A layer's outputs are spread evenly over its cores, its synaptic operations, updates and messages with
    them; layers with real inputs count every connection, the last layer one update and one message an output.

    Raises: SpikedistillError for cores of a layer that is not there, or more cores than it has outputs.
    """
    config = config or FloorlineConfig()
    notes: list[str] = []
    wholes = _wholes(layers, notes)
    if not wholes:
        raise SpikedistillError("no convolution and no linear layer: nothing to price")
    names = [whole.layer.name for whole in wholes]
    for name in config.cores:
        if name not in names:
            raise SpikedistillError(f"floorline.cores: no weight layer {name!r}; {nearest(name, names)}")
    cores = {whole.layer.name: _cores(whole.layer, config) for whole in wholes}
    for whole in wholes:
        if cores[whole.layer.name] > whole.layer.outputs_per_run:
            raise SpikedistillError(
                f"floorline.cores: {whole.layer.name} has {whole.layer.outputs_per_run} outputs, found "
                f"{cores[whole.layer.name]} cores; give at most one an output"
            )
    steps = max(layer.time_steps for layer in layers)
    loads = [_load(whole, cores, steps, config) for whole in wholes]
    busiest = {key: max(loads, key=lambda load: getattr(load, key)) for key in BOUNDS}
    slowest = max(loads, key=lambda load: load.time_ns or 0.0) if config.timed else None
    if not config.timed:
        notes.append(
            "no times: no public source of synop_ns, update_ns and message_ns was found; give all three"
        )
    return Floorline(
        layers=loads,
        cores=sum(cores.values()),
        synops=busiest["synops"].synops,
        updates=busiest["updates"].updates,
        messages=busiest["messages"].messages,
        busiest={key: load.name for key, load in busiest.items()},
        step_ns=slowest.time_ns if slowest else None,
        inference_ns=steps * (slowest.time_ns or 0.0) if slowest else None,
        slowest=slowest.name if slowest else None,
        bound=slowest.bound if slowest else None,
        notes=notes,
    )


def partition(layers: Sequence[Layer], cores: int, config: FloorlineConfig) -> dict[str, int]:
    """Cores for each layer, at most ``cores`` in all: one each, then one to the slowest, while that pays.

    Raises: SpikedistillError without constants, or with fewer cores than layers.
    """
    if not config.timed:
        raise SpikedistillError("partition needs times: give synop_ns, update_ns and message_ns")
    found = {layer.name: 1 for layer in layers if _weighted(layer)}
    if cores < len(found):
        raise SpikedistillError(f"{len(found)} layers need at least {len(found)} cores, found {cores}")
    now = evaluate(layers, config.model_copy(update={"cores": found}))
    best, least = found, now.step_ns or 0.0
    while sum(found.values()) < cores and now.slowest is not None:
        found = {**found, now.slowest: found[now.slowest] + 1}
        outputs = next(layer.outputs_per_run for layer in layers if layer.name == now.slowest)
        # `evaluate` refuses more cores than outputs
        if found[now.slowest] > outputs:
            break
        now = evaluate(layers, config.model_copy(update={"cores": found}))
        # A core more may not help: without multicast the layer before has to send to it too. Going on, it
        # may: of two layers as slow as each other both need one.
        if (now.step_ns or 0.0) < least:
            best, least = found, now.step_ns or 0.0
    return best
