"""Networks as NIR files, in the dialect that snnTorch's and SpikingJelly's readers run spike for spike.

NIR: Pedersen et al., "Neuromorphic intermediate representation: a unified instruction set for interoperable
brain-inspired computing", Nature Communications 2024. Both readers discretise with ``dt = 1e-4``, ``V <- (1 -
dt/tau) V + (r dt/tau) I``; ``r = tau/dt`` makes the factor on the current 1, so the neuron's gain is in the
weights and biases before it.
"""

import dataclasses
import io
import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import finite
from ..errors import SpikedistillError
from ..files import destination, exported
from ..networks.base import Network, frames
from ..neurons.dynamics import Grid
from ..simulation import Simulation
from .layers import DT, Layer, Lowered, Refusal, diagonal, nir_module
from .lower import lower
from .rounding import round_weights

if TYPE_CHECKING:
    import nir as nir_package

# Both readers compare differently at H = threshold (snnTorch fires above, SpikingJelly at and above): as far
# below as float32 tells apart from rounding errors, and far less than any grid's step.
BELOW = 1 - 2.0**-20
# A time constant in steps at which float32 knows no leak any more; readers take no infinite one.
NO_LEAK, ALL_LEAK = 2.0**40, 1 + 2.0**-30
VERSION = 1


@torch.no_grad()  # grids of learned constants are plain numbers then
def to_nir(
    network: Network,
    path: str | os.PathLike[str],
    example: Tensor,
    allow_lossy: bool = False,
    weight_bits: int | None = None,
) -> list[str]:
    """Write one time step of a convolutional SNN as a NIR graph; returns what the file cannot say.

    An empty list: nothing is lost. ``example``: a batch as the network takes it, (N, C, H, W) or (N, F, C, H,
    W); it fixes the map sizes and measures what is lost. A network with image input is to be fed the same
    image at each step. Norms fold into the convolution before them; a normalisation of the input other than 0
    and 1 becomes a 1x1 convolution (folded into the first layer, zero padding would no longer be exact).
    ``weight_bits``: integer weights of that many bits, ``W_q = round(W s)``, one ``s = (2^(bits-1) - 1) /
    max|W|`` for all layers that charge a neuron, thresholds ``V_th s``, and sum pools in place of means
    (after Arfa et al., "SpiNNaker2 deployment via NIR", NICE 2025; the maximum is our reading of the
    percentile).

    Raises :class:`SpikedistillError` before anything is written: for what has no form in the format, with its
    path; and, unless ``allow_lossy``, for soft reset or none, an initial membrane, max pooling. With
    ``allow_lossy`` these go into the file's metadata, which :func:`from_nir` obeys and other readers do not,
    and a warning gives the share of neuron-steps whose spike changes in those readers.
    """
    nir = nir_module()
    target = destination(path)
    finite.check(network, "to_nir: the network")
    finite.check_batches([example], "to_nir: example")
    lowered = lower(network, example)
    # first: only the max pooling that it leaves is lossy
    _max_of_spikes(lowered)
    for layer in lowered.layers.values():
        lowered.refusals += _lossy(layer)
    if lowered.refusals and not allow_lossy:
        raise SpikedistillError(
            "NIR's readers cannot run this network as it is:\n  "
            + "\n  ".join(summed_up(lowered.refusals))
            + "\nallow_lossy=True (--allow-lossy) writes the nearest network and keeps the rest as metadata"
        )
    lossy = [str(refusal) for refusal in lowered.refusals]
    # After `_lossy`, which looks for them.
    named, maxima = [*lowered.layers], _means_of_maxima(lowered)
    _normalise(network, lowered)
    scales: dict[str, float] = {}
    if weight_bits is not None:
        if network.input_codes is not None:
            raise SpikedistillError("this network is quantized already; leave weight_bits out")
        scales = round_weights(lowered, weight_bits, maxima)
        lossy.append(f"weights rounded to {weight_bits} bits")
    # After the rounding, which scales what a membrane starts with; the layers that it adds are its own.
    extras = {name: _extra(lowered.layers[name], name in maxima) for name in named}
    metadata = {
        "format": "spikedistill", "version": VERSION, "time_steps": network.time_steps,
        "input": _input(network), "codes": _codes(network), "lossy": lossy, "nodes": extras,
        "logits_scale": scales.get("output", 1.0), "weight_bits": weight_bits,
    }  # fmt: skip
    graph = nir.NIRGraph(
        {layer.name: _node(nir, layer, lowered) for layer in lowered.layers.values()},
        [(source, layer.name) for layer in lowered.layers.values() for source in layer.sources],
        metadata={"spikedistill": json.dumps(metadata)},
    )
    with exported(target) as temporary:
        whole = io.BytesIO()  # HDF5 itself crashes on a full disk
        nir.write(whole, graph)
        temporary.write_bytes(whole.getvalue())
        # read back before the file takes its name: one that cannot be read is never left behind
        share = _changed(network, temporary, example, lowered) if lossy else 0.0
    if lossy:
        said = [*summed_up(lowered.refusals), *lossy[len(lowered.refusals) :]]
        warnings.warn(
            f"{target}: {share:.2%} of spikes differ for readers that do not know this file's metadata "
            f"({'; '.join(said)}), measured on {len(example)} examples over {network.time_steps} steps",
            stacklevel=2,
        )
    return lossy


