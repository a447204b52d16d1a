"""Norms folded into the weights, membranes counted in weight codes: no multiplier at inference.

    W' = gain a W,  b' = gain (a bias + b)       norm(x) = a x + b
    current = sum(codes of W' ...) + round(b' / unit),     unit = input step * s

``s`` is one step for all branches that are summed before a neuron. Two schemes: ``mint`` (after Yin et al.,
"MINT: Multiplier-less integer quantization for energy efficient spiking neural networks", ASP-DAC 2024,
without its tanh): fires at ``H >= ceil(threshold / unit)``, ``V <- Q(leak * reset(H))`` with Q's step ``s``;
and ``unit="weights"`` (percentile-based threshold scaling, after Arfa et al., NICE 2025): fires at ``H >=
round(threshold / unit)``, leak and Q as elsewhere.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..neurons import Neuron, NormNeuron
from ..neurons.dynamics import Grid, round_ste, saturate_ste
from .arithmetic import current_steps, exact, exact_dtype, scalar
from .assembly import Assembler
from .calibration import neuron_of
from .layers import CodedLayer
from .membrane import Membrane, Number, in_units, plain
from .norm import CodedNorm, CodedStatistics, NormGrid, affine
from .options import Options
from .plan import Edge, Op, Plan
from .weights import WeightFormat, learned_scale, learned_start, weight_codes, weight_scale


class Step:
    """``s``, one for all layers of a sum: the largest, or the first's (learned, least squared error)."""

    def __init__(self, layers: "list[FoldedLayer]", f: WeightFormat) -> None:
        self.layers, self.format, self.owner = layers, f, layers[0].layer
        if f.range == "learned":
            start = max(float(learned_start(part.still(), f)) for part in layers)
            self.owner.register_parameter("weight_scale", nn.Parameter(torch.tensor(start)))
        elif f.range == "mse":
            self.owner.register_buffer("weight_scale", self.measured().float())

    def measured(self) -> Tensor:
        """From the weights, folded with the running statistics."""
        # At a smaller step some branch would saturate its largest weights.
        return torch.stack(
            [weight_scale(part.still(), self.format).flatten()[0] for part in self.layers]
        ).max()

    def value(self) -> Tensor:
        """``s``; float64, a number."""
        if self.format.range == "learned":
            return learned_scale(self.owner.weight_scale, self.owner.weight, self.format).double()
        return self.owner.weight_scale.double() if self.format.range == "mse" else self.measured()

    def update(self) -> None:
        """Between epochs."""
        if self.format.range == "mse":
            with torch.no_grad():
                self.owner.weight_scale.copy_(self.measured())


