"""Whether and how the fused arithmetic is compiled. Only arithmetic is compiled, never a module.

Three ways to run: ``eager`` (the equations of :mod:`.dynamics` under autograd: the reference), ``uncompiled``
(the fused arithmetic with its hand-derived backward, run operation by operation) and ``compiled``. Compiled
is the default; ``with sd.eager():``, ``enable(False)`` (a recipe's ``compile: false``) and the environment's
``SPIKEDISTILL_EAGER=1`` switch it off, and so does a machine on which compiling fails, with one warning.
"""

import logging
import os
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from .direct import Calls

Mode = Literal["eager", "uncompiled", "compiled"]

# of the process, not of a thread: recomputation in backward must choose as the forward did
_contexts: list[Mode] = []
_enabled = True
_broken: str | None = None


def mode() -> Mode:
    """How the next neuron runs: as the innermost context says, else the switches."""
    # Whoever compiles, traces or counts operations from outside is given plain ones to follow.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return "eager"
    if _contexts:
        return "eager" if _contexts[-1] == "compiled" and _broken else _contexts[-1]
    return "compiled" if allowed() else "eager"


def allowed() -> bool:
    """Whether no switch, no ``eager`` context and no earlier failure forbids compiling."""
    return (
        _enabled
        and "eager" not in _contexts
        and _broken is None
        and os.environ.get("SPIKEDISTILL_EAGER", "") in ("", "0")
    )


def enable(on: bool) -> None:
    """Switch compiling on or off for this process; the environment's ``SPIKEDISTILL_EAGER=1`` beats on."""
    global _enabled
    _enabled = on


@contextmanager
def use(mode: Mode) -> Iterator[None]:
    """Run neurons in ``mode`` within this context."""
    _contexts.append(mode)
    try:
        yield
    finally:
        _contexts.pop()


def eager() -> Any:
    """A context in which nothing is compiled and every neuron runs its plain equations under autograd."""
    return use("eager")


def uncompiled() -> Any:
    """A context in which neurons run the fused arithmetic, its backward too, without compiling it."""
    return use("uncompiled")


def compiled() -> Any:
    """A context in which neurons run compiled whatever the switches say (unless compiling failed before)."""
    return use("compiled")


def failure() -> str | None:
    """Why compiling failed in this process, or None."""
    return _broken


class Kernel:
    """A pure function of tensors that is compiled at its first call, once for all shapes.

    Each gets a code object of its own name, because the compiler limits recompilations per code object, and
    closures of one factory would share it. Sizes are symbolic and never assumed equal (a batch as large as
    the channels is no special case); a graph that cannot be kept whole is an error, not a silent fallback.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        code = function.__code__.replace(co_name=name, co_qualname=name)
        self.plain = types.FunctionType(
            code, function.__globals__, name, function.__defaults__, function.__closure__
        )
        self._compiled: Callable[..., Any] | None = None
        self._seen: set[tuple[Any, ...]] = set()  # kinds of arguments for which there is code

    def __call__(self, *args: Any) -> Any:
        if _broken is not None or mode() != "compiled":
            return self.plain(*args)
        signature = tuple([a.dtype if isinstance(a, torch.Tensor) else None for a in args])
        # There is code for these: the settings, which only making it needs, are left alone.
        if self._compiled is not None and signature in self._seen:
            try:
                return self._compiled(*args)
            except Exception as error:
                # By name, since importing the compiler takes seconds. Below, more recompilations are allowed.
                if type(error).__name__ != "FailOnRecompileLimitHit":
                    raise
        try:
            with _settings():
                if self._compiled is None:
                    self._compiled = Calls(torch.compile(self.plain, fullgraph=True, dynamic=True))
                out = self._compiled(*args)
            self._seen.add(signature)
            return out
        except torch.OutOfMemoryError:
            # No fault of the compiler, so no reason to give it up.
            raise
        except Exception as error:
            _give_up(error)
            return self.plain(*args)


@contextmanager
def _settings() -> Iterator[None]:
    # Private settings of the compiler, in force only around our own calls that may compile.
    import torch._dynamo.config as dynamo
    import torch.fx.experimental._config as shapes

    equal, limit = shapes.use_duck_shape, dynamo.recompile_limit
    # on import it warns that a CPU-only machine has no GPU
    extensions = logging.getLogger("torch.utils.cpp_extension")
    level = extensions.level
    # A kernel is compiled anew for each dtype and each argument that may be None; torch stops at 8.
    shapes.use_duck_shape, dynamo.recompile_limit = False, 64
    extensions.setLevel(logging.ERROR)
    try:
        yield
    finally:
        shapes.use_duck_shape, dynamo.recompile_limit = equal, limit
        extensions.setLevel(level)


def _give_up(error: Exception) -> None:
    global _broken
    lines = [line for line in str(error).splitlines() if line.strip()]
    _broken = f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
    warnings.warn(
        f"compiling failed, neurons run uncompiled, several times slower ({_broken}); install a C++ "
        "compiler, or set SPIKEDISTILL_EAGER=1 to silence this",
        RuntimeWarning,
        stacklevel=2,
    )
