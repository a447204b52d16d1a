import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets (its README tells their form); tests that need it skip without it."""
    folder = Path(os.environ.get("SPIKEDISTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "unpack.py").exists():
        pytest.skip(f"no real data at {folder}; set SPIKEDISTILL_DATA")
    return folder


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
