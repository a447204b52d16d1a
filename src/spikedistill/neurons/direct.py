"""Calls of compiled code without the compiler's checks of its arguments, where the same were checked before.

Before each call torch's compiler checks whether its code holds for the arguments, and wraps them: about
0.1 ms, more than the arithmetic of a small layer. Here a call that went through all that is watched; the next
one whose arguments are alike in everything the checks may ask goes straight to the code. Only on the CPU,
without gradients (the fused operations bring their own), and only where every tensor that the code takes or
gives is one of the call's; all else goes the usual way. What a function reads beside its arguments must never
change.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

MOST = 512  # kinds of arguments that are kept for one function
UNSEEN: Any = object()
_watching = threading.Lock()


class Calls:
    """Of one compiled function: calls it, and remembers how to call it faster."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self._compiled = compiled
        self._known: dict[Any, Callable[..., Any] | None] = {}
        self._state: Any = None  # of the process, for which what is known holds

    def __call__(self, *args: Any) -> Any:
        parts = _private()
        key = None if parts is None else _key(args)
        if parts is None or key is None:
            return self._compiled(*args)
        state_now, graph = parts
        if self._state is None or not self._state.check():
            # Threads, gradients, autocast, default type: what the arguments do not say.
            self._known.clear()
            self._state = state_now()
        direct = self._known.get(key, UNSEEN)
        if direct is not UNSEEN:
            return self._compiled(*args) if direct is None else direct(args)
        # Threads that watched each other would put back what is not torch's.
        if not _watching.acquire(blocking=False):
            return self._compiled(*args)
        try:
            if len(self._known) >= MOST:
                self._known.clear()
            out, self._known[key] = _watched(self._compiled, args, graph)
        finally:
            _watching.release()
        return out


@cache
def _private() -> tuple[Any, Any] | None:
    """What of torch is asked: the check of its state, its compiled graphs; None where it has them not."""
    try:
        from torch._C import _dispatch_keys, _len_torch_function_stack  # noqa: F401
        from torch._C._dynamo.guards import GlobalStateGuard
        from torch._inductor.output_code import CompiledFxGraph
    except ImportError:
        return None
    return GlobalStateGuard, CompiledFxGraph


def _key(args: tuple[Any, ...]) -> Any:
    """What compiled code may depend on; None where a call has to go the usual way."""
    # Modes of torch's functions see every call, the compiler's too.
    if torch._C._len_torch_function_stack():
        return None
    learning = torch.is_grad_enabled()
    key: list[Any] = []
    for i, arg in enumerate(args):
        if type(arg) is Tensor:
            if not arg.is_cpu or (learning and arg.requires_grad):
                return None
            same = next((j for j in range(i) if args[j] is arg), i)
            keys = torch._C._dispatch_keys(arg).raw_repr()
            key.append((arg.shape, arg.stride(), arg.dtype, arg.requires_grad, keys, same))
        elif arg is None:
            key.append(None)
        else:
            return None
    return tuple(key)


def _watched(compiled: Callable[..., Any], args: tuple[Any, ...], graph: Any) -> tuple[Any, Any]:
    """The call's result, and how to get at it directly; None where that is not clear."""
    calls: list[tuple[Any, list[Any], Any]] = []
    usual = graph.__call__

    def watching(self: Any, inputs: Any) -> Any:
        given = list(inputs)  # the code empties what it is given
        outputs = usual(self, inputs)
        calls.append((self, given, outputs))
        return outputs

    graph.__call__ = watching
    try:
        out = compiled(*args)
    finally:
        graph.__call__ = usual
    return out, _direct(calls, args, out)


def _direct(calls: list[tuple[Any, list[Any], Any]], args: tuple[Any, ...], out: Any) -> Any:
    if len(calls) != 1:
        return None
    graph, given, outputs = calls[0]
    takes: list[tuple[int | None, Any]] = []  # the place of an argument, or what is the same in each call
    for value in given:
        place = _place(value, args)
        if place is None and isinstance(value, Tensor):
            # A number of the function's own, which the compiler hands over as a tensor.
            if value.dim() or value.dtype != torch.float64 or not value.is_cpu or value.requires_grad:
                return None
            value = value.clone()
        elif place is None and type(value) is not int:
            return None
        takes.append((place, value if place is None else None))
    several = isinstance(out, tuple)
    gives: list[tuple[int | None, int | None]] = []  # the place among the code's outputs, among the arguments
    for value in out if several else (out,):
        found = (_place(value, outputs), _place(value, args))
        if value is not None and found == (None, None):
            return None
        gives.append(found)

    def direct(args: tuple[Any, ...]) -> Any:
        made = graph.current_callable([same if place is None else args[place] for place, same in takes])
        values = [
            made[inner] if inner is not None else None if outer is None else args[outer]
            for inner, outer in gives
        ]
        return tuple(values) if several else values[0]

    return direct


def _place(value: Any, among: Any) -> int | None:
    if not isinstance(value, Tensor):
        return None
    return next((i for i, other in enumerate(among) if other is value), None)
