from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing a test bins may land in, or come from, the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPIKEDISTILL_CACHE", str(folder))
    return folder
