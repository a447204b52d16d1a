"""``spiking``: any ReLU network made spiking, at once, site by site, and checked by running it again."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ... import simulation
from ...errors import SpikedistillError
from ...neurons import IF, Neuron, NormNeuron, Repeat, build
from ...neurons.event_driven import equip
from ..balanced import balance_of, check_options
from ..balancing import balance, suit
from ..base import Initialisation, Input, Network
from ..graph import trace
from .adapter import Wrapped, first_tensor, input_channels, published, statistics
from .relu_sites import RELU_FUNCTIONS, Site, entrance, find
from .spiking_check import explained, sharing_copy, verify

log = logging.getLogger("spikedistill")
FUNCTIONAL = "relu_sites"  # child of a module whose own code calls ReLU as a function


class Calls(nn.Module):
    """What stands for a ReLU that is called several times in one pass: one child per call."""

    def __init__(self, sites: Sequence[nn.Module]) -> None:
        super().__init__()
        for k, site in enumerate(sites):
            self.add_module(str(k), site)

    def forward(self, x: Tensor) -> Tensor:
        """The k-th call goes to the k-th child."""
        sim = simulation.current()
        k = sim.call(self) if sim else 0
        if k >= len(self._modules):
            raise SpikedistillError(
                f"ReLU was called {k + 1} times in one pass, {len(self._modules)} when traced"
            )
        return self._modules[str(k)](x)  # type: ignore[misc]


class _Redirect(TorchFunctionMode):
    """While it is active, functional ReLUs go to the neurons of one module."""

    def __init__(self, calls: nn.Module) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELU_FUNCTIONS:
            return self.calls(args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))


def _redirected(cls: type[nn.Module]) -> type[nn.Module]:
    """A class like ``cls``, but its forward sends functional ReLUs to its child ``relu_sites``."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Redirect(getattr(self, FUNCTIONAL)):
            return cls.forward(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


class RepeatAfter:
    """Forward hook: a module's output, given to every time step."""

    def __init__(self, repeat: Repeat) -> None:
        # An attribute, not a closure's variable: a deep copy of the network gets its own copy of it.
        self.repeat = repeat

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return self.repeat(out)


class Spiking(Wrapped):
    """A ReLU network turned into spiking neurons by :func:`spiking`."""

    balanced_by = "data"
    repeat: Repeat
    # path of the module after which time begins; "": the input; None: a neuron encodes
    repeat_at: str | None = None

    def body(self, x: Tensor) -> Tensor:
        """(N or T*N, C, H, W) to folded logits (T*N, K)."""
        x = self.resize(x)
        if self.repeat_at == "":
            x = self.repeat(x)
        return first_tensor(self.model(x))


def spiking(
    model: nn.Module,
    time_steps: int = 4,
    neuron: "nn.Module | Mapping[str, Any] | None" = None,
    example: Tensor | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    gates: str = "refuse",
    input: Input = "image",
    input_size: int | Sequence[int] | None = None,
    interpolation: str = "bilinear",
    initialisation: Initialisation = "balanced",
    firing_rate: float | None = None,
) -> Network:
    """A copy of a ReLU network in which every ReLU call is a neuron of its own.

    One traced pass on ``example`` (images (N, C, H, W), or such a shape for random ones; default: the size in
    timm's configuration of the model, else 224x224) finds every ReLU call: modules, modules called several
    times, functions. A batch norm read by one ReLU only becomes a :class:`NormNeuron` with it. Each site gets
    a copy of ``neuron`` (default ``IF()``). Where the first neuron dominates all that follows it encodes;
    else a :class:`Repeat` stands behind the last module that does, or at the input. Norm scales that are all
    zero become one. The result is run again: no ReLU is left, readers are the same, logits come out for T*N.
    ``mean``, ``std``: None takes timm's if the model has them, else 0 and 1. ``initialisation``: "balanced"
    multiplies the norms (or thresholds) so that on ``example`` every layer fires at ``firing_rate`` (None:
    0.16), see :func:`spikedistill.balance`; "plain" leaves them. ``gates="keep"`` leaves sigmoid gates
    real-valued. ``network.notes`` says what was changed; ``network.aliases`` maps the model's own paths.

    Shape: (N, C, H, W) in [0, 1] to (T, N, K).
    Raises :class:`SpikedistillError` naming path and source line of what has no spiking counterpart.
    """
    if gates not in ("refuse", "keep"):
        raise SpikedistillError(f"gates must be 'refuse' or 'keep', found {gates!r}")
    if isinstance(model, Wrapped):
        mean = model.mean.tolist() if mean is None else mean
        std = model.std.tolist() if std is None else std
        input_size, interpolation = input_size or model.input_size, model.interpolation
        model = model.model
    elif isinstance(model, Network):
        raise SpikedistillError(
            "this network has a spiking form of its own: create it with time_steps=T, and copy weights"
        )
    prototype = build(neuron, IF())
    if not isinstance(prototype, Neuron):
        raise SpikedistillError(f"neuron must be IF, LIF or PLIF, found {type(prototype).__name__}")
    prototype.time_steps = time_steps
    check_options(initialisation, firing_rate)
    if initialisation == "balanced" and not prototype.surrogate_chosen:
        # Here and not in ``balance``: the record below holds the prototype with it.
        suit(prototype, balance_of(prototype, firing_rate).width)
    model = copy.deepcopy(model)
    notes = _prepare(model)
    example = _example(model, example, input_size)
    with explained(example):
        graph = trace(model, example)
    sites = find(graph, model, gates)
    channels = example.shape[1]
    mean, std = statistics(model, channels, mean, std)
    classes = graph[graph.output].shape[-1]
    ways = entrance(graph, sites) if input == "image" else [("frames", "")]
    failure: SpikedistillError | None = None
    for way, where in ways:
        network = Spiking(
            # A copy for each way: one that failed leaves neurons, classes and hooks behind.
            sharing_copy(model), classes, channels, input, time_steps, mean, std, input_size, interpolation
        ).to(example.device)  # fmt: skip
        places = turn(network, sites, lambda _: prototype, where if way == "encode" else None)
        if way == "repeat":
            repeat_after(network, where, time_steps)
        given = example if input == "image" else example.unsqueeze(1).repeat(1, time_steps, 1, 1, 1)
        try:
            verify(network, given, graph, sites, places)
        except SpikedistillError as error:
            failure = error  # of the last way, which asks least of the model
            continue
        network.notes = [*notes, words(way, where)]
        for note in network.notes:
            log.info(note)
        network.config = {
            "spiking": {
                "time_steps": time_steps, "neuron": prototype.spec(), "gates": gates, "input": input,
                "mean": network.mean.tolist(), "std": network.std.tolist(), "input_size": network.input_size,
                "interpolation": interpolation, "example": list(example.shape),
                "initialisation": initialisation,
                "firing_rate": firing_rate,
            }
        }  # fmt: skip
        network.initialisation, network.firing_rate = initialisation, firing_rate
        network.neuron_spec = prototype.spec()
        if initialisation == "balanced":
            balance(network, given)
        return equip(network.train(model.training))
    assert failure is not None
    raise failure


def words(way: str, where: str) -> str:
    """How time enters, for the notes."""
    if way == "encode":
        return f"the neuron of {where} encodes: what stands before it is computed once"
    if way == "repeat":
        return f"the output of {where} is repeated over time" if where else "the input is repeated over time"
    return "the input are frames"


def _prepare(model: nn.Module) -> list[str]:
    """Bring a model into the form that surgery expects; says what it did."""
    notes = []
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if type(child).__name__ == "BatchNormAct2d" and _silent(child):
                # The activation that does nothing would hide from ``norm_before`` that this is a plain norm.
                parent.add_module(key, _plain_norm(child))
    zeroed = [
        (p, m)
        for p, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
        and m.weight is not None
        and not m.weight.any()
    ]
    for _, module in zeroed:
        # At zero the branch's layers have no gradient at first, and no factor of ``balance`` changes that.
        nn.init.ones_(module.weight)
    if zeroed:
        notes.append(
            f"{len(zeroed)} norms whose scales were all zero now have scale one: "
            f"{_few([p for p, _ in zeroed])}"
        )
    if getattr(model, "aux_logits", False):
        model.aux_logits = False  # type: ignore[assignment]
        gone = [n for n in ("aux1", "aux2", "AuxLogits") if getattr(model, n, None) is not None]
        for n in gone:
            setattr(model, n, None)
        notes.append(f"auxiliary classifiers, used in training only, are removed: {', '.join(gone)}")
    return notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" ... {names[-1]}" if len(names) > 3 else "")


