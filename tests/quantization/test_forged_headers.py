"""Headers of integer networks that say the impossible, checksums right, are refused before anything runs."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from spikedistill import networks
from spikedistill.errors import SpikedistillError
from spikedistill.quantization import IntegerNetwork, quantize, to_integer


@pytest.fixture(scope="module")
def good() -> IntegerNetwork:
    """Operations: input, layer, norm_neuron, max_pool, ..."""
    network = networks.create("vgg5", width=0.0625, time_steps=2).eval()
    return to_integer(quantize(network, calibration=torch.rand(2, 3, 8, 8)))


FORGED: list[tuple[str, Any, str]] = [
    ("time_steps", 10**9, "time_steps: Input should be less than or equal to 4096"),
    ("time_steps", "4", "time_steps: Input should be a valid integer"),
    ("scale", float("inf"), "scale: Input should be a finite number"),
    ("ops", [], "ops"),
    ("input.size", [3, 1 << 24, 1 << 24], "one image|for one image"),
    ("input.kind", "sound", "input.kind"),
    ("ops.1.in", [7], "reads"),
    ("ops.1.in", [], "reads"),
    ("ops.1.padding", [1_000_003, 0], "larger than the kernel's extent"),
    ("ops.1.stride", [0, 1], "greater than or equal to 1"),
    ("ops.1.groups", 7, "does not fit its input"),
    ("ops.1.shape", [1 << 20, 1 << 20, 3, 3], "the tensor '1.weight'"),
    ("ops.1.bits", 5, "the tensor '1.weight'"),
    ("ops.1.dilation", [100, 100], "does not fit its input"),
    ("ops.2.k", 1 << 40, "less than or equal to 62"),
    ("ops.2.k", 40, "a shift of 40 bits"),
    ("ops.2.leak", [1, 1 << 30], "allowed are 0 to 62"),
    ("ops.2.threshold", 1 << 40, "a constant beyond"),
    ("ops.2.encode", False, "lacks the time steps"),
    ("ops.2.op", "explode", "ops.2"),
    ("ops.3.kernel", [9, 9], "does not fit its input"),
    ("ops.3.extra", 1, "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("where", "value", "words"), FORGED)
def test_forged_headers(good: IntegerNetwork, where: str, value: Any, words: str, tmp_path: Path) -> None:
    header: Any = copy.deepcopy(good.header)
    here, *_, key = header, *where.split(".")
    for part in where.split(".")[:-1]:
        here = here[int(part)] if part.isdigit() else here[part]
    here[key] = value
    IntegerNetwork(header, good.tensors).save(tmp_path / "a")
    start = time.monotonic()
    with pytest.raises(SpikedistillError, match=words) as raised:
        IntegerNetwork.load(tmp_path / "a")
    assert time.monotonic() - start < 5
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("1.weight", torch.zeros(3, dtype=torch.uint8)), ("2.M", torch.zeros(3, dtype=torch.int16)),
    ("2.M", torch.zeros(4)),
     ("9999.M", torch.zeros(4, dtype=torch.int16)), ("input.table", torch.zeros(2, 256, dtype=torch.int8))],
)  # fmt: skip
def test_forged_tensors(good: IntegerNetwork, name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    IntegerNetwork(good.header, {**good.tensors, name: tensor}).save(tmp_path / "a")
    with pytest.raises(SpikedistillError, match=r"the tensor|does not fit"):
        IntegerNetwork.load(tmp_path / "a")


def test_what_is_fine_is_read(good: IntegerNetwork, tmp_path: Path) -> None:
    good.save(tmp_path / "a")
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(IntegerNetwork.load(tmp_path / "a")(x), good(x))
