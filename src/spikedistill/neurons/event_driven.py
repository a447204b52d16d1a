"""Event-driven convolution on the CPU: where the input is spikes, and few of them, only these are computed.

A dense convolution multiplies all zeros too. Here spikes are turned into bits; forward adds the weights' rows
that they pick, the weights' gradient adds the output gradient's rows to those; only the gradient of the input
is dense. Work is in proportion to the firing rate. Backward keeps the bits (1/16 or 1/32 of the spikes'
memory).

The arithmetic (``event_driven.cpp``; sums in float32, as in a dense convolution) is native code
(:mod:`.native`); without it, and wherever it does not apply, the convolution is torch's.
"""

import ctypes
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..precision import cpu_bf16_units
from . import compilation, strided
from .native import KINDS, library, readable
from .pooling import MaxPool2d

# Spikes per neuron and step above which a dense convolution is faster (benchmarks/event_driven.py --shapes),
# by the number of its weights: for less than the first number the second. In a small layer more time goes
# into finding the spikes than into their sums.
LIMITS = {
    torch.float32: ((7000, 0.1), (math.inf, 0.35)),
    torch.bfloat16: ((7000, 0.0), (18000, 0.12), (math.inf, 0.18)),
}
# Where the processor multiplies matrices of bfloat16.
AMX_LIMITS = {
    torch.float32: ((7000, 0.1), (math.inf, 0.25)),
    torch.bfloat16: ((7000, 0.0), (math.inf, 0.02)),
}
LANES = 16  # output channels come in vectors of so many
Some = TypeVar("Some", bound=nn.Module)


class Shape(ctypes.Structure):
    """Sizes as ``event_driven.cpp`` knows them."""

    _fields_ = [
        (name, ctypes.c_int32) for name in ("H", "W", "C", "Ho", "Wo", "K", "kh", "kw", "stride", "pad")
    ]


def limit(dtype: torch.dtype, weights: int) -> float:
    """The share of spikes above which this processor's dense convolution of so many weights is faster."""
    limits = AMX_LIMITS if cpu_bf16_units() == "AMX" else LIMITS
    return next(share for below, share in limits[dtype] if weights < below)


