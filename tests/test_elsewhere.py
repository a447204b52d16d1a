"""Networks on another device than the CPU: no tensor of theirs, or of what is made of them, stays behind."""

import pytest
import torch
from torch import nn

import spikedistill as sd
from elsewhere import ELSEWHERE, Away, elsewhere
from spikedistill import taps
from spikedistill.conversion import balance_thresholds, convert
from spikedistill.data import DataInfo
from spikedistill.distiller import Distiller
from spikedistill.networks.outside import spiking_check
from spikedistill.networks.outside.foreign import foreign
from spikedistill.networks.own import Own, mark, own_of
from spikedistill.quantization import quantize, to_integer
from spikedistill.training.evaluate import evaluate, evaluate_integer
from spikedistill.training.standalone import with_graph


def network(T=2, **options):
    torch.manual_seed(0)
    return sd.networks.create("conv6", width=0.125, time_steps=T, **options)


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(4, 3, 16, 16)


def places(module):
    return {t.device for t in (*module.parameters(), *module.buffers())}


def test_the_device_of_these_tests_computes_and_refuses_the_cpus_tensors(x):
    with elsewhere() as device:
        away = x.to(device)
        assert isinstance(away, Away)
        assert away.device == ELSEWHERE
        assert torch.equal((away * 2 + torch.ones((), device=device)).cpu(), x * 2 + 1)
        with pytest.raises(RuntimeError, match="two devices"):
            away + torch.ones(16)


def test_forward_is_the_cpus(x):
    here = network().eval()(x)
    with elsewhere() as device:
        assert torch.equal(network().to(device).eval()(x.to(device)).cpu(), here)


@pytest.mark.parametrize("method", ["threshold_balancing", "signed"])
def test_conversion_stays_where_the_ann_is(method, x):
    here = convert(network(None).eval(), x, 4, method=method)(x)
    with elsewhere() as device:
        ann = network(None).eval().to(device)
        made = convert(ann, x.to(device), 4, method=method)
        assert places(made) == {device}
        assert torch.equal(made(x.to(device)).cpu(), here)
        assert torch.equal(convert(ann, x, 4, method=method)(x.to(device)).cpu(), here)  # a loader's batches


def test_a_student_on_the_cpu_begins_at_an_ann_elsewhere(x):
    ours = network()
    thetas = balance_thresholds(ours, network(None).eval(), x)
    with elsewhere() as device:
        student = network()
        assert balance_thresholds(student, network(None).eval().to(device), x.to(device)) == thetas
    assert places(student) == {torch.device("cpu")}
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), ours.parameters()))


def test_an_ordinary_network_is_turned_where_it_is(x, monkeypatch):
    # It writes into views, which this device does not know.
    monkeypatch.setattr(spiking_check, "refuse_mixing", lambda *_: None)
    with elsewhere() as device:
        turned = sd.networks.spiking(plain().to(device), 2, None, x)
        assert places(turned) == {device}
        assert turned(x.to(device)).shape == (2, 4, 10)


def test_somebody_elses_network_is_wrapped_where_it_is(x):
    with elsewhere() as device:
        wrapped = foreign(plain().to(device).eval(), "NCHW", time_steps=None)
        assert places(wrapped) == {device}
        assert wrapped(x.to(device)).shape[-1] == 10


def test_the_graph_of_an_own_network_is_read_though_it_is_elsewhere():
    info = DataInfo("x", 10, 3, (16, 16), "image", None, (0.0,), (1.0,), ("a",) * 10, {}, "", "")
    with elsewhere() as device:
        own = plain().eval().to(device)
        mark(own, Own("net:Own", {}))
        with_graph(own, info)
        assert own_of(own).why == ""
        assert own_of(own).graph is not None


def test_quantized_and_integer_networks(x):
    y = torch.arange(4)
    with elsewhere() as device:
        batch = x.to(device), y.to(device)
        made = quantize(network().eval().to(device), weight_bits=4, membrane_bits=4, calibration=[batch[0]])
        assert places(made) == {device}
        found = evaluate_integer(made, [batch])
        assert (found.images, found.equal) == (4, 4)
        taps.captures(made, batch[0], ["*@membrane", "*@output"])
        whole, spikes = to_integer(made).steps(batch[0])
        assert spikes
        assert whole.device.type == "cpu"
        assert evaluate(made, [batch], 10, time_steps=[1, 2]).images == 4


OBJECTIVES = (
    "logit_distillation", "blurred_feature", "membrane_distillation", "attention_transfer",
    "activity_regularization",
    "energy_regularization", "feature_distillation",
)  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_objectives_and_their_adapters(kind, x):
    with elsewhere() as device:
        distiller = Distiller(network(), network(), [{"type": kind}]).to(device)
        distiller.setup(x.to(device))
        assert places(distiller) == {device}
        assert torch.isfinite(distiller(x.to(device), torch.arange(4).to(device)).total.cpu())
