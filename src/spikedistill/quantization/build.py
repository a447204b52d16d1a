"""``quantize``: a copy of a spiking network that computes on integer codes and can be trained."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import taps
from ..errors import SpikedistillError
from ..networks.base import Network
from ..networks.graph import trace
from ..neurons import Neuron, NormNeuron
from .layers import AdaptiveSumPool2d, CodedLayer, InputCodes, SumPool2d, input_table
from .membrane import CodedNeuron, Membrane
from .norm import CodedNorm, CodedStatistics, NormGrid, Rescale, Source, Stream
from .plan import Edge, Op, Plan, Reader
from .weights import WeightFormat, limit

Calibration = Tensor | Sequence[Any] | Iterable[Any]


def quantize(
    network: Network,
    weight_bits: int | None = 4,
    membrane_bits: int | None = 4,
    norm_bits: int | None = 8,
    leak_bits: int | None = 8,
    fraction_bits: int = 8,
    residual_bits: int = 16,
    input_bits: int = 8,
    first_last_bits: int | None = 8,
    weight_scale: Literal["channel", "tensor"] = "channel",
    weight_range: Literal["max", "percentile", "mse", "learned"] = "max",
    unit: Literal["threshold", "max", "percentile"] = "threshold",
    percentile: float = 99.9,
    input_size: Sequence[int] | None = None,
    calibration: Calibration | None = None,
) -> Network:
    """A deep copy of a spiking network that computes on integer codes in floats, trainable by straight-through gradients.

    ``w ~ s_w code_w``; ``current = floor(acc M / 2^k + 1/2) + B``; ``H = floor(V l / 2^L) + current``; fires at
    ``H >= round(threshold / unit)``; ``V <- Q(reset(H))``; logits are integers times one scale (docs/quantization.md).

    Bits 2 to 8, or None for not quantized: weights, stored membrane, norm multiplier and offset, leak. ``fraction_bits``:
    the threshold is ``2^fraction_bits`` units. ``residual_bits``: range of norms that stand alone (streams).
    ``first_last_bits``: weights of the first and last layer (None: ``weight_bits``). ``weight_range``: of the largest
    magnitude, a percentile, least squared error, or learned (LSQ). ``unit``: the membrane's range is the threshold, or
    the largest (a percentile of the) stored membrane on ``calibration``: a batch, or batches, ``x`` or ``(x, y)``.
    ``input_size``: (C, H, W) of an image or frame; None: the calibration's, else 32 x 32.

    ``network.requantize()``, once an epoch, moves what stands still between epochs (the binary shifts). Raises
    :class:`SpikedistillError`, naming the module, for what has no form on integer codes, before anything happens.
    """
    options = {k: v for k, v in locals().items() if k not in ("network", "calibration")}
    o = Options(**options)
    batches = list(_batches(calibration))
    example = _example(network, batches, o)
    kind = "frames" if network.input == "frames" else "image" if network.encoding == "direct" else "spikes"
    plan = _plan(network, example, kind, o)
    options["input_size"] = list(example.shape[2 if network.input == "frames" else 1 :])

    network = copy.deepcopy(network)
    seen = _Seen(network, plan, batches, o)
    _Builder(network, plan, seen, o).build(kind)
    network.config["quantize"] = options
    return network


@dataclass(frozen=True)
class Options:
    """What :func:`quantize` was asked for, checked."""

    weight_bits: int | None
    membrane_bits: int | None
    norm_bits: int | None
    leak_bits: int | None
    fraction_bits: int
    residual_bits: int
    input_bits: int
    first_last_bits: int | None
    weight_scale: Any
    weight_range: Any
    unit: str
    percentile: float
    input_size: Sequence[int] | None

    def __post_init__(self) -> None:
        for name in ("weight_bits", "membrane_bits", "norm_bits", "leak_bits", "first_last_bits", "input_bits"):
            bits = getattr(self, name)
            if bits is None and name != "input_bits":
                continue
            if not isinstance(bits, int) or not 2 <= bits <= 8:
                raise SpikedistillError(f"{name} must be 2 to 8, or None, found {bits!r}")
        for name, low, high in (("fraction_bits", 1, 16), ("residual_bits", 4, 24)):
            if not isinstance(getattr(self, name), int) or not low <= getattr(self, name) <= high:
                raise SpikedistillError(f"{name} must be {low} to {high}, found {getattr(self, name)!r}")
        allowed = {
            "weight_scale": ("channel", "tensor"), "weight_range": ("max", "percentile", "mse", "learned"),
            "unit": ("threshold", "max", "percentile"),
        }  # fmt: skip
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise SpikedistillError(f"{name} must be one of {', '.join(values)}, found {getattr(self, name)!r}")
        if not 50 <= self.percentile <= 100:
            raise SpikedistillError(f"percentile must be between 50 and 100, found {self.percentile}")

    def weights(self, edge: bool) -> WeightFormat:
        """The format of a layer's weights; ``edge``: the first or last layer."""
        bits = self.first_last_bits if edge and self.first_last_bits is not None else self.weight_bits
        return WeightFormat(bits, self.weight_scale, self.weight_range, self.percentile)


