"""Builds C files of integer networks with every warning an error and the sanitizers on, and runs them."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spikedistill.export import to_c
from spikedistill.quantization import IntegerNetwork

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
PLAIN = ["-O3"]  # gcc warns of more where it looks further
# PyPI's ziglang carries a clang.
_ZIG = (sys.executable, "-m", "ziglang", "cc") if importlib.util.find_spec("ziglang") else None
CLANG = ("clang",) if shutil.which("clang") else _ZIG


def program(
    network: IntegerNetwork, folder: Path, *options: str, compiler: tuple[str, ...] = ("gcc",)
) -> Path:
    """The built program of a network."""
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}")
    to_c(network, folder)
    out = folder / "program"
    sources = [folder / "network.c", folder / "network_main.c"]
    done = subprocess.run(
        [*compiler, *STRICT, *(options or SANITIZED), *sources, "-o", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:3000]
    return out


def entering(network: IntegerNetwork, x: Tensor) -> np.ndarray:
    """Samples as the program reads them: levels of images, counts of each step's frames."""
    form = network.header["input"]
    if form["kind"] == "image":
        return (
            (x if x.dtype == torch.uint8 else (x * 255 + 0.5).floor().clamp(0, 255)).to(torch.uint8).numpy()
        )
    summed = x.unflatten(1, (network.time_steps, -1)).sum(2)
    return (summed + 0.5).floor().numpy().astype(np.int16 if form["limit"] < 1 << 15 else np.int32)


def logits(program: Path, samples: np.ndarray, *arguments: str) -> Tensor:
    """What the program prints for them, (N, K)."""
    done = subprocess.run([program, *arguments], input=samples.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:].decode()
    assert not done.stderr
    return torch.tensor([[int(n) for n in line.split()] for line in done.stdout.decode().splitlines()])


def assert_same(
    network: IntegerNetwork, x: Tensor, folder: Path, *options: str, compiler: tuple[str, ...] = ("gcc",)
) -> Path:
    """Every logit of every sample, for all time steps and for fewer."""
    built = program(network, folder, *options, compiler=compiler)
    given = entering(network, x)
    assert torch.equal(logits(built, given), network(x))
    if network.time_steps > 1:
        fewer = network.time_steps - 1
        assert torch.equal(logits(built, given, str(fewer)), network(x, fewer))
    return built
