"""Pages and tables made from records and raw figures are what these say, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("made_by", [["evidence.py", "page"], ["tables.py"]], ids=["results", "speed"])
def test_the_page_is_what_was_recorded(made_by: list[str]) -> None:
    script, *rest = made_by
    command = [sys.executable, str(ROOT / "benchmarks" / script), *rest, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_records_are_small() -> None:
    records = list((ROOT / "results" / "evidence").glob("*/seed-*.json"))
    assert records
    assert all(path.stat().st_size < 5120 for path in records)
