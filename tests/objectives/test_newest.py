"""Objectives of 2025 and 2026 against loops over their equations: values, gradients by autograd of loops."""

import math

import pytest
import torch
from objective_views import captures, random, ready, setup_of, view_of
from torch import nn

import spikedistill as sd
from spikedistill.errors import SpikedistillError
from spikedistill.objectives import (
    ActivationMapDistillation,
    AttentionMapDistillation,
    CumulativeConsistency,
    EnhancedSelfDistillation,
    NoiseSmoothedDistillation,
    SelectiveAlignment,
    StableSpike,
)

T, N, K, C = 3, 5, 4, 6
Y = torch.tensor([0, 3, 1, 1, 2])
TEACHER = random(2, N, K, seed=2) * 2


def logits():
    return (random(T, N, K, seed=3) * 2).requires_grad_()


def softmax(z, tau=1.0):
    """Of a vector, from exponentials of single numbers."""
    e = [(v / tau).exp() for v in z]
    return [v / sum(e) for v in e]


def kl(teacher, student, tau):
    return sum(p * (p / q).log() for p, q in zip(softmax(teacher, tau), softmax(student, tau)))


def same(found, want, *inputs):
    """Equal value and gradients, to 1e-9."""
    assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-9, abs=1e-12)
    for mine, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(want, inputs)):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


class Classified(nn.Module):
    """Stands for a network: its classifier alone."""

    head_path = "head"

    def __init__(self, features, seed):
        super().__init__()
        self.head = nn.Linear(features, K).double()
        with torch.no_grad():
            self.head.weight.copy_(random(K, features, seed=seed))
            self.head.bias.copy_(random(K, seed=seed + 1))


# Stable Spike


def spikes(*shape, seed=1):
    return (random(*shape, seed=seed, positive=True) > 0.4).double().requires_grad_()


def stable(objective, view, network):
    given = setup_of(view.logits, student=view.student)
    given.student_network = network
    objective.setup(given)
    return objective


def test_stable_spike_against_loops():
    z, s, network = logits(), spikes(T, N, C, 2, 3), Classified(C, 7)
    view = view_of(z, Y, student=captures({"before_head": s}))
    objective = stable(StableSpike(beta=0.7, gamma=1.3, temperature=2.0), view, network)
    torch.manual_seed(0)
    found = objective(view)
    torch.manual_seed(0)
    both = sum(s[t] * s[t + 1] for t in range(T - 1)) / (T - 1)
    draw = torch.bernoulli(both.detach())
    first = sum((both[n] - sum(s[t, n] for t in range(T)) / T).pow(2).sum() for n in range(N)) / both.numel()
    second = 0
    for n in range(N):
        pooled = [(both + draw)[n, c].sum() / 6 for c in range(C)]
        noisy = [
            sum(w * x for w, x in zip(network.head.weight[k], pooled)) + network.head.bias[k]
            for k in range(K)
        ]
        second = second + 4 * kl([sum(z[:, n, k]) / T for k in range(K)], noisy, 2.0) / N
    same(found, 0.7 * first + 1.3 * second, z, s, network.head.weight, network.head.bias)


def test_stable_spike_pulls_single_spikes_down():
    s = torch.zeros(4, 1, 1, 1, 2, dtype=torch.float64)
    s[:, ..., 0], s[1, ..., 1] = 1, 1  # the first fires always, the second once
    s.requires_grad_()
    view = view_of(random(4, 1, K), student=captures({"before_head": s}))
    stable(StableSpike(gamma=0.0), view, Classified(1, 0))(view).backward()
    assert s.grad[:, ..., 0].abs().max() == 0
    assert s.grad[1, ..., 1].item() > 0


def test_stable_spike_refusals():
    view = view_of(logits(), student=captures({"before_head": random(T, N, C, 2, 2)}))
    with pytest.raises(SpikedistillError, match="other values than 0 and 1; name a neuron layer"):
        stable(StableSpike(), view, Classified(C, 0))
    view = view_of(logits(), student=captures({"before_head": spikes(T, N, C, 2, 2)}))
    with pytest.raises(SpikedistillError, match="6 channels and the classifier reads 9 features"):
        stable(StableSpike(), view, Classified(9, 0))
    with pytest.raises(SpikedistillError, match="Identity has no linear classifier"):
        stable(StableSpike(), view, nn.Identity())


def test_stable_spike_uses_the_students_own_classifier():
    torch.manual_seed(0)
    student = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=3)
    d = sd.Distiller(student, None, [{"type": "stable_spike"}]).setup(torch.rand(4, 1, 8, 8))
    assert d.objectives["stable_spike"]._head[0] is student.head
    assert not any("objectives" in name for name in d.state_dict())


