"""What holds for every objective: gradients, batch order, bf16, names, documented YAML."""

import copy
import math
import re
import typing
from dataclasses import replace

import pytest
import torch
import yaml
from cases import CASES, digits, distiller, networks, options

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.objectives import TYPES, build

DRAWN = ("blurred_feature", "blurred_feature_pooled", "stable_spike", "noise_smoothed_distillation")


def test_every_type_has_a_case():
    assert {options(case)["type"] for case in CASES} == set(TYPES)


def batch(n=8):
    x, y = digits()
    return x[:n], y[:n]


@pytest.mark.parametrize("case", CASES)
def test_student_and_adapters_learn_and_the_teacher_does_not(case):
    x, y = batch()
    d = distiller(case).setup(x).train()
    teacher = d.teacher
    before = copy.deepcopy(teacher.state_dict()) if teacher is not None else {}
    losses = d(x, y)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert torch.isfinite(losses.total)
    assert list(losses.parts) == [case]
    assert not losses.parts[case].requires_grad
    student = dict(d.student.named_parameters())
    assert sum(float(p.grad.abs().sum()) for p in student.values() if p.grad is not None) > 0
    for name, p in d.objectives.named_parameters():
        assert p.grad is not None, name
    if teacher is not None:
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert not teacher.training
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert not any("teacher" in name for name in d.state_dict())


@pytest.mark.parametrize("case", [c for c in CASES if c not in DRAWN])
def test_the_order_of_the_batch_does_not_matter(case):
    x, y = batch()
    d = distiller(case).double().setup(x.double()).train()
    order = torch.randperm(len(x))
    state = copy.deepcopy(d.state_dict())
    first = d(x.double(), y).total
    d.load_state_dict(state)
    second = d(x.double()[order], y[order]).total
    if case == "spatio_temporal_calibration":  # its embeddings read the batch's Gram matrix column by column
        assert abs(float((first - second).detach())) > 1e-12
    else:
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


def test_those_of_rates_see_averages_alone():
    """Their value on captures of all steps is that on the steps' average; of the others it is not."""
    found = {}
    for case in CASES:
        x, y = batch()
        d = distiller(case).double().setup(x.double()).train()
        d.student.eval()
        logits, mine = taps.run_resolved(d.student, x.double(), d._student_taps, d.time_steps)
        taught = {name: d._taught(name, x.double(), y) for name in d._teacher_taps}
        averages = replace(mine, tensors={k: v.mean(0, keepdim=True) for k, v in mine.tensors.items()})
        values = []
        for z, captures in ((logits, mine), (logits.mean(0, keepdim=True), averages)):
            torch.manual_seed(0)
            try:
                values.append(float(d.losses(z, captures, taught, y, 0.0).total.detach()))
            except (SpikedistillError, RuntimeError, IndexError, ValueError):
                values.append(math.nan)
        same = math.isclose(*values, rel_tol=1e-9)
        if d.terms[0].of_rates:
            assert same, case
        found[case] = d.terms[0].of_rates
    assert {c for c, rates in found.items() if rates} >= {
        "cross_entropy",
        "blurred_feature",
        "feature_distillation",
    }
    assert not found["temporal_efficient_training"]
    assert not found["logit_distillation"]