def _input(network: Network) -> str:
    if network.input == "frames":
        return "one frame a step"
    return (
        "the same image at each step"
        if network.encoding == "direct"
        else f"one {network.encoding}-encoded frame a step"
    )


def _codes(network: Network) -> dict[str, Any] | None:
    """How a quantized network makes codes of its input: a table of image levels, else half-up, clipped."""
    codes: Any = network.input_codes
    if codes is None:
        return None
    table = network.input_table.tolist() if codes.kind == "image" else None  # type: ignore[operator]
    return {"kind": codes.kind, "limit": int(codes.limit), "table": table}


def summed_up(refusals: list[Refusal]) -> list[str]:
    """One entry a reason, with all its paths."""
    paths: dict[str, list[str]] = {}
    for refusal in refusals:
        paths.setdefault(refusal.what, []).append(refusal.path)
    return [f"{', '.join(where)}: {what}" for what, where in paths.items()]


def _lossy(layer: Layer) -> list[Refusal]:
    out = []
    if layer.kind == "maxpool":
        out.append(
            Refusal(layer.path, "max pooling of what are no single spikes; use pooling='avg'", lossy=True)
        )
    if layer.kind == "neuron" and layer.reset != "hard":
        form = "soft reset (by subtraction)" if layer.reset == "soft" else "no reset"
        out.append(
            Refusal(layer.path, f"{form}; NIR's LIF resets to 0, as ours does ({{type: lif}})", lossy=True)
        )
    if layer.initial:
        out.append(Refusal(layer.path, f"initial membrane {layer.initial}; NIR starts at 0", lossy=True))
    return out


def _means_of_maxima(lowered: Lowered) -> set[str]:
    """Turn real max pools into average pools, which NIR has; returns their names."""
    found = {layer.name for layer in lowered.layers.values() if layer.kind == "maxpool"}
    for name in found:
        lowered.layers[name].kind = "avgpool"
    return found


def _extra(layer: Layer, maximum: bool) -> dict[str, Any]:
    """What :func:`from_nir` restores of a node: reset, initial membrane, grid, rounding, real max pooling."""
    extra: dict[str, Any] = {"path": layer.path, "call": layer.call}
    if layer.kind == "neuron":
        extra |= {"reset": layer.reset, "initial": layer.initial}
        if layer.reset_by != 1:
            extra["reset_by"] = layer.reset_by
        if layer.grid is not None:
            # A learned grid is also a parameter, which is no part of the file.
            extra["grid"] = {f.name: getattr(layer.grid, f.name) for f in dataclasses.fields(Grid)}
    if layer.step:
        extra["step"] = layer.step
    return {**extra, "max": True} if maximum else extra


def _max_of_spikes(lowered: Lowered) -> None:
    """Max pooling of single spikes is average pooling and a neuron without memory that fires at any spike."""
    layers: dict[str, Layer] = {}
    for layer in [*lowered.layers.values()]:
        layers[layer.name] = layer
        if layer.kind == "maxpool" and _binary(lowered, layer):
            layer.kind = "avgpool"
            # half of what a single spike makes of the mean
            any_spike = 0.5 / (layer.window["kernel"][0] * layer.window["kernel"][1])
            name = f"{layer.name}_any"
            layers[name] = Layer(
                name, "neuron", layer.shape, {layer.name: 1.0}, decay=0.0, threshold=any_spike
            )
            for user in lowered.users(layer.name):
                user.sources = {name if s == layer.name else s: f for s, f in user.sources.items()}
            lowered.layers[name] = layers[name]
    lowered.layers = layers


def _binary(lowered: Lowered, layer: Layer) -> bool:
    if [*layer.sources.values()] != [1.0]:
        return False
    (source,) = (lowered.layers[name] for name in layer.sources)
    return source.kind == "neuron" or (source.kind == "flatten" and _binary(lowered, source))