# CKDSNN


def activation_maps(scaling, teacher_size=(2, 3)):
    network = Classified(C, 7)
    s, f = spikes(T, N, 4, 2, 3), random(2, N, C, *teacher_size, seed=9)
    theirs = captures({"before_head": f, "logits": TEACHER})
    view = view_of(logits(), Y, TEACHER, captures({"before_head": s}), theirs)
    objective = ActivationMapDistillation(scaling=scaling)
    given = setup_of(view.logits, TEACHER, view.student, view.teacher)
    given.teacher_network = network
    objective.setup(given)
    return objective(view), s, f.mean(0), network


@pytest.mark.parametrize("scaling", ["batch", "sample", "none"])
def test_activation_maps_against_loops(scaling):
    found, s, f, network = activation_maps(scaling)
    student, teacher = [], []
    for n in range(N):
        k = int(TEACHER.mean(0)[n].argmax())
        places = [(h, w) for h in range(2) for w in range(3)]
        student.append([sum(s[t, n, c, h, w] for t in range(T) for c in range(4)) for h, w in places])
        sums = [sum(network.head.weight[k, c].detach() * f[n, c, h, w] for c in range(C)) for h, w in places]
        teacher.append([v if v > 0 else v * 0 for v in sums])

    def to_unit(maps):
        if scaling == "none":
            return maps
        rows = torch.stack([torch.stack(m) for m in maps])
        low = rows.amin() if scaling == "batch" else rows.amin(1, keepdim=True)
        rows = rows - low
        return rows / ((rows.amax() if scaling == "batch" else rows.amax(1, keepdim=True)) + 1e-3)

    student, teacher = to_unit(student), to_unit(teacher)
    same(found, sum(4 * kl(teacher[n], student[n], 2.0) for n in range(N)) / N, s)


def test_activation_maps_pool_the_larger():
    found, s, *_ = activation_maps("batch", teacher_size=(4, 6))
    assert torch.isfinite(torch.autograd.grad(found, s)[0]).all()


@pytest.mark.parametrize("classes", [10, 7])
def test_activation_maps_are_of_the_classifiers_own_class_where_another_learns(classes):
    torch.manual_seed(0)
    student = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2)
    size = {"in_channels": 1, "width": 0.125, "pools": 1, "num_classes": classes}
    teacher = sd.networks.create("vgg5", time_steps=None, **size)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)

    def loss(heads):
        d = sd.Distiller(
            student.eval(), teacher, [{"type": "activation_map_distillation"}], teacher_heads=heads
        ).setup(x)
        if heads:
            # A head that has learned to tell the last class, which a teacher of 7 classes does not know.
            with torch.no_grad():
                d.teacher_heads["teacher"].bias[9] = 1e4
        return d(x, y).parts["activation_map_distillation"]

    assert torch.equal(loss(True), loss(False))


def test_activation_maps_need_the_classifiers_features():
    view = view_of(
        logits(), Y, TEACHER, captures({"before_head": spikes(T, N, 4, 2, 2)}),
        captures({"before_head": random(1, N, 3, 2, 2)})
    )  # fmt: skip
    given = setup_of(view.logits, TEACHER, view.student, view.teacher)
    given.teacher_network = Classified(C, 0)
    with pytest.raises(
        SpikedistillError, match="teacher's 'before_head' has 3 channels and its classifier reads 6"
    ):
        ActivationMapDistillation().setup(given)
    with pytest.raises(SpikedistillError, match="scaling must be"):
        ActivationMapDistillation(scaling="all")


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_noise_smoothed_logits_against_loops(reading):
    z = logits()
    view = view_of(z, Y, TEACHER)
    torch.manual_seed(4)
    found = ready(NoiseSmoothedDistillation(noise=0.2, reading=reading), view)(view)
    torch.manual_seed(4)
    draw = torch.randn(N, K, dtype=torch.float64)
    want = 0
    for n in range(N):
        own = [z[:, n, k].sum() / T for k in range(K)]
        mean = sum(own) / K
        variance = sum((v - mean) ** 2 for v in own) / (K - 1)
        theirs = [TEACHER[:, n, k].sum() / 2 for k in range(K)]
        if reading == "paper":
            noisy = [v + 0.2 * (mean + variance.sqrt() * e).detach() for v, e in zip(own, draw[n])]
            q = softmax(noisy, 2.0)
        else:
            noise = softmax([mean + variance * e for e in draw[n]], 2.0)
            q = [0.8 * a + 0.2 * b for a, b in zip(softmax(own, 2.0), noise)]
        want = want + 4 * sum(p * (p / r).log() for p, r in zip(softmax(theirs, 2.0), q)) / N
    same(found, want, z)


