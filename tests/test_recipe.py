import importlib
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
import yaml

from spikedistill import Distiller, SpikedistillError, bibliography, networks, objectives, recipe
from spikedistill.training.run import train
from spikedistill.training.run_folder import claim

KD = {"type": "logit_distillation"}


@pytest.fixture
def tree() -> dict:
    return {
        "data": {"name": "digits"},
        "stages": [
            {"name": "teacher", "network": {"name": "vgg5", "ann": True}, "epochs": 1},
            {
                "name": "student",
                "network": {"name": "vgg5", "neuron": {"type": "lif", "tau": 2.0}},
                "teacher": "teacher",
                "objectives": [{"type": "cross_entropy"}, {"type": "logit_distillation", "temperature": 2.0}],
            },
        ],
    }


def refused(tree: dict, *parts: str) -> None:
    with pytest.raises(SpikedistillError) as caught:
        recipe.load(tree)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_unknown_keys_are_answered_with_path_and_nearest_name(tree):
    tree["dat"] = tree.pop("data")
    refused(tree, "recipe: unknown key 'dat'", "did you mean 'data'?")


def test_an_unknown_key_of_a_stage_names_the_stage(tree):
    tree["stages"][1]["epoch"] = 3
    refused(tree, "stages.student: unknown key 'epoch'", "'epochs'")


def test_a_value_of_the_wrong_type_is_shown(tree):
    tree["stages"][0]["epochs"] = "many"
    refused(tree, "stages.teacher.epochs: found 'many'")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda t: t["stages"][1]["network"].update(widht=0.5),
            ("stages.student.network", "'widht'", "'width'"),
        ),
        (lambda t: t["stages"][1]["network"].update(name="vgg6"), ("unknown network 'vgg6'", "'vgg5'")),
        (lambda t: t["stages"][1]["network"]["neuron"].update(tua=1), ("network.neuron", "'tua'", "'tau'")),
        (lambda t: t["stages"][1].update(teacher="teecher"), ("stages.student.teacher", "'teacher'")),
        (
            lambda t: t["stages"][1]["objectives"][1].update(temprature=1),
            ("objectives[1]", "'temprature'", "'temperature'"),
        ),
        (
            lambda t: t["stages"][1]["objectives"][1].update(type="logits"),
            ("unknown objective type 'logits'",),
        ),
        (
            lambda t: t["stages"][1]["objectives"].append({"type": "cross_entropy"}),
            ("two are named 'cross_entropy'",),
        ),
        (lambda t: t["stages"][1].pop("teacher"), ("needs a teacher",)),
        (lambda t: t["stages"][0].update(name="data"), ("'data' is reserved",)),
        (lambda t: t["stages"][1].update(name="teacher"), ("'teacher' is taken",)),
        (
            lambda t: t["stages"][1].update({"from": "teacher"}),
            ("exactly one of `network`, `from` and `convert`",),
        ),
        (lambda t: t["stages"][1].update(optimizer={"lrr": 1}), ("optimizer", "'lrr'", "'lr'")),
        (lambda t: t["stages"][1].update(optimizer={"lr": -1}), ("optimizer.lr", "-1")),
        (lambda t: t["stages"][1]["network"].update(time_steps=3), ("time steps belong to the stage",)),
        (lambda t: t.update(hardware={"spikesim": {"mod": "released"}}), ("hardware", "'mod'", "'mode'")),
        (lambda t: t["data"].update(batchsize=3), ("data: unknown key 'batchsize'", "'batch_size'")),
        (
            lambda t: t["stages"][1]["network"].update(width="wide"),
            ("student.network.width: found 'wide'", "number"),
        ),
        (
            lambda t: t["stages"][1]["network"].update(width="0.5"),
            ("network.width: found the text '0.5'", "quotes"),
        ),
        (lambda t: t["stages"][1]["network"].update(width=None), ("network.width: found None",)),
        (
            lambda t: t["stages"][1].update(quantize={"weight_bits": 1}),
            ("student.quantize: weight_bits must be 2 to 8",),
        ),
        (
            lambda t: t["stages"][1]["objectives"].append({"type": "blurred_feature", "blur_ratio": 2.0}),
            ("stages.student.objectives[2]: ", "blur_ratio must be in [0, 1), found 2.0"),
        ),
    ],
)
def test_what_types_do_not_say_is_checked_too(tree, change, parts):
    change(tree)
    refused(tree, *parts)


def test_a_file_is_named_in_its_error(tree, tmp_path):
    file = tmp_path / "mine.yaml"
    tree["stages"][1]["network"]["name"] = "vgg6"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(SpikedistillError, match=r"mine\.yaml: stages\.student\.network\.name"):
        recipe.load(file)


