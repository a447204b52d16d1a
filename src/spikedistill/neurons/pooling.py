"""Max pooling on the CPU, as torch's but faster, and with a byte kept where torch keeps eight.

The arithmetic (``pooling.cpp``) is native code (:mod:`.native`); without it, and wherever it does not apply,
the pooling is torch's.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import compilation
from .native import KINDS, library, readable


class Window(ctypes.Structure):
    """Sizes as ``pooling.cpp`` knows them."""

    _fields_ = [(name, ctypes.c_int32) for name in ("H", "W", "C", "Ho", "Wo", "kernel", "stride", "pad")]


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, pad: int) -> Tensor:
        M, C, H, W = x.shape
        Ho, Wo = ((n + 2 * pad - kernel) // stride + 1 for n in (H, W))
        window = Window(H, W, C, Ho, Wo, kernel, stride, pad)
        out = torch.empty((M, C, Ho, Wo), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        codes = out.new_empty(out.numel(), dtype=torch.uint8) if ctx.needs_input_grad[0] else None
        library().max_pool(
            x.data_ptr(), out.data_ptr(), None if codes is None else codes.data_ptr(), KINDS[x.dtype], M,
            ctypes.byref(window), torch.get_num_threads(),
        )  # fmt: skip
        if codes is not None:
            ctx.save_for_backward(codes)
        ctx.window, ctx.shape = window, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        w: Window = ctx.window
        g = g.contiguous(memory_format=torch.channels_last)
        gx = torch.empty(ctx.shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        library().max_pool_gradient(
            g.data_ptr(), codes.data_ptr(), gx.data_ptr(), KINDS[g.dtype], g.shape[0], ctypes.byref(w),
            torch.get_num_threads(),
        )  # fmt: skip
        return gx, None, None, None


class MaxPool2d(nn.MaxPool2d):
    """torch's max pooling, in native code where it applies (compiled neurons, CPU, channels last)."""

    graph_leaf = True  # one node of a network's graph, as torch's own layers are

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H', W')."""
        if compilation.mode() == "compiled" and readable(x) and library() is not None:
            kernel, stride, pad = (_one(size) for size in (self.kernel_size, self.stride, self.padding))
            if self._applies(x, kernel, stride, pad):
                return _MaxPool.apply(x, kernel, stride, pad)
        return super().forward(x)

    def _applies(self, x: Tensor, kernel: int, stride: int, pad: int) -> bool:
        return (
            # Sizes that do not fit go to torch, whose refusal says why; a place is kept as a byte.
            0 < kernel < 16
            and stride > 0
            and 0 <= 2 * pad <= kernel
            and min(x.shape[2:]) + 2 * pad >= kernel
            and self.dilation in (1, (1, 1))
            and not self.ceil_mode
            and not self.return_indices
        )


def _one(size: Any) -> int:
    """Of a square window; -1 of another."""
    if isinstance(size, int):
        return size
    return int(size[0]) if len(set(size)) == 1 else -1
