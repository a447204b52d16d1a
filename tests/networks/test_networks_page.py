"""The table in docs/networks.md is true."""

import re
from pathlib import Path

import pytest

from spikedistill import networks

TABLE = re.findall(
    r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \|",
    (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_table_lists_every_name() -> None:
    assert sorted(name for name, _, _ in TABLE) == networks.names()


@pytest.mark.parametrize(("name", "classes", "parameters"), TABLE)
def test_parameters_in_the_table(name: str, classes: str, parameters: str) -> None:
    options = {"features": 10} if name == "sresnet8" else {}
    network = networks.create(name, num_classes=int(classes), **options)
    assert sum(p.numel() for p in network.parameters()) == int(parameters.replace(",", ""))
