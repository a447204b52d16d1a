"""The generated tables of docs/hardware.md are those of the code."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["switches", "technology", "walk"])
def test_tables_are_up_to_date(name: str) -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "hardware_tables.py"))["TABLES"]
    found = re.search(
        f"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", (ROOT / "docs" / "hardware.md").read_text(), re.DOTALL
    )
    assert found is not None
    assert found[1] == tables[name]().strip(), "run python benchmarks/hardware_tables.py"
