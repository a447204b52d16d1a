"""The integer file as docs/integer_file.md says: a reader with numpy alone, and the page's numbers."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively
from torch.nn import functional as F

from spikedistill.neurons.compilation import eager
from spikedistill.quantization import quantize, to_integer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def read() -> Any:
    path = ROOT / "examples" / "read_integer.py"
    assert len(path.read_text().splitlines()) < 60
    assert "import torch" not in path.read_text()
    return runpy.run_path(str(path))["run"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("vgg5", {"width": 0.125}), ("resnet20", {"width": 0.25, "shortcut": "conv"}),
     ("sew_resnet20", {"width": 0.25}), ("ms_resnet20", {"width": 0.25})],
)  # fmt: skip
def test_a_reader_with_numpy_alone_equals_the_integer_network(name, options, read, tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    levels = (torch.tensor(digits.images)[:, None] / 16 * 255 + 0.5).floor().to(torch.uint8)
    x, y = levels / 255, torch.tensor(digits.target)
    with eager():
        network = lively(name, x[:256], in_channels=1, time_steps=2, **options)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        network.train()
        for batch in torch.arange(300).split(50):
            optimizer.zero_grad()
            F.cross_entropy(network.predict(x[batch]), y[batch]).backward()
            optimizer.step()
        integer = to_integer(quantize(network.eval(), calibration=x[:128]))
    integer.save(tmp_path / "network")
    logits = torch.from_numpy(read(tmp_path / "network", levels.numpy()))
    assert torch.equal(logits, integer(levels))
    assert len(logits.unique(dim=0)) > 1000
