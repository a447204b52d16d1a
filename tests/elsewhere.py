"""A device that is not the CPU, for tests without one: it computes, and refuses to with tensors of the CPU.

Tensors of it hold a CPU tensor, and say that they are on ``meta``, which torch knows without drivers. No
gradients: torch's engine asks the device. What the device's own kernels do is not tested by it, only that all
tensors are in one place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

ELSEWHERE = torch.device("meta")


class Away(Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Away":
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=ELSEWHERE, requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = function._schema.name, kwargs.get("device")
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
    away = [t for t in tensors if isinstance(t, Away)]
    # As on a GPU: numbers (0 dimensions) may come from the CPU, indices too, and copies go between the two.
    between = name in ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_")
    if away and not between and any(t.dim() and not isinstance(t, Away) for t in tensors):
        raise RuntimeError(f"tensors of two devices in {name}")
    given = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    args, given = tree_map(lambda t: t.inner if isinstance(t, Away) else t, (args, given))
    out = function(*args, **given)
    if device is not None:
        there = torch.device(device).type == ELSEWHERE.type
    else:
        there = isinstance(tensors[0], Away) if name == "aten::copy_" else bool(away)
    return tree_map(lambda t: _wrapped(t, away) if there and isinstance(t, Tensor) else t, out)


def _wrapped(made: Tensor, away: list[Tensor]) -> Tensor:
    return next((t for t in away if t.inner is made), Away(made))  # type: ignore[attr-defined]


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within it ``.to(device)`` and ``device=`` go to the device that is given; without gradients."""
    cast, enabled = torch.autocast, torch.is_autocast_enabled

    def known(kind: Any) -> Any:
        return "cpu" if kind == ELSEWHERE.type else kind

    with pytest.MonkeyPatch.context() as patch, _Device(), torch.no_grad():
        patch.setattr(torch, "autocast", lambda kind, *a, **k: cast(known(kind), *a, **k))
        patch.setattr(torch, "is_autocast_enabled", lambda *kind: enabled(*map(known, kind)))
        yield ELSEWHERE
