"""The integer network's sums in float32: equal to integers' own, and left where they would not be."""

import pytest
import torch
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.quantization import executor


def _op(**given: object) -> dict[str, object]:
    return {"wide": False, "dilation": [1, 1], "stride": [1, 1], "padding": [1, 1], "groups": 1, **given}


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("largest", [1, 127, 8191])
@pytest.mark.parametrize("groups", [1, 4])
def test_sums_in_float32_are_those_of_integers(n: int, largest: int, groups: int) -> None:
    x = torch.randint(-largest, largest + 1, (n, 16, 16, 16), dtype=torch.int32)
    w = torch.randint(-127, 128, (24, 16 // groups, 3, 3), dtype=torch.int8)
    found = executor.layer(x, w, _op(groups=groups))
    assert found.dtype == torch.int32
    assert executor.exact_in_float32(x, w) == (largest < 8191)
    assert torch.equal(found, F.conv2d(x, w.to(torch.int32), padding=1, groups=groups))


def test_sums_that_float32_would_round_stay_integers() -> None:
    x, w = torch.full((1, 129), 1025), torch.full((1, 129), 127)
    x[0, 0] = 1026  # 16,792,702: an odd multiple of 2, so float32 would hold it; one more it would not
    w[0, 0] = 126
    total = 1026 * 126 + 128 * 1025 * 127
    assert total > executor.EXACT
    assert not executor.exact_in_float32(x, w)
    assert int(executor.layer(x, w, {"wide": True})) == total


@pytest.fixture
def fewer_bits():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def _network() -> tuple[sd.quantization.IntegerNetwork, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.rand(4, 1, 8, 8)
    q = sd.quantize(sd.networks.create("vgg5", in_channels=1, width=0.25).eval(), calibration=x)
    return sd.to_integer(q), x


def test_a_process_that_multiplies_with_fewer_bits_gets_the_same(fewer_bits: None) -> None:
    integer, x = _network()
    assert not executor.exact_in_float32(torch.ones(1, 4), torch.ones(1, 4))
    mine = integer(x)
    torch.set_float32_matmul_precision("highest")
    assert executor.exact_in_float32(torch.ones(1, 4), torch.ones(1, 4))
    assert torch.equal(mine, integer(x))


def test_autocast_changes_nothing() -> None:
    integer, x = _network()
    with torch.autocast("cpu", torch.bfloat16):
        mine = integer(x)
    assert torch.equal(mine, integer(x))


def test_running_twice_changes_no_tensor() -> None:
    integer, x = _network()
    before = {k: v.clone() for k, v in integer.tensors.items()}
    first = integer(x)
    assert torch.equal(first, integer(x))
    assert all(torch.equal(v, before[k]) for k, v in integer.tensors.items())
