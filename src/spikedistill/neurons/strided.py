"""1x1 convolutions with a stride, trained on the CPU.

oneDNN's gradient for their weights (float32, channels last, fewer than 16 input channels, AVX-512; torch
2.14) writes past its buffer and so destroys the heap. Where that gradient is to be computed, the same is
computed otherwise: a 1x1 convolution with stride s and without padding is one of stride 1 on every s-th
pixel.
"""

from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin

Some = TypeVar("Some", bound=nn.Module)


def picks(conv: Any) -> bool:
    """Whether a convolution only picks pixels: kernel 1, no padding, some stride above 1."""
    unpadded = conv.padding == "valid" or all(p == 0 for p in conv.padding)
    return all(k == 1 for k in conv.kernel_size) and unpadded and any(s > 1 for s in conv.stride)


class _Picking:
    """``_conv_forward`` on the picked pixels where the CPU will be asked for a gradient of the weights."""

    def _conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and weight.requires_grad and picks(self):
            if len(self.stride) == 1:
                return F.conv1d(x[..., :: self.stride[0]], weight, bias, groups=self.groups)
            down, right = self.stride
            return F.conv2d(x[..., ::down, ::right], weight, bias, groups=self.groups)
        return super()._conv_forward(x, weight, bias)  # type: ignore[misc]


class Conv1d(_Picking, nn.Conv1d):
    """torch's convolution, kept from oneDNN's faulty gradient."""

    graph_leaf = True  # one node of a network's graph, as torch's own layers are


class Conv2d(_Picking, nn.Conv2d):
    """torch's convolution, kept from oneDNN's faulty gradient."""

    graph_leaf = True  # one node of a network's graph, as torch's own layers are


def guard(module: Some) -> Some:
    """Let strided 1x1 convolutions compute gradients safely on the CPU, in place; returns the module."""
    for part in module.modules():
        # A lazy convolution sets its class itself at its first input, and would undo this.
        if (
            isinstance(part, nn.Conv1d | nn.Conv2d)
            and not isinstance(part, _Picking | LazyModuleMixin)
            and picks(part)
        ):
            own: Any = type(part)
            cls: Any = _guarded(own)
            part.__class__ = cls
    return module


@cache
def _guarded(cls: Any) -> type[nn.Module]:
    """The class in place of a convolution's own; subclasses that multiply otherwise stay what they are."""
    if cls in (nn.Conv1d, nn.Conv2d):
        return Conv1d if cls is nn.Conv1d else Conv2d
    own: Any = nn.Conv1d if issubclass(cls, nn.Conv1d) else nn.Conv2d
    if cls._conv_forward is not own._conv_forward:
        return cls

    def reduced(self: Any, protocol: Any) -> Any:
        # By the guarded class's name pickle finds the one it was made from: that one is named instead.
        rebuild, args, *rest = cls.__reduce_ex__(self, protocol)
        return _rebuilt, tuple(cls if v is guarded else v for v in (rebuild, *args)), *rest

    guarded = type(cls.__name__, (_Picking, cls), {"__module__": cls.__module__, "__reduce_ex__": reduced})
    return guarded


def _rebuilt(rebuild: Any, *args: Any) -> Any:
    part = rebuild(*args)
    own: Any = type(part)
    if not issubclass(own, _Picking):
        part.__class__ = _guarded(own)
    return part
