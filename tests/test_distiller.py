"""The distiller: one forward for all objectives, frozen teachers, adapters, schedules, errors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.objectives import Objective, Schedule
from tiny_vgg import X, Y, network


def distiller(*objectives, student=None, teacher="ann", **given):
    teacher = network(None, 1) if teacher == "ann" else teacher
    return sd.Distiller(
        student or network(**given), teacher, [o if isinstance(o, dict) else {"type": o} for o in objectives]
    )


def test_default_is_cross_entropy_of_the_mean():
    d = sd.Distiller(network().eval())
    losses = d(X, Y)
    logits = d.student(X).mean(0)
    torch.testing.assert_close(losses.total, F.cross_entropy(logits, Y))
    torch.testing.assert_close(losses.logits, logits.detach())
    assert list(losses.parts) == ["cross_entropy"]


def test_total_is_the_weighted_sum_of_unweighted_parts():
    d = distiller({"type": "cross_entropy", "weight": 0.5}, {"type": "logit_distillation", "weight": 3.0})
    losses = d(X, Y)
    want = 0.5 * losses.parts["cross_entropy"] + 3.0 * losses.parts["logit_distillation"]
    torch.testing.assert_close(losses.total.detach(), want)


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        (2.0, [2.0, 2.0, 2.0]),
        ({"start": 1, "end": 0.3, "shape": "linear"}, [1.0, 0.65, 0.3]),
        ({"start": 2, "end": 0, "shape": "cosine"}, [2.0, 1.0, 0.0]),
        ({"start": 100, "end": 0.01, "shape": "step", "at": 0.5}, [100.0, 0.01, 0.01]),
        ({"start": 4, "warm_up": 0.75}, [0.0, 4 * 0.5 / 0.75, 4.0]),
        (Schedule(1.0, 0.0, "cosine"), [1.0, 0.5, 0.0]),
    ],
)
def test_schedules(weight, values):
    d = distiller({"type": "cross_entropy", "weight": weight})
    for progress, value in zip((0.0, 0.5, 1.0), values):
        losses = d(X, Y, progress)
        assert float(losses.total.detach()) == pytest.approx(
            value * float(losses.parts["cross_entropy"]), rel=1e-6
        )


def test_a_wrong_schedule_is_refused_in_words():
    with pytest.raises(SpikedistillError, match=r"weight.shap: unknown key 'shap'; did you mean 'shape'"):
        distiller({"type": "cross_entropy", "weight": {"start": 1, "shap": "linear"}})


def test_the_teacher_is_frozen_and_not_in_the_state():
    teacher = network(None, 1).train()
    d = distiller("cross_entropy", "logit_distillation", teacher=teacher).train()
    before = copy.deepcopy(teacher.state_dict())
    d(X, Y).total.backward()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert len(list(d.parameters())) == len(list(d.student.parameters()))
    assert all(k.startswith(("student.", "objectives.")) for k in d.state_dict())
    assert d.double().teacher.head.weight.dtype == torch.float64


def test_a_teacher_nobody_asks_is_not_run():
    teacher = network(None, 1)
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    distiller("cross_entropy", teacher=teacher)(X, Y)


def test_setup_leaves_no_trace():
    d = distiller("cross_entropy", "blurred_feature", "spatial_self_distillation")
    d.student.stage1.eval()  # somebody froze a part
    flags = [m.training for m in d.student.modules()]
    before, random = copy.deepcopy(d.student.state_dict()), torch.get_rng_state()
    d.setup((X, Y))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in d.student.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in d.student.state_dict().items())
    assert not any(p.grad is not None for p in d.parameters())


def test_setup_on_the_cpu_leaves_the_generators_of_all_gpus(monkeypatch):
    states = {0: torch.tensor(10), 1: torch.tensor(11)}

    def seed_all(seed):
        states.update({k: torch.tensor(seed) for k in states})

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # only generators are there
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda device: states[torch.device("cuda", device).index]
    )
    monkeypatch.setattr(
        torch.cuda,
        "set_rng_state",
        lambda state, device: states.update({torch.device("cuda", device).index: state}),
    )
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_all)
    d = distiller("cross_entropy", "blurred_feature")
    states.update({0: torch.tensor(10), 1: torch.tensor(11)})
    d.setup((X, Y))
    assert [int(states[k]) for k in (0, 1)] == [10, 11]


def test_adapters_are_a_function_of_seed_and_name():
    def adapters(seed, *before):
        d = distiller(*before, "blurred_feature")
        torch.rand(3)
        return d.setup(X, seed).objectives["blurred_feature"].state_dict()

    first, again, other = adapters(0), adapters(0, "cross_entropy", "spatial_self_distillation"), adapters(1)
    assert first
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_adapters_are_in_the_state_and_come_back():
    d = distiller("blurred_feature").setup(X)
    torch.manual_seed(5)
    want = d(X, Y).total
    e = distiller("blurred_feature", seed=3).setup(X, seed=9)
    e.load_state_dict(d.state_dict())
    torch.manual_seed(5)
    torch.testing.assert_close(e(X, Y).total, want)


def test_two_forwards_then_backward_add_up():
    def gradients(batches):
        d = distiller("cross_entropy", "attention_transfer").setup(X).eval()
        total = sum(d(X[a:b], Y[a:b]).total for a, b in batches)
        total.backward()
        return [p.grad for p in d.student.parameters() if p.grad is not None]

    both, first, second = gradients([(0, 3), (3, 6)]), gradients([(0, 3)]), gradients([(3, 6)])
    for a, b, c in zip(both, first, second):
        torch.testing.assert_close(a, b + c, rtol=1e-4, atol=1e-6)


def test_a_longer_simulation_is_cut_for_all_who_did_not_ask():
    terms = ("cross_entropy", "attention_transfer", "membrane_distillation", "temporal_consistency")
    teacher = network(4, 1)
    short = distiller(*terms, teacher=teacher).setup(X).eval()
    long = (
        distiller(*terms, {"type": "temporal_self_distillation", "time_steps": 6}, teacher=teacher)
        .setup(X)
        .eval()
    )
    assert (short.time_steps, long.time_steps, long.student.time_steps) == (2, 6, 2)
    a, b = short(X, Y), long(X, Y)
    for name in terms:
        torch.testing.assert_close(a.parts[name], b.parts[name], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(a.logits, b.logits)
    with sd.time_steps(long.student, 6):
        z = long.student(X)
    want = F.kl_div((z[:2].mean(0) / 2).log_softmax(-1), (z.mean(0) / 2).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(b.parts["temporal_self_distillation"], want.detach(), rtol=1e-4, atol=1e-7)


def test_longer_simulations_on_frames_repeat_them_from_the_start():
    frames = torch.rand(6, 4, 1, 8, 8)
    d = distiller(
        "cross_entropy", {"type": "temporal_self_distillation", "time_steps": 3}, input="frames", teacher=None
    )
    losses = d.setup(frames).eval()(frames, Y)
    torch.testing.assert_close(losses.logits, d.student.eval()(frames).mean(0).detach())


def test_an_ann_teacher_averages_its_logits_over_frames():
    frames = torch.rand(6, 4, 1, 8, 8)
    teacher = network(None, 1)
    d = distiller(
        {"type": "logit_distillation", "temperature": 1.0}, "blurred_feature", input="frames", teacher=teacher
    )
    d.setup(frames).eval()
    part = d(frames, Y).parts["logit_distillation"]
    target = torch.stack([teacher(frames[:, t]) for t in range(4)]).mean(0)
    mine = d.student(frames).mean(0)
    want = F.kl_div(mine.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(part, want.detach())


def test_an_snn_teacher_with_more_steps_on_frames():
    frames = torch.rand(6, 8, 1, 8, 8)
    teacher = network(8, 1, input="frames")
    d = distiller("blurred_feature", "weighted_soft_labels", input="frames", teacher=teacher)
    assert torch.isfinite(d(frames, Y).total)


def test_a_teacher_with_its_own_normalisation_sees_the_raw_image():
    teacher = network(None, 1, mean=0.5, std=0.25)
    plain = network(None, 1)
    d = distiller({"type": "logit_distillation", "temperature": 1.0}, teacher=teacher).eval()
    want = F.kl_div(
        d.student(X).mean(0).log_softmax(-1),
        plain.eval()((X - 0.5) / 0.25).softmax(-1),
        reduction="batchmean",
    )
    torch.testing.assert_close(d(X, Y).parts["logit_distillation"], want.detach())


def test_soft_targets():
    soft = torch.rand(6, 10).softmax(-1)
    d = distiller(
        "cross_entropy", "weighted_soft_labels", "full_range_distillation", "temporal_knowledge_sharing"
    )
    total = d(X, soft).total
    assert torch.isfinite(total)
    torch.testing.assert_close(d.double()(X.double(), soft).total.float(), total, rtol=1e-3, atol=0)


def test_bf16_autocast_gives_float32_losses():
    d = distiller("cross_entropy", "blurred_feature", "logit_distillation").setup(X)
    inside = []
    d.objectives["blurred_feature"].restore.register_forward_hook(
        lambda module, args, out: inside.append(out.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = d(X, Y)
    assert losses.total.dtype == torch.float32
    assert torch.isfinite(losses.total)
    assert inside == [torch.bfloat16]  # an adapter is a network


def test_captures_come_in_float32_whatever_the_network_ran_in():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = sd.Distiller(network(), None, [Own()])
        _, found = taps.captures(d.student, X, ["stage2"])
        assert found["stage2"].dtype == torch.bfloat16
        d(X, Y)
    assert d.terms[0].seen == torch.float32


def test_all_steps_are_no_slice():
    _, found = taps.captures(network(), X, ["stage2"])
    assert found.cut(2)["stage2"] is found["stage2"]
    assert torch.equal(found.cut(1)["stage2"], found["stage2"][:1])
    torch.testing.assert_close(found.mean("stage2"), found["stage2"].mean(0))


class Own(Objective):
    """A user's own objective over captures."""

    student_taps = ("stage2",)

    def forward(self, view):
        self.seen = view.student["stage2"].dtype
        return (view.student["stage2"] ** 2).mean()