class FoldedLayer(CodedLayer):
    """A layer with its norm (or none) folded in; its output is current, in units.

    In training the batch's statistics come from a pass through the real weights, before the pass through the
    codes; with ``frozen`` the running ones are used, and there is one pass.
    """

    membrane: Any

    def __init__(
        self,
        layer: Any,
        f: WeightFormat,
        bound_in: int,
        path: str,
        norm: Any,
        membrane: "FoldedMembrane",
        frozen: bool,
    ) -> None:
        # Whatever the range, no scale of its own is made: the step shared by all branches is it.
        super().__init__(layer, WeightFormat(f.bits, "tensor"), bound_in, path)
        self.norm, self.membrane, self.frozen = norm, membrane, frozen

    def still(self) -> Tensor:
        """Weights folded with the running statistics, detached."""
        with torch.no_grad():
            a, _ = self.map()
            return self.folded(a)

    def map(self) -> tuple[Tensor, Tensor]:
        """``(a, b)`` by the running statistics; 1 and 0 without a norm."""
        return self.plain() if self.norm is None else affine(self.norm)

    def batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, b)`` by this batch's statistics (all processes'), which also move the running ones."""
        # Not accumulate(), which rounds to whole numbers on a GPU: these are real.
        real = self.product(x.float() * self.layer.input_step, self.layer.weight)
        var, mean = torch.var_mean(real, [d for d in range(real.dim()) if d != 1], unbiased=False)
        # The product leaves the bias out, and the norm's mean is of what the whole layer gives.
        if self.layer.bias is not None:
            mean = mean + self.layer.bias
        mean, var, _ = self.norm._read(mean, var, real.numel() // real.shape[1])
        return affine(self.norm, mean, var)

    def folded(self, a: Tensor) -> Tensor:
        """``gain a W``."""
        return self.layer.weight * (a * self.membrane.gain).view(-1, *[1] * (self.layer.weight.dim() - 1))

    def scale(self) -> Tensor:
        return self.membrane.step.value()

    def codes(self, a: Tensor | None = None) -> Tensor:
        a = self.map()[0] if a is None else a
        scale = self.scale()
        assert self.format.bits is not None
        # scale / scale is 1; its gradient makes that of the scale LSQ's: of scale * code, not of code.
        return weight_codes(self.folded(a), scale, self.format.bits) * (scale / scale.detach())

    def offset(self, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        if a is None or b is None:
            a, b = self.map()
        if self.layer.bias is not None:
            b = b + a * self.layer.bias
        return saturate_ste(round_ste(b.double() * self.membrane.gain / self.step()), -self.bound, self.bound)

    def update(self) -> None:
        self.membrane.step.update()

    def __call__(self, x: Tensor) -> Tensor:
        learns = self.norm is not None and self.norm.training and not self.frozen
        with exact(x):
            a, b = self.batch(x) if learns else self.map()
            # Twice: accumulator and offset, which saturates at the same bound.
            dtype = exact_dtype(2 * self.bound, self.path)
            acc = self.accumulate(x.to(dtype), self.codes(a).to(dtype))
            acc = acc + self.offset(a, b).to(dtype).view(1, -1, *[1] * (acc.dim() - 2))
        if self.norm is not None:
            return acc
        return acc.to(
            exact_dtype(self.membrane.bound(2 * self.bound, current_steps(self.membrane.neuron)), self.path)
        )


class FoldedMembrane(Membrane):
    """A membrane counted in weight codes."""

    step: Step
    layer: Any

    def __init__(self, neuron: Neuron, o: Options, extra: int | None) -> None:
        # Not the base's: it would register a unit, and this one follows the weights in every pass.
        self.neuron, self.bits, self.leak_bits, self.mint = (
            neuron,
            o.membrane_bits,
            o.leak_bits,
            o.scheme == "mint",
        )
        self.streamed, self.learned, self.extra = False, False, extra
        neuron.register_buffer("membrane_range", torch.tensor(neuron.threshold))

    @property
    def unit(self) -> float:
        return float(self.step.value().detach()) * scalar(self.layer, "input_step")

    def per_unit(self) -> Number:
        return self.gain / self.unit

    @property
    def threshold(self) -> int:
        # H is whole, so that H >= ratio is H >= ceil(ratio): mint loses nothing at the threshold.
        ratio = self.neuron.threshold / self.unit
        return max(1, math.ceil(ratio) if self.mint else math.floor(ratio + 0.5))

    @property
    def shift(self) -> int:
        """MINT: Q's step is the weights' (``extra`` = log2 of the pooled area).

        Where images enter, it reaches the threshold.
        """
        return self.extra if self.mint and self.extra is not None else super().shift

    def grid(self) -> Grid:
        return Grid(self.unit, self.threshold, self.leak(), self.bits, self.shift, self.mint, self.reset_by)


class FoldedGrid(NormGrid):
    """``NormNeuron.grid`` behind a folded layer: the current arrives ready, a residual is added."""

    def __init__(
        self, norm: NormNeuron, membrane: Membrane, layers: list[FoldedLayer], residual_bound: int | None
    ) -> None:
        self.norm, self.membrane, self.layers = norm, membrane, layers
        self.residual_bound, self.residual_step = residual_bound, residual_bound is not None

    def bound(self, T: int) -> float:
        current: float = sum(2 * part.bound for part in self.layers)
        if self.residual_bound is not None:
            current += self.residual_bound * plain(self.ratio())
        return self.membrane.bound(current, T)

    def __call__(self, x: Tensor, a: Tensor, b: Tensor, residual: Tensor | None) -> Tensor:
        self.membrane.prepare()
        if residual is not None:
            x = x + in_units(residual, self.ratio())
        return x.to(exact_dtype(self.bound(current_steps(self.norm.neuron)), "a folded norm"))

    def update(self) -> None: ...


class FoldedAssembler(Assembler):
    """Puts a network on codes whose norms are folded into the weights."""

    @staticmethod
    def check(plan: Plan, o: Options) -> None:
        """Refuse streams, and anything between a layer and its norm."""
        name = "scheme 'mint'" if o.scheme == "mint" else "unit='weights'"
        ops = {op.name: op for op in plan.ops}
        logits = plan.edges[plan.output].group
        for group, readers in plan.readers.items():
            if group == logits:
                continue
            if len(readers) != 1 or readers[0].kind == "layer" or group in plan.real:
                raise SpikedistillError(
                    f"{name} refuses {plan.groups[group][0]}: it writes to a residual stream of real values, "
                    "which is not one step's; take scheme='uniform'"
                )
        for path, end in plan.ends.items():
            if end.kind == "stream" and plan.op(path).name != plan.output:
                raise SpikedistillError(
                    f"{name} folds norms into layers; the output of {path} is joined without one"
                )
        for op in plan.ops:
            edge = plan.edges[op.inputs[0]] if op.inputs else None
            if op.kind in ("norm", "norm_neuron") and (edge is None or ops[op.inputs[0]].kind != "layer"):
                raise SpikedistillError(
                    f"{name} folds norms into the layer before them; {op.path} does not follow one directly"
                )
            if op.kind == "neuron" and edge is not None and edge.base == "layer" and edge.share != 1:
                raise SpikedistillError(
                    f"{name}: {op.path} reads pooled sums of {edge.layer}; put the pooling behind the neuron"
                )

    def _membrane(self, op: Op) -> None:
        edge, neuron = self._main(op)
        if not isinstance(edge, Edge):
            super()._membrane(op)
            return
        # Where 0/1 spikes or their pooled sums enter, Q's step is the weights'; images and counts are finer.
        extra = None
        if edge.step == 1 and math.log2(edge.share).is_integer() and not self._from_input(op):
            extra = -int(math.log2(edge.share))
        self.membranes[op.path] = FoldedMembrane(neuron, self.options, extra)

    def _main(self, op: Op) -> tuple[Any, Neuron]:
        """What enters the layers of a neuron (None: no layer before it), and the neuron."""
        layers = self._layers_of(op)
        entering = {path: self.plan.edges[self.plan.op(path).inputs[0]] for path in layers}
        scales = {edge.step * edge.share for edge in entering.values()}
        if len(scales) > 1:
            raise SpikedistillError(
                f"{op.path} sums branches whose inputs have different steps; take scheme='uniform'"
            )
        return (entering[layers[0]] if layers else None), neuron_of(self._module(op.path))

    def _from_input(self, op: Op) -> bool:
        first = {o.name for o in self.plan.ops if o.kind == "input"}
        return any(self.plan.op(path).inputs[0] in first for path in self._layers_of(op))

    def _layers_of(self, op: Op) -> list[str]:
        """Paths of the layers whose outputs one neuron sums."""
        paths = []
        for name in op.inputs:
            edge = self.plan.edges[name]
            if edge.base == "layer":
                paths.append(edge.layer)
            elif edge.base == "norm":
                norms = [self.plan.op(path) for path in self.plan.groups[edge.group]]
                paths += [self.plan.edges[norm.inputs[0]].layer for norm in norms]
        return paths

    def _layer(self, op: Op) -> None:
        end = self.plan.ends[op.path]
        if end.kind in ("logits", "stream"):
            super()._layer(op)
            return
        layer, edge = self._module(op.path), self.plan.edges[op.inputs[0]]
        layer.register_buffer("input_step", self._step(edge))
        norm = self._module(end.path) if end.kind == "norm" else None
        if norm is not None and not isinstance(norm, NormNeuron):
            norm = self.parts[end.path] = CodedNorm.of(norm)
            self._exchange(end.path, norm)
        owner = next(
            o for o in self.plan.ops if o.kind in ("norm_neuron", "neuron") and op.path in self._layers_of(o)
        )
        membrane: Any = self.membranes[owner.path]
        o = self.options
        coded = FoldedLayer(
            layer, self.plan.formats[op.path], edge.bound, op.path, norm, membrane, o.freeze_norms
        )
        self.parts[op.path] = layer.forward = coded
        parts: list[Any] = [self.parts.get(path) for path in self._layers_of(owner)]
        if all(parts):  # the last one: they share a step
            membrane.layer = parts[0].layer
            bits = min(part.format.bits for part in parts)
            membrane.step = Step(parts, WeightFormat(bits, "tensor", o.range, o.percentile))

    def _norm(self, op: Op) -> None:
        """It was exchanged with the layer before it."""

    def _norm_neuron(self, op: Op) -> None:
        norm: Any = self._module(op.path)
        bound = None
        if len(op.inputs) > 1:
            residual = self.plan.edges[op.inputs[1]]
            # What a norm writes on the shortcut is bounded by its layer, which is among the parts.
            if residual.base == "step":
                bound = residual.bound
                norm.register_buffer("residual_step", self._step(residual))
        parts: list[Any] = [self.parts[path] for path in self._layers_of(op)]
        self.parts[op.path] = norm.grid = FoldedGrid(norm, self.membranes[op.path], parts, bound)
        # The layer has read this batch for the norm; read again it would count twice.
        norm.statistics = CodedStatistics(norm, None, True)
