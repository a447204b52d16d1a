"""Norm statistics measured on training batches: which batches, and when they replace the running averages."""

import copy
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from .. import simulation
from ..data import Data
from ..networks.base import Network
from ..neurons import NormNeuron
from ..randomness import apart, seed_everything, seed_of
from .evaluate import evaluating

CALIBRATION_IMAGES = 1024  # at least, where there are as many
LAST_EPOCH = 2**31  # beyond every `mix_until`: images are mixed where training mixes them to its end


def calibration_batches(
    data: Data, batch_size: int, images: int, device: "str | torch.device"
) -> list[Tensor]:
    """The first training batches, unaugmented, classes mixed: at least ``images``, if there are as many."""
    # Scattered: files often come sorted by class, and a few batches would then show one class alone.
    return _first(data.batches("train", batch_size, scattered=True, device=device), batch_size, images)


def settling_batches(
    data: Data, batch_size: int, images: int, device: "str | torch.device", epoch: int = LAST_EPOCH
) -> list[Tensor]:
    """The images of :func:`calibration_batches`, augmented as in ``epoch``; the draws are the same each time.

    Norm statistics come from these. Weights learn beside the statistics of augmented images, in which
    crops have borders and mixed images little contrast, so those of plain images are not theirs (ours: 1 to 6
    points of accuracy less on CIFAR).
    """
    with apart():
        seed_everything("settle")
        batches = data.batches("train", batch_size, epoch=epoch, train=True, scattered=True, device=device)
        return _first(batches, batch_size, images)


def _first(batches: Iterable[tuple[Tensor, Tensor]], batch_size: int, images: int) -> list[Tensor]:
    return [x for x, _ in islice(batches, -(-images // batch_size))]


def recalibrated(network: Network, batches: Iterable[Tensor], time_steps: int | None = None) -> Network:
    """A copy whose norm statistics are averaged over ``batches`` at ``time_steps``; all else as it was."""
    network = copy.deepcopy(network)
    recalibrate(network, batches, time_steps)
    return network


def settle(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Norm statistics of the weights as they are, over ``batches``, in place.

    The shifts of a quantized network follow. Running averages lag behind weights that still move: after a
    short training they are those of another network (ours: 10 % accuracy as saved, 80 % settled, after three
    epochs).
    """
    recalibrate(network, batches)
    # Last: the shifts follow the statistics that were just measured.
    if (requantize := getattr(network, "requantize", None)) is not None:
        requantize()


def recalibrate(network: nn.Module, batches: Iterable[Tensor], time_steps: int | None = None) -> None:
    """Average norm statistics anew over ``batches``, in place; at ``time_steps`` (None: the network's)."""
    norms = [m for m in network.modules() if isinstance(m, NormNeuron | nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    own = getattr(network, "time_steps", None)
    # Everything in eval mode but the norms: dropout would give statistics of a network that nobody runs.
    with evaluating(network), simulation.time_steps(network, time_steps or own or 1):
        for m in norms:
            m.train()
        for i, x in enumerate(batches):
            torch.manual_seed(seed_of("recalibrate", i))
            for m in norms:
                # Makes the running average a plain mean of the batches, the first replacing what was there.
                # torch's momentum=None would go on counting from num_batches_tracked, the training before.
                m.momentum = 1 / (i + 1)
            network(x)
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
