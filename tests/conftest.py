import importlib.util
import os
from pathlib import Path

import pytest
import torch

# tests run uncompiled; the few that compile say so themselves
os.environ.setdefault("SPIKEDISTILL_EAGER", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets (its README tells their form); tests that need it skip without it."""
    folder = Path(os.environ.get("SPIKEDISTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "unpack.py").exists():
        pytest.skip(f"no real data at {folder}; set SPIKEDISTILL_DATA")
    return folder


@pytest.fixture(scope="session")
def cifar10_test(shared_data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's test images (10000, 3, 32, 32) in [0, 1] and labels, read by the data's own script."""
    spec = importlib.util.spec_from_file_location("unpack", shared_data / "unpack.py")
    assert spec is not None
    assert spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    x, y, _ = unpack.sheets("cifar10_test.npz")
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(y)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
