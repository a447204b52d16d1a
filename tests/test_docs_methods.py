import re
from pathlib import Path

import yaml

from spikedistill.objectives import TYPES, build
from spikedistill.recipe import shipped

TEXT = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()


def test_python_examples_run():
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(compile(code, "methods.md", "exec"), {"__name__": "example"})


def test_yaml_examples_build():
    for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.S):
        for options in yaml.safe_load(text)["objectives"]:
            build(options)


def test_every_objective_and_only_shipped_recipes_are_named():
    table = TEXT.split("## Which method does what")[1].split("**Not here.**")[0]
    assert set(TYPES) <= set(re.findall(r"`([a-z_]+)`", table))
    named = {
        n if n.startswith("digits") else f"digits{n}"
        for n in re.findall(r"`(digits-[a-z-]+|-[a-z-]+)`", table)
    }
    assert named == {n for n in shipped() if n.startswith("digits-")}