def _silent(module: Any) -> bool:
    """A timm norm without activation."""
    return type(module.act) is nn.Identity and type(module.drop) is nn.Identity


def _plain_norm(norm: Any) -> nn.BatchNorm2d:
    out = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return _take(out, norm)


def _take(new: Any, norm: Any) -> Any:
    """Parameters and buffers of ``norm``, the same objects, in ``new``."""
    new._parameters["weight"], new._parameters["bias"] = norm.weight, norm.bias
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        new._buffers[key] = getattr(norm, key)
    return new.train(norm.training)


def _example(model: nn.Module, example: "Tensor | Sequence[int] | None", input_size: Any) -> Tensor:
    if example is not None and not isinstance(example, Tensor):
        example = torch.rand(*example, generator=torch.Generator().manual_seed(0))
    if example is None:
        size = published(model).get("input_size")
        channels = input_channels(model)
        if input_size is not None:
            size = (
                (channels, input_size, input_size) if isinstance(input_size, int) else (channels, *input_size)
            )
        height, width = (size[1], size[2]) if size else (224, 224)
        example = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    first = next(model.parameters(), example)
    # Bytes are levels of 255, as networks of ours take them.
    example = example / 255 if example.dtype == torch.uint8 else example
    example = example.to(first.device, first.dtype)
    # norms need two in training
    return example if len(example) > 1 else example.repeat(2, *[1] * (example.dim() - 1))