def test_a_users_own_objective():
    losses = sd.Distiller(network(), None, [Own(weight=2.0)])(X, Y)
    torch.testing.assert_close(losses.total.detach(), 2 * losses.parts["own"])


class Foreign(nn.Module):
    """Somebody else's SNN: logits (T, N, K)."""

    def __init__(self):
        super().__init__()
        self.conv, self.neuron, self.head = nn.Conv2d(1, 4, 3), sd.LIF(time_steps=3), nn.Linear(4, 10)

    def forward(self, x):
        s = self.neuron(4 * self.conv(x.repeat(3, 1, 1, 1)))
        return self.head(s.mean((2, 3))).unflatten(0, (3, -1))


def test_somebody_elses_snn_as_student():
    d = distiller(
        "temporal_efficient_training", "activity_regularization", "logit_distillation", student=Foreign()
    )
    losses = d(X, Y)
    losses.total.backward()
    assert d.student.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("objectives", "teacher", "words"),
    [
        (["cross_entropy", "cross_entropy"], None, "two objectives are named 'cross_entropy'"),
        (["logit_distillation"], None, "'logit_distillation' needs a teacher, and none was given"),
        ([{"type": "cross_entropy", "name": "a.b"}], None, "no dots"),
        (
            ["crossentropy"],
            None,
            r"objectives\[0\]: unknown objective type 'crossentropy'; did you mean 'cross_entropy'",
        ),
    ],
)
def test_wrong_use_is_refused_in_words(objectives, teacher, words):
    with pytest.raises(SpikedistillError, match=words):
        distiller(*objectives, teacher=teacher)


