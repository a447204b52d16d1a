"""The first part of a training simulates fewer time steps: which part, with whom, and what is measured."""

import copy

import pytest
import torch

import spikedistill as sd
from spikedistill.recipe import load
from spikedistill.time_inheritance import TimeInheritance
from spikedistill.training.run import train


def network(T: int | None, **options):
    return sd.networks.create("conv6", num_classes=4, width=0.125, time_steps=T, **options)


def test_steps_by_progress():
    student = network(8)
    at = TimeInheritance(sd.Distiller(student, None, [{"type": "cross_entropy"}]), {1: 0.1, 2: 0.2, 4: 0.5})
    found = {}
    for step in range(10):
        at.begin(step / 10)
        found[step] = student.time_steps
    assert list(found.values()) == [1, 2, 2, 4, 4, 4, 4, 4, 8, 8]
    at.begin(0.0)
    at.end()
    assert student.time_steps == 8


def test_one_schedule_in_two_parts_equals_two_stages(tmp_path, arrays):
    """By hand: half the epochs with T = 1, then a stage that goes on from there with the rest."""
    start = {"name": "start", "network": {"name": "conv6", "width": 0.125}, "epochs": 0}
    whole = {"name": "whole", "from": "start", "epochs": 6, "time_inheritance": {1: 0.5}}
    first = {"name": "first", "from": "start", "epochs": 3, "time_steps": 1, "recalibrate": False}
    second = {"name": "second", "from": "first", "epochs": 3, "time_steps": 4, "recalibrate": False}
    recipe = {
        # All images in one batch, no momentum: whatever order an epoch has, a step is the same.
        "data": {"batch_size": len(arrays["x_train"])},
        "precision": "float64",
        "compile": False,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "schedule": "constant"},
        "stages": [{**stage, "settle": False} for stage in (start, whole, first, second)],
    }
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True)
    in_one, by_hand = (sd.load(run.folder, name) for name in ("whole", "second"))
    assert in_one.time_steps == by_hand.time_steps == 4
    for a, b in zip(in_one.state_dict().values(), by_hand.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    started = {s.name: s for s in run.summary.stages}
    assert started["whole"].accuracy == started["second"].accuracy
    assert started["whole"].time_steps == 4


def test_teachers_of_the_same_steps_follow_others_keep_theirs():
    student, equal, longer, ann = network(4), network(4), network(8), network(None)
    distiller = sd.Distiller(
        student,
        {"equal": equal, "longer": longer, "ann": ann},
        [
            {"type": "membrane_distillation", "teacher": "equal"},  # step by step
            {"type": "logit_distillation", "teacher": "longer"},
            {"type": "logit_distillation", "teacher": "ann", "name": "by_ann"},
        ],
    )
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    distiller.setup(x)
    at = TimeInheritance(distiller, {2: 0.5})
    at.begin(0.0)
    assert (student.time_steps, equal.time_steps, longer.time_steps, ann.time_steps) == (2, 2, 8, None)
    assert distiller(x, y).total.isfinite()
    at.end()
    assert (student.time_steps, equal.time_steps, longer.time_steps) == (4, 4, 8)


def test_answers_of_a_teacher_that_follows_are_not_kept(tmp_path, recipe, arrays):
    teacher, student = recipe["stages"]
    teacher["network"] = student["network"]
    del student["init"]
    student |= {"keep_answers": True, "time_inheritance": {1: 0.5}}
    run = train(recipe, data=arrays, out=tmp_path / "kept", quiet=True)
    assert "keep_answers is left out" in (run.folder / "metrics.jsonl").read_text()
    without = copy.deepcopy(recipe)
    without["stages"][1]["keep_answers"] = False
    other = train(without, data=arrays, out=tmp_path / "asked", quiet=True)
    for a, b in zip(sd.load(run.folder).parameters(), sd.load(other.folder).parameters()):
        assert torch.equal(a, b)


NEED_TWO = (
    "stable_spike", "temporal_consistency", "cumulative_consistency", "strong_weak_distillation",
)  # fmt: skip
STAGE = {"name": "a", "network": {"name": "vgg5"}, "epochs": 2}
PSN = {"name": "vgg5", "neuron": {"type": "psn"}}


@pytest.mark.parametrize(
    ("shares", "more", "said"),
    [
        ({4: 0.5}, {}, r"time steps \[4\]: give whole numbers from 1, rising and below T = 4"),
        ({2: 0.2, 1: 0.2}, {}, "rising"),
        ({1: 0.5, 2: 0.5}, {}, "whose sum is below 1"),
        ({1: 0.5}, {"network": {"name": "vgg5", "ann": True}}, "an ANN has no time steps"),
        ({1: 0.5}, {"operations": 1000}, "'operations' is about the steps that all have"),
        (
            {1: 0.5},
            {"objectives": [{"type": "cross_entropy"}, {"type": "operations_aim", "operations": 1000}]},
            "'operations_aim' is about the steps that all have",
        ),
        ({1: 0.5}, {"network": PSN}, "psn has weights for T = 4 time steps, found 1"),
        (
            {1: 0.5},
            {"objectives": [{"type": "temporal_self_distillation", "time_steps": 8}]},
            "'temporal_self_distillation' is about the steps",
        ),
        *(({1: 0.5}, {"objectives": [{"type": name}]}, f"'{name}': found 1 time step") for name in NEED_TWO),
    ],
)
def test_what_cannot_be_is_refused_by_path(shares, more, said):
    with pytest.raises(sd.SpikedistillError, match=rf"stages\.a\.time_inheritance: .*{said}"):
        load({"data": {"name": "digits"}, "stages": [{**STAGE, "time_inheritance": shares, **more}]})


def test_a_stage_that_goes_on_has_the_steps_of_the_one_before():
    stages = [
        {**STAGE, "time_steps": 8},
        {"name": "b", "from": "a", "time_steps": 2},
        {"name": "c", "from": "b", "time_inheritance": {2: 0.5}},
    ]
    with pytest.raises(sd.SpikedistillError, match="below T = 2"):
        load({"data": {"name": "digits"}, "stages": stages})


def test_a_network_of_frames_is_refused():
    frames = sd.networks.create("dvs_gesture_cnn", width=0.25, time_steps=4)
    with pytest.raises(sd.SpikedistillError, match="takes frames"):
        TimeInheritance(sd.Distiller(frames, None, [{"type": "cross_entropy"}]), {1: 0.5})


@pytest.mark.parametrize("name", [*NEED_TWO, "selective_alignment"])
def test_one_step_is_refused_at_setup_and_where_a_loop_of_ones_own_sets_it(name):
    more = {"alpha": 0.0} if name == "selective_alignment" else {}  # no teacher: the other steps alone
    torch.manual_seed(0)
    student = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    distiller = sd.Distiller(student, None, [{"type": name, **more}])
    assert torch.isfinite(distiller(x, y).total)
    student.time_steps = 1
    with pytest.raises(sd.SpikedistillError, match=f"'{name}': found 1 time step and nothing to compare"):
        distiller(x, y)
    with pytest.raises(sd.SpikedistillError, match=f"'{name}': found 1 time step"):
        sd.Distiller(student, None, [{"type": name, **more}]).setup(x)
