"""docs/results.md and the README's table are what the records say, byte for byte."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_records_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence.py"), "page", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_records_are_small() -> None:
    records = list((ROOT / "results" / "evidence").glob("*/seed-*.json"))
    assert records
    assert all(path.stat().st_size < 5120 for path in records)
