import pytest
import torch

from spikedistill import precision
from spikedistill.errors import SpikedistillError
from spikedistill.precision import resolve_precision, units_among


def test_units_by_flags():
    assert units_among({"avx2", "avx512f"}) is None
    assert units_among({"avx512f", "avx512_bf16"}) == "AVX512-BF16"
    assert units_among({"avx512_bf16", "amx_bf16"}) == "AMX"


@pytest.mark.parametrize("flags, want", [({"avx2"}, "float32"), ({"avx2", "amx_bf16"}, "bfloat16")])
def test_auto_on_a_cpu_follows_its_units(monkeypatch, flags, want):
    precision.cpu_bf16_units.cache_clear()
    monkeypatch.setattr(precision, "flags", lambda: flags)
    assert resolve_precision("auto", "cpu") == want
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    precision.cpu_bf16_units.cache_clear()


@pytest.mark.parametrize("half, want", [(0.5, "timed"), (0.9, None), (20.0, None)])
def test_without_flags_a_probe_decides(monkeypatch, half, want):
    precision.cpu_bf16_units.cache_clear()
    monkeypatch.setattr(precision, "flags", lambda: None)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: 1.0 if dtype == torch.float32 else half)
    assert precision.cpu_bf16_units() == want
    precision.cpu_bf16_units.cache_clear()


def test_the_probe_measures_a_time():
    assert 0 < precision._seconds(torch.float32) < 1


def test_other_devices_and_errors():
    assert resolve_precision("auto", "meta") == "float32"
    with pytest.raises(SpikedistillError, match="did you mean 'bfloat16'"):
        resolve_precision("bfloat", "cpu")


@pytest.mark.parametrize(
    "limit, want", [("AVX2", None), ("AVX512_CORE", None), ("AVX512_CORE_BF16", "AMX"), ("ALL", "AMX")]
)
def test_what_onednn_may_not_use_is_not_there(monkeypatch, limit, want):
    precision.cpu_bf16_units.cache_clear()
    monkeypatch.setattr(precision, "flags", lambda: {"avx512_bf16", "amx_bf16"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.cpu_bf16_units() == want
    precision.cpu_bf16_units.cache_clear()