def test_an_unknown_data_set_names_the_file(tree, tmp_path):
    file = tmp_path / "mine.yaml"
    tree["data"]["name"] = "digit"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(
        SpikedistillError, match=r"mine\.yaml: data\.name: unknown data set 'digit'; did you mean 'digits'"
    ):
        train(file, out=tmp_path / "run")
    tree["paper"] = ["xu2024bkdns"]
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(SpikedistillError, match=r"mine\.yaml: no paper or objective 'xu2024bkdns'"):
        train(file, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_broken_yaml_names_line_and_column(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n  - {name: a\n")
    with pytest.raises(SpikedistillError, match=r"mine\.yaml: not readable as YAML: .* \(line 3, column 1\)"):
        recipe.load(file)


def test_yaml_cannot_name_code(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("stages: !!python/object/apply:os.system [echo]\n")
    with pytest.raises(SpikedistillError, match="not readable as YAML"):
        recipe.load(file)


def test_overrides_address_stages_and_objectives_by_name(tree):
    found = recipe.load(
        tree,
        [
            "student.epochs=7",
            "data.batch_size=16",
            "student.objectives.logit_distillation.temperature=9",
            "time_steps=6",
        ],
    )
    assert found.stage("student").epochs == 7
    assert found.data.batch_size == 16
    assert found.stage("student").objectives[1]["temperature"] == 9
    assert found.time_steps == 6


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.epochs", "not of the form path=value"),
        ("studnet.epochs=1", "did you mean 'student'"),
        ("student=1", "names a stage but none of its keys"),
        ("student.objectives.kd.weight=1", "no objective 'kd'"),
        ("time_steps.x=1", "has no keys"),
        ("student.settle=maybe", r"settle: found 'maybe'; input should be 'auto', or true or false"),
        ("data.train_samples=few", "train_samples: found 'few'; .*number.*, or a whole number"),
        ("student.network.neuron.threshold=high", "neuron lif: .*threshold: 'high': a value of another type"),
        ("student.network.neuron.tau=slow", "neuron lif: .*tau: 'slow': a value of another type"),
    ],
)
def test_bad_overrides_are_refused(tree, override, words):
    tree["time_steps"] = 4
    with pytest.raises(SpikedistillError, match=words):
        recipe.load(tree, [override])


def test_a_mapping_may_hold_paths_and_other_mappings(tree, tmp_path):
    given = {**tree, "data": MappingProxyType({"name": "folders", "root": tmp_path})}
    assert str(recipe.load(given).data.root) == str(tmp_path)
    assert given["data"]["root"] is tmp_path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.int64(3), r"found numpy\.int64: np\.int64\(3\)"),
        ({3}, r"found builtins\.set: \{3\}"),
        ({(1, 2): 3}, "a recipe is a mapping as a YAML file holds it: keys must be str"),
    ],
    ids=str,
)
def test_a_mapping_with_what_no_file_holds_is_refused(tree, value, words):
    tree["time_steps"] = value
    with pytest.raises(SpikedistillError, match=words):
        recipe.load(tree)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(SpikedistillError, match="did you mean 'digits'"):
        recipe.load("digit")
    with pytest.raises(SpikedistillError, match="no recipe file"):
        recipe.load("there/is/none.yaml")


def test_plain_and_back_is_the_same(tree):
    found = recipe.load(tree)
    assert recipe.load(found.plain()) == found


@pytest.mark.parametrize("name", sorted(recipe.shipped()))
def test_every_shipped_recipe_is_valid(name):
    assert recipe.load(name).title


def test_schema_accepts_the_shipped_recipes_keys():
    tree = recipe.schema()
    assert set(yaml.safe_load(Path(recipe.shipped()["digits"]).read_text())) <= set(tree["properties"])
    assert "objective_cross_entropy" in tree["$defs"]
    assert tree["additionalProperties"] is False


PLUG_IN = """
from typing import Literal
from spikedistill.objectives import Objective

class Confidence(Objective):
    '''Somebody's own term.'''
    cites = ("fang2021deep",)

    def __init__(
        self, power: float = 2.0, over: Literal["mean", "step"] = "mean", weight: float = 1.0,
        name: str | None = None,
    ):
        super().__init__(weight, name)
        self.power = power

    def forward(self, view):
        return view.mean_logits.softmax(1).pow(self.power).sum(1).mean()
"""


