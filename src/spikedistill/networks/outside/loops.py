"""A model that runs its own time steps, as one step: its loop, repeated input and average are taken out.

One pass of it is traced with a peer's layers and neurons as single nodes. What its output takes from the time
steps (a stack, a sum or a mean of T calls of one place, or of T rows) is found backwards; what the first
step's output depends on is the step, which :class:`Step` runs on all T*N rows at once.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...errors import SpikedistillError
from ..graph import Graph
from ..operations import EVERYWHERE, Node, Ref

ADVICE = "let the model take one step (N, ...) and give its logits (N, K); spikedistill runs the steps"


class Step(nn.Module):
    """Runs the nodes of one time step on folded tensors (T*N, ...); modules keep the model's names."""

    def __init__(self, model: nn.Module, program: list[tuple[str, Any, Any, Any]], output: str) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.program, self.output = program, output

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {"input": x}
        for name, what, args, kwargs in self.program:
            given, named = (_filled(a, values, self) for a in (args, kwargs))
            if isinstance(what, str):
                out = self.get_submodule(what)(*given, **named)
                values[name] = out[0] if isinstance(out, tuple) else out  # of spikes and state
            else:
                values[name] = what(*given, **named)
        return values[self.output]


def _filled(value: Any, values: dict[str, Any], model: nn.Module) -> Any:
    if isinstance(value, Ref):
        if value.name.startswith("parameter:"):
            path, _, key = value.name.removeprefix("parameter:").rpartition(".")
            return getattr(model.get_submodule(path), key)
        out = values[value.name]
        return out if value.index is None else out[value.index]
    if isinstance(value, tuple | list):
        return type(value)(_filled(v, values, model) for v in value)
    if isinstance(value, dict):
        return {k: _filled(v, values, model) for k, v in value.items()}
    return value


def _like_rows(x: Tensor, *shape: int) -> Tensor:
    """Reshape all but the rows, whatever their number."""
    return x.reshape(-1, *shape)


def cut(graph: Graph, neurons: set[str], T: int, timed: bool) -> Callable[[nn.Module], nn.Module]:
    """From the trace of a model that runs T steps, what makes one step of a model with the same paths.

    ``neurons``: paths of neurons. ``timed``: the model was given (T, N, ...). Raises for what depends on time
    otherwise.
    """
    found = _Cut(graph, neurons, T, timed)
    output = found.emit(found.steps())
    return lambda model: Step(model, found.program, output.name)


