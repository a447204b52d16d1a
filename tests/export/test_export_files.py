import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import spikedistill as sd
from spikedistill.export import to_nir, to_onnx


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [to_nir, pytest.param(to_onnx, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_what_was_there(write: Any, tmp_path: Path) -> None:
    pytest.importorskip("nir" if write is to_nir else "onnxscript")
    network = sd.networks.create("vgg5", width=0.1, time_steps=1, neuron=sd.LIF()).eval()  # which NIR has
    x = torch.rand(2, 3, 8, 8)
    file = tmp_path / "a"
    file.write_text("before")
    with (
        disk_of(4096),
        pytest.raises(sd.SpikedistillError, match=f"cannot write {file}: .*nothing was changed"),
    ):
        write(network, file, x)
    assert file.read_text() == "before"
    assert [*tmp_path.iterdir()] == [file]
    write(network, file, x)
    assert file.stat().st_size > 4096
    assert [*tmp_path.iterdir()] == [file]


def test_what_cannot_be_a_file(tmp_path: Path) -> None:
    network, x = sd.networks.create("vgg5", width=0.1), torch.rand(2, 3, 8, 8)
    os.mkfifo(tmp_path / "pipe")
    for path, words in (("pipe", "no regular file"), ("", "it is a folder"), ("no/a", "there is no folder")):
        with pytest.raises(sd.SpikedistillError, match=words):
            to_nir(network, tmp_path / path, x)
    assert (tmp_path / "pipe").is_fifo()
