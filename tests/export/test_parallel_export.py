"""Neurons with weights over time: ONNX is arithmetic and takes them, NIR knows only those with a membrane."""

from pathlib import Path
from typing import Any

import pytest
import torch
from export_peers import lively

import spikedistill as sd
from spikedistill.errors import SpikedistillError
from spikedistill.networks.base import Network


def network(kind: str, x: torch.Tensor, **options: Any) -> Network:
    torch.manual_seed(0)
    neuron = {"type": kind} | ({} if kind == "psn" else {"order": 3})
    made = sd.networks.create("vgg5", width=0.1, time_steps=4, neuron=neuron, **options)
    lively(made, x)
    return sd.balance(made, x).eval()  # weights over time may be drawn at random: then some draws are silent


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", ["psn", "masked_psn", "sliding_psn"])
def test_nir_refuses_them_by_path(kind: str, quantized: bool, tmp_path: Path) -> None:
    pytest.importorskip("nir")
    x = torch.rand(2, 3, 8, 8)
    made = network(kind, x, pooling="avg")
    if quantized:
        made = sd.quantize(made, calibration=[x]).eval()
    with pytest.raises(SpikedistillError, match=rf"stage1\.1.*{kind} has weights over time and no membrane"):
        sd.export.to_nir(made, tmp_path / "n.nir", x, allow_lossy=True)
    assert not (tmp_path / "n.nir").exists()


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", ["psn", "masked_psn", "sliding_psn"])
def test_onnx_gives_the_same_spikes(kind: str, quantized: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from test_onnx import compare

    x = torch.rand(3, 3, 8, 8)
    made = network(kind, x)
    if quantized:
        made = sd.quantize(made, calibration=[x]).eval()
    differ, total, _ = compare(made, x, tmp_path / "n.onnx", False)
    assert differ <= (0 if quantized else total * 1e-4)


@pytest.mark.parametrize("kind", ["psn", "masked_psn", "sliding_psn"])
def test_onnx_has_no_single_steps_of_them(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(SpikedistillError, match=rf"{kind} weighs several time steps and has no membrane"):
        sd.export.to_onnx(network(kind, x), tmp_path / "n.onnx", x, per_step=True)
