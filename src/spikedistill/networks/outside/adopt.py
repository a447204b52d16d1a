"""``adopt``: a network of SpikingJelly, snnTorch or Norse becomes one of ours; both are run and compared."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SpikedistillError, nearest
from ...neurons import Neuron
from ...neurons.event_driven import equip
from ...simulation import Simulation
from ..base import Input, Network
from ..graph import trace
from . import peers
from .foreign import Foreign
from .original import LAYOUTS, Original, Truth
from .relu_sites import Site, entrance, norm_before
from .rows import refuse_mixing
from .spiking import Spiking, explained, repeat_after, sharing_copy, turn, words

log = logging.getLogger("spikedistill")
# share of spikes that may differ in float64 where a learned decay is stored in another form, in float32
LEARNED = 1e-4


class Adopted(Spiking):
    """A peer's network with neurons of ours, made by :func:`adopt`.

    ``differs``: share of spikes on the example that are not the original's, in "float64" and in "float32".
    """

    differs: dict[str, float]

    def extra_repr(self) -> str:
        said = ", ".join(f"{share:.2g} in {kind}" for kind, share in self.differs.items())
        return f"time_steps={self.time_steps}, share of spikes that differ from the original's: {said}"


def adopt(
    network: nn.Module,
    time_steps: int = 4,
    example: Tensor | None = None,
    input: Input = "image",
    layout: str | None = None,
    output: int | str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Network:
    """A copy of a network of SpikingJelly, snnTorch or Norse with our layers and neurons, for what follows.

    Neurons: SpikingJelly's IFNode, LIFNode, ParametricLIFNode, snnTorch's Leaky, Norse's LIFBoxCell
    (:mod:`.peers` has the equations); cells with a second state are refused by name. A batch norm read by one
    neuron becomes a :class:`NormNeuron` with it, so that in training its statistics are those of all time
    steps together.

    ``example``: images (N, C, H, W) in [0, 1], or frames (N, F, C, H, W), F a multiple of T; at least two
    samples. Other spaces too: (N, C), (N, F, C), (N, C, L). On it both networks run, in float64 and in
    float32: spikes and logits are equal in float64, else it is refused; ``.differs`` has the share of spikes
    that differ, which in float32 rounding makes.

    ``layout``: what the network takes: "step" (one time step, (N, C, H, W)), "TNCHW" (all, time first) or
    "NCHW" (an image; it runs its time steps by itself, which are taken out: T is then ``time_steps`` too).
    None finds it. ``output``: index or key of the spikes or logits where the network returns several things
    (None: the first). mean, std: None is 0 and 1.

    Shape: (N, C, H, W) in [0, 1], or frames, to logits (T, N, K); a sum or mean over time of the network's
    own is left to ``predict``. Raises :class:`SpikedistillError` naming path and reason of what has no form
    here.
    """
    if isinstance(network, Foreign):
        layout = layout or (network.layout if network.layout in LAYOUTS else None)
        output = network.output if output is None else output
        mean = network.mean.tolist() if mean is None else mean
        std = network.std.tolist() if std is None else std
        network = network.model
    elif isinstance(network, Network):
        raise SpikedistillError(
            "this network is one of ours already; adopt takes a network of another library"
        )
    if layout is not None and layout not in LAYOUTS:
        raise SpikedistillError(f"unknown layout {layout!r}: {nearest(layout, LAYOUTS)}")
    space = 3 if input == "frames" else 2
    if not isinstance(example, Tensor) or example.dim() < space or len(example) < 2:
        raise SpikedistillError(
            "adopt runs both networks on an example: give example= a batch of at least two images (N, C, H, "
            "W) in [0, 1], or of frames (N, F, C, H, W) with input='frames'"
        )
    for module in network.modules():
        _cut_off(module)
    converted = copy.deepcopy(network).eval()
    cells, notes = peers.translate(converted)
    if not cells:
        raise SpikedistillError(
            f"{type(network).__name__} has no neuron of SpikingJelly, snnTorch or Norse; "
            f"known are {peers.KNOWN}"
        )
    dims = example.dim() - space
    channels = example.shape[-1 - dims]
    first = next(network.parameters(), example)
    example = example.to(first.device, first.dtype)
    entry = Network(2, channels, input, time_steps, "direct", mean, std)  # its normalisation
    entry.dims = dims
    given = entry.to(first.device).fold(example, Simulation(entry, time_steps))
    if input == "frames":
        given = given.unflatten(0, (time_steps, -1))
    original = Original(network, list(cells), time_steps, input, layout, output)
    truth = original.run(given)
    one = original.one_step(given, converted, truth)
    step = given[0] if input == "frames" else given
    with explained(step):
        graph = trace(one, step)
    sites = [Site(n, norm_before(n, graph, one)) for n in graph if isinstance(n.module, peers.Placeholder)]
    if len({s.node.path for s in sites}) < len(cells):
        missing = set(cells) - {_plain(str(s.node.path)) for s in sites}
        notes.append(f"never called, and left out: {', '.join(sorted(missing))}")
    ways = entrance(graph, sites) if input == "image" else [("frames", "")]
    failure: SpikedistillError | None = None
    for way, where in ways:
        # A copy for each way: one that failed leaves neurons and hooks behind.
        adopted = Adopted(sharing_copy(one), truth.logits.shape[-1], channels, input, time_steps, mean, std)
        adopted.to(first.device)
        adopted.dims = dims
        places = turn(adopted, sites, _neuron_of, where if way == "encode" else None)
        for path in cells:
            # A neuron that returns its state was traced one level deeper, in its ``Stateful``.
            if f"{path}.site" in adopted.aliases:
                adopted.aliases[path] = adopted.aliases[f"{path}.site"]
        if way == "repeat":
            repeat_after(adopted, where, time_steps)
        adopted.initialisation = "plain"  # its weights are the original's
        try:
            _verify(
                adopted.eval(),
                original,
                example,
                given,
                truth,
                sites,
                places,
                any(c.learned for c in cells.values()),
            )
        except SpikedistillError as error:
            failure = failure or error
            continue
        adopted.notes = [*notes, *original.notes, words(way, where)]
        for note in adopted.notes:
            log.info(note)
        adopted.config = {
            "adopted": {
                "network": type(network).__name__, "time_steps": time_steps, "input": input,
                "layout": original.layout,
                "mean": adopted.mean.tolist(), "std": adopted.std.tolist(), "example": list(example.shape),
            }
        }  # fmt: skip
        return equip(adopted.train(network.training))
    assert failure is not None
    raise failure


def _neuron_of(site: Site) -> Neuron:
    placeholder: Any = site.node.module
    neuron: Neuron = placeholder.cell[0].neuron
    return neuron


def _plain(path: str) -> str:
    return path.removesuffix(".site")


def _cut_off(module: nn.Module) -> None:
    """A state that hangs on the last pass's gradients cannot be copied."""
    if not peers.library(module):
        return
    memories = module.__dict__.get("_memories", {})
    for kept in (memories, module._buffers):
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                kept[key] = value.detach()


