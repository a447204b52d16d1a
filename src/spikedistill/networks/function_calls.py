"""Outputs of functions called in a network's own code (``F.relu(x)``), by their names in its graph."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..neurons.compilation import eager
from .graph import Functions, function_name, is_leaf


class FunctionCalls:
    """While it is active, ``found(name, output)`` is called for each of some calls of one pass.

    ``names``: of nodes of functions ("scope/function#k", :mod:`.graph`), counted as the graph counts them.
    """

    def __init__(
        self, network: nn.Module, names: Iterable[str], found: Callable[[str, Tensor], None]
    ) -> None:
        self.paths = {id(module): path for path, module in network.named_modules()}
        self.names, self.found = set(names), found
        self.kinds = {name.rpartition("/")[2].partition("#")[0] for name in self.names}
        self.stack: list[nn.Module] = []
        self.counts: dict[str, int] = {}

    def __enter__(self) -> "FunctionCalls":
        self.exits = ExitStack()
        self.exits.callback(register_module_forward_pre_hook(self._before).remove)
        # always_call: a module that raises has to leave the stack too.
        self.exits.callback(register_module_forward_hook(self._after, always_call=True).remove)
        self.exits.enter_context(eager())  # compiled code would be compiled anew under a mode
        self.exits.enter_context(Functions(self.called))
        return self

    def __exit__(self, *exc: Any) -> None:
        self.exits.close()

    def _before(self, module: nn.Module, args: Any) -> None:
        if id(module) in self.paths:
            self.stack.append(module)

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in self.paths:
            self.stack.pop()

    def called(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A function was called."""
        kind = function_name(func)
        # What a leaf does inside is no node of the graph and must not be counted.
        if kind not in self.kinds or any(is_leaf(module) for module in self.stack):
            return
        scope = self.paths[id(self.stack[-1])] if self.stack else ""
        place = f"{scope}/{kind}" if scope else kind
        k = self.counts[place] = self.counts.get(place, -1) + 1
        if f"{place}#{k}" in self.names:
            self.found(f"{place}#{k}", out)
