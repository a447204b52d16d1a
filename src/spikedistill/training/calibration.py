"""Norm statistics measured on training batches: which batches, and when they replace the running averages."""

import copy
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .. import finite, simulation
from ..data import Data
from ..errors import SpikedistillError
from ..networks.base import Network
from ..neurons import NormNeuron
from ..neurons.shared_norms import shares
from ..neurons.sync import is_distributed
from ..randomness import apart, seed_everything, seed_of
from .evaluate import evaluating

CALIBRATION_IMAGES = 1024  # at least, where there are as many
# Of the batches' variances: images, spoken digits, N-MNIST have 0.05 to 0.15, objects before a DVS128 1.4.
SPREAD = 0.5
UNEVEN = (
    "a few inputs are far stronger than the others, so that batches differ widely in what norms see; all "
    "were measured together for the saved statistics, but training has each batch's own. Where they are no "
    "part of what is to be learned, leave them out or limit their values (events: data.frames.limit)"
)
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


def settle(
    network: nn.Module,
    batches: "Tensor | Iterable[Tensor | Sequence[Tensor]]",
    images: int = CALIBRATION_IMAGES,
) -> bool:
    """Norm statistics of the weights as they are, over ``batches``, in place: after a loop of one's own.

    Running averages lag behind weights that still move: after a short training they are those of another
    network (ours: 10 % accuracy as saved, 80 % settled, after three epochs). Runs of recipes settle by
    themselves. The shifts of a quantized network follow.

    ``batches``: inputs as in training, augmented as there: a batch, or several, ``x`` or ``(x, y)``, such as
    the training's loader; read until ``images`` of them are seen. All else (weights, flags, ranges) stays.

    Returns whether the batches differed so widely that all were measured together (:func:`recalibrate`).
    Raises :class:`SpikedistillError` without a batch, for one that is empty or holds NaN, and for one of a
    single input where a norm would see one value per channel.
    """
    # What torch.compile made of a network holds the network itself: its norms are moved by plain passes.
    network = getattr(network, "_orig_mod", network)
    first = next(network.parameters(), None)
    given: list[Tensor] = []
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        x = batch if isinstance(batch, Tensor) else batch[0]
        given.append(x if first is None else x.to(first.device))
        if sum(map(len, given)) >= images:
            break
    if not given:
        raise SpikedistillError("settle: there is no batch; give inputs as in training")
    finite.check_batches(given, "settle")
    # What a loader leaves over may be one input, which alone has no variance. Not of several processes: those
    # that share statistics have to make as many passes each.
    last = [x.shape for x in given[-2:]]
    if len(last) == 2 and last[1] == (1, *last[0][1:]) and not is_distributed():
        given[-2:] = [torch.cat(given[-2:])]
    together = recalibrate(network, given)
    # Last: the shifts follow the statistics that were just measured.
    if (requantize := getattr(network, "requantize", None)) is not None:
        requantize()
    return together


def recalibrate(network: nn.Module, batches: Iterable[Tensor], time_steps: int | None = None) -> bool:
    """Average norm statistics anew over ``batches``, in place; at ``time_steps`` (None: the network's).

    Each batch is normalised by its own statistics, as in training. Where a few inputs are far stronger than
    the others (recordings with more events), so that batches differ widely in what the first norm sees, their
    average is of no network that ever ran; there, all batches are measured together, normalised as evaluation
    does it. Returns whether that was so.
    """
    batches = list(batches)
    norms: list[Any] = [
        m
        for m in network.modules()
        if isinstance(m, NormNeuron | nn.modules.batchnorm._BatchNorm) and m.running_var is not None
    ]
    if not norms:
        return False
    momenta = [m.momentum for m in norms]
    variances: list[Tensor] = []  # of the batches, in the first norm
    own = getattr(network, "time_steps", None)
    # Everything in eval mode but the norms: dropout would give statistics of a network that nobody runs.
    with evaluating(network), simulation.time_steps(network, time_steps or own or 1):
        for m in norms:
            m.train()
        try:
            for i, x in enumerate(batches):
                average = norms[0].running_var.clone()
                for m in norms:
                    # Makes the running average a plain mean of the batches, the first replacing what was
                    # there. torch's momentum=None would go on counting from num_batches_tracked, the training
                    # before.
                    m.momentum = 1 / (i + 1)
                _forward(network, x, i)
                variances.append(average + (norms[0].running_var - average) * (i + 1))
        finally:
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum
        # Of the first: behind others, layers that fire rarely differ from batch to batch on any data.
        together = len(variances) > 1 and _spread(variances) > SPREAD
        if together:
            for m in norms:
                m.eval()
            _measure_together(network, norms, batches)
    return together


def _forward(network: nn.Module, x: Tensor, i: int) -> None:
    torch.manual_seed(seed_of("recalibrate", i))
    try:
        network(x)
    except ValueError as error:
        if len(x) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise SpikedistillError(
            "norm statistics: a batch of one input gives a norm one value per channel, which has no "
            "variance; give batches of two inputs or more"
        ) from error


def _spread(variances: list[Tensor]) -> float:
    """Deviation of the batches' variances over their mean, quadratic mean of the channels."""
    of_batches = torch.stack(variances)
    relative = of_batches.std(0) / of_batches.mean(0).clamp(min=1e-12)
    return float(relative.square().mean().sqrt())


def _measure_together(network: nn.Module, norms: Sequence[Any], batches: Sequence[Tensor]) -> None:
    """Statistics of all batches as one, of the network in eval mode.

    What a norm sees depends on those before it: each round makes one more of them right, and no round before
    the last is better than none (ours: 86, 81, 69, 93 % after 0, 1, 2, 4 rounds).
    """
    for _ in norms:
        sums: dict[nn.Module, Tensor] = {}  # (3, C): values, their sum, sum of squares

        def read(module: nn.Module, given: tuple[Any, ...], sums: dict[nn.Module, Tensor] = sums) -> None:
            x = given[0].detach().double()
            dims = [d for d in range(x.dim()) if d != 1]
            n = x.new_full((x.shape[1],), x.numel() // x.shape[1])
            seen = torch.stack([n, x.sum(dims), x.square().sum(dims)])
            sums[module] = sums[module] + seen if module in sums else seen

        hooks = [m.register_forward_pre_hook(read) for m in norms]
        for i, x in enumerate(batches):
            _forward(network, x, i)
        for hook in hooks:
            hook.remove()
        moved = 0.0
        for m in (m for m in norms if m in sums):
            if shares(m):
                torch.distributed.all_reduce(sums[m])
            n, s, q = sums[m]
            mean = s / n
            var = (q / n - mean.square()).clamp(min=0) * n / (n - 1).clamp(min=1)
            scale = var.sqrt().clamp(min=1e-6)
            moved = max(
                moved,
                float(((m.running_mean - mean).abs() / scale).max()),
                float(((m.running_var - var).abs() / scale.square()).max()),
            )
            m.running_mean.copy_(mean)
            m.running_var.copy_(var)
        if moved < 1e-5:
            break
