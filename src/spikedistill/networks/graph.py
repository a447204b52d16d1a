"""A network as a list of nodes and edges, traced once; every tool that needs a network's structure reads it.

One forward pass on an example is recorded: a node for each call of a leaf module and for each function on
tensors outside of leaf modules, with the line of source that called it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name

from .. import simulation
from ..neurons import Neuron, NormNeuron, Repeat
from ..neurons.compilation import eager
from .base import Network
from .operations import Node, Ref


@dataclass
class Call:
    """One call of any module, composite ones included: whose output it gave (a node's name)."""

    path: str
    call: int
    input: str | None
    output: str | None
    shape: tuple[int, ...]


@dataclass
class Section:
    """One call of a composite module that takes and gives a tensor, with all that it calls in order."""

    path: str
    input: Ref
    output: Ref
    steps: "list[Node | Section]"


@dataclass
class Graph:
    """Nodes in the order of execution, calls of all modules, and the names of the input and output nodes.

    ``steps``: the same nodes, those of a composite module's call in a section of its own.
    """

    steps: "list[Node | Section]" = field(init=False, default_factory=list)
    nodes: list[Node] = field(init=False, default_factory=list)
    calls: list[Call] = field(default_factory=list)
    output: str = ""
    batch: int = 0
    time_steps: int | None = None

    def __post_init__(self) -> None:
        self._by_name: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def add(self, node: Node) -> None:
        """Append a node."""
        self.nodes.append(node)
        self._by_name[node.name] = node
        for name in node.inputs:
            self._readers.setdefault(name, []).append(node)

    def readers(self, name: str) -> list[Node]:
        """Nodes that read the output of ``name``, each as often as it reads it."""
        return self._readers.get(name, [])

    def after(self, name: str) -> set[str]:
        """Names of all nodes that depend on ``name``."""
        found: set[str] = set()
        for node in self.nodes:  # in the order of execution, so one pass suffices
            if any(given == name or given in found for given in node.inputs):
                found.add(node.name)
        return found

    @property
    def live(self) -> set[str]:
        """Names of the nodes that depend on the input, and "input"."""
        return self.after("input") | {"input"}

    def of_path(self, path: str) -> list[Node]:
        """Nodes of the leaf module at ``path``, one per call."""
        return [node for node in self.nodes if node.path == path]


_LEAVES = (Neuron, NormNeuron, Repeat)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one node: torch's modules without children, neurons, norm and neuron, Repeat."""
    if isinstance(module, _LEAVES) or getattr(module, "graph_leaf", False):
        return True
    return type(module).__module__.startswith("torch.nn") and not any(module.children())


def trace(network: nn.Module, example: Tensor) -> Graph:
    """Record one forward pass of ``network`` on ``example``, in eval mode, without gradients.

    Training flags, running statistics and random state are as before. For a :class:`Network` the node "input"
    is what enters its body (normalised, folded over time) and the output is the body's.
    """
    recorder = _Recorder(network)
    with (
        simulation.eval_mode(network),
        torch.random.fork_rng(devices=[example.device] if example.is_cuda else []),
        torch.no_grad(),
        recorder,
    ):
        recorder.run(example)
    return recorder.graph


class _Recorder:
    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.graph = Graph()
        self.paths = {id(m): name for name, m in network.named_modules()}
        self.counts: dict[str, int] = {}
        self.stack: list[tuple[nn.Module, int, Any]] = []
        # Of the composite calls that are running: what each was given, and its steps so far.
        self.open: list[tuple[Ref | None, list[Node | Section]]] = [(None, self.graph.steps)]
        self.quiet = 0  # > 0 inside a leaf, or outside of a Network's body
        self.refs: dict[int, Ref] = {}
        self.alive: list[Tensor] = []  # ids are only unique while the tensors live
        for name, p in [*network.named_parameters(), *network.named_buffers()]:
            self.refs[id(p)] = Ref(f"parameter:{name}")

    def run(self, example: Tensor) -> None:
        net = self.network
        if isinstance(net, Network):
            self.quiet = 1
            fold, body = net.fold, net.body

            def traced_fold(x: Tensor, sim: simulation.Simulation) -> Tensor:
                out = fold(x, sim)
                self.graph.batch, self.graph.time_steps = x.shape[0], sim.time_steps
                self.source(out)
                return out

            def traced_body(x: Tensor) -> Tensor:
                self.quiet = 0
                out = body(x)
                self.graph.output = self.ref(out).name
                self.quiet = 1
                return out

            # On the instance, for one pass: what enters the body is known only in between.
            net.fold, net.body = traced_fold, traced_body  # type: ignore[method-assign]
            try:
                net(example)
            finally:
                del net.fold, net.body
            return
        self.graph.batch = example.shape[0]
        self.source(example)
        out = net(example)
        while not isinstance(out, Tensor):
            out = next(iter(out.values())) if isinstance(out, dict) else out[0]
        self.graph.output = self.ref(out).name

    def source(self, x: Tensor) -> None:
        self.graph.add(Node("input", "input", [], (), {}, tuple(x.shape), [], "", ""))
        self.know(x, Ref("input"))

    def know(self, x: Tensor, ref: Ref) -> None:
        # A call in place gives back the tensor it read: from here on it is the later node's output.
        self.refs[id(x)] = ref
        self.alive.append(x)

    def ref(self, x: Tensor) -> Ref:
        return self.refs.get(id(x), Ref("constant"))

    def known(self, x: Any) -> Ref | None:
        """The node whose output a tensor is, if it is one's."""
        ref = self.refs.get(id(x)) if isinstance(x, Tensor) else None
        return None if ref is None or ref.name.startswith("parameter:") else ref

    def count(self, key: str) -> int:
        k = self.counts.get(key, 0)
        self.counts[key] = k + 1
        return k

    def record(
        self, name: str, kind: str, args: Any, kwargs: Any, out: Any, scope: str, **extra: Any
    ) -> None:
        tensors: list[Tensor] = []
        plain = _replace(args, self, tensors), _replace(kwargs, self, tensors)
        first = out if isinstance(out, Tensor) else next((o for o in out if isinstance(o, Tensor)), None)
        shape = tuple(first.shape) if first is not None else ()
        inputs = [self.ref(t).name for t in tensors]
        node = Node(
            name,
            kind,
            inputs,
            *plain,
            shape,
            [tuple(t.shape) for t in tensors],
            source_line(),
            scope,
            **extra,
        )
        self.graph.add(node)
        self.open[-1][1].append(node)
        if isinstance(out, Tensor):
            self.know(out, Ref(name))
        else:
            for i, o in enumerate(out):
                if isinstance(o, Tensor):
                    self.know(o, Ref(name, i))

    def scope(self) -> str:
        return self.paths.get(id(self.stack[-1][0]), "") if self.stack else ""

    def before(self, module: nn.Module, args: Any) -> None:
        if id(module) not in self.paths:
            return
        # What the caller gave: hooks of the module (a quantized one's casts) may exchange it.
        self.stack.append((module, self.count(self.paths[id(module)]), args))
        if is_leaf(module):
            self.quiet += 1
        elif not self.quiet:
            given = next((a for a in args if isinstance(a, Tensor)), None)
            self.open.append((self.known(given), []))

    def after(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if id(module) not in self.paths or not self.stack:
            return
        _, k, args = self.stack.pop()
        path = self.paths[id(module)]
        if is_leaf(module):
            self.quiet -= 1
            if not self.quiet:
                self.record(
                    f"{path}#{k}",
                    type(module).__name__,
                    args,
                    kwargs,
                    out,
                    path,
                    path=path,
                    call=k,
                    module=module,
                )
        given = next((a for a in args if isinstance(a, Tensor)), None)
        if not self.quiet and not is_leaf(module) and len(self.open) > 1:
            entered, steps = self.open.pop()
            left = self.known(out)
            # Without a node's output in and out there is no section: the steps stand in the caller's.
            whole = entered is not None and left is not None
            self.open[-1][1].extend([Section(path, entered, left, steps)] if whole else steps)  # type: ignore[arg-type]
        if not self.quiet and isinstance(out, Tensor):
            self.graph.calls.append(
                Call(
                    path,
                    k,
                    self.ref(given).name if given is not None else None,
                    self.ref(out).name,
                    tuple(out.shape),
                )
            )

    def function(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record a function that was called outside of leaf modules."""
        # Sizes, numbers and dtypes are settled in the trace: a call that gives no tensor is no node.
        if self.quiet or not _tensors_in(out):
            return
        kind, scope = function_name(func), self.scope()
        name = f"{scope}/{kind}" if scope else kind
        self.record(f"{name}#{self.count(name)}", kind, args, kwargs, out, scope, function=func)

    def __enter__(self) -> "_Recorder":
        self.exits = ExitStack()
        pre = register_module_forward_pre_hook(self.before)
        post = register_module_forward_hook(self.after, with_kwargs=True)
        self.exits.callback(pre.remove)
        self.exits.callback(post.remove)
        self.exits.enter_context(eager())  # compiled code would be compiled anew under a mode
        self.exits.enter_context(Functions(self.function))
        return self

    def __exit__(self, *exc: Any) -> None:
        self.exits.close()


class Functions(TorchFunctionMode):
    """While it is active, ``called(function, args, kwargs, output)`` after each function on tensors."""

    def __init__(self, called: Callable[[Any, Any, Any, Any], None]) -> None:
        super().__init__()
        self.called = called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.called(func, args, kwargs or {}, out)
        return out


def _tensors_in(out: Any) -> bool:
    return isinstance(out, Tensor) or (
        isinstance(out, tuple | list) and any(isinstance(o, Tensor) for o in out)
    )


def function_name(func: Any) -> str:
    """A function's name as a node's ``kind`` has it."""
    name = (resolve_name(func) or getattr(func, "__name__", str(func))).rsplit(".", 1)[-1]
    # An attribute such as ``x.T`` arrives as its getter, ``Tensor.T.__get__``.
    if name == "__get__":
        name = (resolve_name(func) or "").split(".")[-2]
    return name.strip("_") if name.startswith("__") else name


def _replace(value: Any, recorder: _Recorder, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return recorder.ref(value)
    # Subclasses stay: torch.Size holds no tensors, and a named tuple takes its fields one by one.
    if isinstance(value, tuple | list):
        return (
            type(value)(_replace(v, recorder, tensors) for v in value)
            if type(value) in (tuple, list)
            else value
        )
    if isinstance(value, dict):
        return {k: _replace(v, recorder, tensors) for k, v in value.items()}
    return value


# Frames of ours that stand between a network's code and what it calls.
OWN_FILES = ("networks/graph.py", "outside/spiking.py", "outside/spiking_check.py")


def source_line() -> str:
    """``file:line`` of the innermost caller outside of torch and of tracing; "" if the network has none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _OUTSIDE:
            return ""
        file = frame.f_code.co_filename
        if "/torch/" not in file and not file.endswith(OWN_FILES):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


_OUTSIDE = {trace.__code__}  # who calls the network is none of its lines
