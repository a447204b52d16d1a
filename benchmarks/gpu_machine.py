"""What the figures of ``gpu.py`` come from; and, first of all, that the device can be had at all."""

import os
import subprocess
from typing import Any

import timing
import torch
from gpu import row


def run(name: str, device: str, quick: bool) -> None:
    row(
        "software",
        **{**timing.machine(), "torch": torch.__version__, "cuda": torch.version.cuda, "triton": _triton()},
    )
    x = torch.ones(256, 256, device=device)
    row("device", ok=bool((x @ x).sum().item() == 256.0**3), **_card(device))


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def _card(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {"card": device, "cores": os.cpu_count()}
    about = torch.cuda.get_device_properties(device)
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit,utilization.gpu"
    try:
        said = subprocess.run(
            ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    return {
        "card": about.name, "memory_gb": about.total_memory / 1e9, "capability": [about.major, about.minor],
        "cudnn": torch.backends.cudnn.version(), "nvidia_smi": said.strip(),
    }  # fmt: skip
