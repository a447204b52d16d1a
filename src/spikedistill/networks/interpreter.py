"""Networks made of a document (:mod:`.graph_file`): the same state dict, taps, quantization, exports.

No code of others runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .. import simulation
from ..errors import SpikedistillError
from ..neurons import TYPES, NormNeuron, Repeat, build
from ..neurons.event_driven import equip
from ..neurons.strided import guard
from ..simulation import Simulation
from ..typed import checked, read
from .base import Network
from .graph_file import DTYPES, FUNCTIONS, TORCH, CallStep, Document, Form, Leaf, SectionStep
from .operations import Ref
from .outside.spiking import RepeatAfter

PROGRAM = "_spikedistill_program"  # no name that a module of somebody's own may have


@dataclass(frozen=True)
class _Tensor:
    """A parameter or buffer of the network."""

    path: str


@dataclass(frozen=True)
class _Count:
    """So many an image, a step, or both."""

    number: int
    images: bool
    steps: bool


@dataclass(frozen=True)
class _Call:
    name: str
    module: str | None
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Section:
    path: str
    input: Ref
    output: Ref
    steps: "tuple[_Call | _Section, ...]"


@dataclass(frozen=True)
class _Program:
    steps: "tuple[_Call | _Section, ...]"
    output: Any
    size: tuple[int, ...]


class Holder(nn.Module):
    """Stands where a composite module stood: holds its children, is called where it was: taps find it."""

    def forward(self, x: Tensor, body: Callable[[], Tensor]) -> Tensor:
        """What the calls within give."""
        # ``x`` is for hooks, such as a tap of the input: the calls within read it by name.
        return body()


class _Pass:
    """One pass through a program."""

    def __init__(self, network: nn.Module, x: Tensor, images: int, steps: int) -> None:
        self.network, self.images, self.steps = network, images, steps
        self.values: dict[str, Any] = {"input": x}

    def run(self, program: _Program) -> Tensor:
        self.all(program.steps)
        out = self.value(program.output)
        assert isinstance(out, Tensor)
        return out

    def all(self, steps: "Sequence[_Call | _Section]") -> None:
        for step in steps:
            if isinstance(step, _Section):
                module = self.network.get_submodule(step.path)
                out = module(self.value(step.input), partial(self.section, step))
                if step.output.index is None:  # a hook may have changed it
                    self.values[step.output.name] = out
                continue
            # By path at every pass: quantization and conversion exchange modules.
            call = step.function if step.module is None else self.network.get_submodule(step.module)
            assert call is not None
            args = [self.value(v) for v in step.args]
            self.values[step.name] = call(*args, **{key: self.value(v) for key, v in step.kwargs.items()})

    def section(self, step: _Section) -> Any:
        self.all(step.steps)
        return self.value(step.output)

    def value(self, given: Any) -> Any:
        if isinstance(given, Ref):
            out = self.values[given.name]
            return out if given.index is None else out[given.index]
        if isinstance(given, _Count):
            return given.number * (self.images if given.images else 1) * (self.steps if given.steps else 1)
        if isinstance(given, _Tensor):
            owner, _, name = given.path.rpartition(".")
            return getattr(self.network.get_submodule(owner), name)
        if isinstance(given, tuple | list):
            return type(given)(self.value(v) for v in given)
        if isinstance(given, slice):
            return slice(*(self.value(v) for v in (given.start, given.stop, given.step)))
        return given


class GraphModule(nn.Module):
    """A plain module made of a document: what enters it and leaves it is the original's."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, K)."""
        return _Pass(self, x, x.shape[0], 1).run(vars(self)[PROGRAM])


