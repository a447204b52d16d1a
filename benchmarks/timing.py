"""Interleaved timing: variants in turn, in random order, medians; so that a machine whose speed drifts is fair to all."""

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from spikedistill.precision import cpu_bf16_units


def interleaved(variants: Mapping[str, Callable[[], Any]], runs: int, warm_up: int = 2) -> dict[str, dict[str, float]]:
    """Seconds of each variant: median, least, most of ``runs`` after ``warm_up``."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        for _ in range(warm_up):
            run()
    for _ in range(runs):
        for name in random.sample(list(variants), len(variants)):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_ms": 1e3 * statistics.median(s), "least_ms": 1e3 * min(s), "most_ms": 1e3 * max(s)}
        for name, s in seconds.items()
    }


def machine() -> dict[str, Any]:
    """What the figures came from."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "bf16_units": cpu_bf16_units(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def show(rows: Mapping[str, Mapping[str, float]], base: str | None = None) -> None:
    """A line a variant, the ratio to ``base`` behind it."""
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        ratio = f"{row['median_ms'] / rows[base]['median_ms']:8.3f} x {base}" if base else ""
        print(f"{name:46} {row['median_ms']:10.2f} ms  least {row['least_ms']:10.2f}  {ratio}")


def write(path: Path | None, **content: Any) -> None:
    """The raw figures as JSON."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
        print(path)