def bits_of(x: Tensor, most: float) -> Tensor | None:
    """Spikes (M, C, H, W), channels last, as bits (M*H*W, words).

    None: not only 0 and 1, or more than the share ``most`` of ones.
    """
    if not most:
        return None
    M, C, H, W = x.shape
    bits = torch.empty(M * H * W, (C + 63) // 64, dtype=torch.int64, device=x.device)
    kind, threads = KINDS[x.dtype], torch.get_num_threads()
    # What is no spikes, or far too many, mostly shows in the first rows.
    for rows, bound in ((min(M * H * W, 256), 3 * most), (M * H * W, most)):
        count = library().spikes_to_bits(x.data_ptr(), kind, rows, C, bits.data_ptr(), threads)
        if not 0 <= count <= bound * rows * C:
            return None
    return bits


class _EventConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int
    ) -> Tensor:
        K, C, kh, kw = weight.shape
        M, _, H, W = x.shape
        Ho, Wo = ((n + 2 * pad - k) // stride + 1 for n, k in ((H, kh), (W, kw)))
        shape = Shape(H, W, C, Ho, Wo, K, kh, kw, stride, pad)
        out = torch.empty((M, K, Ho, Wo), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        kind, threads = KINDS[x.dtype], torch.get_num_threads()
        # Channels last, a weight lies as (K, kh kw C): one transposition gives the rows that spikes pick.
        last = weight.detach().float().contiguous(memory_format=torch.channels_last)
        # Said each time: torch's default type and device may be others, and a pointer tells neither.
        rows = torch.empty(kh, kw, C, K, dtype=torch.float32, device=x.device)
        library().transpose(last.data_ptr(), rows.data_ptr(), K, kh * kw * C, kind, threads)
        # Rounded to the spikes' type first, as a dense convolution in it would take the bias.
        b = None if bias is None else bias.detach().to(x.dtype).float().contiguous()
        library().convolve(
            bits.data_ptr(), rows.data_ptr(), None if b is None else b.data_ptr(), out.data_ptr(), kind, M,
            ctypes.byref(shape), threads,
        )  # fmt: skip
        ctx.save_for_backward(bits, weight)
        ctx.shape, ctx.input, ctx.bias = shape, x.shape, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        bits, weight = ctx.saved_tensors
        s: Shape = ctx.shape
        g = g.contiguous(memory_format=torch.channels_last)
        gx = gw = gb = None
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                # Of the input only the sizes are asked; torch would fill an expanded one.
                empty = torch.empty(
                    ctx.input, dtype=g.dtype, device=g.device, memory_format=torch.channels_last
                )
                gx, _, _ = torch.ops.aten.convolution_backward(
                    g, empty, weight.to(g.dtype), None, [s.stride] * 2, [s.pad] * 2, [1, 1], False, [0, 0], 1,
                    [True, False, False],
                )  # fmt: skip
            if ctx.needs_input_grad[2]:
                # Each thread takes whole images and has room of its own: more of them would only cost memory.
                threads = min(torch.get_num_threads(), g.shape[0])
                gw, room = (
                    torch.empty(shape, dtype=torch.float32, device=g.device)
                    for shape in ((s.K, s.kh, s.kw, s.C), (threads, weight.numel()))
                )
                library().weight_gradient(
                    bits.data_ptr(), g.data_ptr(), KINDS[g.dtype], gw.data_ptr(), room.data_ptr(), g.shape[0],
                    ctypes.byref(s), threads,
                )  # fmt: skip
                gw = gw.permute(0, 3, 1, 2).to(weight.dtype)
            if ctx.bias and ctx.needs_input_grad[3]:
                gb = g.float().sum((0, 2, 3)).to(weight.dtype)
        return gx, None, gw, gb, None, None


class Conv2d(strided.Conv2d):
    """torch's convolution, computed event by event if its input is few spikes (compiled neurons, CPU)."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if compilation.mode() == "compiled" and self._applies(x, weight):
            # Autocast acts in torch's convolution, which is not called here: its cast is made by hand.
            autocast = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
            given = x.to(torch.bfloat16) if autocast and dtype == torch.bfloat16 else x
            # Autocast to a type that the native code does not know: torch's convolution.
            if given.dtype == dtype and library() is not None:
                bits = bits_of(given, limit(given.dtype, weight.numel()))
                if bits is not None:
                    return _EventConvolution.apply(
                        given, bits, weight, bias, self.stride[0], int(self.padding[0])
                    )
        return super()._conv_forward(x, weight, bias)

    def _applies(self, x: Tensor, weight: Tensor) -> bool:
        return (
            readable(x)
            and weight.device.type == "cpu"
            and self.groups == 1
            and self.out_channels % LANES == 0
            and x.shape[1] == self.in_channels >= 8
            and self.stride[0] == self.stride[1]
            and self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and self.padding[0] == self.padding[1]
            # Sizes that do not fit go to torch, whose refusal says why.
            and all(n + 2 * self.padding[0] >= k for n, k in zip(x.shape[2:], self.kernel_size, strict=True))
        )


def equip(network: Some) -> Some:
    """Let convolutions of a network be computed event by event, and safely (:mod:`.strided`); returns it.

    Its max poolings become native code too (:mod:`.pooling`). For a module of one's own with layers of torch
    between neurons; networks of ``create``, ``spiking`` and ``adopt`` have it. Names, weights and results
    stay. What enters has to be channels last.
    """
    for module in network.modules():
        # Exact types: what another subclass multiplies may be its own.
        if type(module) in (nn.Conv2d, strided.Conv2d):
            module.__class__ = Conv2d
        elif type(module) is nn.MaxPool2d:
            module.__class__ = MaxPool2d
    return strided.guard(network)
