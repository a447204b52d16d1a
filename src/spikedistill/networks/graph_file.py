"""A traced network as a document that JSON holds: modules by settings, calls in order, no code that runs.

:func:`describe` writes it, :mod:`.interpreter` makes a network of it. A network is traced at two batch sizes
(and two numbers of time steps), and a number in a call that grew with them is written as so many an image
(and step).
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from .. import simulation
from ..neurons import TYPES, Neuron, NormNeuron, Parallel, Repeat, event_driven
from ..numerics import floating_type
from ..typed import Strict
from .base import Input, Network
from .graph import Graph, Section, trace
from .operations import FUNCTIONS as KNOWN
from .operations import Node, Ref

# Layers of torch that their constructor's arguments say whole.
_LAYERS = (
    "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d Linear BatchNorm1d BatchNorm2d BatchNorm3d "
    "LayerNorm GroupNorm InstanceNorm1d InstanceNorm2d ReLU ReLU6 LeakyReLU PReLU ELU GELU SiLU Mish Sigmoid "
    "Tanh Hardsigmoid Hardswish Softplus Softmax LogSoftmax MaxPool1d MaxPool2d AvgPool1d AvgPool2d LPPool1d "
    "LPPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d Upsample ConstantPad1d "
    "ConstantPad2d ZeroPad1d ZeroPad2d ReflectionPad2d ReplicationPad2d PixelShuffle PixelUnshuffle Flatten "
    "Unflatten Identity Dropout Dropout1d Dropout2d"
)
TORCH: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _LAYERS.split()}
# Functions beside the vocabulary: what layers of ANNs compute. None looks at files, devices or the clock.
_MORE = (
    "neg abs exp log sqrt rsqrt pow square clamp clamp_min clamp_max minimum maximum where max min amax amin "
    "einsum softmax log_softmax sigmoid tanh gelu silu relu6 hardswish hardsigmoid leaky_relu elu mish "
    "softplus normalize layer_norm group_norm batch_norm instance_norm linear conv1d conv2d pixel_shuffle "
    "scaled_dot_product_attention masked_fill norm std var ones_like zeros_like baddbmm addmm roll "
    "repeat_interleave narrow select index_select gather tile broadcast_to"
)
_PLACES = (("Tensor", Tensor), ("torch", torch), ("F", F))


def _functions() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for word in (*KNOWN, *_MORE.split()):
        for form in (word, f"{word}_", f"__{word}__"):
            for place, holder in _PLACES:
                function = getattr(holder, form, None)
                if callable(function) and not (place == "torch" and form in ("pad", "input")):
                    found[f"{place}.{form}"] = function
    return found | {"Tensor.T": lambda x: x.T, "Tensor.mT": lambda x: x.mT}


FUNCTIONS = _functions()
_NAMES = {function: name for name, function in FUNCTIONS.items()}
_DTYPES = "float16 bfloat16 float32 float64 int8 uint8 int16 int32 int64 bool"
DTYPES = {name: getattr(torch, name) for name in _DTYPES.split()}


class Leaf(Strict):
    """A module that is one node: a layer of torch by its class and constructor, a neuron by its recipe."""

    type: str
    settings: dict[str, Any] = {}


class Held(Strict):
    """A parameter or buffer that no leaf owns."""

    shape: list[NonNegativeInt]
    dtype: str
    parameter: bool


class CallStep(Strict):
    """One call of a leaf (``module``) or of a function; its output is read under ``name``."""

    name: str
    module: str | None = None
    function: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class SectionStep(Strict):
    """One call of a composite module, whose output is that of a step within, or what stood before."""

    section: str
    input: Any
    output: Any
    steps: "list[CallStep | SectionStep]"


class Form(Strict):
    """What a :class:`.base.Network` is beside its layers."""

    num_classes: PositiveInt
    in_channels: PositiveInt
    input: Input
    time_steps: PositiveInt | None
    encoding: str
    dims: Literal[1, 2]
    head_path: str
    stages: list[str]
    aliases: dict[str, str]
    repeat_at: str | None
    notes: list[str]


class Document(Strict):
    """``form``: None if plain. ``size``: of an image or frame, (C, ...). ``modules``: None if composite."""

    format: Literal[1]
    form: Form | None
    size: list[PositiveInt]
    event_driven: bool
    modules: dict[str, Leaf | None]
    shared: dict[str, str]
    tensors: dict[str, Held]
    steps: list[CallStep | SectionStep]
    output: Any


class NoFormError(Exception):
    """Why a network cannot be written down."""


@dataclass(frozen=True)
class _Point:
    """Where a trace stands: its images and time steps."""

    images: int
    steps: int


def describe(network: nn.Module, size: Sequence[int], frames: int | None = None) -> dict[str, Any]:
    """The document of a network; ``size``: of an image or frame (C, H, W), ``frames``: so many an example.

    Raises: NoFormError, with the reason, for what has no form.
    """
    form = _form(network) if isinstance(network, Network) else None
    traces, points = [], []
    for images, more in ((2, 0), (3, 0), (2, 1)):
        T = form.time_steps if form is not None else None
        if more and T is None:
            continue
        steps = (T or 1) + more
        example = torch.rand(images, *(() if frames is None else (frames,)), *size)
        example = example.to(floating_type(network, example.dtype))
        try:
            traced = _made_for(network, steps) if more else network
            with simulation.time_steps(traced, steps):
                graph = trace(traced, example)
        except Exception as error:
            raise NoFormError(f"a pass on {images} images failed: {error}") from error
        rows = graph["input"].shape[0]
        unfolded = isinstance(network, Network) and network.spiking and not network.once
        traces.append(graph)
        points.append(_Point(rows // steps if unfolded else rows, steps))
    names = _Names(network, traces[0])
    programs = [_unwrapped(graph) for graph in traces]
    steps_ = list(_steps(programs, points, names))
    modules, shared, tensors = _modules(network, traces[0], form is not None)
    equipped = any(isinstance(m, event_driven.Conv2d) for m in network.modules())
    document = Document(
        format=1, form=form, size=list(size), event_driven=equipped, modules=modules, shared=shared,
        tensors=tensors, steps=steps_, output=_ref(names.of(Ref(traces[0].output))),
    )  # fmt: skip
    return document.model_dump(mode="json", exclude_defaults=False)


def _made_for(network: nn.Module, steps: int) -> nn.Module:
    """The network; where neurons have weights for one T, a copy in which they have some for ``steps``."""
    if not any(isinstance(m, Parallel) and m.tied for m in network.modules()):
        return network
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):  # they may be drawn
        for m in network.modules():
            if isinstance(m, Parallel) and m.tied:
                m.time_steps = steps
    return network


def _form(network: Network) -> Form:
    return Form(
        num_classes=network.num_classes, in_channels=network.in_channels, input=network.input,
        time_steps=network.time_steps, encoding=network.encoding, dims=network.dims,
        head_path=network.head_path, stages=network.stage_paths(),
        aliases=dict(getattr(network, "aliases", {})),
        repeat_at=getattr(network, "repeat_at", None) or None, notes=list(getattr(network, "notes", [])),
    )  # fmt: skip


def _unwrapped(graph: Graph) -> "list[Node | Section]":
    """The calls below the network itself."""
    first = graph.steps[0] if len(graph.steps) == 1 else None
    return first.steps if isinstance(first, Section) and first.path == "" else graph.steps


class _Names:
    """Where an output is found: what a hook repeats over time is the output of the module with the hook."""

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        at = getattr(network, "repeat_at", None)
        self.repeated: Ref | None = None
        if at:
            sections = [s for s in _sections(graph.steps) if s.path == at]
            self.repeated = sections[0].output if sections else Ref(f"{at}#0")

    def of(self, ref: Ref) -> Ref:
        return self.repeated if self.repeated is not None and ref.name == "repeat#0" else ref


def _sections(steps: "Sequence[Node | Section]") -> Iterator[Section]:
    for step in steps:
        if isinstance(step, Section):
            yield step
            yield from _sections(step.steps)


def _steps(
    programs: "Sequence[Sequence[Node | Section]]", points: Sequence[_Point], names: _Names
) -> "Iterator[CallStep | SectionStep]":
    """The same calls of several traces, as steps."""
    if any(len(program) != len(programs[0]) for program in programs):
        raise NoFormError("which calls it makes depends on the batch")
    for them in zip(*programs):
        first = them[0]
        if isinstance(first, Section):
            if any(not isinstance(one, Section) or one.path != first.path for one in them):
                raise NoFormError("which calls it makes depends on the batch")
            inner = list(_steps([one.steps for one in them], points, names))
            given, out = names.of(first.input), names.of(first.output)
            yield SectionStep(section=first.path, input=_ref(given), output=_ref(out), steps=inner)
            continue
        if any(isinstance(one, Section) or (one.name, one.kind) != (first.name, first.kind) for one in them):
            raise NoFormError("which calls it makes depends on the batch")
        if names.repeated is not None and first.name == "repeat#0":
            continue
        where = first.path or first.scope or first.name
        try:
            args = [_value(v, points, names) for v in zip(*(one.args for one in them), strict=True)]
            keys = list(first.kwargs)
            kwargs = {key: _value([one.kwargs[key] for one in them], points, names) for key in keys}
            function = None if first.module is not None else _function(first)
        except NoFormError as error:
            raise NoFormError(f"{where}: {first.kind}{first.at} {error}") from None
        yield CallStep(name=first.name, module=first.path, function=function, args=args, kwargs=kwargs)


def _function(node: Node) -> str:
    name = f"Tensor.{node.kind}" if node.kind in ("T", "mT") else _NAMES.get(node.function)  # type: ignore[arg-type]
    if name is None:
        raise NoFormError("is no function that a graph's file has")
    return name


def _ref(ref: Ref) -> dict[str, Any]:
    if ref.name == "constant":
        raise NoFormError("reads a tensor that is no layer's output, parameter or buffer")
    if ref.name.startswith("parameter:"):
        return {"tensor": ref.name.removeprefix("parameter:")}
    return {"ref": ref.name} | ({} if ref.index is None else {"index": ref.index})


def _value(them: Sequence[Any], points: Sequence[_Point], names: _Names) -> Any:
    """One argument, as each trace saw it."""
    first = them[0]
    if any(type(one) is not type(first) for one in them):
        raise NoFormError("takes something else for another batch")
    if isinstance(first, int) and not isinstance(first, bool):
        return _count([int(one) for one in them], points)
    if isinstance(first, tuple | list):
        if any(len(one) != len(first) for one in them):
            raise NoFormError("takes a list whose length depends on the batch")
        inner = [_value(parts, points, names) for parts in zip(*them)]
        return inner if isinstance(first, list) else {"tuple": inner}
    if isinstance(first, slice):
        parts = ([one.start, one.stop, one.step] for one in them)
        return {"slice": [_value(each, points, names) for each in zip(*parts)]}
    if isinstance(first, Ref):
        if any(one != first for one in them):
            raise NoFormError("reads something else for another batch")
        return _ref(names.of(first))
    # ``one == one``: NaN is unlike itself and yet the same in all traces.
    if any(one != first and one == one for one in them):
        raise NoFormError("takes a number that depends on the batch's values")
    if isinstance(first, float) and not math.isfinite(first):
        # JSON has no inf and no nan.
        return {"float": repr(first)}
    if first is None or isinstance(first, bool | str | float):
        return first
    if first is Ellipsis:
        return {"ellipsis": True}
    if isinstance(first, torch.dtype) and str(first).removeprefix("torch.") in DTYPES:
        return {"dtype": str(first).removeprefix("torch.")}
    raise NoFormError(f"takes a {type(first).__name__}")


def _count(them: list[int], points: Sequence[_Point]) -> Any:
    """A number that is the same in all traces, or grows with images, steps or both."""
    if len(set(them)) == 1:
        return them[0]
    # In one trace alone 8 may be 4 an image, 2 a step or 1 of both: all traces have to agree.
    for images, steps in ((1, 0), (0, 1), (1, 1)):
        sizes = [p.images**images * p.steps**steps for p in points]
        if all(n % size == 0 and n // size == them[0] // sizes[0] for n, size in zip(them, sizes)):
            return {"count": them[0] // sizes[0], "images": bool(images), "steps": bool(steps)}
    raise NoFormError(f"takes a number that depends on the batch ({', '.join(map(str, them))})")


def _modules(
    network: nn.Module, graph: Graph, ours: bool
) -> tuple[dict[str, Leaf | None], dict[str, str], dict[str, Held]]:
    """All modules in the order of their definition, the paths that name one again, and what no leaf holds."""
    called = {node.path for node in graph if node.path is not None}
    modules: dict[str, Leaf | None] = {}
    shared: dict[str, str] = {}
    tensors: dict[str, Held] = {}
    seen: dict[int, str] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if any(
            path.startswith(f"{done}.")
            for done in (*shared, *(p for p, leaf in modules.items() if leaf is not None))
        ):
            continue
        if id(module) in seen:
            shared[path] = seen[id(module)]
            continue
        seen[id(module)] = path
        leaf = None if path == "" else _leaf(module)
        if leaf is None and path in called:
            raise NoFormError(f"{path}: {type(module).__name__} is no layer that a graph's file has")
        if path:
            modules[path] = leaf
        if leaf is None:
            # A Network's constructor registers these two itself.
            _hold(path, module, tensors, ("mean", "std") if ours and path == "" else ())
    return modules, shared, tensors


def _hold(path: str, module: nn.Module, tensors: dict[str, Held], leave_out: tuple[str, ...]) -> None:
    own = {**module._parameters, **module._buffers}
    for name, value in own.items():
        if value is None or name in leave_out:
            continue
        whole = f"{path}.{name}" if path else name
        if name in module._non_persistent_buffers_set:
            raise NoFormError(f"{whole} is a buffer that is not saved (persistent=False)")
        dtype = str(value.dtype).removeprefix("torch.")
        tensors[whole] = Held(shape=list(value.shape), dtype=dtype, parameter=name in module._parameters)


def _leaf(module: nn.Module) -> Leaf | None:
    """A leaf's class and settings; None for a module that has no such form."""
    if getattr(module, "graph_op", None) == "rate_max_pool":  # conversion puts it around the pool again
        return _leaf(module.pool)  # type: ignore[arg-type]
    if type(module) is NormNeuron:
        inner = _leaf(module.neuron)
        settings = {"channels": module.channels, "eps": module.eps, "momentum": module.momentum}
        return inner and Leaf(type="norm_neuron", settings={**settings, "neuron": inner.model_dump()})
    if isinstance(module, Neuron):
        spec = module.spec()
        if TYPES.get(str(spec["type"])) is not type(module):
            return None
        return Leaf(
            type="neuron", settings={**spec, "encode": module.encode, "time_steps": module.time_steps}
        )
    if type(module) is Repeat:
        return Leaf(type="repeat", settings={"time_steps": module.time_steps})
    # Our subclasses of torch's layers compute what these do; somebody else's may not, so they are refused.
    for cls in type(module).__mro__:
        if cls.__name__ in TORCH and TORCH[cls.__name__] is cls:
            settings = {name: _setting(module, name) for name in constructor(cls)}
            return Leaf(type=cls.__name__, settings=settings)
        if not cls.__module__.startswith("spikedistill."):
            return None
    return None


def constructor(cls: type[nn.Module]) -> list[str]:
    """Names of a layer's arguments, which are its attributes too."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = list(inspect.signature(cls.__init__).parameters.items())[1:]
    return [name for name, p in found if name not in ("device", "dtype") and p.kind not in kinds]


def _setting(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    if name == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value
