import re

import pytest

import spikedistill as sd
from spikedistill.bibliography import NETWORKS, citations, entries
from spikedistill.errors import SpikedistillError


def test_entries_are_whole():
    for key, entry in entries().items():
        assert entry.count("{") == entry.count("}"), key
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, re.M))
        assert fields["title"], key
        assert " and " in fields["author"], key
        assert re.fullmatch(r"20\d\d", fields["year"]), key


def test_every_objective_and_network_cites_known_papers():
    keys = {key for cls in sd.objectives.TYPES.values() for key in cls.cites}
    keys |= {key for group in NETWORKS.values() for key in group}
    assert keys <= set(entries())


def test_names_of_objectives_and_papers():
    found = citations(["blurred_feature", "fang2021deep", "xu2024bkdsnn"])
    assert len(found) == 3
    assert "Blurred Knowledge Distillation" in found[0]
    assert citations("membrane_distillation")[0].startswith("@inproceedings{lee2026mdsnn")


def test_recipe_mapping_collects_each_paper_once():
    recipe = {
        "paper": ["hong2023lasnn"],
        "stages": [
            {"name": "teacher", "network": {"name": "vgg5", "ann": True}},
            {
                "name": "student",
                "network": {"name": "vgg5"},
                "init": {"from": "teacher", "method": "threshold_balancing"},
                "teacher": "teacher",
                "objectives": [{"type": "cross_entropy"}, {"type": "attention_transfer"}],
            },
        ],
    }
    keys = [re.match(r"@\w+\{([^,]+),", entry)[1] for entry in citations(recipe)]
    assert keys == ["hong2023lasnn", "simonyan2015very", "zagoruyko2017paying", "diehl2015fast"]


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SpikedistillError, match="blurred_feature"):
        citations(["blured_feature"])