# SeAl-KD


def test_selective_alignment_against_loops():
    z = logits()
    teacher = TEACHER.mean(0)
    wrong = sum(int(z[t, n].argmax()) != int(Y[n]) for t in range(T) for n in range(N))
    assert 0 < wrong < T * N
    first, second = 0, 0
    for n in range(N):
        for t in range(T):
            s, a, y = list(z[t, n]), list(teacher[n]), int(Y[n])
            k = int(z[t, n].argmax())
            if k != y:
                s[k], a[k], a[y] = s[y], min(a[k], a[y]), min(a[k], a[y])
            first = first + 9 * kl(a, s, 3.0) / (T * N)
            fixed = z.detach()[:, n]
            scores = {}
            for other in range(T):
                if other != t:
                    p = softmax(fixed[other])
                    confidence = 1 + sum(v * (v + 1e-8).log() for v in p) / math.log(K)
                    dot = sum(u * v for u, v in zip(fixed[t], fixed[other]))
                    cosine = dot / (fixed[t].norm() * fixed[other].norm())
                    scores[other] = (confidence * cosine).exp()
            mixed = [sum(w * fixed[o, i] for o, w in scores.items()) / sum(scores.values()) for i in range(K)]
            second = second + 9 * kl(mixed, list(z[t, n]), 3.0) / (T * N)
    view = view_of(z, Y, TEACHER)
    same(ready(SelectiveAlignment(), view)(view), 0.6 * first + 0.15 * second, z)
    soft = view_of(z, nn.functional.one_hot(Y, K).double() * 0.8 + 0.05, TEACHER)
    assert float(ready(SelectiveAlignment(), soft)(soft).detach()) == pytest.approx(
        float((0.6 * first + 0.15 * second).detach()), rel=1e-9
    )


def test_selective_alignment_without_teacher_and_at_one_step():
    view = view_of(random(1, N, K), Y)
    objective = SelectiveAlignment(alpha=0.0)
    assert not objective.needs_teacher
    assert float(ready(objective, view)(view)) == 0
    with pytest.raises(SpikedistillError, match="alpha and beta must be at least 0"):
        SelectiveAlignment(alpha=-1.0)


# MEOM


def test_cumulative_consistency_against_loops():
    z = logits()
    want = 0
    for n in range(N):
        for t in range(T - 1):
            shorter = [z[: t + 1, n, k].sum() / (t + 1) for k in range(K)]
            longer = [z[: t + 2, n, k].detach().sum() / (t + 2) for k in range(K)]
            pairs = zip(softmax(longer, 2.0), softmax(shorter, 2.0))
            want = want - sum(p * q.log() for p, q in pairs) / (N * (T - 1))
    view = view_of(z, Y)
    same(ready(CumulativeConsistency(temperature=2.0), view)(view), want, z)


# Attention maps


class Attends(nn.Module):
    def __init__(self, heads, fused=False):
        super().__init__()
        self.heads = heads
        for name in ("qkv",) if fused else ("q", "k"):
            self.add_module(name, nn.Identity())


