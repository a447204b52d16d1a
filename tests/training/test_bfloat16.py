from typing import Any

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import precision
from spikedistill.training.bfloat16 import wide_strides
from spikedistill.training.run import train


def test_strides_beyond_their_maps_are_found() -> None:
    def network(kernel: int, size: int) -> list[str]:
        convs = nn.Sequential(nn.Conv2d(1, 2, kernel, 4, kernel // 2), nn.Conv2d(2, 2, 1, 2))
        return wide_strides(convs, torch.rand(2, 1, size, size))

    assert network(3, 3) == ["0"]
    assert network(3, 4) == []
    assert network(1, 3) == []


@pytest.mark.parametrize(
    ("chosen", "stem"), [("auto", "imagenet"), ("bfloat16", "imagenet"), ("auto", "cifar")]
)
def test_a_cpu_trains_such_networks_in_float32(
    chosen: str,
    stem: str,
    tmp_path: Any,
    recipe: dict,
    arrays: dict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """Images of 8x8 are 1x1 before ``layer3`` behind the strided stem."""
    monkeypatch.setattr(precision, "cpu_bf16_units", lambda: "some")
    recipe["precision"] = chosen
    recipe["stages"] = [
        {
            "name": "ann",
            "network": {"name": "resnet18", "width": 0.07, "stem": stem, "ann": True},
            "epochs": 1,
        }
    ]
    if chosen == "bfloat16":
        with pytest.raises(
            sd.SpikedistillError, match=r"stage 'ann': the stride of layer3\.0\.conv1, layer4.*float32"
        ):
            train(recipe, data=arrays, out=tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()  # before any stage has trained
        return
    train(recipe, data=arrays, out=tmp_path / "run", device="cpu")
    assert ("ann: float32, since the stride of layer3.0.conv1" in capsys.readouterr().err) == (
        stem == "imagenet"
    )
