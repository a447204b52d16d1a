import re
from pathlib import Path

import pytest
import yaml

from spikedistill.network_options import NETWORK_KEYS
from spikedistill.neurons import TYPES
from spikedistill.recipe import Convert, Init, Optimizer, Recipe, Stage, load

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = TEXT.split(f"\n{heading}\n")[1].split("\n#")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line.startswith("| `")
    ]


def test_its_example_is_a_recipe():
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    assert [stage.name for stage in load(yaml.safe_load(text)).stages] == ["teacher", "student", "quantized"]


@pytest.mark.parametrize(
    "heading, model",
    [
        ("## The recipe", Recipe),
        ("## A stage", Stage),
        ("### `init`", Init),
        ("### `convert`", Convert),
        ("### `optimizer`", Optimizer),
    ],
)
def test_every_key_stands_there_with_its_default(heading, model):
    found = {row[0].strip("`"): row[1].strip("`") for row in rows(heading)}
    assert set(found) == {field.alias or name for name, field in model.model_fields.items()}
    for name, field in model.model_fields.items():
        text = found[field.alias or name]
        if field.is_required():
            assert text == "", name
            continue
        given = yaml.safe_load(text)
        default = field.get_default(call_default_factory=True)
        if isinstance(given, dict) and given:
            assert type(default)(**given) == default, name
        else:
            assert given == (list(default) if isinstance(default, tuple) else default), name


def test_networks_keys_and_neurons_stand_there():
    found = {row[0].strip("`"): row[1] for row in rows("### `network`")}
    assert set(found) | {"name"} == set(NETWORK_KEYS)
    assert all(name in found["neuron"] for name in TYPES)
