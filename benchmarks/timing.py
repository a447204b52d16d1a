"""Interleaved timing: variants in turn, in random order, medians; so that a drifting speed is fair to all."""

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from spikedistill import heap
from spikedistill.precision import cpu_bf16_units


def parser(doc: str | None, **defaults: str | int) -> argparse.ArgumentParser:
    """``--json`` and the options that benchmarks share: of network, batch, runs, precision those named."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        choices = ("float32", "bfloat16") if name == "precision" else None
        p.add_argument(f"--{name}", type=type(default), default=default, choices=choices)
    p.add_argument("--json", type=Path)
    return p


def interleaved(
    variants: Mapping[str, Callable[[], Any]], runs: int, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Milliseconds by variant: median, least, most of ``runs`` after ``warm_up``; all keep freed memory."""
    heap.keep()
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
    return {name: spread(s) for name, s in seconds.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and most, in milliseconds."""
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "least_ms": 1e3 * min(seconds),
        "most_ms": 1e3 * max(seconds),
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
        "limited_to": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kind": "GPU"
        if torch.cuda.is_available()
        else f"CPU with{'' if cpu_bf16_units() else 'out'} bf16 units",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {package: _version(package) for package in PACKAGES},
    }


PACKAGES = ("torch", "spikedistill", "spikingjelly", "snntorch", "norse")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(rows: Mapping[str, Mapping[str, float]], base: str | None = None) -> None:
    """A line a variant, the ratio to ``base`` behind it."""
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        ratio = f"{row['median_ms'] / rows[base]['median_ms']:8.3f} x {base}" if base else ""
        print(f"{name:46} {row['median_ms']:10.2f} ms  least {row['least_ms']:10.2f}  {ratio}")


def write(path: Path | None, **content: Any) -> None:
    """The raw figures as JSON, with machine, date and command."""
    if path is not None:
        # Where somebody keeps their data says nothing to others.
        given = [f"FOLDER/{Path(a).name}" if Path(a).is_absolute() else a for a in sys.argv[1:]]
        command = shlex.join(["python", os.path.relpath(sys.argv[0]), *given])
        about = {"command": command, "date": date.today().isoformat(), "machine": machine()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, **content}, indent=1) + "\n")
        print(path)
