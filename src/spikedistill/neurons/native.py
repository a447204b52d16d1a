"""Native code of the CPU: compiled once for a machine with its C++ compiler, loaded through ctypes."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import cache_folder, written_whole
from ..precision import flags

SOURCES = [Path(__file__).with_name(name) for name in ("event_driven.cpp", "inference.cpp", "pooling.cpp")]
KINDS = {torch.float32: 0, torch.bfloat16: 1}  # as the sources count them
SMALLEST = 1 << 14  # input values; below this the bookkeeping costs more
COMPILERS = (os.environ.get("CXX") or "g++", "g++", "c++", "clang++")


def readable(x: Tensor) -> bool:
    """Whether native code can read a batch of maps, and they are worth it: channels last, on the CPU."""
    return (
        # Subclasses, a tracer's fake tensors among them, may have no memory to point at.
        type(x) is Tensor
        and x.dim() == 4
        and x.dtype in KINDS
        and x.device.type == "cpu"
        and x.numel() >= SMALLEST
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@cache
def library() -> Any:
    """The compiled functions, or None where they cannot be had."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None or os.name != "posix":
        return None
    try:
        return _load(_built(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        words = said.decode(errors="replace").strip().splitlines()[:1]
        logging.getLogger("spikedistill").warning(
            "convolutions stay dense and inference slower, native code was not compiled: %s", *words
        )
        return None


def _built(compiler: str) -> Path:
    """The shared library's file; built if this machine has none of this source, compiler and processor."""
    march = os.environ.get("TORCHINDUCTOR_CPP_MARCH", "native")
    # No -ffast-math: what inference.cpp computes equals the kernels bit for bit.
    command = [
        compiler,
        "-O3",
        f"-march={march}",
        "-std=c++17",
        "-fopenmp",
        "-shared",
        "-fPIC",
        "-o",
    ]
    texts = [source.read_text() for source in SOURCES]
    # The processor's flags too: march=native gives other code on another machine that shares the folder.
    about = "\n".join([*texts, *command, *sorted(flags() or ())])
    path = cache_folder() / "compiled" / f"native_{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another process may build or load the same file now.
        with written_whole(path) as made:
            subprocess.run(
                [*command, str(made), *map(str, SOURCES)], check=True, capture_output=True, timeout=120
            )
    return path


def _load(path: Path) -> Any:
    found = ctypes.CDLL(str(path))
    # Without types ctypes would pass and return 32-bit numbers, and cut pointers.
    pointer, number, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.spikes_to_bits.argtypes = [pointer, small, number, small, pointer, small]
    found.spikes_to_bits.restype = number
    found.convolve.argtypes = [pointer, pointer, pointer, pointer, small, number, pointer, small]
    found.weight_gradient.argtypes = [pointer, pointer, small, pointer, pointer, number, pointer, small]
    found.transpose.argtypes = [pointer, pointer, number, number, small, small]
    found.max_pool.argtypes = [pointer, pointer, pointer, small, number, pointer, small]
    found.max_pool_gradient.argtypes = [pointer, pointer, pointer, small, number, pointer, small]
    found.fire.argtypes = [*[pointer] * 6, *[number] * 3, small]
    return found