def _batches(calibration: Any) -> Iterator[Tensor]:
    if calibration is None:
        return
    if isinstance(calibration, Tensor):
        yield calibration
        return
    if isinstance(calibration, tuple) and len(calibration) == 2 and isinstance(calibration[0], Tensor):
        yield calibration[0]
        return
    for batch in calibration:
        yield batch[0] if isinstance(batch, tuple | list) else batch


def _example(network: Network, batches: list[Tensor], o: Options) -> Tensor:
    if not isinstance(network, Network):
        raise SpikedistillError(
            f"quantize takes a network of sd.networks or sd.spiking, found {type(network).__name__}; "
            "turn your own with sd.spiking(model)"
        )
    if not network.spiking:
        raise SpikedistillError("quantize takes a spiking network, found an ANN (time_steps=None); create it with T")
    if network.input_codes is not None:
        raise SpikedistillError("this network is quantized already; quantize the float network it was made from")
    if o.unit != "threshold" and not batches:
        raise SpikedistillError(f"unit={o.unit!r} is measured: give calibration=a batch of inputs")
    device = next(network.parameters()).device
    if batches:
        return batches[0][:2].to(device)
    size = tuple(o.input_size or (network.in_channels, *[32] * network.dims))
    return torch.zeros(1, *((network.time_steps or 1,) if network.input == "frames" else ()), *size, device=device)