class _Cut:
    def __init__(self, graph: Graph, neurons: set[str], T: int, timed: bool) -> None:
        self.graph, self.neurons, self.T = graph, neurons, T
        self.program: list[tuple[str, Any, Any, Any]] = []
        self.done: dict[str, Ref] = {}
        self.live = graph.live
        self.timed: set[str] = {"input"} if timed else set()
        for node in graph:  # in the order of execution
            if node.name != "input" and self._has_time(node):
                self.timed.add(node.name)

    def _has_time(self, node: Node) -> bool:
        """Whether a node's output has T in front, by what it does to what it reads."""
        given = [name in self.timed for name in node.inputs if name in self.graph]
        if any(given):
            leaves = node.op == "slice" and isinstance(self._index(node), int)
            leaves = leaves or node.op == "unbind"
            return not leaves and not (node.op in ("mean", "sum") and self._over_time(node))
        return (
            node.op in ("reshape", "expand", "stack", "slice")
            # 1: ``unsqueeze(0)``, which a later call expands to T.
            and node.shape[:1] in ((self.T,), (1,))
            and self._opens(node)
        )

    def _opens(self, node: Node) -> bool:
        """Whether a node puts time in front.

        Forms: ``unsqueeze(0)``, ``x[None]``, ``stack([x] * T)``, ``expand`` or ``repeat``.
        """
        before = node.in_shapes[0] if node.in_shapes else ()
        if node.op == "stack":
            return len(set(node.inputs)) == 1 and node.shape[1:] == before and self._dim(node, 1, 0) == 0
        return node.shape[1:] == before

    def _index(self, node: Node) -> Any:
        return node.args[1] if len(node.args) > 1 else node.kwargs.get("index")

    def _dim(self, node: Node, place: int, default: Any) -> Any:
        value = node.args[place] if len(node.args) > place else node.kwargs.get("dim", default)
        return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value

    def _over_time(self, node: Node) -> bool:
        return self._dim(node, 1, None) == 0

    # -- the end: what the output takes from the steps

    def steps(self) -> Ref:
        """The first step's output, (N, K) or (T, N, K)."""
        ref = Ref(self.graph.output)
        leaves = self._leaves(ref, {})
        timed = [leaf for leaf in leaves if leaf.name in self.timed]
        if timed and len(leaves) == 1:
            return timed[0]
        names = [leaf.name for leaf in leaves]
        places = {name.rpartition("#")[0] for name in names}
        if len(names) == self.T and len(places) == 1 and not timed:
            # The first depends on no other step: what later ones read of it is the neurons' state.
            return min(leaves, key=lambda leaf: int(leaf.name.rpartition("#")[2]))
        node = self.graph[self.graph.output]
        raise self._refused(node, f"the logits are not made of {self.T} equal time steps")

    def _leaves(self, ref: Ref, seen: dict[str, None]) -> list[Ref]:
        """Back through stacks, sums and means over time to what one step gives."""
        # Not live: the zeros that a sum starts from, which no step gives.
        if ref.name not in self.graph or ref.name in seen or ref.name not in self.live:
            return []
        node = self.graph[ref.name]
        seen[ref.name] = None
        if node.name in self.timed:
            if node.op == "stack" or (
                node.op == "reshape" and node.inputs and node.inputs[0] not in self.timed
            ):
                return self._inner(node, seen)
            return [ref]
        over = node.op in ("mean", "sum") and self._over_time(node)
        single = len(node.inputs) == 1
        if node.path is None and (
            over
            or (node.op in ("stack", "concat") and self._dim(node, 1, 0) == 0)
            or (node.op == "add" and not single and self._accumulates(node))
            or (node.op in ("divide", "multiply", "add") and single)
            or (node.op == "reshape" and node.kind == "unsqueeze")
        ):
            return self._inner(node, seen)
        return [ref]

    def _accumulates(self, node: Node) -> bool:
        """Whether a sum runs over steps: a chain that ends in the output, not a shortcut within a step."""
        readers = self.graph.readers(node.name)
        return node.name == self.graph.output or (
            all(
                r.op in ("add", "divide", "multiply")
                and (r.name == self.graph.output or self._accumulates(r))
                for r in readers
            )
            and bool(readers)
        )

    def _inner(self, node: Node, seen: dict[str, None]) -> list[Ref]:
        return [leaf for ref in _refs((node.args, node.kwargs)) for leaf in self._leaves(ref, seen)]

    # -- what the first step does

    def emit(self, ref: Ref) -> Ref:
        """The program that computes a node; returns where its result stands."""
        if ref.name.startswith("parameter:") or ref.name == "input":
            return ref
        if ref.name not in self.graph:
            raise SpikedistillError(
                "the model computes with a tensor that is neither its parameter nor its buffer; "
                "register it as a buffer"
            )
        node = self.graph[ref.name]
        if node.path is not None:
            # 0: of spikes and state the spikes.
            if ref.index:
                what = (
                    "the model reads the membrane of this neuron, which has no form here; "
                    "read its spikes (output=)"
                )
                raise self._refused(
                    node, what if node.path in self.neurons else "a second output has no form here"
                )
            ref = Ref(ref.name)
        if node.op == "unbind" and node.inputs[0] in self.timed and ref.index == 0:
            return self.emit(_refs(node.args)[0])
        if ref.name not in self.done:
            self.done[ref.name] = self._emitted(node)
        out = self.done[ref.name]
        return out if ref.index is None else Ref(out.name, ref.index)

    def _emitted(self, node: Node) -> Ref:
        given = [name in self.timed for name in node.inputs if name in self.graph]
        if node.path is not None:
            self.program.append((node.name, node.path, (self.emit(_refs((node.args, node.kwargs))[0]),), {}))
            return Ref(node.name)
        if node.name in self.timed and not any(given):
            return self.emit(_refs(node.args)[0])  # opens time: here all rows have it already
        if any(given):
            return self._on_time(node, node.name in self.timed)
        args, kwargs = self._mapped(node.args), self._mapped(node.kwargs)
        function: Any = node.function
        # Traced numbers hold for the N of one step; the rows will be T*N.
        if node.kind in ("view", "reshape") and node.in_shapes and node.in_shapes[0][:1] == node.shape[:1]:
            function, args, kwargs = _like_rows, (args[0], *node.shape[1:]), {}
        self.program.append((node.name, function, args, kwargs))
        return Ref(node.name)

    def _on_time(self, node: Node, stays: bool) -> Ref:
        """A function that reads (T, N, ...)."""
        # The first step's part: here all rows run as it does.
        if node.op == "slice" and self._index(node) == 0:
            return self.emit(_refs(node.args)[0])
        if stays and (
            node.op in EVERYWHERE or (node.op == "expand" and node.shape[1:] == node.in_shapes[0][1:])
        ):
            if node.op == "expand":
                return self.emit(_refs(node.args)[0])
            self.program.append(
                (node.name, node.function, self._mapped(node.args), self._mapped(node.kwargs))
            )
            return Ref(node.name)
        if stays and node.kind in ("flatten", "view", "reshape") and node.shape[:2] == node.in_shapes[0][:2]:
            ref = self.emit(_refs(node.args)[0])
            self.program.append((node.name, _like_rows, (ref, *node.shape[2:]), {}))
            return Ref(node.name)
        if stays and node.op in ("mean", "sum") and node.shape[:2] == node.in_shapes[0][:2]:
            ref = self.emit(_refs(node.args)[0])
            dims = _shifted(self._dims(node), len(node.in_shapes[0]))
            self.program.append((node.name, node.function, (ref, dims, bool(self._keep(node))), {}))
            return Ref(node.name)
        if stays and node.op == "concat":
            (dim,) = _shifted((self._dim(node, 1, 0),), len(node.in_shapes[0]))
            self.program.append((node.name, node.function, (self._mapped(node.args[0]), dim), {}))
            return Ref(node.name)
        raise self._refused(node, f"{node.kind} on time steps (T, N, ...) has no form here")

    def _dims(self, node: Node) -> tuple[int, ...]:
        value = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
        return (value,) if isinstance(value, int) else tuple(value)

    def _keep(self, node: Node) -> Any:
        return node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.emit(value)
        if isinstance(value, tuple | list):
            return type(value)(self._mapped(v) for v in value)
        if isinstance(value, dict):
            return {k: self._mapped(v) for k, v in value.items()}
        return value

    def _refused(self, node: Node, what: str) -> SpikedistillError:
        return SpikedistillError(f"{node.place}: {what}{node.at and ','}{node.at}; {ADVICE}")


def _shifted(dims: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Dimensions of (T, N, ...) as those of (T*N, ...)."""
    return (
        tuple(d - 1 if d > 0 else d for d in dims)
        if all(d >= 2 or 0 > d > 2 - rank - 1 for d in dims)
        else dims
    )


def _refs(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [ref for v in value for ref in _refs(v)]
    return []