def test_a_tap_that_does_not_exist_is_refused_with_the_nearest():
    d = distiller({"type": "blurred_feature", "tap": "stage1.9"})
    with pytest.raises(
        SpikedistillError, match=r"objective 'blurred_feature', student: tap 'stage1.9'.*did you mean"
    ):
        d.setup(X)


def test_the_student_cannot_teach_itself():
    student = network()
    with pytest.raises(SpikedistillError, match="same module"):
        sd.Distiller(student, student, [{"type": "logit_distillation"}])


class Vector(nn.Module):
    """Somebody's transformer: tokens, no pooling, a linear head on the class token."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(1, 12, 2, 2), nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.norm(tokens)[:, 0])


@pytest.mark.parametrize("teacher_tap", ["before_head", "norm"])
def test_a_transformer_teacher_gives_a_vector_or_tokens(teacher_tap):
    d = distiller(
        {"type": "blurred_feature", "blur_ratio": 0.0, "teacher_tap": teacher_tap}, teacher=Vector()
    ).setup(X)
    term, teacher = d.objectives["blurred_feature"], d.teacher
    assert term.restore[0].weight.shape == (12, 12, 3, 3)
    tokens = torch.cat([(t := teacher.embed(X).flatten(2).transpose(1, 2)).mean(1, keepdim=True), t], 1)
    tokens = teacher.norm(tokens)
    losses = d.eval()(X, Y)
    feature = taps.captures(d.student, X, ["before_head"])[1]["before_head"].mean(0)
    restored = term.restore(term.align(feature))
    if teacher_tap == "before_head":
        want = ((restored.mean((2, 3)) - tokens[:, 0]) ** 2).sum() / len(X)
    else:
        want = ((restored - tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))) ** 2).sum() / len(X)
    torch.testing.assert_close(losses.total, want)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.tensor([0, 1, 2, 10]), r"labels lie in 0\.\.9, found 0\.\.10"),
        (torch.tensor([0, 1, 2, -1]), r"labels lie in 0\.\.9, found -1\.\.2"),
        (
            torch.tensor([0, 1, 2]),
            r"labels are class numbers \(4,\), int64, or probabilities \(4, 10\).*found \(3,\)",
        ),
        (torch.zeros(4, 1, dtype=torch.int64), r"found \(4, 1\), int64"),
        (torch.zeros(4), r"found \(4,\), float32"),
        (torch.zeros(4, dtype=torch.uint8), r"found \(4,\), uint8"),
    ],
    ids=str,
)
def test_labels_that_are_none_are_named(y, words):
    distiller = sd.Distiller(sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2))
    with pytest.raises(sd.SpikedistillError, match=words):
        distiller(torch.rand(4, 1, 8, 8), y)