def attention_view(student, teacher, heads=(2, 2), fused=False):
    """Setup and view of bare queries and keys, (T, N, C, L) each."""
    view = view_of(
        logits(),
        Y,
        TEACHER,
        captures(student, attention=list(student)),
        captures(teacher, attention=list(teacher)),
    )
    given = setup_of(view.logits, TEACHER, view.student, view.teacher)
    blocks = lambda side, n, fused: nn.Sequential(  # noqa: E731
        *[Attends(n, fused) for _ in range(len(side) // (1 if fused else 2))]
    )
    given.student_network, given.teacher_network = (
        blocks(student, heads[0], False),
        blocks(teacher, heads[1], fused),
    )
    objective = AttentionMapDistillation()
    objective.setup(given)
    return objective, view


def one_map(q, k, head, heads):
    """Frobenius-normalised map of one sample's head, (T, C, L) queries and keys."""
    d, L = q.shape[1] // heads, q.shape[2]
    places = [(t, head * d + c) for t in range(len(q)) for c in range(d)]
    A = [[sum(q[t, c, i] * k[t, c, j] for t, c in places) / len(places) for j in range(L)] for i in range(L)]
    norm = sum(v**2 for row in A for v in row).sqrt()
    return [v / norm for row in A for v in row]


def test_attention_maps_against_loops():
    L = 4
    mine = [spikes(T, N, 4, L, seed=i) for i in range(4)]
    theirs = [random(1, N, 6, L, seed=i, positive=True) for i in range(4)]
    names = ("0.q", "0.k", "1.q", "1.k")
    objective, view = attention_view(dict(zip(names, mine)), dict(zip(names, theirs)))
    want = 0
    for block in (0, 2):
        for n in range(N):
            for h in range(2):
                a = one_map(mine[block][:, n], mine[block + 1][:, n], h, 2)
                b = one_map(theirs[block][:, n], theirs[block + 1][:, n], h, 2)
                want = want + sum((u - v) ** 2 for u, v in zip(a, b)) / (2 * N * 2)
    same(objective(view), want, *mine)


def test_attention_maps_of_a_joint_projection_and_other_heads():
    L = 4
    q, k, v = (random(1, N, 6, L, seed=i) for i in (5, 6, 7))
    joint = torch.cat([x.transpose(2, 3) for x in (q, k, v)], 3)
    mine = {"0.q": spikes(T, N, 4, L, seed=1), "0.k": spikes(T, N, 4, L, seed=2)}
    objective, view = attention_view(mine, {"0.qkv": joint}, heads=(2, 2), fused=True)
    apart, other = attention_view(mine, {"0.q": q, "0.k": k}, heads=(2, 2))
    assert float(objective(view).detach()) == pytest.approx(float(apart(other).detach()), rel=1e-12)
    # With a class token in front, the maps of the patches alone are compared.
    token = torch.cat([random(1, N, 1, 18, seed=8), joint], 2)
    objective, view = attention_view(mine, {"0.qkv": token}, heads=(2, 2), fused=True)
    assert float(objective(view).detach()) == pytest.approx(float(apart(other).detach()), rel=1e-12)
    objective, view = attention_view(mine, {"0.q": q, "0.k": k}, heads=(2, 3))
    want = 0
    for n in range(N):
        a = [one_map(mine["0.q"][:, n], mine["0.k"][:, n], h, 2) for h in range(2)]
        b = [one_map(q[:, n], k[:, n], h, 3) for h in range(3)]
        want += sum((sum(x) / 2 - sum(y) / 3) ** 2 for x, y in zip(zip(*a), zip(*b))) / N
    assert float(objective(view).detach()) == pytest.approx(float(want.detach()), rel=1e-9)


def test_attention_maps_pair_by_depth_and_refuse_other_sizes():
    from spikedistill.objectives.attention_maps import pairs

    assert pairs(2, 4) == [(0, 1), (1, 3)]
    assert pairs(4, 2) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    with pytest.raises(SpikedistillError, match="the student attends to 4 tokens and the teacher to 9"):
        attention_view(
            {"0.q": spikes(T, N, 4, 4), "0.k": spikes(T, N, 4, 4)},
            {"0.q": random(1, N, 4, 9), "0.k": random(1, N, 4, 9)},
        )


def test_a_nearly_silent_head_has_a_bounded_gradient():
    def slope(rate):
        x = (random(T, N, 4, 4, seed=1, positive=True) * 2 * rate).requires_grad_()
        theirs = {"0.q": random(1, N, 4, 4, seed=3), "0.k": random(1, N, 4, 4, seed=4)}
        objective, view = attention_view({"0.q": x, "0.k": x}, theirs)
        return float(torch.autograd.grad(objective(view), x)[0].abs().max())

    assert slope(1e-5) < slope(0.1)
    assert slope(1 / 256) < 100 * slope(0.1)


def test_networks_without_attention_are_refused():
    student = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1)
    teacher = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=None)
    d = sd.Distiller(student, teacher, [{"type": "attention_map_distillation"}])
    with pytest.raises(SpikedistillError, match=r"student: tap 'attention': the network has no attention"):
        d.setup(torch.rand(2, 1, 8, 8))


def test_quantized_transformers_give_their_spikes():
    from cases import digits, transformer

    x, y = digits()
    student = sd.quantize(transformer(2, 0), weight_bits=4, membrane_bits=4, calibration=[x[:8]])
    d = sd.Distiller(student, transformer(None, 1), [{"type": "attention_map_distillation"}]).setup(x[:8])
    losses = d(x[:8], y[:8])
    losses.total.backward()
    assert 0 < float(losses.total.detach()) < 4


