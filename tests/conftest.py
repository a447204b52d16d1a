import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("SPIKEDISTILL_EAGER", "1")  # tests run uncompiled; the few that compile say so themselves


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
