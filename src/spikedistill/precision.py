"""Which floating-point precision a device computes fast: bfloat16 only where there are units for it.

On a CPU without bf16 units (AMX, AVX512-BF16, Arm's bf16) bfloat16 is emulated, 10 to 40 times slower than
float32.
"""

import os
import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from .errors import SpikedistillError, nearest

Precision = Literal["float32", "bfloat16", "float64"]
CHOICES = ("auto", "float32", "bfloat16", "float64")
# the kernel's flags, the best first
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}


def units_among(flags: set[str]) -> str | None:
    """The best bf16 unit that these CPU flags name, or None."""
    return next((unit for flag, unit in UNITS.items() if flag in flags), None)


def flags() -> set[str] | None:
    """Flags of the first CPU as the kernel names them; None where there is no such list."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return None


def _seconds(dtype: torch.dtype) -> float:
    """The least of five times of one convolution."""
    x = torch.randn(8, 32, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(32, 32, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, w, padding=1)
        times.append(time.perf_counter() - start)
    # The least: what else the machine does can only make a time longer.
    return min(times)


@cache
def cpu_bf16_units() -> str | None:
    """Name of this CPU's bf16 units, or None.

    Read from the kernel's list of CPU flags, unless the environment keeps oneDNN, which computes the
    convolutions, from using them (``ONEDNN_MAX_CPU_ISA``); where there is no list, a convolution is timed for
    some milliseconds in both precisions, and ``"timed"`` says that bfloat16 was the faster one.
    """
    # oneDNN's instruction sets; those named after FP16, AMX and AVX10 include its bf16 ones.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit.startswith(("SSE", "AVX")) and not any(
        unit in limit for unit in ("BF16", "FP16", "AMX", "AVX10")
    ):
        return None
    found = flags()
    if found is not None:
        return units_among(found)
    with torch.no_grad():
        # Clearly faster, not by the noise of a timing: where in doubt float32.
        return "timed" if _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else None


def resolve_precision(choice: str, device: str | torch.device) -> Precision:
    """``auto`` to bfloat16 where the device has units for it, else float32; the other choices are kept.

    Raises:
        SpikedistillError: when ``choice`` is none of :data:`CHOICES`.
    """
    if choice not in CHOICES:
        raise SpikedistillError(f"unknown precision {choice!r}: {nearest(choice, CHOICES)}")
    if choice != "auto":
        return choice  # type: ignore[return-value]
    kind = torch.device(device).type
    if kind == "cuda":
        # By default emulation counts as support, and older GPUs would be given a slow bfloat16.
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if kind == "cpu" and cpu_bf16_units() else "float32"


def diagnosis() -> dict[str, str]:
    """What ``spikedistill doctor`` shows: devices, bf16 units, what ``auto`` means, a compiler."""
    import shutil

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "accelerator": gpu,
        "threads": str(torch.get_num_threads()),
        "bf16 units of the CPU": cpu_bf16_units() or "none: bfloat16 would be emulated, many times slower",
        "precision: auto": f"{resolve_precision('auto', device)} on {device}",
        "C++ compiler": compiler
        or "none: neurons run uncompiled, several times slower, and convolutions dense",
    }