def _verify(
    network: Adopted, original: Original, example: Tensor, given: Tensor, truth: Truth, sites: list[Site],
    places: list[str],
    learned: bool,
) -> None:  # fmt: skip
    """Both networks on the example, in float64 and float32, and at another batch size.

    Images and steps must stay apart.
    """
    network.differs = {}
    wide = copy.deepcopy(original)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # states that its code makes are then of its type too
    try:
        wide.model.double()
        exact = wide.once(given.double(), str(wide.layout))
        share, logits, worst = _compare(
            copy.deepcopy(network).double(), example.double(), exact, sites, places
        )
    finally:
        torch.set_default_dtype(before)
    limit = LEARNED if learned else 0.0
    if share > limit:
        raise SpikedistillError(
            f"{share:.2%} of the spikes differ from the original's in float64, most at {worst}: the network "
            "does something that its layers and neurons alone do not say (a state or a change between time "
            "steps?); sd.foreign takes it as it is"
        )
    network.differs["float64"] = share
    if not _same_logits(logits, exact.logits, 1e-9 if not learned else 1e-5):
        raise SpikedistillError(
            f"all spikes are the original's, but the logits {tuple(logits.shape)} are not, nor is their mean "
            "or sum over time; sd.foreign takes the network as it is"
        )
    if network.std.dtype is not torch.float64:
        network.differs["float32"] = _compare(network, example, truth, sites, places)[0]
    with torch.no_grad():
        # In float64: float32 sums of another batch size differ in their last bits, and so may a spike.
        alone = copy.deepcopy(network).double()(example[:1].double())
    if not torch.allclose(alone, logits[:, :1], rtol=1e-6, atol=1e-9):
        raise SpikedistillError(
            "an image alone gives other logits than in a batch: the network's code knows the batch size"
        )
    images = example if network.input == "image" else example[:, 0]
    graph = trace(network, example)
    refuse_mixing(network, graph, images)


def _compare(
    network: Adopted, example: Tensor, truth: Truth, sites: list[Site], places: list[str]
) -> tuple[float, Tensor, str]:
    """Share of spikes that differ, our logits, and the neuron where most differ."""
    T = network.time_steps
    assert T is not None
    network.eval()
    try:
        with torch.no_grad(), Simulation(network, T, insides=[(p, 0, "spikes") for p in places]) as sim:
            logits = network(example)
    except Exception as error:  # somebody else's code
        raise SpikedistillError(
            "the network does not run with all time steps in the batch, as if its code knew the batch size: "
            f"{error}"
        ) from error
    different = total = 0
    worst, most = "", 0.0
    for site, place in zip(sites, places, strict=True):
        # Called on all steps at once, or once a step: of the latter every so-many-th call is this site's.
        calls = truth.spikes[_plain(str(site.node.path))]
        theirs = (
            calls[site.node.call]
            if len(calls) <= _reused(sites, site)
            else torch.stack(calls[site.node.call :: _reused(sites, site)])
        )
        mine = sim.captured[(place, 0, "spikes")]
        wrong = (
            int((mine.flatten() != theirs.flatten().to(mine.dtype)).sum())
            if mine.numel() == theirs.numel()
            else mine.numel()
        )
        different, total = different + wrong, total + mine.numel()
        if wrong / mine.numel() > most:
            worst, most = str(site.node.path), wrong / mine.numel()
    return different / max(1, total), logits, _plain(worst)


def _reused(sites: list[Site], site: Site) -> int:
    """How often a neuron is called in one step."""
    return sum(s.node.path == site.node.path for s in sites)


def _same_logits(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    forms = [mine] if theirs.dim() == 3 else [mine.mean(0), mine.sum(0)]
    return any(torch.allclose(form, theirs.to(form.dtype), rtol=tolerance, atol=tolerance) for form in forms)