def turn(
    network: Spiking, sites: list[Site], prototype: Callable[[Site], Neuron], encode: str | None
) -> list[str]:
    """Put neurons in the places of sites; returns the path of each site's neuron layer."""
    model = network.model
    groups: dict[tuple[str, bool], list[Site]] = {}
    for site in sites:
        functional = site.node.path is None
        groups.setdefault((site.node.scope if functional else str(site.node.path), functional), []).append(
            site
        )
    found: dict[str, str] = {}
    for (path, functional), group in groups.items():
        layers: list[nn.Module] = []
        base = f"{path}.{FUNCTIONAL}" if functional and path else FUNCTIONAL if functional else path
        for k, site in enumerate(group):
            neuron = build(prototype(site))
            assert isinstance(neuron, Neuron)
            neuron.encode = site.node.name == encode
            if site.norm is not None:
                norm: Any = model.get_submodule(site.norm)
                layer = NormNeuron(norm.num_features, neuron, norm.eps, norm.momentum)
                _replace(model, norm, _take(layer, norm))
                # Norm and neuron both stand in the norm's place; where the ReLU was nothing is left to do.
                layers.append(nn.Identity())
                found[site.node.name] = site.norm
            else:
                layers.append(_like(neuron, model))
                found[site.node.name] = f"{base}.{k}" if functional or len(group) > 1 else base
        if functional:
            owner = model.get_submodule(path) if path else model
            owner.add_module(FUNCTIONAL, Calls(layers))
            # By class, for the call is in its own code; of this instance alone, others keep their ReLUs.
            owner.__class__ = _redirected(type(owner))
        # a norm that held its activation is gone
        elif base not in (s.norm and f"{s.norm}.act" for s in group):
            _replace(model, model.get_submodule(path), layers[0] if len(layers) == 1 else Calls(layers))
    for site in sites:
        place = f"model.{found[site.node.name]}"
        network.aliases[site.node.name] = place
        if site.node.path is not None and site.node.call == 0:
            network.aliases[site.node.path] = place
    return [f"model.{found[s.node.name]}" for s in sites]


def _like(neuron: nn.Module, model: nn.Module) -> nn.Module:
    first = next(model.parameters(), None)
    return neuron if first is None else neuron.to(first.device, first.dtype)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Everywhere: the same module may be registered under several paths."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def repeat_after(network: Spiking, path: str, time_steps: int) -> None:
    """Let time begin behind a module, or at the input (path "")."""
    network.repeat_at, network.repeat = path, Repeat(time_steps)
    if path:
        network.model.get_submodule(path).register_forward_hook(RepeatAfter(network.repeat))
