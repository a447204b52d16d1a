"""The integer file as docs/integer_file.md says: a reader with numpy alone, and the page's numbers."""

import hashlib
import json
import re
import runpy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lively import lively, trained

from spikedistill.neurons.compilation import eager
from spikedistill.quantization import executor, header, quantize, to_integer
from spikedistill.quantization.bit_packing import pack

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
        integer = to_integer(quantize(trained(network, x, y), calibration=x[:128]))
    integer.save(tmp_path / "network")
    logits = torch.from_numpy(read(tmp_path / "network", levels.numpy()))
    assert torch.equal(logits, integer(levels))
    assert len(logits.unique(dim=0)) > 1000


def test_the_pages_worked_examples():
    """What docs/integer_file.md says of packing and of one neuron, step by step."""
    page = (ROOT / "docs" / "integer_file.md").read_text()
    assert "codes -7, 3, 0, -1: u = 1, 11, 8, 7; bytes `0xB1 0x78`" in page
    assert pack(torch.tensor([-7, 3, 0, -1]), 4).tolist() == [0xB1, 0x78]
    assert "codes -3, 2, 1: u = 1, 6, 5; bits 100 011 101, lowest first: bytes `0x71 0x01`" in page
    assert pack(torch.tensor([-3, 2, 1]), 3).tolist() == [0x71, 0x01]
    neuron = {"threshold": 256, "leak": [1, 1], "bits": 4, "shift": 5, "reset": "hard", "initial": 0,
              "leak_first": False, "encode": False}  # fmt: skip
    currents = torch.tensor([100, 100, 180, 300, -400, 128])[:, None]
    rows = re.findall(r"^\| \d \| (.*?) \| ([01]) \| .*$", page, re.M)
    assert [int(s) for _, s in rows] == executor.scan(currents[:5], 5, neuron).flatten().tolist()
    # What the last row stores shows at the next step: -256 leaks to -128, so a current of 384 reaches 256 and
    # 383 does not.
    for current, spike in ((384, 1), (383, 0)):
        currents[5] = current
        assert int(executor.scan(currents, 6, neuron)[5]) == spike


def test_the_page_lists_every_operation_and_key():
    page = (ROOT / "docs" / "integer_file.md").read_text()
    for model in header.Op.__subclasses__() + header.Rescaled.__subclasses__():
        if model is header.Rescaled:
            continue
        for kind in get_args(model.model_fields["op"].annotation):
            assert f"\n| `{kind}` |" in page, kind
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in page, (model, name)


def test_the_checksum_is_what_the_page_says(tmp_path):
    with eager():
        x = torch.rand(2, 1, 8, 8)
        network = lively("vgg5", x, in_channels=1, width=0.125, time_steps=1)
        to_integer(quantize(network, calibration=x)).save(tmp_path / "network")
    data = (tmp_path / "network").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    index = json.loads(data[8:start])
    metadata = index.pop("__metadata__")
    digest = hashlib.sha256(metadata["network"].encode())
    names = {"U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
    for name, tensor in sorted(index.items()):
        first, end = tensor["data_offsets"]
        digest.update(f"{name}:torch.{names[tensor['dtype']]}:{tuple(tensor['shape'])};".encode())
        digest.update(data[start + first : start + end])
    assert digest.hexdigest() == metadata["sha256"]
