"""NaN and infinity, found where they come in: no loss tells of them.

Spikes swallow them: ``NaN >= threshold`` is false.
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from .errors import SpikedistillError


def faulty(tensors: Iterable[tuple[str, Tensor]], masks: Collection[str] = ()) -> list[str]:
    """Names of the tensors that hold NaN, or infinity and are not in ``masks``; the device is read once."""
    names: list[str] = []
    flags: list[Tensor] = []
    for name, value in tensors:
        # Integers have no NaN, and meta tensors no values at all.
        if value.is_floating_point() and not value.is_meta and value.numel():
            names.append(name)
            value = value.detach()
            flags.append((~torch.isnan(value) if name in masks else torch.isfinite(value)).all())
    if not flags:
        return []
    # A network may lie on several devices; stacked on one, all flags come over in one read.
    home = flags[0].device
    good = torch.stack([flag.to(home) for flag in flags]).tolist()
    return [name for name, is_good in zip(names, good) if not is_good]


def mask_names(module: nn.Module) -> set[str]:
    """Buffers that may hold infinity, as a mask of attention does: all but running statistics."""
    # Under each name of a shared one: a state dict has them all.
    names = (name for name, _ in module.named_buffers(remove_duplicate=False))
    return {name for name in names if not name.rpartition(".")[2].startswith("running_")}


def of(module: nn.Module) -> list[str]:
    """Names of parameters and buffers of ``module`` that hold NaN, or infinity where it has no meaning."""
    return faulty([*module.named_parameters(), *module.named_buffers()], mask_names(module))


def words(names: Iterable[str]) -> str:
    """Tensors and their layers, for an error: ``weight of layer stage1.0 (and 3 more)``."""
    first, *others = list(names)
    layer, _, tensor = first.rpartition(".")
    return (f"{tensor} of layer {layer}" if layer else tensor) + (
        f" (and {len(others)} more)" if others else ""
    )


def check_filled(batches: Iterable[Tensor], what: str) -> None:
    """Refuse batches without an image, by their number."""
    for i, x in enumerate(batches):
        if not len(x):
            raise SpikedistillError(f"{what}: batch {i} has no image; give at least one")


def check_batches(batches: Iterable[Tensor], what: str) -> None:
    """Refuse batches without an image, and those that hold NaN or infinity, by their number."""
    batches = list(batches)
    check_filled(batches, what)
    names = faulty((str(i), x) for i, x in enumerate(batches))
    if names:
        raise SpikedistillError(
            f"{what}: batch {names[0]} holds NaN or infinity; give inputs that are numbers"
        )


def check(module: nn.Module, what: str, advice: str = "give a network whose weights are numbers") -> None:
    """Refuse a network that holds NaN or infinity; ``what`` says which and where it came from."""
    # what is no module is refused by who asked for one
    names = of(module) if isinstance(module, nn.Module) else []
    if names:
        raise SpikedistillError(f"{what}: {words(names)} holds NaN or infinity; {advice}")
