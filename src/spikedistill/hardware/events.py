"""Which rows and patches of a crossbar a layer's input touches: measured, or of independent spikes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SpikedistillError
from .layer import Events, Layer

BLOCK = 8  # channels: every crossbar size that is 8 times a power of two can be read from one measurement


def _block(layer: Layer) -> int:
    return BLOCK if layer.groups == 1 else layer.in_channels // layer.groups


def measure(layer: Layer, x: Tensor, images: int) -> Events:
    """Count what ``x`` touches, per image; a small integer counts once for each level up to its value.

    Shape: x (M, C, H, W), all executions and images of a batch in M.
    """
    block = _block(layer)
    blocks = -(-layer.in_channels // block)
    # float64: counts over all steps and images pass 2^24, where float32 loses ones
    rows = torch.zeros(blocks, dtype=torch.float64)
    patches: dict[int, float] = {}
    sites = 0.0
    for level in range(1, max(1, layer.input_max) + 1):
        active = F.pad((x >= level).float(), (0, 0, 0, 0, 0, blocks * block - layer.in_channels))
        active = active.unflatten(1, (blocks, block)).sum(2)
        ones = active.new_ones(blocks, 1, *layer.kernel_size)
        taps = F.conv2d(active, ones, None, layer.stride, layer.pads, layer.dilation, blocks)
        rows += taps.sum((0, 2, 3), dtype=torch.float64).cpu()
        touched, width = taps > 0, block
        # neighbours joined pairwise give every wider tile from this one pass
        while touched.shape[1] > 1:
            patches[width] = patches.get(width, 0.0) + float(touched.sum()) / images
            # a last block without a neighbour is a tile of the next width all the same
            if touched.shape[1] % 2:
                touched = F.pad(touched, (0, 0, 0, 0, 0, 1))
            touched, width = touched.unflatten(1, (-1, 2)).any(2), 2 * width
        sites += float(touched.sum()) / images
    return Events(block=block, rows=tuple((rows / images).tolist()), patches=patches, sites=sites)


def _touching(layer: Layer) -> tuple[Tensor, Tensor]:
    """How many kernel taps lie inside the input: (each number, at how many output positions), (n,) each."""
    if layer.kind != "conv":
        return torch.ones(1, dtype=torch.float64), torch.tensor(
            [float(prod(layer.in_size))], dtype=torch.float64
        )
    axes = []
    for n, m, kernel, stride, pad, d in zip(
        layer.in_size, layer.positions, layer.kernel_size, layer.stride, layer.pads, layer.dilation
    ):
        # in closed form along each axis: a layer file may describe maps that are too large to walk
        start = torch.arange(m) * stride - pad
        first, last = (
            (-start.div(d, rounding_mode="floor")).clamp_min(0),
            (n - 1 - start).div(d, rounding_mode="floor"),
        )
        axes.append((last.clamp_max(kernel - 1) - first + 1).clamp_min(0).unique(return_counts=True))
    (rows, row_counts), (columns, column_counts) = axes
    return (
        torch.outer(rows.double(), columns.double()).flatten(),
        torch.outer(row_counts.double(), column_counts.double()).flatten(),
    )


def expected(layer: Layer, rate: float) -> Events:
    """Expected events when every input value is a spike with probability ``rate``, independent of all others.

    ``rows = rate * taps * channels``; ``patches = sum over sites of 1 - (1 - rate)^(taps * channels of a
    tile)``.
    """
    block = _block(layer)
    taps, places = _touching(layer)
    channels = [min(block, layer.in_channels - start) for start in range(0, layer.in_channels, block)]
    total = float((taps * places).sum()) * rate * layer.runs
    rows = tuple(total * c for c in channels)
    patches: dict[int, float] = {}
    width = block
    while len(channels) > 1:
        patches[width] = (
            # all tiles but the last are equally wide: one evaluation serves them
            sum(n * _hit(taps, places, c, rate) for c, n in Counter(channels).items()) * layer.runs
        )
        channels = [sum(channels[i : i + 2]) for i in range(0, len(channels), 2)]
        width *= 2
    return Events(
        block=block, rows=rows, patches=patches, sites=_hit(taps, places, channels[0], rate) * layer.runs
    )


def _hit(taps: Tensor, places: Tensor, channels: int, rate: float) -> float:
    return float(((1 - (1 - rate) ** (taps * channels)) * places).sum())


def at_rate(layers: Sequence[Layer], rate: float) -> list[Layer]:
    """The same layers with independent spikes at ``rate`` per value and step in place of what was measured.

    Layers with real inputs stay as they are; small integers become 0/1. For sweeps and break-even points, not
    for prices of a trained network.
    """
    if not 0 <= rate <= 1:
        raise SpikedistillError(f"a rate is of spikes a value and step, from 0 to 1; found {rate}")
    out = []
    for layer in layers:
        if layer.kind in ("conv", "linear") and layer.input_kind != "real":
            spikes = rate * layer.inputs_per_run * layer.runs
            layer = replace(
                layer,
                input_kind="spikes",
                input_max=1,
                spikes_in=spikes,
                nonzero_in=spikes,
                events=expected(layer, rate),
            )
        if layer.kind == "neuron" or layer.neuron not in (None, "relu"):
            layer = replace(
                layer, spikes_out=rate * layer.out_channels * prod(layer.positions) * layer.time_steps
            )
        out.append(layer)
    return out
