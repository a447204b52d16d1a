"""The contributing guide names files that there are, and every kind that can be added."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:src|tests|docs|benchmarks|examples)(?:/[\w.-]+)*|[A-Z]+\.md)`", TEXT)
    assert len(paths) > 80
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_kind_has_its_list() -> None:
    kinds = re.findall(r"^### (.+)$", TEXT, re.M)
    assert [kind.split(" (")[0] for kind in kinds] == [
        "An objective", "A neuron", "A network", "An operation of the graph", "A data set", "A chip model",
        "An exporter",
    ]  # fmt: skip


def test_what_it_says_of_tables_is_so() -> None:
    from spikedistill import networks, neurons, objectives
    from spikedistill.data import images
    from spikedistill.report import table

    for holder, name in (
        (networks, "BUILDERS"), (neurons, "TYPES"), (objectives, "TYPES"), (images, "READERS"),
        (table, "ESTIMATES"),
    ):  # fmt: skip
        assert name in TEXT
        assert getattr(holder, name)