def _plan(network: Network, example: Tensor, kind: str, o: Options) -> Plan:
    high = limit(o.input_bits)
    if kind == "image":
        entry = Edge("step", -high, high, step=input_table(network, o.input_bits)[1])
    elif kind == "frames":
        if bool((network.mean != 0).any()) or bool((network.std != network.std[0]).any()):
            raise SpikedistillError("frames are counts, their own codes: a quantized network needs mean 0 and one std")
        entry = Edge("step", -high, high, step=1 / float(network.std[0]))
    else:
        entry = Edge("step", 0, 1)
    graph = trace(network, example)
    layers = [str(n.path) for n in graph if isinstance(n.module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    formats = {path: o.weights(path in (layers[0], layers[-1])) for path in layers}
    limits = {path: f.limit if f.bits is not None else 1 for path, f in formats.items()}
    plan = Reader(network, graph, limits, o.residual_bits, entry).read()
    plan.formats = formats
    return plan


class _Seen:
    """What the float network shows on the calibration batches: largest norms of a stream, stored membranes."""

    def __init__(self, network: Network, plan: Plan, batches: list[Tensor], o: Options) -> None:
        self.norms: dict[str, float] = {}
        self.membranes: dict[str, float] = {}
        norms = [op.path for op in plan.ops if op.kind == "norm"]
        if not batches or (o.unit == "threshold" and not norms):
            return
        training, hooks = {m: m.training for m in network.modules()}, []
        network.eval()
        device = next(network.parameters()).device
        for path in norms:
            hooks.append(network.get_submodule(path).register_forward_hook(self._norm(path)))
        try:
            with torch.no_grad():
                for x in batches:
                    if o.unit == "threshold":
                        network(x.to(device))
                        continue
                    _, found = taps.captures(network, x.to(device), ["*@membrane", "*@spikes"])
                    self._stored(network, found.tensors, o)
        finally:
            for hook in hooks:
                hook.remove()
            for m, flag in training.items():
                m.training = flag

    def _norm(self, path: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            self.norms[path] = max(self.norms.get(path, 0.0), float(out.abs().max()))

        return hook

    def _stored(self, network: Network, found: dict[str, Tensor], o: Options) -> None:
        for key, h in found.items():
            path, what = key.rsplit("@", 1)
            if what != "membrane":
                continue
            neuron = _neuron(network.get_submodule(path.split("#")[0]))
            s = found[f"{path}@spikes"]
            v = h * (1 - s) if neuron.reset == "hard" else h - neuron.threshold * s if neuron.reset == "soft" else h
            top = v.abs().max() if o.unit == "max" else _percentile(v.abs(), o.percentile)
            self.membranes[path] = max(self.membranes.get(path, 0.0), float(top))


def _percentile(x: Tensor, percentile: float) -> Tensor:
    x = x.flatten().float()
    return x.kthvalue(max(1, math.ceil(x.numel() * percentile / 100))).values


def _neuron(module: nn.Module) -> Neuron:
    inner = module.neuron if isinstance(module, NormNeuron) else module
    assert isinstance(inner, Neuron)
    return inner


class _Builder:
    """Puts the parts of a copied network on codes."""

    def __init__(self, network: Network, plan: Plan, seen: _Seen, o: Options) -> None:
        self.network, self.plan, self.seen, self.o = network, plan, seen, o
        self.membranes: dict[str, Membrane] = {}

    def build(self, kind: str) -> None:
        network, plan, device = self.network, self.plan, next(self.network.parameters()).device
        assert network.time_steps is not None
        network.input_codes = InputCodes(network, kind, self.o.input_bits, network.time_steps)
        own = self._own_targets()
        steps = self._stream_steps(own)
        for op in plan.ops:
            if op.kind in ("norm_neuron", "neuron"):
                self._membrane(op, own, steps)
        for op in plan.ops:
            if op.kind == "layer":
                self._layer(op, steps)
            elif op.kind == "sum_pool":
                self._exchange(op.path, self._pool(op))
            elif op.kind == "norm":
                self._norm(op, own, steps)
        for op in plan.ops:
            if op.kind == "norm_neuron":
                self._norm_neuron(op, steps)
            elif op.kind == "neuron":
                self._lone_neuron(op)
        network.to(device)
        extras: Any = network
        extras.quantization = plan
        extras.requantize = Update(network)
        extras.hardware_bits = HardwareBits(plan, self.o)
        extras.requantize()

    def _module(self, path: str) -> Any:
        return self.network.get_submodule(path)

    def _exchange(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        module.train(self._module(path).training)
        setattr(self._module(parent) if parent else self.network, name, module)

    def _own_targets(self) -> dict[int, str]:
        """Groups of norms with one reader, a neuron: they write on its grid."""
        return {
            g: readers[0][1]
            for g, readers in self.plan.readers.items()
            if len(readers) == 1 and readers[0][0] in ("residual", "neuron")
        }

    def _stream_steps(self, own: dict[int, str]) -> dict[int, float]:
        """The other groups are streams; their grid is the finest power of two that holds their range."""
        out = {}
        for group, norms in self.plan.groups.items():
            if group in own:
                continue
            thresholds = [_neuron(self._module(p)).threshold for k, p in self.plan.readers[group] if k == "neuron"]
            threshold = min(thresholds, default=1.0)
            reach = max((self.seen.norms.get(path, 0.0) for path in norms), default=0.0) or 8 * threshold
            finest = math.floor(math.log2(threshold)) - self.o.fraction_bits
            out[group] = 2.0 ** max(finest, math.ceil(math.log2(reach)) - (self.o.residual_bits - 1))
        return out

    def _step(self, edge: Edge, steps: dict[int, float]) -> float:
        return (steps[edge.group] if edge.base == "norm" else edge.step) * edge.share

    def _membrane(self, op: Op, own: dict[int, str], steps: dict[int, float]) -> None:
        edge, neuron = self.plan.edges[op.inputs[0]], _neuron(self._module(op.path))
        stream = None
        if op.kind == "neuron" and edge.base == "norm" and edge.group not in own:
            stream = steps[edge.group]
        reach = self.seen.membranes.get(op.path) or neuron.threshold
        self.membranes[op.path] = Membrane(
            neuron, self.o.membrane_bits, self.o.leak_bits, self.o.fraction_bits, stream, reach
        )

    def _layer(self, op: Op, steps: dict[int, float]) -> None:
        layer, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        layer.register_buffer("input_step", torch.tensor(self._step(edge, steps)))
        kind, reader, share = self.plan.ends[op.path]
        f = self.plan.formats[op.path]
        if kind == "logits":
            f = replace(f, scale="tensor")  # logits of all classes are integers of one scale
        coded = CodedLayer(layer, f, edge.bound, op.path)
        layer.forward = coded
        if kind == "logits":
            assert self.network.time_steps is not None
            coded.logits = self.network.time_steps
        elif kind == "neuron":
            membrane = self.membranes[reader]
            source = Source(layer, layer, 1.0, coded.bound, op.path)
            coded.membrane = membrane
            coded.rescale = Rescale(layer, self.o.norm_bits, source, Shared(membrane, share))

    def _pool(self, op: Op) -> nn.Module:
        pool, k = self._module(op.path), op.options
        if isinstance(pool, nn.AvgPool2d):
            return SumPool2d.of(pool)
        size, kernel = k["size"], k["kernel"]
        return AdaptiveSumPool2d.of(pool, (size[0], size[1]), (size[0] // kernel[0], size[1] // kernel[1]))

    def _source(self, op: Op, owner: nn.Module, steps: dict[int, float]) -> Source:
        edge = self.plan.edges[op.inputs[0]]
        if edge.base == "layer":
            return Source(self._module(edge.layer), owner, edge.share, edge.bound, op.path)
        owner.register_buffer("input_step", torch.tensor(self._step(edge, steps)))
        return Source(None, owner, 1.0, edge.bound, op.path)

    def _norm(self, op: Op, own: dict[int, str], steps: dict[int, float]) -> None:
        norm: Any = CodedNorm.of(self._module(op.path), self.o.residual_bits)
        self._exchange(op.path, norm)
        group = self.plan.edges[op.name].group
        source = self._source(op, norm, steps)
        if group in own:
            target: Any = self.membranes[own[group]]
        else:
            norm.register_buffer("output_step", torch.tensor(steps[group]))
            target = Stream(norm)
        norm.rescale = Rescale(norm, self.o.norm_bits, source, target)
        norm.statistics = CodedStatistics(norm, source)

    def _norm_neuron(self, op: Op, steps: dict[int, float]) -> None:
        norm, membrane = self._module(op.path), self.membranes[op.path]
        source = self._source(op, norm, steps)
        bound, ratio = None, False
        if len(op.inputs) > 1:
            residual = self.plan.edges[op.inputs[1]]
            bound, ratio = residual.bound, residual.base == "step"
            if ratio:
                norm.register_buffer("residual_step", torch.tensor(self._step(residual, steps)))
        rescale = Rescale(norm, self.o.norm_bits, source, membrane)
        norm.grid = NormGrid(norm, rescale, membrane, bound, ratio)
        norm.statistics = CodedStatistics(norm, source)

    def _lone_neuron(self, op: Op) -> None:
        neuron, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        if edge.base == "step":
            neuron.register_buffer("input_step", torch.tensor(edge.step * edge.share))
        neuron.forward = CodedNeuron(neuron, self.membranes[op.path], None if edge.base == "layer" else edge.bound)


class Shared:
    """A neuron's grid as a layer sees it whose currents are summed by a pool behind it: ``share`` of each."""

    def __init__(self, membrane: Membrane, share: float) -> None:
        self.membrane, self.share = membrane, share

    def per_unit(self) -> Any:
        """``share * gain / unit``."""
        return self.membrane.per_unit() * self.share


class Update:
    """``network.requantize()``: between epochs, choose anew what stands still within them."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self) -> None:
        for part in parts(self.network):
            part.update()


def parts(network: nn.Module) -> Iterator[Any]:
    """Coded layers and norms, in the order of registration."""
    for module in network.modules():
        forward, grid = module.__dict__.get("forward"), module.__dict__.get("grid")
        if isinstance(forward, CodedLayer):
            yield forward
        elif isinstance(grid, NormGrid):
            yield grid
        elif isinstance(module, CodedNorm):
            yield module


class HardwareBits:
    """What chip models ask: bits of a module's weights, membrane, norm coefficients, real-valued codes."""

    def __init__(self, plan: Plan, o: Options) -> None:
        self.weights = {path: f.bits for path, f in plan.formats.items()}
        self.others = {
            "membrane_bits": o.membrane_bits, "norm_bits": o.norm_bits, "residual_bits": o.residual_bits,
            "input_bits": o.input_bits,
        }  # fmt: skip

    def __call__(self, path: str, what: str) -> int | None:
        return self.weights.get(path) if what == "weight_bits" else self.others.get(what)
