"""Layers, pools and the input on integer codes.

No layer changes class: :class:`CodedLayer` stands as the instance attribute ``forward`` of a convolution or
linear layer, whose ``weight`` and ``bias`` stay the real parameters that training moves.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import simulation
from ..errors import SpikedistillError
from ..neurons.dynamics import round_ste, saturate_ste
from .arithmetic import current_steps, exact, exact_dtype
from .membrane import Membrane
from .norm import OutputGrid, Rescale
from .weights import (
    WeightFormat,
    exact_scale,
    largest_code,
    learned_scale,
    learned_start,
    weight_codes,
    weight_scale,
)


class CodedLayer:
    """Forward of a convolution or linear layer on codes: accumulators, or what the layer's place asks.

    ``bound`` is the largest magnitude of its accumulators. With ``rescale`` (a layer straight before a
    neuron) the accumulators become the neuron's current, or (``output_grid``) codes of a stream; with
    ``logits`` (T) they become real logits, ``(acc + bias code) * step``.
    """

    def __init__(self, layer: Any, f: WeightFormat, bound_in: int, path: str) -> None:
        self.layer, self.format, self.path = layer, f, path
        self.fan_in = layer.weight[0].numel()
        self.bound_in = bound_in
        self.rescale: Rescale | None = None
        self.membrane: Membrane | None = None
        self.output_grid: OutputGrid | None = None
        self.logits = 0
        if f.bits is None:
            return
        if f.range == "learned":
            layer.register_parameter("weight_scale", nn.Parameter(learned_start(layer.weight, f)))
        elif f.range == "mse":
            layer.register_buffer("weight_scale", weight_scale(layer.weight, f).float())

    @property
    def bound(self) -> int:
        """Largest magnitude of an accumulator."""
        return self.fan_in * self.bound_in * (self.format.largest_code if self.format.bits is not None else 1)

    def scale(self) -> Tensor:
        """Value of one weight code; float64, (C', 1, ...) or (1, 1, ...)."""
        w, f = self.layer.weight, self.format
        if f.bits is None:
            return torch.ones([1] * w.dim(), dtype=torch.float64, device=w.device)
        if f.range == "learned":
            scale = learned_scale(self.layer.weight_scale, w, f).double()
        elif f.range == "mse":
            scale = self.layer.weight_scale.double()
        else:
            scale = weight_scale(w, f)
        if self.logits:
            step = self.layer.input_step.double()
            # Bias code and accumulator make twice the bound; times T, the sum over all steps is exact too.
            rounded = exact_scale(scale.detach() * step, 2 * self.bound * self.logits) / step
            scale = scale + (rounded - scale).detach()
        return scale

    def codes(self) -> Tensor:
        """Weight codes (real weights where ``bits`` is None)."""
        if self.format.bits is None:
            return self.layer.weight
        return weight_codes(self.layer.weight, self.scale(), self.format.bits)

    def step(self) -> Tensor:
        """Value of one accumulator unit: input step times weight scale."""
        return self.layer.input_step.double() * self.scale()

    def bias_codes(self) -> Tensor | None:
        """The bias in accumulator units, saturating at the accumulators' bound (logits only)."""
        if self.layer.bias is None:
            return None
        if self.format.bits is None:
            return self.layer.bias.double() / self.step().flatten()
        return saturate_ste(
            round_ste(self.layer.bias.double() / self.step().flatten()), -self.bound, self.bound
        )

    def offset(self) -> Tensor | None:
        """Integers added to the accumulators, or None."""
        # Elsewhere the bias is in the offset of the rescaling or norm behind.
        return self.bias_codes() if self.logits else None

    def update(self) -> None:
        """Between epochs: the scale of least squared error, the shift of a layer before a neuron."""
        if self.format.range == "mse" and self.format.bits is not None:
            with torch.no_grad():
                self.layer.weight_scale.copy_(weight_scale(self.layer.weight, self.format))
        if self.rescale is not None:
            self.rescale.update(*self.plain())

    def plain(self) -> tuple[Tensor, Tensor]:
        """``(a, b)`` of a layer without a norm: 1 and 0 (its bias is added by the rescaling)."""
        one = torch.ones(self.layer.weight.shape[0], device=self.layer.weight.device)
        return one, torch.zeros_like(one)

    def __call__(self, x: Tensor) -> Tensor:
        # Twice: a bias code, which saturates at the bound, may come on top.
        dtype = exact_dtype(2 * self.bound, self.path)
        with exact(x):
            acc = self.accumulate(x.to(dtype), self.codes().to(dtype))
            if self.rescale is not None:
                return self.current(acc)
            if self.logits:
                return self.to_logits(acc)
        return acc

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """The layer's own product, of any numbers; without the bias."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, w)
        # The class's own product: it may keep from oneDNN's faulty gradient or compute spikes alone.
        return self.layer._conv_forward(x, w, None)

    def accumulate(self, x: Tensor, w: Tensor) -> Tensor:
        """The product of codes, whole numbers on every device."""
        acc = self.product(x, w)
        if isinstance(self.layer, nn.Linear):
            return acc
        # cuDNN may choose an algorithm with fractions in between (Winograd); its error is far below one half.
        return round_ste(acc) if x.is_cuda and self.format.bits is not None else acc

    def current(self, acc: Tensor) -> Tensor:
        """The neuron's current, or the stream, in codes."""
        assert self.rescale is not None
        code = self.rescale(acc, *self.plain())
        if self.output_grid is not None:
            return self.output_grid(code)
        assert self.membrane is not None
        self.membrane.prepare()  # the neuron runs after this layer: its grid may be the last pass's
        bound = self.membrane.bound(self.rescale.bounds()[1], current_steps(self.membrane.neuron))
        return code.to(exact_dtype(bound, self.path))

    def to_logits(self, acc: Tensor) -> Tensor:
        """Real logits, float32; exact multiples of :meth:`step`."""
        bias = self.offset()
        if bias is not None:
            acc = acc + bias.to(acc.dtype).view(1, -1, *[1] * (acc.dim() - 2))
        # The product in float64; float32 then holds it as it is, by the scale's few bits.
        return (acc.double() * self.step().flatten()[0]).float()


def input_table(network: Any, bits: int) -> tuple[Tensor, float]:
    """Codes (C, 256) of image levels and the value of one code: ``max |(v/255 - mean) / std| / limit``."""
    levels = torch.arange(256, device=network.mean.device) / 255
    values = (levels.double() - network.mean.double()[:, None]) / network.std.double()[:, None]
    # Rounded to float32 as the buffer that keeps it, so that codes and buffer mean the same.
    step = float(torch.tensor(float(values.abs().max()) / largest_code(bits)))
    return (values / step + 0.5).floor().clamp(-largest_code(bits), largest_code(bits)).to(torch.int8), step


class InputCodes:
    """``Network.input_codes``: the entrance of codes, in place of the network's normalisation.

    ``image``: level ``v = floor(255 x + 1/2)`` (or uint8), then the table ``input_table`` (C, 256), one step
    for all channels. ``frames``: counts half-up, clipped at the largest code. ``spikes``: encoded images, 0
    and 1 already.
    """

    def __init__(self, network: Any, kind: str, bits: int, time_steps: int) -> None:
        self.network, self.kind, self.limit, self.time_steps = network, kind, largest_code(bits), time_steps
        if kind == "image":
            network.register_buffer("input_table", input_table(network, bits)[0])

    def __call__(self, x: Tensor) -> Tensor:
        self.check()
        if self.kind == "image":
            v = x.long() if x.dtype == torch.uint8 else (x.detach() * 255 + 0.5).floor().clamp(0, 255).long()
            table = self.network.input_table
            offsets = 256 * torch.arange(table.shape[0], device=x.device).view(1, -1, *[1] * (x.dim() - 2))
            return table.flatten()[v + offsets].float()
        if self.kind == "frames":
            return (x.detach().float() + 0.5).floor().clamp(-self.limit, self.limit)
        return x

    def check(self) -> None:
        """Refuse evaluation above the network's T."""
        sim = simulation.current()
        T = None if sim is None else sim.time_steps
        # Logits' scale and the integer form's widths are made for sums over T steps.
        if T is not None and self.time_steps < T and not self.network.training:
            raise SpikedistillError(
                f"this network was quantized at T = {self.time_steps}, found T = {T}; quantized networks are "
                "not evaluated above their T: train it longer (time_steps of the stage) or quantize it anew"
            )


class ExactForward:
    """Forward of a module whose own code multiplies codes: without autocast and reduced precision."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        with exact(x):
            return type(self.module).forward(self.module, x, *args)


class SumPool2d(nn.AvgPool2d):
    """Average pooling on codes: the sum; its divisor is in the next scale."""

    graph_leaf = True

    @classmethod
    def of(cls, pool: nn.AvgPool2d) -> "SumPool2d":
        """The same window."""
        # ceil_mode is left out: the plan refuses windows that overhang.
        return cls(pool.kernel_size, pool.stride, pool.padding, divisor_override=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, divisor_override=1)


class AdaptiveSumPool2d(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling whose windows do not overlap, on codes: the sum, over ``divisor``."""

    graph_leaf = True
    window: tuple[int, int]
    size: tuple[int, int]
    divisor: int

    @classmethod
    def of(
        cls, pool: nn.AdaptiveAvgPool2d, size: tuple[int, int], window: tuple[int, int], divisor: int
    ) -> "AdaptiveSumPool2d":
        """For maps of ``size``, the one that the network was quantized for."""
        made = cls(pool.output_size)
        made.size, made.window, made.divisor = size, window, divisor
        return made

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            raise SpikedistillError(
                f"this network was quantized for maps of {self.size} before its global pooling, found "
                f"{tuple(x.shape[-2:])}; quantize it with a calibration batch of the size you use"
            )
        return F.avg_pool2d(x, self.window, self.window, divisor_override=self.divisor)
