"""Several teachers, and a classifier of a teacher that learns beside the student."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.errors import SpikedistillError
from spikedistill.recipe import load
from tiny_vgg import X, Y, network

KD = {"type": "logit_distillation", "temperature": 2.0, "weight": 0.5}


def kd(student, teacher):
    p = (teacher / 2).softmax(-1)
    return 4 * (p * (p.log() - (student / 2).log_softmax(-1))).sum(-1).mean()


def test_each_objective_learns_from_each_teacher_at_its_weight():
    a, b = network(None, 1), network(4, 2)  # an ANN and an SNN with more steps
    d = sd.Distiller(network().eval(), [a, b], [{"type": "cross_entropy"}, KD], teacher_weights=[0.75, 0.25])
    losses = d(X, Y)
    z = d.student(X).mean(0)
    first, second = kd(z, a(X)), kd(z, b(X).mean(0))
    want = F.cross_entropy(z, Y) + 0.5 * (0.75 * first + 0.25 * second)
    torch.testing.assert_close(losses.total, want)
    assert list(losses.parts) == [
        "cross_entropy",
        "logit_distillation_teacher1",
        "logit_distillation_teacher2",
    ]
    torch.testing.assert_close(losses.parts["logit_distillation_teacher2"], second.detach())
    equal = sd.Distiller(network().eval(), {"big": a, "spiking": b}, [KD])(X, Y)
    torch.testing.assert_close(equal.total, 0.25 * (first + second))
    assert list(equal.parts) == ["logit_distillation_big", "logit_distillation_spiking"]


def test_one_teacher_in_a_list_is_one_teacher():
    a = network(None, 1)
    one, listed = (sd.Distiller(network(), t, [KD, {"type": "blurred_feature"}]).eval() for t in (a, [a]))
    torch.manual_seed(0)
    first = one(X, Y)
    torch.manual_seed(0)
    assert float(listed(X, Y).total.detach()) == float(first.total.detach())
    assert list(one.state_dict()) == list(listed.state_dict())


def test_an_objective_names_its_teacher():
    a, b = network(None, 1), network(None, 2, width=0.25)
    terms = [KD | {"teacher": "b"}, {"type": "feature_distillation", "aligner": "conv1x1", "teacher": "a"}]
    d = sd.Distiller(network(), {"a": a, "b": b, "idle": network(None, 3)}, terms).setup(X)
    d.teachers["idle"].register_forward_hook(lambda *_: pytest.fail("a teacher nobody asks ran"))
    losses = d(X, Y)
    assert list(losses.parts) == ["logit_distillation", "feature_distillation"]
    torch.testing.assert_close(losses.parts["logit_distillation"], kd(losses.logits, b(X)))


def test_each_teacher_has_adapters_of_its_own():
    a, b = network(None, 1), network(None, 2, width=0.25)
    d = sd.Distiller(network(), {"a": a, "b": b}, [{"type": "blurred_feature"}]).setup(X)
    shapes = {k: v.shape for k, v in d.state_dict().items() if k.startswith("objectives")}
    assert any(k.startswith("objectives.blurred_feature_a.") for k in shapes)
    assert any(k.startswith("objectives.blurred_feature_b.") for k in shapes)
    d(X, Y).total.backward()
    assert all(p.grad is not None for p in d.objectives.parameters())
    for teacher in (a, b):
        assert not teacher.training
        assert not any(p.requires_grad for p in teacher.parameters())
    assert d.double().teachers["b"].head.weight.dtype == torch.float64


@pytest.mark.parametrize("classes", [10, 7])
def test_a_teachers_head_learns_beside_the_student(classes):
    teacher = network(None, 1, num_classes=classes)
    before = copy.deepcopy(teacher.state_dict())
    d = sd.Distiller(network().eval(), teacher, [{"type": "cross_entropy"}, KD], teacher_heads=True).setup(X)
    head = d.teacher_heads["teacher"]
    if classes == 10:
        torch.testing.assert_close(head.weight, teacher.head.weight)
    optimizer = torch.optim.SGD(d.parameters(), 0.5)
    features = teacher.flatten(teacher.pool(teacher.stage2(teacher.stage1(teacher.normalise(X)))))
    features = teacher.hidden(features)
    found = []
    for _ in range(20):
        losses = d(X, Y)
        own = F.linear(features, head.weight, head.bias).detach()
        torch.testing.assert_close(losses.parts["teacher_head"], F.cross_entropy(own, Y))
        torch.testing.assert_close(losses.parts["logit_distillation"], kd(losses.logits, own))
        optimizer.zero_grad()
        losses.total.backward()
        # The distillation term gives the head nothing: its gradient is that of its own cross-entropy.
        want = features.T @ (own.softmax(-1) - F.one_hot(Y, 10)) / len(X)
        torch.testing.assert_close(head.weight.grad, want.T)
        optimizer.step()
        found.append(float(losses.parts["teacher_head"]))
    assert found[-1] < found[0]
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert [k for k in d.state_dict() if k.startswith("teacher_heads")] == [
        "teacher_heads.teacher.weight",
        "teacher_heads.teacher.bias",
    ]


def test_wrong_use_is_refused_in_words():
    a, b = network(None, 1), network(None, 2)
    for teachers, objectives, given, words in (
        ([a, b], [KD], {"teacher_weights": [1.0]}, "1 teacher_weights for 2 teachers"),
        ({"a": a, "b": b}, [KD], {"teacher_weights": {"a": 1.0}}, "none for teacher 'b'"),
        ({"a": a}, [KD], {"teacher_weights": {"x": 1.0}}, "no teacher 'x'"),
        ([a, b], [KD], {"teacher_weights": [1.0, -1.0]}, "at least 0"),
        ([a, b], [KD], {"teacher_weights": [1.0, float("nan")]}, "at least 0"),
        ({"a": a}, [KD | {"teacher": "aa"}], {}, "'logit_distillation': no teacher 'aa'; did you mean 'a'"),
        ({"a": a}, [{"type": "cross_entropy", "teacher": "a"}], {}, "'cross_entropy' takes no teacher"),
        (
            {"a": a},
            [KD | {"teacher": 1}],
            {},
            r"objectives\[0\].teacher: a teacher's name is needed, found 1",
        ),
        ([], [KD], {}, "list of teachers is empty"),
        ([a, "b"], [KD], {}, "'teacher2' is no module, found str"),
    ):
        with pytest.raises(SpikedistillError, match=words):
            sd.Distiller(network(), teachers, objectives, **given)
    student = network()
    with pytest.raises(SpikedistillError, match="same module"):
        sd.Distiller(student, [a, student], [KD])

    class Headless(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    with pytest.raises(SpikedistillError, match="Headless, has no linear classifier that could learn"):
        sd.Distiller(network(), Headless(), [KD], teacher_heads=True).setup(X)


RECIPE = {
    "data": {"name": "digits", "batch_size": 32},
    "time_steps": 2,
    "stages": [
        {"name": "a", "network": {"name": "vgg5", "width": 0.125, "pools": 1, "ann": True}},
        {"name": "b", "network": {"name": "vgg5", "width": 0.25, "pools": 1, "ann": True}},
        {
            "name": "student",
            "network": {"name": "vgg5", "width": 0.125, "pools": 1},
            "teacher": {"a": 0.7, "b": 0.3},
            "teacher_heads": True,
            "objectives": [{"type": "cross_entropy"}, {"type": "logit_distillation"}],
        },
    ],
}


def test_a_recipe_with_two_teachers_trains(tmp_path):
    run = sd.train(RECIPE, out=tmp_path / "run", quiet=True)
    row = run.summary.stages[-1]
    assert row.teacher == "a, b"
    from spikedistill.training import metrics

    parts = metrics.read(run.folder).epochs("student")[0]["train"]["parts"]
    assert list(parts) == [
        "cross_entropy", "logit_distillation_a", "logit_distillation_b", "teacher_head_a", "teacher_head_b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "words"),
    [(["a", "c"], "stages.student.teacher: no earlier stage 'c'"), ([], "list of teachers is empty"),
     ({"a": -1.0, "b": 1.0}, "at least 0")],
)  # fmt: skip
def test_wrong_teachers_in_a_recipe_are_refused(teacher, words):
    wrong = copy.deepcopy(RECIPE)
    wrong["stages"][-1]["teacher"] = teacher
    with pytest.raises(SpikedistillError, match=words):
        load(wrong)


def test_names_made_for_teachers_hide_no_other_objective():
    own = {"type": "logit_distillation", "teacher": "a", "name": "logit_distillation_a"}
    with pytest.raises(SpikedistillError, match="two objectives are named 'logit_distillation_a'"):
        sd.Distiller(network(), {"a": network(None), "b": network(None)}, [KD, own])


@pytest.mark.parametrize("name", [1, "a.b", ""])
def test_a_teachers_name_is_a_word(name):
    with pytest.raises(SpikedistillError, match="a teacher's name is a word without dots"):
        sd.Distiller(network(), {name: network(None)}, [KD])


@pytest.mark.parametrize("name", ["float", "keys", "train"])
def test_a_teacher_may_be_named_as_torch_names_things(name):
    """Its head alone is a module of the distiller; a stage named `float` could not teach."""
    teachers = {name: network(None, 1), "other": network(None, 2)}
    losses = sd.Distiller(network(), teachers, [KD]).setup(X)(X, Y)
    assert set(losses.parts) == {f"logit_distillation_{name}", "logit_distillation_other"}
    recipe = copy.deepcopy(RECIPE)
    recipe["stages"][0]["name"] = recipe["stages"][-1]["teacher"] = name
    recipe["stages"][-1]["teacher_heads"] = False
    assert load(recipe).stages[-1].teachers == {name: 1.0}
    recipe["stages"][-1]["teacher_heads"] = True
    words = f"a teacher whose head learns cannot be named '{name}'"
    with pytest.raises(SpikedistillError, match=words):
        load(recipe)
    with pytest.raises(SpikedistillError, match=words):
        sd.Distiller(network(), teachers, [KD], teacher_heads=True)


def test_an_ann_of_images_is_told_how_to_teach_from_frames():
    student = sd.networks.create(
        "vgg5", width=0.125, time_steps=2, in_channels=2, input="frames", num_classes=4
    )
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    teacher, terms = nn.Sequential(*layers), [{"type": "cross_entropy"}, {"type": "logit_distillation"}]
    x, y = torch.rand(3, 2, 2, 16, 16), torch.arange(3)
    with pytest.raises(
        sd.SpikedistillError, match=r"teacher \(Sequential\) does not take event frames.*sd.foreign"
    ):
        sd.Distiller(student, teacher, terms).setup(x)
    framed = sd.foreign(teacher, layout="NCHW", input="frames", time_steps=None)
    found = sd.Distiller(student, framed, terms).setup(x)(x, y)
    assert torch.isfinite(found.total)
