"""``observations.json`` of a stage: what its network does on a few images, and how beside its teacher."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import taps
from ..errors import SpikedistillError
from ..networks.base import Network
from ..randomness import seed_of
from ..reading import read_text
from .evaluate import evaluating
from .summary import Model

FILE = "observations.json"
PREDICTED, COMPARED, DRAWN = 1024, 64, 3  # images: of predictions, of features, of spikes
NEURONS, LAYERS, STEPS, BINS = 16, 8, 64, 10


class Bin(Model):
    """Images whose largest probability lies in one tenth: how many, its mean, how many are right."""

    images: int
    confidence: float
    accuracy: float


class Predictions(Model):
    """One network's predictions on test images.

    ``calibration``: bins of equal width from 0 to 1; ``error``: the expected calibration error, the mean over
    images of |accuracy - confidence| of their bin (Guo et al. 2017).
    """

    images: int
    accuracy: float
    calibration: list[Bin]
    error: float


class Agreement(Model):
    """Student beside teacher on the same images, as shares: equal predictions; both right, one of them, none.

    ``divergence``: KL(teacher || student) of their probabilities in nats, mean over images.
    """

    equal: float
    both: float
    only_student: float
    only_teacher: float
    neither: float
    divergence: float


class Activity(Model):
    """A layer of neurons or ReLUs: the share of its values not zero (an SNN's spikes per neuron and step)."""

    path: str
    share: float


class Trace(Model):
    """A few neurons of a layer on one image: ``spikes``, 0 and 1 over T each; ``membranes`` in thresholds."""

    path: str
    neurons: list[int]
    spikes: list[str]
    membranes: list[list[float]]


class Drawn(Model):
    """One test image, by its number: its class, the class predicted, and what the neurons did."""

    image: int
    target: int
    prediction: int
    layers: list[Trace]


class Observations(Model):
    """All of them; what a network does not have is null or empty.

    ``likeness``: linear CKA of features averaged over time, student's layers down, teacher's across.
    """

    student: Predictions
    teacher: Predictions | None = None
    agreement: Agreement | None = None
    layers: list[Activity] = []
    teacher_layers: list[Activity] = []
    likeness: list[list[float]] = []
    drawn: list[Drawn] = []


def observe(
    network: nn.Module, teacher: nn.Module | None, batches: Iterable[tuple[Tensor, Tensor]]
) -> Observations:
    """Look at a network, and at its teacher, on the first test images: ``batches`` of (x, y (N,))."""
    mine, theirs, targets = [], [], []
    first: tuple[Tensor, Tensor] | None = None
    with evaluating(network):
        for i, (x, y) in enumerate(batches):
            first = first or (x[:COMPARED], y[:COMPARED])
            torch.manual_seed(seed_of("observe", i))
            mine.append(_logits(network, x))
            if teacher is not None:
                with evaluating(teacher):  # its draws leave the student's as they are
                    theirs.append(_logits(teacher, x))
            targets.append(y.cpu())
            if sum(map(len, targets)) >= PREDICTED:
                break
        assert first is not None
        torch.manual_seed(seed_of("observe"))
        own = _features(network, first[0])
        taught = {}
        if teacher is not None:
            with evaluating(teacher):
                taught = _features(teacher, first[0])
        drawn = _drawn(network, *first)
    target = torch.cat(targets)[:PREDICTED]
    student = torch.cat(mine)[:PREDICTED]
    found = Observations(
        student=_predictions(student, target),
        layers=[Activity(path=path, share=share) for path, (share, _) in own.items()],
        drawn=drawn,
    )
    # A teacher of other classes has predictions, but none to set beside these.
    if theirs and (other := torch.cat(theirs)[:PREDICTED]).shape == student.shape:
        found.teacher, found.agreement = _predictions(other, target), _agreement(student, other, target)
    if taught and own:
        found.teacher_layers = [Activity(path=path, share=share) for path, (share, _) in taught.items()]
        found.likeness = [[likeness(a, b) for _, b in taught.values()] for _, a in own.values()]
    return found


def read(folder: Path) -> Observations | None:
    """A stage's observations; None where there are none (an older run).

    Raises: SpikedistillError for a file that is none.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Observations.model_validate_json(read_text(path, 1 << 26))
    except ValueError as error:
        raise SpikedistillError(
            f"{path} is not what {FILE} is ({str(error).splitlines()[0]}): remove it"
        ) from None


def likeness(a: Tensor, b: Tensor) -> float:
    """Linear CKA of features (N, D) and (N, E) of the same N images; 1 where one is a rotation of the other.

    With the estimator of HSIC that has no bias (Song et al. 2012): of unlike features 0, however many.
    """
    grams = [x @ x.T for x in (a, b)]
    ab, aa, bb = (_hsic(k, l) for k, l in ((grams[0], grams[1]), (grams[0], grams[0]), (grams[1], grams[1])))
    # Without bias the estimate may fall to 0 or below, for features that do not vary: no root of that.
    return round(ab / (aa * bb) ** 0.5, 4) if aa > 0 and bb > 0 else 0.0


def _hsic(k: Tensor, l: Tensor) -> float:
    N = len(k)
    # The estimator divides by N - 3.
    if N < 4:
        return 0.0
    # In float64: three sums of about the same size, of which the differences are what counts.
    k, l = (x - torch.diag(x.diagonal()) for x in (k.double(), l.double()))
    trace, sums = (k * l).sum(), k.sum() * l.sum() / ((N - 1) * (N - 2))
    return float(trace + sums - 2 / (N - 2) * (k.sum(0) * l.sum(0)).sum()) / (N * (N - 3))


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    """Mean over time, (N, K)."""
    return taps.run(network, x)[0].float().mean(0).cpu()


def _predictions(logits: Tensor, target: Tensor) -> Predictions:
    sure, found = logits.softmax(-1).max(-1)
    right = (found == target).double()
    # A probability of exactly 1 belongs to the last bin, not to one behind it.
    place = (sure * BINS).long().clamp(0, BINS - 1)
    bins = []
    for k in range(BINS):
        here = place == k
        n = int(here.sum())
        confidence, accuracy = (
            (float(sure[here].double().mean()), float(right[here].mean())) if n else (0.0, 0.0)
        )
        bins.append(Bin(images=n, confidence=confidence, accuracy=accuracy))
    error = sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / len(target)
    return Predictions(images=len(target), accuracy=float(right.mean()), calibration=bins, error=error)


def _agreement(student: Tensor, teacher: Tensor, target: Tensor) -> Agreement:
    mine, theirs = student.argmax(-1), teacher.argmax(-1)
    a, b = mine == target, theirs == target
    shares = {
        "both": a & b,
        "only_student": a & ~b,
        "only_teacher": b & ~a,
        "neither": ~a & ~b,
        "equal": mine == theirs,
    }
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return Agreement(**{k: float(v.double().mean()) for k, v in shares.items()}, divergence=float(divergence))


def _features(network: nn.Module, x: Tensor) -> dict[str, tuple[float, Tensor]]:
    """By layer of neurons or ReLUs: the share of its values not zero, its output's mean over time (N, D)."""
    try:
        _, seen = taps.captures(network, x, ["*"])
    except SpikedistillError:  # neither neurons nor ReLUs: nothing to set side by side
        return {}
    return {
        name: (float((value != 0).float().mean()), value.float().mean(0).flatten(1))
        for name, value in seen.all("*").items()
    }


def _drawn(network: nn.Module, x: Tensor, y: Tensor) -> list[Drawn]:
    """The first image of each of the first classes, its spikes and membranes."""
    if not isinstance(network, Network) or not taps.neuron_paths(network):
        return []
    chosen = [int((y == k).nonzero()[0]) for k in y.unique(sorted=True)[:DRAWN]]
    x = x[chosen]
    logits, seen = taps.captures(network, x, ["*@spikes", "*@membrane"])
    spikes, membranes = seen.all("*@spikes"), seen.all("*@membrane")
    names = [name.removesuffix("@spikes") for name in spikes]
    names = [names[i] for i in _evenly(len(names), LAYERS)]
    found = logits.float().mean(0).argmax(-1)
    return [
        Drawn(
            image=image,
            target=int(y[image]),
            prediction=int(found[n]),
            layers=[_trace(name, spikes, membranes, seen.thresholds, n) for name in names],
        )
        for n, image in enumerate(chosen)
    ]


def _trace(
    name: str, spikes: dict[str, Tensor], membranes: dict[str, Tensor], thresholds: dict[str, float], n: int
) -> Trace:
    s = spikes[f"{name}@spikes"][:STEPS, n].flatten(1)
    h = membranes[f"{name}@membrane"][:STEPS, n].flatten(1).float() / thresholds.get(f"{name}@membrane", 1.0)
    neurons = _evenly(s.shape[1], NEURONS)
    fired = [["1" if value else "0" for value in row] for row in (s[:, neurons] != 0).T.tolist()]
    rows = [[round(value, 3) for value in row] for row in h[:, neurons].T.tolist()]
    return Trace(path=name, neurons=neurons, spikes=["".join(row) for row in fired], membranes=rows)


def _evenly(n: int, most: int) -> list[int]:
    """At most ``most`` of 0 ... n - 1, evenly spread, the first and the last among them."""
    return (
        sorted({round(i * (n - 1) / max(most - 1, 1)) for i in range(most)}) if n > most else list(range(n))
    )


def contents(found: Observations) -> str:
    """The file."""
    return found.model_dump_json(exclude_defaults=True)


__all__: Sequence[str] = ["FILE", "Observations", "contents", "likeness", "observe", "read"]