@pytest.mark.parametrize("case", CASES)
def test_finite_under_bf16_autocast(case):
    x, y = batch()
    d = distiller(case).setup(x).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = d(x, y)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in d.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "case",
    ["feature_distillation", "membrane_distillation", "attention_transfer", "attention_map_distillation"],
)
def test_null_in_eval_where_student_equals_teacher(case):
    x, y = batch()
    student, _ = networks(case)
    d = sd.Distiller(student, copy.deepcopy(student), [options(case)]).setup(x).eval()
    assert float(d(x, y).parts[case]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cls", TYPES.values(), ids=list(TYPES))
def test_documented_yaml_builds(cls):
    found = re.findall(r"``(\{type: .*?\})``", re.sub(r"\s+", " ", cls.__doc__))
    assert found
    for text in found:
        built = build(yaml.safe_load(text))
        assert built.name in TYPES


def test_unknown_types_and_options_name_the_nearest():
    with pytest.raises(
        SpikedistillError, match="unknown objective type 'blured_feature'; did you mean 'blurred_feature'"
    ):
        build({"type": "blured_feature"})
    with pytest.raises(
        SpikedistillError,
        match=r"objectives\[1\].blur_rate: unknown key 'blur_rate'; did you mean 'blur_ratio'",
    ):
        build({"type": "blurred_feature", "blur_rate": 0.1}, "objectives[1]")


def test_membrane_distillation_with_an_ann_is_refused():
    student, _ = networks("membrane_distillation")
    _, ann = networks("logit_distillation")
    d = sd.Distiller(student, ann, [{"type": "membrane_distillation"}])
    with pytest.raises(
        SpikedistillError, match=r"'membrane_distillation', teacher: .*no spiking neuron layers"
    ):
        d.setup(batch()[0])
    d = sd.Distiller(student, ann, [{"type": "membrane_distillation", "layers": ["stage1.1"]}])
    with pytest.raises(SpikedistillError, match=r"teacher: .*not a spiking neuron layer"):
        d.setup(batch()[0])


def mixed(student, teacher, objectives, steps=2):
    x, y = batch(16)
    d = sd.Distiller(student, teacher, objectives).setup(x).train()
    optimizer = torch.optim.SGD(d.parameters(), 0.01)
    for i in range(steps):
        optimizer.zero_grad()
        losses = d(x, y, i / steps)
        losses.total.backward()
        optimizer.step()
        assert torch.isfinite(losses.total)
    return d, losses


def test_attention_blurred_logits_and_activity_combine():
    student, teacher = networks("logit_distillation")
    kinds = [
        "cross_entropy",
        "attention_transfer",
        "blurred_feature",
        "logit_distillation",
        "activity_regularization",
    ]
    _, losses = mixed(student, teacher, [options(kind) for kind in kinds])
    assert list(losses.parts) == kinds


def test_membrane_and_logits_on_a_2_bit_student():
    quantize = pytest.importorskip("spikedistill.quantization").quantize
    student, teacher = networks("membrane_distillation")
    student.load_state_dict(teacher.state_dict())
    student = quantize(student, weight_bits=2, membrane_bits=2, calibration=[batch()[0]])
    kinds = ["cross_entropy", "logit_distillation", "membrane_distillation"]
    _, losses = mixed(student, teacher, [options(kind) for kind in kinds])
    assert float(losses.parts["membrane_distillation"]) > 0


def test_self_distillation_and_quantization():
    quantize = pytest.importorskip("spikedistill.quantization").quantize
    student, _ = networks("cross_entropy")
    student = quantize(student, weight_bits=4, membrane_bits=4, calibration=[batch()[0]])
    kinds = ["cross_entropy", "temporal_self_distillation", "spatial_self_distillation"]
    d, _ = mixed(student, None, [options(kind) for kind in kinds])
    assert d.time_steps == 4
    assert d.student.time_steps == 2


CHOICES = [
    (cls, key, typing.get_args(hint))
    for cls in TYPES.values()
    for key, hint in typing.get_type_hints(cls.__init__).items()
    if typing.get_origin(hint) is typing.Literal
]


@pytest.mark.parametrize(("cls", "key", "allowed"), CHOICES, ids=lambda v: getattr(v, "__name__", None))
def test_a_choice_that_is_none_is_refused_by_the_objective_itself(cls, key, allowed):
    with pytest.raises(
        SpikedistillError, match=rf"objective 'mine': {key} must be .*{allowed[-1]}.*, found 'nonsense'"
    ):
        cls(**{key: "nonsense", "name": "mine"})
