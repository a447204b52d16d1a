"""``convert``: a trained ANN as SNN; ``balance_thresholds``: a student that begins where its ANN stands."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import finite, networks, simulation
from ..errors import SpikedistillError, nearest
from ..networks.balancing import take_balance
from ..networks.base import Network
from ..networks.graph import trace
from ..networks.outside.adapter import Wrapped
from ..networks.outside.relu_sites import refuse
from ..neurons import IF, QCFS, Neuron, NormNeuron, SignedIF, layers
from ..numerics import fitting, floating_type
from .pooling import behind_neurons, pool_rates
from .ranges import Percentile, check_percentile, measure
from .scales import rescale

METHODS = ("threshold_balancing", "qcfs", "signed")
Batches = Tensor | Iterable[Any]


def convert(
    ann: nn.Module,
    calibration: Batches,
    time_steps: int = 32,
    method: str = "threshold_balancing",
    percentile: Percentile = 99.9,
    initial: float = 0.5,
    levels: int = 8,
) -> Network:
    """A spiking copy of a trained ANN, not trained, in eval mode; its norms keep the ANN's statistics.

    ``threshold_balancing``: each IF neuron (soft reset) fires at the range theta of the ANN's activation
    there, measured on ``calibration``: its ``percentile`` or "max" (Diehl et al., IJCNN 2015; Rueckauer et
    al., Frontiers in Neuroscience 2017, whose 99.9 is the default). ``qcfs``: theta is learned, the ANN's
    activations are :class:`QCFS` (Bu et al., ICLR 2022). Both start at ``initial * theta`` (1/2: Bu et al.).
    ``signed``: :class:`SignedIF` with ``levels`` (a QCFS network's own) and theta as above; at T = 1 it is
    the quantized ANN itself (our reading of PMSM, arXiv 2508.14520).

    Spikes stay 0/1 (whole numbers); their worth theta moves into weights, norms and thresholds, see
    :mod:`.scales`. Max-pooling takes the most active input of a window, see :mod:`.pooling`.
    ``calibration``: a batch (N, C, H, W) in [0, 1], or batches, or (x, y) pairs. ``ann``: of
    ``networks.create(..., time_steps=None)``, a wrapped one, or any ReLU network that :func:`spiking` turns.
    Shape: (N, C, H, W) to (T, N, K). Raises, by path and with the nearest thing that is supported, for what
    has no spiking counterpart (GELU, softmax, attention) and for what a scale cannot pass (layer, group and
    instance norms, products).
    """
    if method not in METHODS:
        raise SpikedistillError(f"unknown conversion method {method!r}: {nearest(method, METHODS)}")
    if not 0 <= initial < 1:
        raise SpikedistillError(f"initial is a part of the threshold, from 0 to less than 1; found {initial}")
    check_percentile(percentile)
    finite.check(ann, "convert: the ANN")
    learned = _learned(ann)
    if method == "qcfs" and not learned:
        raise SpikedistillError(
            "method='qcfs' converts an ANN trained with QCFS activations: networks.create(..., "
            "time_steps=None, neuron={'type': 'qcfs', 'levels': 8}); use method='threshold_balancing' for a "
            "ReLU network"
        )
    if method == "threshold_balancing" and learned:
        raise SpikedistillError(
            "this ANN has QCFS activations with learned thresholds; use method='qcfs' or 'signed'"
        )
    batches = [fitting(x, ann).to(_place(ann)) for x in images(calibration)]
    if not batches:
        raise SpikedistillError(
            "conversion needs calibration: give at least one batch of images (N, C, H, W) in [0, 1]"
        )
    finite.check_batches(batches, "convert: calibration")
    depths = {q.levels for q in learned.values()}
    if method == "signed" and len(depths) > 1:
        raise SpikedistillError(
            f"QCFS activations of several levels {sorted(depths)} in one network; use one"
        )
    graph = trace(ann, batches[0][:2])
    # On the ANN's own graph, so that paths and source lines are those of the caller's code.
    refuse([node for node in graph if node.name in graph.live], gates="refuse", norms=True)
    # Soft: what a hard reset throws away would be missing from the rate, however long the network runs.
    prototype: Neuron = IF(reset="soft", initial=initial)
    if method == "signed":
        prototype = SignedIF(depths.pop() if depths else levels)
    network = spiking_form(ann, time_steps, prototype, batches[0][:2]).to(_place(ann), floating_type(ann))
    copy_weights(network, ann)
    network.eval()
    if learned:
        thetas = {path: float(learned[path].threshold.detach()) for path in layers(network)}
        if min(thetas.values()) <= 0:
            raise SpikedistillError(
                "a QCFS threshold of the ANN is not positive; its training diverged there"
            )
    else:
        thetas = measure(network, ann, batches, percentile)
    graph = trace(network, batches[0][:2])
    # Both read the graph as traced; pools are exchanged after it, in place.
    thetas, pools = rescale(network, graph, thetas), behind_neurons(graph)
    pool_rates(network, pools)
    config = network.config
    # timm:NAME, torchvision:NAME: made anew from its name
    if isinstance(ann, Wrapped) and "name" in ann.config:
        config = {
            **ann.config,
            "options": {**ann.config["options"], "time_steps": time_steps, "neuron": prototype.spec()},
        }
    network.config = {
        **config,
        "conversion": {
            "method": method, "percentile": percentile, "thetas": thetas, "pools": pools,
            "neurons": {p: {"threshold": n.threshold, "initial": n.initial} for p,
            n in layers(network).items()},
        },
    }  # fmt: skip
    return network


def restore(network: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A converted network's thresholds, initial membranes and pools, as ``config`` has them.

    Its weights are in its file.
    """
    made = config.get("conversion", {})
    pool_rates(network, made.get("pools", ()))
    for path, values in made.get("neurons", {}).items():
        neuron = layers(network)[path]
        neuron.threshold, neuron.initial = float(values["threshold"]), float(values["initial"])
    if isinstance(network, Network) and made:
        network.config["conversion"] = dict(made)  # it may be saved again
    return network


def balance_thresholds(
    snn: Network, ann: nn.Module, calibration: Batches, percentile: Percentile = 99.9
) -> dict[str, float]:
    """Start a student at its ANN: weights by name, scaled so that neurons see the ANN's ranges; gives these.

    The neurons keep their thresholds, and all lands in parameters: the norm or layer before a neuron is
    multiplied by threshold / theta, weights behind it by theta. In basic residual networks neurons that are
    added share the largest theta; a neuron on a real-valued stream (MS form) fires where it did, its spikes
    worth its threshold. After LaSNN (Hong et al., arXiv 2304.09101), which initialises its student from a
    converted ANN; how is not public, so this is our reading.
    """
    batches = [fitting(x, ann).to(_place(ann)) for x in images(calibration)]
    check_percentile(percentile)
    copy_weights(snn, ann)
    home = _place(snn), floating_type(snn)
    snn.to(_place(ann), floating_type(ann))
    # In eval mode: ranges and units are those under the running statistics.
    with simulation.eval_mode(snn):
        thetas = measure(snn, ann, batches, percentile)
        thetas = rescale(snn, trace(snn, batches[0][:2]), thetas, tied=True)
    snn.to(*home)
    return thetas


def _place(network: nn.Module) -> torch.device:
    """Where a network's parameters are."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def images(calibration: Batches) -> list[Tensor]:
    """Batches of images from a tensor, tensors, or (x, y) pairs."""
    if isinstance(calibration, Tensor):
        return [calibration]
    found = [b if isinstance(b, Tensor) else b[0] for b in calibration]
    # (x, y) alone would be two batches, the second one of labels.
    odd = next((x for x in found if x.dim() != found[0].dim()), None)
    if odd is not None:
        raise SpikedistillError(
            f"calibration holds batches of {tuple(found[0].shape)} and {tuple(odd.shape)}; give a batch of "
            "images, a list of batches, or a list of pairs (images, labels)"
        )
    return found


def spiking_form(ann: nn.Module, time_steps: int, neuron: Neuron, example: Tensor) -> Network:
    """The spiking network of the same layers as ``ann``."""
    if not isinstance(ann, Network) or isinstance(ann, Wrapped):
        # A wrapped model may see images of another size than these: it is traced on its own.
        given = None if isinstance(ann, Wrapped) else example
        return networks.spiking(ann, time_steps, neuron, given, initialisation="plain")
    if ann.spiking:
        raise SpikedistillError("convert takes an ANN; this network has time steps already")
    name = ann.config.get("name")
    if name not in networks.names():
        raise SpikedistillError(
            "convert rebuilds spikedistill's own ANNs from their config; "
            "make the ANN with networks.create(...), or pass a "
            "plain nn.Module with ReLUs"
        )
    chosen = {"time_steps": time_steps, "neuron": neuron, "initialisation": "plain", "firing_rate": None}
    return networks.create(str(name), **(ann.config["options"] | chosen))


def copy_weights(network: nn.Module, ann: nn.Module) -> None:
    """All weights and statistics of equal names; raises where one is missing or differs in shape.

    From a spiking network also what its neurons have learned, where they are of one type and shape, and its
    balance: thresholds (of networks made with the same one) and input factors.
    """
    theirs = ann.state_dict()
    if not isinstance(ann, Network) and isinstance(network, Wrapped):
        theirs = {f"model.{k}": v for k, v in theirs.items()}
    modules = dict(ann.named_modules())
    own = {
        f"{p}.{n}"
        for p, m in network.named_modules()
        if isinstance(m, Neuron) and not _alike(m, modules.get(p))
        for n in m.state_dict()
    }
    # An ANN has no weights of neurons (a PLIF's w), and a plain module no normalisation of its own.
    optional = own | {"mean", "std"}
    mine = network.state_dict()
    for name, value in mine.items():
        if name in optional:
            continue
        if name not in theirs or theirs[name].shape != value.shape:
            found = f"has shape {tuple(theirs[name].shape)}" if name in theirs else "is missing"
            raise SpikedistillError(
                f"{name} {tuple(value.shape)} {found} in the ANN; both networks must be of one architecture "
                f"({nearest(name, theirs)})"
            )
    network.load_state_dict({**mine, **{k: theirs[k] for k in mine if k in theirs and k not in own}})
    if isinstance(ann, Network) and ann.spiking and isinstance(network, Network) and network.spiking:
        take_balance(network, ann)


def _alike(neuron: Neuron, other: nn.Module | None) -> bool:
    """Whether a neuron can take what the other has learned: of one type, and all of it of its shapes."""
    if type(other) is not type(neuron):
        return False
    theirs = other.state_dict()
    return all(n in theirs and theirs[n].shape == value.shape for n, value in neuron.state_dict().items())


def _learned(ann: nn.Module) -> dict[str, QCFS]:
    """QCFS activations by the path of the neuron layer that takes their place."""
    found = {p: m for p, m in ann.named_modules() if isinstance(m, QCFS)}
    norms = {p for p, m in ann.named_modules() if isinstance(m, NormNeuron)}
    return {
        p.removesuffix(".neuron") if p.removesuffix(".neuron") in norms else p: m for p, m in found.items()
    }


__all__ = ["METHODS", "balance_thresholds", "convert", "copy_weights", "images", "restore", "spiking_form"]
