"""What a quantized network computes when every array's partial sum goes through an ADC of few bits.

An array holds one kernel position, X input rows and, for each output channel, ``ceil(b / cell_bits)``
columns: slices of the offset-binary code ``w + 2^(b-1)`` (after ISAAC: A. Shafiee et al., ISCA 2016; the
offset times the number of active rows is subtracted digitally and exactly). Rows take 0/1: small integers are
fed level by level, other codes as two's-complement bit planes. The sum of a column lies in ``0 .. X
(2^cell_bits - 1)``; an ADC of B bits, lossless at L, gives

    ``min(floor(sum / 2^(L-B) + 1/2), 2^B - 1) * 2^(L-B)``.

At B >= L every spike and logit equals the quantized network's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..quantization.layers import CodedLayer
from ..quantization.quantized import Quantization
from .config import Config
from .workload import SMALL

_ELEMENTS = 1 << 26  # partial sums in memory at once


def convert(sums: Tensor, config: Config) -> Tensor:
    """What the ADC makes of integer sums of one column of one array."""
    dropped = config.lossless_adc_bits - (config.adc_bits or config.lossless_adc_bits)
    if dropped <= 0:
        return sums
    step = 2**dropped
    # not torch.round, which takes halves to the even neighbour
    return torch.floor(sums / step + 0.5).clamp(max=2 ** (config.adc_bits or 0) - 1) * step


def planes(x: Tensor, bound: int) -> Iterator[tuple[int, Tensor]]:
    """0/1 planes of integer codes, what each counts for: levels up to ``bound`` if small, else bits."""
    # pulses have no sign: small codes below 0 need bit planes too
    if bound <= SMALL and bool((x >= 0).all()):
        for level in range(1, bound + 1):
            yield 1, (x >= level).to(x.dtype)
        return
    bits = bound.bit_length() + 1
    unsigned = torch.where(x < 0, x + 2**bits, x)
    for bit in range(bits):
        # the top bit of two's complement counts negative
        yield (-(2**bit) if bit == bits - 1 else 2**bit), torch.floor(unsigned / 2**bit) % 2


def _slices(codes: Tensor, bits: int, cell_bits: int) -> Tensor:
    """Offset-binary slices, low ones first: (C', C, kh, kw) to (S, C', C, kh, kw)."""
    # a cell holds no negative number; `accumulate` takes the offset back for the rows that were active
    shifted = codes + 2 ** (bits - 1)
    count = ceil(bits / cell_bits)
    return torch.stack([torch.floor(shifted / 2 ** (cell_bits * s)) % 2**cell_bits for s in range(count)])


def accumulate(
    x: Tensor, codes: Tensor, bits: int, config: Config, bound: int, stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0), dilation: tuple[int, int] = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """A convolution of integer codes, array by array.

    Shape: x (M, C, H, W), codes (C', C / groups, kh, kw), result (M, C', Ho, Wo); all integer-valued floats.
    """
    size = config.crossbar_size
    slices = _slices(codes, bits, config.cell_bits)
    S, c_out, c_in, kh, kw = slices.shape
    tiles = ceil(c_in / size)
    weights = F.pad(slices, (0, 0, 0, 0, 0, tiles * size - c_in)).view(
        S, groups, c_out // groups, tiles, size, kh, kw
    )
    # One group of the convolution below is one array: (groups, tiles) arrays with C' / groups * S columns of
    # X rows each.
    weights = weights.permute(1, 3, 2, 0, 4, 5, 6).reshape(-1, size, kh, kw)
    worth = (2.0 ** (config.cell_bits * torch.arange(S, device=x.device))).to(x.dtype)
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    chunk = max(1, _ELEMENTS // (weights.shape[0] * height * width))
    out = []
    for part in x.split(chunk):
        total = part.new_zeros(part.shape[0], groups, c_out // groups, height, width)
        for value, plane in planes(part, bound):
            padded = F.pad(plane, (padding[1], padding[1], padding[0], padding[0]))
            # each group of the layer fills arrays of its own, so that groups of the convolution are arrays
            rows = F.pad(padded.unflatten(1, (groups, c_in)), (0, 0, 0, 0, 0, tiles * size - c_in)).flatten(
                1, 2
            )
            # one kernel position at a time: every array's sum meets its ADC before any two are added
            for i in range(kh):
                for j in range(kw):
                    at = rows[
                        :, :,
                        i * dilation[0] : i * dilation[0] + stride[0] * (height - 1) + 1 : stride[0],
                        j * dilation[1] : j * dilation[1] + stride[1] * (width - 1) + 1 : stride[1],
                    ]  # fmt: skip
                    sums = convert(
                        F.conv2d(at, weights[:, :, i : i + 1, j : j + 1], groups=groups * tiles), config
                    )
                    sums = sums.view(-1, groups, tiles, c_out // groups, S, height, width).sum(2)
                    active = at.unflatten(1, (groups, tiles * size)).sum(2).unsqueeze(2)
                    total += value * (torch.einsum("ngcshw,s->ngchw", sums, worth) - 2 ** (bits - 1) * active)
        out.append(total.flatten(1, 2))
    return torch.cat(out)


def _of_layer(coded: CodedLayer, config: Config, x: Tensor, codes: Tensor) -> Tensor:
    """What takes the place of a coded layer's own product."""
    layer, bits = coded.layer, coded.format.bits
    assert bits is not None
    if isinstance(layer, nn.Linear):
        flat = x.reshape(-1, x.shape[-1], 1, 1)
        out = accumulate(flat, codes[:, :, None, None], bits, config, coded.bound_in)
        return out.view(*x.shape[:-1], -1)
    one_dimensional = isinstance(layer, nn.Conv1d)
    maps, kernel = (x.unsqueeze(2), codes.unsqueeze(2)) if one_dimensional else (x, codes)
    fill = (1, 0, 1) if one_dimensional else ()
    stride, padding, dilation = (
        (fill[i], value[0]) if fill else tuple(value)
        for i, value in enumerate((layer.stride, layer.padding, layer.dilation))
    )
    out = accumulate(maps, kernel, bits, config, coded.bound_in, stride, padding, dilation, layer.groups)
    return out.squeeze(2) if one_dimensional else out


@contextmanager
def simulate(network: nn.Module, config: Config | None = None) -> Iterator[nn.Module]:
    """Inside, a quantized network's convolutions and linear layers compute on arrays of ``config.adc_bits``.

    For evaluation: rounding has no gradient here. Raises: SpikedistillError when the network is not
    quantized, or a layer's weights are real.
    """
    config = config or Config()
    quantization: Quantization | None = getattr(network, "quantization", None)
    if quantization is None:
        raise SpikedistillError(
            "crossbars hold integer weights, and this network is not quantized; quantize it first"
        )
    layers = quantization.layers
    if real := [name for name, layer in layers.items() if layer.format.bits is None]:
        raise SpikedistillError(
            f"crossbars hold integer weights; {', '.join(real)} has real ones: give it weight bits"
        )
    for layer in layers.values():
        # hides the method of the class, for this layer alone; deleting it brings the method back
        layer.__dict__["accumulate"] = partial(_of_layer, layer, config)
    try:
        with torch.no_grad():
            yield network
    finally:
        for layer in layers.values():
            del layer.__dict__["accumulate"]
