"""C files of integer networks give the same integers."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "quantization"))

import torch
from c_program import assert_same
from lively import events, images, lively

from spikedistill.neurons.compilation import eager
from spikedistill.quantization import quantize, to_integer

FAMILIES = [
    ("vgg5", {"width": 0.125}),
    ("vgg9", {"width": 0.1, "pools": 2, "pooling": "avg"}),
    ("vgg5", {"width": 0.25, "hidden": 64}),
    ("vgg5", {"width": 0.125, "head": "spiking"}),
    ("resnet20", {"width": 0.5}),
    ("sew_resnet20", {"width": 0.5}),
    ("sew_resnet20", {"width": 0.5, "connect": "iand"}),
    ("ms_resnet20", {"width": 0.5}),
]


def integer(name, x, network, **options):
    with eager():
        return to_integer(quantize(lively(name, x, **network), calibration=x, **options))


@pytest.mark.parametrize(("name", "network"), FAMILIES, ids=str)
def test_families_on_images(name, network, tmp_path):
    x = images(4)
    assert_same(integer(name, x, network), x, tmp_path / "c")
