"""Norm, residual and neuron as one native operation where no gradient is asked: float32 on the CPU.

The same operations in the same order as :mod:`.kernels`, in ``inference.cpp``: nothing is compiled at run
time, and a layer costs a call, however small it is.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from .compilation import mode
from .dynamics import Constants, Number
from .native import library

RESETS = {None: 0, "hard": 1, "soft": 2}


class Numbers(ctypes.Structure):
    """A neuron as ``inference.cpp`` knows it."""

    _fields_ = [
        *((name, ctypes.c_float) for name in ("decay", "gain", "threshold", "initial", "subtracted")),
        *((name, ctypes.c_int32) for name in ("reset", "T", "encode")),
    ]


def applies(x: Tensor, constants: Constants) -> bool:
    """Whether :func:`run` can be asked: compiled mode, no gradient, float32 on the CPU, no integer grid."""
    return (
        not torch.is_grad_enabled()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and constants.grid is None
        and not constants.smooth
        and mode() == "compiled"
        and library() is not None
    )


def run(
    x: Tensor, T: int, encode: bool, decay: Number, gain: Number, initial: float, c: Constants,
    affine: tuple[Tensor, Tensor] | None, residual: Tensor | None, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Spikes (T*N, ...), laid out as ``x`` (T*N, C, ...) or (N, C, ...), which has no gaps."""
    p = Numbers(
        float(decay), float(gain), c.threshold, initial, c.subtracted, RESETS[c.reset], T, int(encode)
    )
    n, places = x.shape[0] * (T if encode else 1), x.shape[2:]
    # Said each time: torch's default type and device may be others, and a pointer tells neither.
    like: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    if channels_last and places:
        out = torch.empty(n, *places, x.shape[1], **like).movedim(-1, 1)
    else:
        out = torch.empty(n, *x.shape[1:], **like)
    norm = (None, None) if affine is None else (v.float().contiguous() for v in affine)
    # Named until the call is over: a pointer alone keeps no converted copy alive.
    given = [x, *norm, None if residual is None else residual.float(), out]
    inner = 1 if channels_last else places.numel()
    library().fire(
        ctypes.byref(p), *(None if v is None else v.data_ptr() for v in given), out.numel() // T,
        x.shape[1] if x.dim() > 1 else 1, inner, torch.get_num_threads(),
    )  # fmt: skip
    return out