def test_stable_spike_refuses_sums_of_spikes_once_there_are_any():
    # as initialised this network is silent in eval mode, and zeros could be spikes
    network = sd.networks.create("sew_resnet20", in_channels=1, width=0.25, time_steps=2)
    distiller = sd.Distiller(network, None, [{"type": "stable_spike", "gamma": 0.0}])
    with pytest.raises(sd.SpikedistillError, match="gives other values than 0 and 1"):
        distiller(torch.rand(4, 1, 8, 8), torch.arange(4))


def test_a_map_that_the_classifier_does_not_read_is_refused():
    torch.manual_seed(0)
    teacher = sd.networks.create("vgg5", in_channels=1, width=0.125, hidden=128, time_steps=None)
    student = sd.networks.create("vgg5", in_channels=1, width=0.125, time_steps=2)
    for layer in (teacher.hidden, teacher.head):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight)
    distiller = sd.Distiller(student, teacher, [{"type": "activation_map_distillation"}])
    with pytest.raises(sd.SpikedistillError, match="do not read the average of tap 'before_head'"):
        distiller.setup(torch.rand(4, 1, 8, 8))


# Enhanced self-distillation


def enhanced(target, maps, z, term):
    """The loss of branches that are averages over places and a linear layer, sample by sample."""
    rates = [m.mean(0) for m in maps]
    outputs = [b(r) for b, r in zip(term.branches, rates)] + [z.mean(0)]
    hard = sum(-sum(softmax(o[n])[int(target[n])].log() for n in range(N)) / N for o in outputs[:-1])
    soft, taught = 0.0, 0
    for n in range(N):
        right = [o[n].detach() for o in outputs if int(o[n].argmax()) == int(target[n])]
        if right:
            teacher = sum(right) / len(right)
            soft, taught = soft + sum(kl(teacher, o[n], term.temperature) for o in outputs), taught + 1
    return hard + term.soft * term.temperature**2 * soft / max(taught, 1), taught


@pytest.mark.parametrize("wrong", [False, True])
def test_enhanced_self_distillation(wrong):
    maps = [random(T, N, C, s, s, seed=s).abs().requires_grad_() for s in (8, 4, 2)]
    z = logits()
    term = EnhancedSelfDistillation(soft=0.4, temperature=3.0)
    seen = captures({f"s{i}": m for i, m in enumerate(maps)}, stages=["s0", "s1", "s2"])
    view = view_of(z, Y, student=seen)
    ready(term, view)
    term.eval()
    if wrong:  # no output is right for any sample
        decided = torch.stack([*(b(m.mean(0)) for b, m in zip(term.branches, maps)), z.mean(0)]).argmax(-1)
        view.target = torch.tensor([next(k for k in range(K) if k not in d) for d in decided.T.tolist()])
    want, taught = enhanced(view.target, maps, z, term)
    assert (taught == 0) == wrong
    inputs = [*maps[:2], *([] if wrong else [z])]
    same(term(view), want, *inputs)
    assert len(term.branches) == 2
    # Branches end where the last stage does: at its channels, strides as between the stages.
    shapes = [tuple(block(m.mean(0)).shape[1:]) for block, m in zip([b[0] for b in term.branches], maps)]
    assert shapes == [(C, 4, 4), (C, 2, 2)]


def test_enhanced_self_distillation_needs_two_stages():
    one = view_of(logits(), Y, student=captures({"s0": random(T, N, C, 4, 4)}, stages=["s0"]))
    with pytest.raises(SpikedistillError, match="one stage"):
        ready(EnhancedSelfDistillation(), one)


def test_one_class_is_refused_by_what_compares_classes():
    view = view_of(random(T, N, 1), torch.zeros(N, dtype=torch.long), teacher_logits=random(1, N, 1))
    for term in (NoiseSmoothedDistillation(), SelectiveAlignment()):
        with pytest.raises(SpikedistillError, match="the student has 1 class"):
            ready(term, view)


def test_a_hidden_layer_before_the_classifier_is_refused_of_any_teacher():
    torch.manual_seed(0)
    hidden = [nn.Linear(8, 8), nn.ReLU()]
    for between, fits in (([], True), (hidden, False)):
        teacher = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *between,
            nn.Linear(8, 10),
        )  # fmt: skip
        student = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2)
        term = ActivationMapDistillation(teacher_tap="1")
        distiller = sd.Distiller(student, teacher, [term])
        x = torch.rand(4, 1, 8, 8)
        if fits:
            distiller.setup(x)
        else:
            with pytest.raises(SpikedistillError, match="the classifier's weights do not read the average"):
                distiller.setup(x)
