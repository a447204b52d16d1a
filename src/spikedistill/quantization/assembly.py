"""Puts the parts of a copied network on codes, as its plan says."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..networks.base import Network
from ..neurons import Parallel
from .arithmetic import exact_dtype
from .calibration import Seen, neuron_of
from .layers import AdaptiveSumPool2d, CodedLayer, ExactForward, InputCodes, SumPool2d
from .membrane import CodedNeuron, Membrane
from .norm import (
    CodedNorm,
    CodedStatistics,
    CodeSource,
    InputCast,
    NormGrid,
    OutputGrid,
    PooledTarget,
    Rescale,
    Stream,
)
from .options import Options
from .plan import Edge, Op, Plan
from .quantized import Quantization
from .temporal import TemporalMembrane


class Assembler:
    """Puts the parts of a copied network on codes.

    ``own``: groups of norms with one reader, a neuron, and its path: they write on its grid. ``steps``: of
    the other groups, which are streams.
    """

    def __init__(self, network: Network, plan: Plan, seen: Seen, options: Options) -> None:
        self.network, self.plan, self.seen, self.options = network, plan, seen, options
        self.membranes: dict[str, Membrane] = {}
        self.quantization = Quantization(plan, options)
        self.parts = self.quantization.parts
        self.own = {
            group: readers[0].path
            for group, readers in plan.readers.items()
            if len(readers) == 1 and readers[0].kind in ("residual", "neuron") and group not in plan.real
        }
        self.steps = {group: self._stream_step(group) for group in plan.groups if group not in self.own}

    def assemble(self, kind: str) -> None:
        """Everything; ``kind``: of the input, ``image``, ``frames`` or ``spikes``."""
        network, plan, device = self.network, self.plan, next(self.network.parameters()).device
        assert network.time_steps is not None
        network.input_codes = InputCodes(network, kind, self.options.input_bits, network.time_steps)
        # Neurons first: the norms and layers before them write on their grids.
        for op in plan.ops:
            if op.kind in ("norm_neuron", "neuron"):
                self._membrane(op)
        make = {
            "layer": self._layer, "norm": self._norm, "norm_neuron": self._norm_neuron,
            "neuron": self._neuron,
        }  # fmt: skip
        for op in plan.ops:
            if op.kind in make:
                make[op.kind](op)
                self._input_cast(op)
            elif op.kind == "sum_pool" and op.path:
                self._pool(op)
        for path in plan.products:
            self._module(path).forward = ExactForward(self._module(path))
        # Steps, scales and shifts were registered on the CPU.
        network.to(device)
        network.quantization = self.quantization
        network.requantize()

    def _module(self, path: str) -> Any:
        return self.network.get_submodule(path)

    def _exchange(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        module.train(self._module(path).training)
        setattr(self._module(parent) if parent else self.network, name, module)

    def _stream_step(self, group: int) -> float:
        """The finest power of two that holds the range of a stream, and all that joins it."""
        thresholds = [
            neuron_of(self._module(r.path)).threshold for r in self.plan.readers[group] if r.kind == "neuron"
        ]
        threshold = min(thresholds, default=1.0)
        reach = (
            max((self.seen.norms.get(path, 0.0) for path in self.plan.groups[group]), default=0.0)
            # Without calibration batches nothing was measured.
            or 8 * threshold
        )
        finest = math.floor(math.log2(threshold)) - self.options.fraction_bits
        step = 2.0 ** max(finest, math.ceil(math.log2(reach)) - (self.options.residual_bits - 1))
        # Where spikes join, what one of them adds must be a whole number of steps.
        return min(step, self.plan.real.get(group, step))

    def _step(self, edge: Edge) -> torch.Tensor:
        return torch.tensor((self.steps[edge.group] if edge.base == "norm" else edge.step) * edge.share)

    def _membrane(self, op: Op) -> None:
        edge, neuron, o = self.plan.edges[op.inputs[0]], neuron_of(self._module(op.path)), self.options
        stream = None
        if op.kind == "neuron" and edge.base == "norm" and edge.group not in self.own:
            stream = self.steps[edge.group] * edge.share
        # Not measured, or a silent neuron, whose membrane has shown no reach.
        reach = self.seen.membranes.get(op.path) or neuron.threshold
        if isinstance(neuron, Parallel):
            self.membranes[op.path] = TemporalMembrane(neuron, o.weight_bits, o.fraction_bits, stream, reach)
            return
        self.membranes[op.path] = Membrane(
            neuron, o.membrane_bits, o.leak_bits, o.fraction_bits, stream, reach, o.unit == "learned"
        )

    def _layer(self, op: Op) -> None:
        layer, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        layer.register_buffer("input_step", self._step(edge))
        end = self.plan.ends[op.path]
        f = self.plan.formats[op.path]
        if end.kind == "logits" or op.name == self.plan.output:
            f = replace(f, scale="tensor")  # logits of all classes are integers of one scale
        coded = CodedLayer(layer, f, edge.bound, op.path)
        self.parts[op.path] = layer.forward = coded
        source = CodeSource(layer, coded.bound, op.path, coded)
        if end.kind == "logits":
            assert self.network.time_steps is not None
            coded.logits = self.network.time_steps
        elif end.kind == "neuron":
            coded.membrane = self.membranes[end.path]
            coded.rescale = Rescale(
                layer, self.options.norm_bits, source, PooledTarget(coded.membrane, end.share)
            )
        elif end.kind == "stream":
            coded.rescale = Rescale(layer, self.options.norm_bits, source, self._target(op, layer))
            coded.output_grid = self._output_grid(op, layer)

    def _pool(self, op: Op) -> None:
        """A sum in place of an average; real values stay averages, by a power of two."""
        pool, k, edge = self._module(op.path), op.options, self.plan.edges[op.name]
        real = edge.base == "norm" and edge.group in self.plan.real
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            divisor = math.prod(k["kernel"]) if real else 1
            self._exchange(op.path, AdaptiveSumPool2d.of(pool, tuple(k["size"]), tuple(k["kernel"]), divisor))
        elif not real:
            self._exchange(op.path, SumPool2d.of(pool))

    def _target(self, op: Op, owner: nn.Module) -> Any:
        """The grid that a norm or layer writes on: a neuron's, or its stream's."""
        group = self.plan.edges[op.name].group
        if group in self.own:
            return self.membranes[self.own[group]]
        owner.register_buffer("output_step", torch.tensor(self.steps[group]))
        return Stream(owner)

    def _output_grid(self, op: Op, owner: nn.Module) -> OutputGrid:
        edge = self.plan.edges[op.name]
        reach = max(e.bound for e in self.plan.edges.values() if e.base == "norm" and e.group == edge.group)
        return OutputGrid(
            owner, edge.low, edge.high, exact_dtype(reach, op.path), edge.group in self.plan.real
        )

    def _input_cast(self, op: Op) -> None:
        edge = self.plan.edges[op.inputs[0]]
        real = edge.base == "norm" and edge.group in self.plan.real
        if real or (edge.base != "norm" and edge.fraction != 1):
            cast = InputCast(None if real else edge.fraction)
            self.quantization.casts[op.path] = cast
            self._module(op.path).register_forward_pre_hook(cast)

    def _source(self, op: Op, owner: nn.Module) -> CodeSource:
        edge = self.plan.edges[op.inputs[0]]
        if edge.base == "layer":
            return CodeSource(owner, edge.bound, op.path, self.parts[edge.layer], edge.share)
        owner.register_buffer("input_step", self._step(edge))
        return CodeSource(owner, edge.bound, op.path)

    def _norm(self, op: Op) -> None:
        norm = CodedNorm.of(self._module(op.path))
        self._exchange(op.path, norm)
        source = self._source(op, norm)
        norm.rescale = Rescale(norm, self.options.norm_bits, source, self._target(op, norm))
        norm.output_grid = self._output_grid(op, norm)
        norm.statistics = CodedStatistics(norm, source, self.options.freeze_norms)
        self.parts[op.path] = norm

    def _norm_neuron(self, op: Op) -> None:
        norm, membrane = self._module(op.path), self.membranes[op.path]
        source = self._source(op, norm)
        bound, ratio = None, False
        if len(op.inputs) > 1:
            residual = self.plan.edges[op.inputs[1]]
            bound, ratio = residual.bound, residual.base == "step"
            if ratio:
                norm.register_buffer("residual_step", self._step(residual))
        rescale = Rescale(norm, self.options.norm_bits, source, membrane)
        self.parts[op.path] = norm.grid = NormGrid(norm, rescale, membrane, bound, ratio)
        norm.statistics = CodedStatistics(norm, source, self.options.freeze_norms)

    def _neuron(self, op: Op) -> None:
        neuron, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        if edge.base == "step":
            neuron.register_buffer("input_step", torch.tensor(edge.step * edge.share))
        bound = None if edge.base == "layer" else edge.bound
        self.parts[op.path] = neuron.forward = CodedNeuron(neuron, self.membranes[op.path], bound)