def _normalise(network: Network, lowered: Lowered) -> None:
    mean, std = network.mean.double().cpu().numpy(), network.std.double().cpu().numpy()
    codes = network.input_codes
    if codes is not None:
        std = (
            std * input_step(network, codes) if codes.kind == "image" else np.ones_like(std)
        )  # counts and spikes are their own codes
    if not mean.any() and (std == 1).all():
        return
    shape = lowered.layers["input"].shape
    first = diagonal("normalise", {"input": 1.0}, 1 / std, -mean / std, shape)
    layers = {}
    for layer in lowered.layers.values():
        layer.sources = {first.name if s == "input" else s: f for s, f in layer.sources.items()}
        layers[layer.name] = layer
        if layer.name == "input":
            layers[first.name] = first
    lowered.layers = layers


def input_step(network: Any, codes: Any) -> float:
    """Value of one code of a quantized network's image."""
    from ..quantization.layers import input_table

    bits = int(codes.limit).bit_length() + 1
    return input_table(network, bits)[1]


def _node(nir: "nir_package", layer: Layer, lowered: Lowered) -> Any:
    shape = np.array(layer.shape)
    if layer.kind == "input":
        return nir.Input({"input": shape})
    if layer.kind == "output":
        return nir.Output({"output": shape})
    before = lowered.layers[next(iter(layer.sources))].shape
    if layer.kind == "flatten":
        # negative dimensions mean the same whether or not a reader counts the batch
        return nir.Flatten({"input": np.array(before)}, start_dim=-len(before), end_dim=-1)
    if layer.kind == "neuron":
        full = np.ones(layer.shape)
        tau = NO_LEAK if layer.decay == 1 else ALL_LEAK if layer.decay == 0 else 1 / (1 - layer.decay)
        return nir.LIF(
            tau=full * (tau * DT), r=full * tau, v_leak=0 * full, v_reset=0 * full,
            v_threshold=full * (layer.threshold * BELOW),
        )  # fmt: skip
    window = {name: np.array(value) for name, value in layer.window.items()}
    if layer.kind in ("avgpool", "sumpool"):
        pool = nir.AvgPool2d if layer.kind == "avgpool" else nir.SumPool2d
        return pool(kernel_size=window["kernel"], stride=window["stride"], padding=window["padding"])
    assert layer.weight is not None
    assert layer.bias is not None
    weight, bias = layer.weight.astype(np.float32), layer.bias.astype(np.float32)
    if layer.kind == "linear":
        return nir.Affine(weight, bias)
    conv, size = (nir.Conv1d, before[1]) if len(before) == 2 else (nir.Conv2d, tuple(before[1:]))
    return conv(
        # groups=1: the lowering has written grouped kernels out as dense ones
        input_shape=size, weight=weight, stride=window["stride"], padding=window["padding"],
        dilation=window["dilation"], groups=1, bias=bias,
    )  # fmt: skip


def _changed(network: Network, path: os.PathLike[str], example: Tensor, lowered: Lowered) -> float:
    """Share of neuron-steps whose spike is another one in a reader that knows nothing of our metadata."""
    from .nir_reader import from_nir

    plain = from_nir(path, metadata=False, time_steps=network.time_steps)
    # the neuron of a max pool has no path: the network has none there
    neurons = [layer for layer in lowered.layers.values() if layer.kind == "neuron" and layer.path]
    ours = spikes_of(network, example, [(layer.path, layer.call) for layer in neurons])
    x = encoded(network, example)
    theirs = spikes_of(plain, x, [(f"nodes.{layer.name}", 0) for layer in neurons])
    different = sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
    return different / sum(a.numel() for a in ours)


def encoded(network: Network, example: Tensor) -> Tensor:
    """The frames (N, T, C, H, W) that the file's network sees: the image, its encoding or sums."""
    T = network.time_steps
    assert T is not None
    if network.once:
        return example.detach().unsqueeze(1).expand(-1, T, *example.shape[1:])
    if network.input == "frames":
        return frames(example, T, T).transpose(0, 1)
    with torch.no_grad(), Simulation(network, T) as sim:
        return network.fold(example, sim).unflatten(0, (T, -1)).transpose(0, 1)


def spikes_of(network: Network, example: Tensor, calls: list[tuple[str, int]]) -> list[Tensor]:
    """Spikes (T, N, ...) of some neurons, by path and call, in eval mode."""
    training = network.training
    network.eval()
    wanted = [(path, call, "spikes") for path, call in calls]
    with torch.no_grad(), Simulation(network, network.time_steps, insides=wanted) as sim:
        network(example)
    network.train(training)
    return [sim.captured[key] for key in wanted]
