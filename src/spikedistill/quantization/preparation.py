"""``quantize``: a copy of a spiking network that computes on integer codes and can be trained."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from math import floor, log2
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import finite
from ..errors import SpikedistillError
from ..networks.base import Network
from ..networks.graph import trace
from ..networks.outside.foreign import Foreign
from ..neurons import Neuron, Parallel
from ..neurons import layers as neurons
from . import temporal
from .assembly import Assembler
from .calibration import Seen, batches_of
from .folded import FoldedAssembler
from .layers import input_table
from .options import Options
from .plan import Edge, Plan
from .reader import Reader
from .weights import largest_code

Calibration = Tensor | Sequence[Any] | Iterable[Any]


def quantize(
    network: Network,
    weight_bits: int | None = 4,
    membrane_bits: int | None = 4,
    norm_bits: int | None = 8,
    leak_bits: int | None = 8,
    fraction_bits: int = 8,
    residual_bits: int = 16,
    input_bits: int = 8,
    first_last_bits: int | None = 8,
    weight_scale: Literal["channel", "tensor"] = "channel",
    weight_range: Literal["max", "percentile", "mse", "learned"] | None = None,
    unit: Literal["threshold", "max", "percentile", "learned", "weights"] = "threshold",
    percentile: float = 99.9,
    scheme: Literal["uniform", "mint"] = "uniform",
    freeze_norms: bool = False,
    input_size: Sequence[int] | None = None,
    calibration: Calibration | None = None,
) -> Network:
    """A deep copy of a spiking network on integer codes in floats, trainable by straight-through gradients.

    ``w ~ s_w code_w``; ``current = floor(acc M / 2^k + 1/2) + B``; ``H = floor(V l / 2^L) + current``; fires
    at ``H >= round(threshold / unit)``; ``V <- Q(reset(H))``; logits are integers times one scale
    (docs/quantization.md).

    Bits 2 to 8, or None for not quantized: weights, stored membrane, norm multiplier and offset, leak.
    ``fraction_bits``: the threshold is ``2^fraction_bits`` units. ``residual_bits``: range of norms that
    stand alone (streams). ``first_last_bits``: weights of the first and last layer (None: ``weight_bits``);
    they are quantized where ``weight_bits`` is None too.
    ``weight_range``: of the largest magnitude, a percentile, least squared error, or learned (LSQ); None:
    learned for mint, else of the largest magnitude. ``unit``: the membrane's range is the threshold, the
    largest (a percentile of the) stored membrane on ``calibration`` (a batch, or batches, ``x`` or ``(x,
    y)``), learned from the threshold on, or ``weights``: norms are folded into the weights, one unit is one
    weight code, and thresholds scale with the weights. ``scheme="mint"``: that, with one step for weights and
    membrane, and no multiplier (after Yin et al., "MINT: Multiplier-less integer quantization for energy
    efficient spiking neural networks", ASP-DAC 2024; without its tanh). ``freeze_norms``: norms use their
    running statistics in training too. ``input_size``: (C, H, W) of an image or frame; None: the
    calibration's, else 32 x 32.

    ``network.requantize()``, once an epoch, moves what stands still between epochs (the binary shifts).
    Raises :class:`SpikedistillError`, naming the module, for what has no form on integer codes, before
    anything happens.
    """
    # Before anything else is assigned: locals() are still the arguments alone.
    options = {k: v for k, v in locals().items() if k not in ("network", "calibration")}
    batches = list(batches_of(calibration))
    if unit in ("max", "percentile") and not batches:
        raise SpikedistillError(f"unit={unit!r} is measured: give calibration=a batch of inputs")
    return _quantized(network, options, batches)


def restore(network: Network, options: Mapping[str, Any]) -> Network:
    """The form of a network that was quantized with ``options`` (its ``config``), to load its state into.

    Nothing is measured: ranges found on calibration batches, scales and shifts are buffers, so the state dict
    holds them.
    """
    return _quantized(network, {**DEFAULTS, **options}, [])


def _quantized(network: Network, options: dict[str, Any], batches: list[Tensor]) -> Network:
    o = Options(**options)
    example = _example(network, batches, o)
    kind = "frames" if network.input == "frames" else "image" if network.encoding == "direct" else "spikes"
    plan = _plan(network, example, kind, o)
    size = list(example.shape[2 if network.input == "frames" else 1 :])

    network = copy.deepcopy(network)
    seen = Seen(network, plan, batches, o)
    (FoldedAssembler if o.folded else Assembler)(network, plan, seen, o).assemble(kind)
    # What None stood for is recorded, so that a later default cannot give old weights another form.
    network.config["quantize"] = {**options, "weight_range": o.range, "input_size": size}
    return network


DEFAULTS = {
    n: p.default for n, p in signature(quantize).parameters.items() if n not in ("network", "calibration")
}


def _example(network: Network, batches: list[Tensor], o: Options) -> Tensor:
    if not isinstance(network, Network):
        if isinstance(getattr(network, "_orig_mod", None), Network):
            raise SpikedistillError(
                "quantize takes the network itself, found what torch.compile made of it; give its _orig_mod, "
                "and compile the quantized one"
            )
        raise SpikedistillError(
            f"quantize takes a network of sd.networks or sd.spiking, found {type(network).__name__}; "
            "turn your own with sd.spiking(model)"
        )
    if isinstance(network, Foreign):
        raise SpikedistillError(
            "a network of another library has no form on integer codes as it is; sd.adopt(network, ...) "
            "makes one of ours of SpikingJelly's, snnTorch's and Norse's, which quantize takes"
        )
    if not network.spiking:
        raise SpikedistillError(
            "quantize takes a spiking network, found an ANN (time_steps=None); create it with T"
        )
    if network.input_codes is not None:
        raise SpikedistillError(
            "this network is quantized already; quantize the float network it was made from"
        )
    finite.check(network, "quantize: the network")
    finite.check_batches(batches, "quantize: calibration")
    device = next(network.parameters()).device
    if batches:
        return batches[0][:2].to(device)
    given = o.input_size
    if given is not None and (not isinstance(given, Sequence) or len(given) != 1 + network.dims):
        form = "(C, H, W)" if network.dims == 2 else "(C, L)"
        raise SpikedistillError(f"input_size is {form} of an image or frame, found {given!r}")
    size = tuple(given or (network.in_channels, *[32] * network.dims))
    return torch.zeros(
        1, *((network.time_steps or 1,) if network.input == "frames" else ()), *size, device=device
    )


def _plan(network: Network, example: Tensor, kind: str, o: Options) -> Plan:
    high = largest_code(o.input_bits)
    if kind == "image":
        entry = Edge("step", -high, high, step=input_table(network, o.input_bits)[1])
    elif kind == "frames":
        if bool((network.mean != 0).any()) or bool((network.std != network.std[0]).any()):
            raise SpikedistillError(
                "frames are counts, their own codes: a quantized network needs mean 0 and one std"
            )
        entry = Edge("step", -high, high, step=1 / float(network.std[0]))
    else:
        entry = Edge("step", 0, 1)
    graph = trace(network, example)
    layers = [str(n.path) for n in graph if isinstance(n.module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    formats = {path: o.weights(path in (layers[0], layers[-1])) for path in layers}
    limits = {path: f.largest_code if f.bits is not None else 1 for path, f in formats.items()}
    thresholds = [m.threshold for m in network.modules() if isinstance(m, Neuron)]
    finest = 2.0 ** (floor(log2(min([1.0, *thresholds]))) - o.fraction_bits)
    plan = Reader(network, graph, limits, o.residual_bits, entry, finest).read()
    plan.formats = formats
    temporal.check({path: n for path, n in neurons(network).items() if isinstance(n, Parallel)}, o)
    if o.folded:
        FoldedAssembler.check(plan, o)
    return plan
