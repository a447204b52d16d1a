"""The device that was asked for, or an error: never another one without a word."""

import torch

from .errors import SpikedistillError


def checked(device: "str | torch.device | None") -> "torch.device | None":
    """``cpu``, or the accelerator (``cuda``, ``cuda:1``, ``mps`` ...); None stays None: whatever there is."""
    if device is None:
        return None
    # Alone current_accelerator() also names what torch was built for and this machine lacks.
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    known = "cpu" if there is None else f"cpu, {there.type}"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise SpikedistillError(
            f"device {str(device)!r}: there is no such device; this machine has {known}"
        ) from None
    # Without an index: cpu:0 is not equal to the device that tensors on the CPU name.
    if found.type == "cpu":
        return torch.device("cpu")
    if there is None or found.type != there.type:
        raise SpikedistillError(
            f"device {str(device)!r}: not on this machine (or torch is built without it); it has {known}"
        )
    count = torch.accelerator.device_count()
    if found.index is not None and found.index >= count:
        raise SpikedistillError(f"device {str(device)!r}: this machine has {count}, numbered from 0")
    return found
