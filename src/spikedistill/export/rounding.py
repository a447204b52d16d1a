"""Integer weights with thresholds scaled along: what fixed-point chips read."""

from collections.abc import Collection

import numpy as np

from ..errors import SpikedistillError
from .layers import WEIGHTED, Layer, Lowered, diagonal


def round_weights(lowered: Lowered, bits: int, maxima: Collection[str] = ()) -> dict[str, float]:
    """Round all weights and biases to integers, in place; returns each layer's scale (norms stay real).

    ``W_q = floor(W s + 1/2)``, ``b_q = floor(b s + 1/2)``, ``V_th <- V_th s``, with one ``s = (2^(bits-1) -
    1) / max|W|`` for all layers that charge the same neuron. Means become sums whose divisor moves into the
    next weights first.
    """
    if not 2 <= bits <= 16:
        raise SpikedistillError(f"weight_bits must be from 2 to 16, found {bits}")
    limit = 2 ** (bits - 1) - 1
    # before the scales: dividing weights by a window changes the largest
    _sums(lowered, maxima)
    _spikes_through_weights(lowered)
    groups = _groups(lowered)
    scales: dict[str, float] = {}
    for group in groups:
        top = max(float(np.abs(_weight(layer)).max()) for layer in group)
        for layer in group:
            scales[layer.name] = limit / top if top else 1.0
    for layer in lowered.layers.values():
        # in the order of execution: scales pass from a pool's sources to the pool on the way
        found = {scales.get(name, 1.0) for name in layer.sources}
        if layer.kind in WEIGHTED and layer.name in scales:
            if found != {1.0}:
                raise SpikedistillError(
                    f"{layer.path}: reads real values from another weighted layer, and rounded weights would "
                    "need a second scale there; weight_bits is for networks whose layers read spikes or the "
                    "input"
                )
            scale = scales[layer.name]
            assert layer.bias is not None
            layer.weight = np.clip(np.floor(_weight(layer) * scale + 0.5), -limit - 1, limit)
            layer.bias = np.floor(layer.bias * scale + 0.5)
        elif layer.kind == "neuron":
            scale = found.pop()
            layer.threshold, layer.initial = layer.threshold * scale, layer.initial * scale
        elif layer.kind not in WEIGHTED and layer.sources:
            scales[layer.name] = found.pop()
    return scales


def _weight(layer: Layer) -> np.ndarray:
    assert layer.weight is not None
    return layer.weight


def _sums(lowered: Lowered, maxima: Collection[str]) -> None:
    """Average pools whose readers are all weighted (flattening between or not) become sums.

    ``maxima``: those that stand for largest values, which have no divisor.
    """
    for layer in lowered.layers.values():
        if layer.kind != "avgpool" or layer.name in maxima:
            continue
        readers = lowered.users(layer.name)
        if all(r.kind == "flatten" for r in readers):
            readers = [user for r in readers for user in lowered.users(r.name)]
        # a divisor in the weights divides all that they read: nothing else may come in there
        if readers and all(r.kind in WEIGHTED and len(r.sources) == 1 for r in readers):
            layer.kind = "sumpool"
            for reader in readers:
                reader.weight = _weight(reader) / (layer.window["kernel"][0] * layer.window["kernel"][1])


def _spikes_through_weights(lowered: Lowered) -> None:
    """Spikes that charge a neuron directly, beside weights, get an identity layer to carry the scale."""
    layers: dict[str, Layer] = {}
    for layer in lowered.layers.values():
        if layer.kind == "neuron" and len(layer.sources) > 1:
            for name in [*layer.sources]:
                source = lowered.layers[name]
                if source.kind not in WEIGHTED:
                    one = diagonal(
                        f"{name}_to_{layer.name}", {name: 1.0}, np.array(1.0), np.array(0.0), source.shape
                    )
                    layers[one.name] = one
                    layer.sources = {one.name if s == name else s: f for s, f in layer.sources.items()}
        layers[layer.name] = layer
    lowered.layers = layers


def _groups(lowered: Lowered) -> list[list[Layer]]:
    """Weighted layers joined where a layer sums them; the input's normalisation stays out."""
    group = {n: {n} for n, layer in lowered.layers.items() if layer.kind in WEIGHTED and n != "normalise"}
    reach: dict[str, set[str]] = {}  # weighted layers whose scale a layer's output has
    for name, layer in lowered.layers.items():
        before = set().union(*(reach[s] for s in layer.sources))
        joined = set().union(*(group[m] for m in before))
        group.update(dict.fromkeys(joined, joined))
        # spikes and the normalised input have no scale
        reach[name] = {name} if name in group else set() if layer.kind in (*WEIGHTED, "neuron") else before
    unique = {id(members): members for members in group.values()}
    return [[lowered.layers[m] for m in members] for members in unique.values()]
