"""Quantized networks with everything that does not depend on the input as constants, ready to be traced."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.base import Network
from ..neurons.dynamics import Grid
from ..quantization.arithmetic import FLOAT32
from ..quantization.layers import AdaptiveSumPool2d, CodedLayer, SumPool2d
from ..quantization.membrane import CodedNeuron, Membrane, plain
from ..quantization.norm import CodedNorm, NormGrid, Rescale, affine
from ..quantization.quantized import Part
from ..quantization.temporal import TemporalMembrane


class Known:
    """A number in place of a one-value buffer: what reads it gets a Python number, which a trace keeps."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def item(self) -> float | int:
        """The number."""
        return self.value.item()

    def double(self) -> Tensor:
        """As a tensor."""
        return self.value.double()


def freeze(network: Network) -> Network:
    """Fix weight codes, multipliers, offsets and grids of a quantized network, in place; sum pools of any."""
    for module in network.modules():
        if isinstance(module, AdaptiveSumPool2d):
            module.forward = _Sums(module.window, module.window, 0, module.divisor)  # type: ignore[method-assign]
        elif isinstance(module, nn.AvgPool2d) and (module.divisor_override or isinstance(module, SumPool2d)):
            pool: Any = module
            stride = module.stride or module.kernel_size
            pool.forward = _Sums(
                module.kernel_size, stride, module.padding, module.divisor_override or 1, module.ceil_mode
            )
    quantization: Any = network.quantization
    if quantization is None:
        return network
    with torch.no_grad():
        for part in quantization.parts.values():
            _part(part)
    for module in network.modules():
        for name, buffer in [*module.named_buffers(recurse=False)]:
            if buffer.dim() == 0 and name != "num_batches_tracked":
                del module._buffers[name]
                object.__setattr__(module, name, Known(buffer))
    return network


def _part(part: Part) -> None:
    if isinstance(part, CodedLayer):
        _layer(part)
    if isinstance(part, CodedNeuron | NormGrid):
        _prepared(part)
    if isinstance(part, CodedNorm | NormGrid) and part.rescale is not None:
        norm = part.norm if isinstance(part, NormGrid) else part
        _rescale(norm, part.rescale, affine(norm))


def _prepared(part: CodedNeuron | NormGrid) -> None:
    _constant(part, "ratio", plain(part.ratio()))
    _grid(part.membrane)


def _grid(membrane: Membrane) -> None:
    g = membrane.prepare()
    if isinstance(membrane, TemporalMembrane):
        _constant(membrane, "prepare", g)
        return
    # a plain one: a learned grid carries gradients, which a graph of inference has no use for
    membrane.neuron.grid = Grid(g.unit, g.threshold, g.leak, g.bits, g.shift, g.leak_first, g.reset_by)
    _constant(membrane, "prepare", membrane.neuron.grid)


def _layer(coded: CodedLayer) -> None:
    module = coded.layer
    if coded.membrane is not None:
        _grid(coded.membrane)
    if coded.rescale is not None:
        _rescale(module, coded.rescale, coded.plain())
    for name in ("codes", "step", "offset", "map"):  # what a layer reads in its forward pass, as it is now
        if hasattr(coded, name):
            value = getattr(coded, name)()
            if isinstance(value, Tensor):
                # codes are exact in float32, and runtimes convolve no float64
                module.register_buffer(f"frozen_{name}", value.float() if name == "codes" else value)
                setattr(coded, name, _Buffer(module, f"frozen_{name}"))
            else:
                _constant(coded, name, value)
    if isinstance(module, nn.Conv1d | nn.Conv2d) and 2 * coded.bound >= FLOAT32:
        coded.accumulate = _Pieces(coded)  # type: ignore[method-assign]


def _rescale(owner: nn.Module, rescale: Rescale, affine: tuple[Tensor, Tensor]) -> None:
    m, o = rescale.codes(*affine)
    owner.register_buffer("frozen_multiplier", m)
    owner.register_buffer("frozen_offset", o)
    rescale.codes = lambda a, b: (owner.frozen_multiplier, owner.frozen_offset)  # type: ignore[method-assign,assignment,return-value]


def _constant(part: Any, name: str, value: Any) -> None:
    setattr(part, name, lambda *_: value)


class _Buffer:
    """A method that gives a buffer, by name: a trace exchanges the tensors."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *_: Any) -> Tensor:
        """The buffer as it is now."""
        return getattr(self.owner, self.name)


class _Sums:
    """Sums over windows, over a divisor: the exporter drops the divisor of an average pool."""

    def __init__(self, kernel: Any, stride: Any, padding: Any, divisor: int, ceil: bool = False) -> None:
        self.kernel, self.stride, self.padding = (
            tuple(v) if isinstance(v, tuple | list) else (v, v) for v in (kernel, stride, padding)
        )
        self.divisor, self.ceil = divisor, ceil

    def beyond(self, size: int, axis: int) -> int:
        """Rows or columns of zeros behind the padding, for a last window that ``ceil_mode`` allows."""
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        count = -(-(size + 2 * padding - kernel) // stride) + 1
        if (count - 1) * stride >= size + padding:
            count -= 1
        return max(0, (count - 1) * stride + kernel - size - 2 * padding) if self.ceil else 0

    def __call__(self, x: Tensor) -> Tensor:
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.padding
        if self.ceil:
            x = F.pad(x, (0, self.beyond(x.shape[-1], 1), 0, self.beyond(x.shape[-2], 0)))
        # one sum over a reshaped map: a smaller graph than a slice for each place
        if self.kernel == self.stride and not ph and not pw:
            h, w = x.shape[-2] // kh, x.shape[-1] // kw
            total = x[..., : h * kh, : w * kw].unflatten(-1, (w, kw)).unflatten(-3, (h, kh)).sum((-1, -3))
        else:
            x = F.pad(x, (pw, pw, ph, ph))
            h, w = (x.shape[-2] - kh) // sh + 1, (x.shape[-1] - kw) // sw + 1
            parts = [
                x[..., i : i + sh * h : sh, j : j + sw * w : sw][..., :h, :w]
                for i in range(kh)
                for j in range(kw)
            ]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
        return total if self.divisor == 1 else total / self.divisor


class _Pieces:
    """A convolution whose sums need float64, from float32 ones that are exact: runtimes have no other.

    ``x = sum_i piece_i base^i`` with ``0 <= piece_i < base`` (the last one signed), so small that each sum of
    products stays below 2^24.
    """

    def __init__(self, coded: CodedLayer) -> None:
        self.layer = coded.layer
        self.base = 2
        most = coded.fan_in * coded.format.largest_code
        # a power of two: dividing by it, and multiplying by its powers, is exact
        while 2 * self.base * most < FLOAT32:
            self.base *= 2
        self.count, reach = 1, coded.bound_in
        # one more: floors of negative numbers lie one further from 0
        while reach >= self.base:
            self.count, reach = self.count + 1, (reach + 1) // self.base + 1

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        """Sums in float64."""
        rest, total, weight = x, None, w.float()
        m = self.layer
        convolve: Any = F.conv1d if isinstance(m, nn.Conv1d) else F.conv2d
        for i in range(self.count):
            above = (rest / self.base).floor() if i + 1 < self.count else torch.zeros_like(rest)
            piece = (rest - above * self.base).float()
            part = (
                convolve(piece, weight, None, m.stride, m.padding, m.dilation, m.groups).double()
                * self.base**i
            )
            total, rest = part if total is None else total + part, above
        assert total is not None
        return total