class GraphNetwork(Network):
    """A :class:`.base.Network` made of a document."""

    def __init__(self, form: Form) -> None:
        super().__init__(form.num_classes, form.in_channels, form.input, form.time_steps, form.encoding)
        own = {"dims": form.dims, "head_path": form.head_path, "aliases": form.aliases, "notes": form.notes}
        defaults = {"dims": 2, "head_path": "head"}
        vars(self).update({key: value for key, value in own.items() if value and value != defaults.get(key)})
        vars(self)[f"{PROGRAM}_stages"] = form.stages

    def stage_paths(self) -> list[str]:
        """Those of the original."""
        return list(vars(self)[f"{PROGRAM}_stages"])

    def check(self, x: Tensor, sim: Simulation) -> None:
        """Images of the size that the graph was traced on; its calls may hold numbers that follow from it."""
        super().check(x, sim)
        size = vars(self)[PROGRAM].size
        if tuple(x.shape[-len(size) :]) != size:
            raise SpikedistillError(
                f"this network was read from its graph, which holds for inputs of {size}; found "
                f"{tuple(x.shape[-len(size) :])}. Of its own code another size can be had: sd.load(..., "
                "network=...)"
            )

    def body(self, x: Tensor) -> Tensor:
        """Normalised, folded input to folded logits."""
        sim = simulation.current()
        steps = (sim.time_steps if sim is not None else None) or 1
        unfolded = self.spiking and not self.once
        return _Pass(self, x, x.shape[0] // steps if unfolded else x.shape[0], steps).run(vars(self)[PROGRAM])


def network_of(given: Mapping[str, Any], where: str, most: int) -> nn.Module:
    """An untrained network of a document; ``most``: numbers that its weights' file holds, more are not made.

    Raises: SpikedistillError, which begins with ``where``, for a document that is none.
    """
    try:
        document = read(Document, given, where)
    except RecursionError:
        raise SpikedistillError(f"{where}: nested too deep") from None
    # Layers draw initial weights, which the file's replace: the caller's random state stays.
    with torch.random.fork_rng(devices=[]):
        try:
            # Sizes first, without memory: a forged file may name layers of any size.
            with torch.device("meta"):
                sizes = _modules(document, where)
            held = sum(t.numel() for m in sizes.values() for t in (*m.parameters(), *m.buffers()))
            needed = held + sum(prod(tensor.shape) for tensor in document.tensors.values())
            if needed > most:
                raise SpikedistillError(
                    f"{where}: a network of {needed:,} numbers, the weights' file holds {most:,}"
                )
            network = _assembled(document, _modules(document, where), where)
        except SpikedistillError:
            raise
        except Exception as error:  # what the libraries say of settings that do not fit each other
            raise SpikedistillError(f"{where}: {type(error).__name__}: {error}") from None
    return equip(network) if document.event_driven else guard(network)


def _modules(document: Document, where: str) -> dict[str, nn.Module]:
    return {
        path: Holder() if leaf is None else _leaf(leaf, f"{where}: {path}")
        for path, leaf in document.modules.items()
    }


def _leaf(leaf: Leaf, where: str) -> nn.Module:
    settings = dict(leaf.settings)
    if leaf.type == "neuron":
        kind, encode, steps = (
            settings.pop("type", None),
            settings.pop("encode", False),
            settings.pop("time_steps", 4),
        )
        if kind not in TYPES or not isinstance(encode, bool) or not isinstance(steps, int):
            raise SpikedistillError(f"{where}: unknown neuron {kind!r}")
        neuron: Any = build({"type": kind, **checked(TYPES[kind], settings, where)})
        # Through the attribute: where weights belong to one T, it makes them.
        neuron.encode, neuron.time_steps = encode, steps
        return neuron
    if leaf.type == "norm_neuron":
        inner = _leaf(read(Leaf, settings.pop("neuron", None), where), where)
        return NormNeuron(**checked(NormNeuron, {**settings, "neuron": inner}, where))
    if leaf.type == "repeat":
        return Repeat(**checked(Repeat, settings, where))
    if leaf.type not in TORCH:
        raise SpikedistillError(f"{where}: unknown layer {leaf.type!r}")
    return TORCH[leaf.type](**checked(TORCH[leaf.type], settings, where))


def _assembled(document: Document, modules: dict[str, nn.Module], where: str) -> nn.Module:
    form = document.form
    network: nn.Module = GraphModule() if form is None else GraphNetwork(form)
    for path, module in modules.items():
        _put(network, path, module)
    for path, first in document.shared.items():
        _put(network, path, network.get_submodule(first))
    for path, held in document.tensors.items():
        owner, _, name = path.rpartition(".")
        if held.dtype not in DTYPES:
            raise SpikedistillError(f"{where}: {path}: unknown type {held.dtype!r}")
        value = torch.zeros(held.shape, dtype=DTYPES[held.dtype])
        if held.parameter:
            # Only floating-point parameters can have gradients; torch refuses to ask it of others.
            network.get_submodule(owner).register_parameter(
                name, nn.Parameter(value, value.is_floating_point())
            )
        else:
            network.get_submodule(owner).register_buffer(name, value)
    if form is not None and form.repeat_at is not None:
        repeat = network.get_submodule("repeat")
        assert isinstance(repeat, Repeat)
        network.get_submodule(form.repeat_at).register_forward_hook(RepeatAfter(repeat))
    reader = _Reader(network, where)
    steps = tuple(reader.steps(document.steps))
    vars(network)[PROGRAM] = _Program(steps, reader.ref(document.output), tuple(document.size))
    return network


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    network.get_submodule(owner).add_module(name, module)


class _Reader:
    """Steps of a document, each name read after it was given, each module and tensor there."""

    def __init__(self, network: nn.Module, where: str) -> None:
        self.network, self.where = network, where
        self.known = {"input"}
        self.modules = {path: m for path, m in network.named_modules(remove_duplicate=False) if path}
        self.tensors = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}

    def steps(self, given: "Sequence[CallStep | SectionStep]") -> "Iterator[_Call | _Section]":
        for step in given:
            if isinstance(step, SectionStep):
                if not isinstance(self.modules.get(step.section), Holder):
                    raise SpikedistillError(f"{self.where}: {step.section!r} holds no calls")
                source = self.ref(step.input)
                inner = tuple(self.steps(step.steps))
                yield _Section(step.section, source, self.ref(step.output), inner)
                continue
            module = self.modules.get(step.module) if step.module is not None else None
            named = (step.module is not None) != (step.function is not None)
            known = (
                isinstance(module, nn.Module) and not isinstance(module, Holder)
            ) or step.function in FUNCTIONS
            if not named or not known:
                raise SpikedistillError(
                    f"{self.where}: {step.name!r} calls {step.module or step.function!r}, which is unknown"
                )
            args = tuple(self.value(v) for v in step.args)
            kwargs = {key: self.value(v) for key, v in step.kwargs.items()}
            # Only now: a call may not read its own output or a later one.
            self.known.add(step.name)
            yield _Call(step.name, step.module, FUNCTIONS.get(str(step.function)), args, kwargs)

    def ref(self, given: Any) -> Ref:
        found = self.value(given)
        if not isinstance(found, Ref):
            raise SpikedistillError(f"{self.where}: {given!r:.80} is no step's output")
        return found

    def value(self, given: Any) -> Any:
        if given is None or isinstance(given, bool | int | float | str):
            return given
        if isinstance(given, list):
            return [self.value(v) for v in given]
        match given:
            case {"tuple": list(inner), **rest} if not rest:
                return tuple(self.value(v) for v in inner)
            case {"ref": str(name), **rest} if name in self.known and set(rest) <= {"index"}:
                index = rest.get("index")
                # bool is an int in Python: true must not pass as index 1.
                if index is None or (isinstance(index, int) and not isinstance(index, bool)):
                    return Ref(name, index)
            case {"tensor": str(path), **rest} if path in self.tensors and not rest:
                return _Tensor(path)
            case {"count": int(number), "images": bool(images), "steps": bool(steps), **rest} if not rest:
                return _Count(number, images, steps)
            case {"slice": [a, b, c], **rest} if not rest:
                return slice(self.value(a), self.value(b), self.value(c))
            case {"dtype": str(name), **rest} if name in DTYPES and not rest:
                return DTYPES[name]
            case {"float": "inf" | "-inf" | "nan" as text, **rest} if not rest:
                return float(text)
            case {"ellipsis": True, **rest} if not rest:
                return Ellipsis
        raise SpikedistillError(f"{self.where}: {given!r:.80} is no value, or reads what is not there yet")
