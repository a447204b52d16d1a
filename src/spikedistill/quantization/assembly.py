"""Puts the parts of a copied network on codes, as its plan says."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..networks.base import Network
from .arithmetic import exact_dtype
from .calibration import Seen, neuron_of
from .layers import AdaptiveSumPool2d, CodedLayer, ExactForward, InputCodes, SumPool2d
from .membrane import CodedNeuron, Membrane
from .norm import CodedNorm, CodedStatistics, CodeSource, InputCast, NormGrid, OutputGrid, Rescale, Stream
from .options import Options
from .plan import Edge, Op, Plan


class Assembler:
    """Puts the parts of a copied network on codes."""

    def __init__(self, network: Network, plan: Plan, seen: Seen, o: Options) -> None:
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
                self._layer(op, own, steps)
            elif op.kind == "sum_pool" and op.path:
                self._pool(op)
            elif op.kind == "norm":
                self._norm(op, own, steps)
        for op in plan.ops:
            if op.kind == "norm_neuron":
                self._norm_neuron(op, steps)
            elif op.kind == "neuron":
                self._lone_neuron(op)
        for op in plan.ops:
            if op.kind in ("layer", "norm", "norm_neuron", "neuron"):
                self._entrance(op)
        for path in plan.products:
            self._module(path).forward = ExactForward(self._module(path))
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
            if len(readers) == 1 and readers[0][0] in ("residual", "neuron") and g not in self.plan.real
        }

    def _stream_steps(self, own: dict[int, str]) -> dict[int, float]:
        """The other groups are streams; their grid is the finest power of two that holds their range, and all that joins."""
        out = {}
        for group, norms in self.plan.groups.items():
            if group in own:
                continue
            thresholds = [neuron_of(self._module(p)).threshold for k, p in self.plan.readers[group] if k == "neuron"]
            threshold = min(thresholds, default=1.0)
            reach = max((self.seen.norms.get(path, 0.0) for path in norms), default=0.0) or 8 * threshold
            finest = math.floor(math.log2(threshold)) - self.o.fraction_bits
            step = 2.0 ** max(finest, math.ceil(math.log2(reach)) - (self.o.residual_bits - 1))
            out[group] = min(step, self.plan.real.get(group, step))
        return out

    def _step(self, edge: Edge, steps: dict[int, float]) -> float:
        return (steps[edge.group] if edge.base == "norm" else edge.step) * edge.share

    def _membrane(self, op: Op, own: dict[int, str], steps: dict[int, float]) -> None:
        edge, neuron = self.plan.edges[op.inputs[0]], neuron_of(self._module(op.path))
        stream = None
        if op.kind == "neuron" and edge.base == "norm" and edge.group not in own:
            stream = steps[edge.group]
        reach = self.seen.membranes.get(op.path) or neuron.threshold
        self.membranes[op.path] = Membrane(
            neuron,
            self.o.membrane_bits,
            self.o.leak_bits,
            self.o.fraction_bits,
            stream,
            reach,
            self.o.unit == "learned",
        )

    def _layer(self, op: Op, own: dict[int, str], steps: dict[int, float]) -> None:
        layer, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        layer.register_buffer("input_step", torch.tensor(self._step(edge, steps)))
        kind, reader, share = self.plan.ends[op.path]
        f = self.plan.formats[op.path]
        if kind == "logits" or op.name == self.plan.output:
            f = replace(f, scale="tensor")  # logits of all classes are integers of one scale
        coded = CodedLayer(layer, f, edge.bound, op.path)
        layer.forward = coded
        if kind == "logits":
            assert self.network.time_steps is not None
            coded.logits = self.network.time_steps
        elif kind == "neuron":
            membrane = self.membranes[reader]
            source = CodeSource(layer, layer, 1.0, coded.bound, op.path)
            coded.membrane = membrane
            coded.rescale = Rescale(layer, self.o.norm_bits, source, PooledTarget(membrane, share))
        elif kind == "stream":
            source = CodeSource(layer, layer, 1.0, coded.bound, op.path)
            coded.rescale = Rescale(layer, self.o.norm_bits, source, self._target(op, layer, own, steps))
            coded.outlet = self._outlet(op, layer)

    def _pool(self, op: Op) -> None:
        """A sum in place of an average; real values stay averages, by a power of two."""
        pool, k, edge = self._module(op.path), op.options, self.plan.edges[op.name]
        real = edge.base == "norm" and edge.group in self.plan.real
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            divisor = math.prod(k["kernel"]) if real else 1
            self._exchange(op.path, AdaptiveSumPool2d.of(pool, tuple(k["size"]), tuple(k["kernel"]), divisor))
        elif not real:
            self._exchange(op.path, SumPool2d.of(pool))

    def _target(self, op: Op, owner: nn.Module, own: dict[int, str], steps: dict[int, float]) -> Any:
        """The grid that a norm or layer writes on: a neuron's, or its stream's."""
        group = self.plan.edges[op.name].group
        if group in own:
            return self.membranes[own[group]]
        owner.register_buffer("output_step", torch.tensor(steps[group]))
        return Stream(owner)

    def _outlet(self, op: Op, owner: nn.Module) -> OutputGrid:
        edge = self.plan.edges[op.name]
        reach = max(e.bound for e in self.plan.edges.values() if e.base == "norm" and e.group == edge.group)
        return OutputGrid(owner, edge.low, edge.high, exact_dtype(reach, op.path), edge.group in self.plan.real)

    def _entrance(self, op: Op) -> None:
        edge = self.plan.edges[op.inputs[0]]
        real = edge.base == "norm" and edge.group in self.plan.real
        if real or (edge.base != "norm" and edge.fraction != 1):
            self._module(op.path).register_forward_pre_hook(InputCast(None if real else edge.fraction))

    def _source(self, op: Op, owner: nn.Module, steps: dict[int, float]) -> CodeSource:
        edge = self.plan.edges[op.inputs[0]]
        if edge.base == "layer":
            return CodeSource(self._module(edge.layer), owner, edge.share, edge.bound, op.path)
        owner.register_buffer("input_step", torch.tensor(self._step(edge, steps)))
        return CodeSource(None, owner, 1.0, edge.bound, op.path)

    def _norm(self, op: Op, own: dict[int, str], steps: dict[int, float]) -> None:
        norm: Any = CodedNorm.of(self._module(op.path))
        self._exchange(op.path, norm)
        source = self._source(op, norm, steps)
        norm.rescale = Rescale(norm, self.o.norm_bits, source, self._target(op, norm, own, steps))
        norm.outlet = self._outlet(op, norm)
        norm.statistics = CodedStatistics(norm, source, self.o.freeze_norms)

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
        norm.statistics = CodedStatistics(norm, source, self.o.freeze_norms)

    def _lone_neuron(self, op: Op) -> None:
        neuron, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        if edge.base == "step":
            neuron.register_buffer("input_step", torch.tensor(edge.step * edge.share))
        neuron.forward = CodedNeuron(neuron, self.membranes[op.path], None if edge.base == "layer" else edge.bound)


class PooledTarget:
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