@pytest.fixture(params=["address", "entry point"])
def plug_in(request, tmp_path, monkeypatch) -> str:
    """An objective of another package, as recipes call it."""
    (tmp_path / "their_objectives.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path)
    if request.param == "address":
        return "their_objectives:Confidence"
    module = importlib.import_module("their_objectives")
    monkeypatch.setitem(objectives.TYPES, "confidence", module.Confidence)  # what an entry point becomes
    return "confidence"


def test_an_objective_of_another_package_is_checked_like_ours(tree, plug_in):
    tree["stages"][1]["objectives"].append({"type": plug_in, "power": "3"})
    found = recipe.load(tree)
    assert found.stage("student").terms[2].power == 3.0
    assert found.stage("student").objectives[2]["power"] == 3.0
    assert recipe.load(found.plain()) == found
    assert "fang2021deep" in bibliography.keys_of(found)
    tree["stages"][1]["objectives"][2] = {"type": plug_in, "powr": 3}
    refused(tree, "stages.student.objectives[2].powr: unknown key 'powr'; did you mean 'power'")
    tree["stages"][1]["objectives"][2] = {"type": plug_in, "over": "time"}
    refused(tree, "stages.student.objectives[2].over: found 'time'; input should be 'mean' or 'step'")


def test_a_run_with_an_objective_of_another_package_is_recorded_and_read_back(tree, plug_in, tmp_path):
    tree["stages"] = [{**tree["stages"][1], "epochs": 1, "objectives": [{"type": plug_in, "power": 3.0}]}]
    del tree["stages"][0]["teacher"]
    claimed = claim(tmp_path / "run", recipe.load(tree), "mine")
    assert claimed.recipe.stages[0].objectives == [
        {"type": plug_in, "power": 3.0, "over": "mean", "weight": 1.0, "name": None}
    ]
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    student = networks.create("vgg5", in_channels=1, width=0.125, time_steps=2)
    losses = Distiller(student, objectives=claimed.recipe.stages[0].objectives)(x, y)
    assert losses.total == losses.parts["confidence"] > 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("no_such_module:Mine", "names nothing that can be imported: No module named 'no_such_module'"),
        ("pathlib:Pth", "names nothing that can be imported"),
        ("pathlib:Path", "is no subclass of spikedistill.objectives.Objective"),
    ],
)
def test_an_address_that_names_no_objective_is_refused(tree, address, said):
    tree["stages"][1]["objectives"][0] = {"type": address}
    refused(tree, "stages.student.objectives[0]: objective type ", said)


def test_a_training_builds_objectives_of_its_own(tree):
    stage = recipe.load(tree).stage("student")
    teacher = networks.create("vgg5", time_steps=None)
    student = networks.create("vgg5", time_steps=2)
    first, second = (Distiller(student, teacher, stage.objectives).terms for _ in range(2))
    assert not {id(o) for o in first} & {id(o) for o in (*second, *stage.terms)}
    assert stage.terms[0] is stage.terms[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"objectives": []}, "no objective learns from 'teacher'"),
        ({"objectives": [{"type": "cross_entropy"}], "teacher_heads": True}, "no objective learns from"),
        ({"objectives": [], "teacher": None, "keep_answers": True}, "keep_answers needs a teacher"),
        (
            {"teacher": ["teacher", "other"], "objectives": [KD | {"teacher": "other"}]},
            "no objective learns from 'teacher'",
        ),
    ],
)
def test_a_teacher_that_teaches_nothing_is_refused(tree, more, said):
    tree["stages"].insert(1, {**tree["stages"][0], "name": "other"})
    tree["stages"][2].update(more)
    refused(tree, "stages.student.teacher", said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "adam", "momentum": 0.8}, "momentum: name adam does not know it, only sgd"),
        ({"name": "adamw", "nesterov": True}, "nesterov: name adamw does not know it"),
        ({"name": "sgd", "betas": [0.8, 0.9]}, "betas: name sgd does not know it, only adam and adamw"),
        ({"schedule": "constant", "min_lr": 0.01}, "min_lr: schedule constant does not know it"),
        ({"schedule": "cosine", "gamma": 0.5}, "gamma: schedule cosine does not know it, only step"),
        ({"warm_up_lr": 0.01}, "warm_up_lr: there is no warm-up"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov: Nesterov's momentum needs one"),
    ],
)
def test_what_an_optimizer_would_not_hear_is_refused(tree, given, said):
    tree["optimizer"] = given
    refused(tree, f"optimizer.{said}")
    tree["optimizer"] = {"schedule": "step", "gamma": 0.5, "momentum": 0.8}
    tree["stages"][1]["optimizer"] = given
    refused(tree, f"stages.student.optimizer.{said}")


def test_an_optimizer_of_another_name_or_schedule_inherits_in_peace(tree):
    tree["optimizer"] = {"schedule": "step", "gamma": 0.5, "momentum": 0.8}
    tree["stages"][0]["optimizer"] = {"schedule": "cosine"}
    tree["stages"][1]["optimizer"] = {"name": "adam", "lr": 0.001}
    recipe.load(tree)
    # As a run's record has it: defaults written out ask for nothing.
    tree["optimizer"] = recipe.Optimizer(name="adam").model_dump()
    recipe.load(tree)
