"""Activity, energy and spike counts: against loops and against the hardware counts."""

import math

import pytest
import torch
import yaml
from objective_views import captures, random, ready, setup_of, view_of

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import operations
from spikedistill.hardware.workload import layers
from spikedistill.objectives import ActivityRegularization, SpikeCount
from spikedistill.recipe import load

T, N = 3, 2
LOGITS = random(T, N, 4)


def spikes(*shape, seed):
    return (random(*shape, seed=seed) > 0.4).double()


def test_rates_per_layer_against_loops():
    tensors = {"a@spikes": spikes(T, N, 3, 2, 2, seed=1), "b@spikes": spikes(T, N, 5, seed=2)}
    student = captures(tensors)
    student.names["*@spikes"] = list(tensors)
    view = view_of(LOGITS, student=student)
    rates = [
        [sum(x[:, i].tolist()) / T for i in range(x.shape[1])]
        for x in (v.flatten(1) for v in tensors.values())
    ]
    for norm, power in (("l1", 1), ("l2", 2)):
        want = sum(sum(r**power for r in layer) / len(layer) for layer in rates) / 2
        assert float(ready(ActivityRegularization(norm), view)(view)) == pytest.approx(want, abs=1e-12)
    one = ready(ActivityRegularization(layers=["b"]), view)(view)
    assert float(one) == pytest.approx(sum(rates[1]) / len(rates[1]), abs=1e-12)


def test_zero_without_spikes_and_refusals():
    student = captures({"a@spikes": torch.zeros(T, N, 3)})
    view = view_of(LOGITS, student=student)
    assert float(ready(ActivityRegularization(layers=["a"]), view)(view)) == 0
    with pytest.raises(SpikedistillError, match="'l1' or 'l2', found 'l0'"):
        ActivityRegularization("l0")
    with pytest.raises(SpikedistillError, match="'layer' or 'fan_out'"):
        ActivityRegularization(per="neuron")


def network(name="vgg5", **given):
    torch.manual_seed(3)
    options = {"in_channels": 1, "width": 0.125, "time_steps": T} | given
    out = sd.networks.create(name, **options)
    for module in out.modules():
        if isinstance(module, torch.nn.BatchNorm2d | sd.NormNeuron):
            torch.nn.init.uniform_(module.bias, 0.2, 1.0)
    return out.eval()


def run(student, x, objectives):
    """Parts of a distiller in eval mode."""
    distiller = sd.Distiller(student, None, objectives).setup(x)
    student.eval()
    return distiller(x, torch.zeros(len(x), dtype=torch.long)).parts


def test_fan_out_weighs_layers_by_the_connections_they_feed():
    student = network(pools=1)
    x = torch.rand(4, 1, 8, 8)
    part = run(student, x, [{"type": "activity_regularization", "per": "fan_out"}])["activity_regularization"]
    # vgg5 at width 1/8 with one pooling: 8 -> pool -> 16 -> 16 -> global mean -> 10, on 8x8 and then 4x4.
    inner = (2 + 3 + 3 + 2) ** 2  # kernel positions inside a 4x4 map, by row and by column
    connections = {"stage1.1": inner * 8 * 16, "stage2.1": inner * 16 * 16, "stage2.3": 16 * 10}
    _, found = taps.captures(student, x, ["*@spikes"])
    rates = {name: float(s.detach().mean()) for name, s in found.all("*@spikes").items()}
    names = list(rates)
    assert len(names) == 3
    want = sum(c * rates[n] for n, c in zip(names, connections.values())) / sum(connections.values())
    assert float(part) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("name", ["vgg5", "resnet20", "sew_resnet20", "ms_resnet20"])
def test_energy_is_the_hardware_count(name):
    # LIF where SEW's sums would otherwise be more than a spike a neuron, beyond the dense network's energy.
    options = {"neuron": sd.LIF()} if name == "sew_resnet20" else {}
    student = network(name, **({} if name == "vgg5" else {"width": 0.25}), **options)
    x = torch.rand(3, 1, 8, 8)
    counted = operations.count(layers(student, x))
    parts = run(
        student,
        x,
        [
            {"type": "energy_regularization", "unit": "pJ"},
            {"type": "energy_regularization", "unit": "nJ", "name": "nano"},
            {"type": "energy_regularization", "name": "relative"},
        ],
    )
    assert float(parts["energy_regularization"]) == pytest.approx(counted.energy_pj, rel=1e-5)
    assert float(parts["nano"]) == pytest.approx(counted.energy_pj * 1e-3, rel=1e-5)
    assert 0 < float(parts["relative"]) < 1


@pytest.mark.parametrize("name", ["vgg5", "ms_resnet20"])
def test_energy_of_a_quantized_network_is_the_hardware_count(name):
    quantize = pytest.importorskip("spikedistill.quantization").quantize
    x = torch.rand(3, 1, 8, 8)
    student = quantize(network(name, width=0.25), weight_bits=4, membrane_bits=4, calibration=[x])
    part = run(student, x, [{"type": "energy_regularization", "unit": "pJ"}])["energy_regularization"]
    assert float(part) == pytest.approx(operations.count(layers(student, x)).energy_pj, rel=1e-5)


def test_energy_falls_when_it_is_trained_down():
    student = network()
    x = torch.rand(8, 1, 8, 8)
    distiller = sd.Distiller(student, None, [{"type": "energy_regularization"}]).setup(x)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.5)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        losses = distiller(x, torch.zeros(8, dtype=torch.long))
        losses.total.backward()
        optimizer.step()
        values.append(float(losses.parts["energy_regularization"]))
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["vgg5", "sew_resnet20"])
def test_operations_beyond_the_aim_are_priced(name):
    student = network(name, **({} if name == "vgg5" else {"width": 0.25}))
    x = torch.rand(3, 1, 8, 8)
    counted = operations.count(layers(student, x)).acs
    aims = [
        {"type": "operations_aim", "operations": counted * f, "name": n}
        for n, f in (("less", 0.5), ("more", 2.0))
    ]
    parts = run(student, x, aims)
    assert float(parts["less"]) == pytest.approx(math.log(2), rel=1e-4)
    assert float(parts["more"]) == 0.0
    with pytest.raises(sd.SpikedistillError, match="positive"):
        sd.Distiller(student, None, [{"type": "operations_aim", "operations": 0.0}])


def aimed_at_60k(folder, batch_size, optimizer, **stage):
    """A run of one stage; free it has 160,000 operations."""
    network = {"name": "vgg5", "width": 0.25, "pools": 1, "firing_rate": 0.1}
    recipe = {
        "data": {"name": "digits", "batch_size": batch_size},
        "precision": "float32",
        "optimizer": {"schedule": "one_cycle", **optimizer},
        "stages": [{"name": "aimed", "network": network, **stage}],
    }
    return sd.train(recipe, out=folder)


def test_a_stages_operations_are_an_objective_and_reached(tmp_path):
    run = aimed_at_60k(tmp_path / "run", 64, {"name": "adamw", "lr": 0.01}, epochs=10, operations=60_000)
    (aimed,) = run.summary.stages
    assert aimed.operations_aim == 60_000
    assert aimed.objectives == [{"type": "cross_entropy"}, {"type": "operations_aim", "operations": 60_000}]
    assert 55_000 < aimed.synaptic_operations < 66_000
    assert aimed.accuracy > 0.9
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["recipe"]
    assert recorded["stages"][0]["operations"] == 60_000
    assert len(load(recorded).stages[0].objectives) == 2  # the objective is there once


def test_an_aim_is_reached_beside_objectives_of_any_weight(tmp_path):
    def reached(**given: float) -> float | None:
        aim = {"type": "operations_aim", "operations": 60_000, **given}
        terms = [{"type": "cross_entropy", "weight": 30.0}, aim]
        sgd = {"name": "sgd", "lr": 0.001}
        run = aimed_at_60k(tmp_path / str(given), 32, sgd, epochs=20, objectives=terms)
        return run.summary.stages[0].synaptic_operations

    assert reached(dual_rate=0.0) > 80_000
    assert 50_000 < reached() < 66_000


def test_an_aims_multiplier_rises_above_it_falls_below_and_is_kept():
    student, x = network(), torch.rand(3, 1, 8, 8)
    counted = operations.count(layers(student, x)).acs
    aim = {"type": "operations_aim", "operations": counted / 1.5, "dual_rate": 0.1}
    distiller = sd.Distiller(student, None, [aim]).setup(x)
    (name,) = [k for k in distiller.state_dict() if k.endswith("multiplier")]
    y = torch.zeros(3, dtype=torch.long)
    values = [float(distiller(x, y).parts["operations_aim"].detach()) for _ in range(3)]
    expected = [1.5 ** (0.1 * k) * math.log(1.5) for k in range(3)]
    assert values == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        distiller(x, y)  # no training step
    assert float(distiller.state_dict()[name]) == pytest.approx(1.5**0.3, rel=1e-4)
    distiller.objectives["operations_aim"].operations *= 100
    distiller(x, y)
    assert float(distiller.state_dict()[name]) == pytest.approx(1.5**0.3 * 0.5**0.1, rel=1e-4)
    with pytest.raises(sd.SpikedistillError, match="dual_rate"):
        sd.Distiller(student, None, [{**aim, "dual_rate": 1.0}])


def test_an_ann_has_no_spikes_to_price():
    ann = network(time_steps=None)
    with pytest.raises(SpikedistillError, match=r"energy_regularization.*has spikes for its input"):
        sd.Distiller(ann, None, [{"type": "energy_regularization"}]).setup(torch.rand(2, 1, 8, 8))


def test_spike_count_against_loops():
    s, y = spikes(T, N, 4, seed=3), torch.tensor([1, 3])
    right, wrong = 0.9, 0.2
    want = 0.0
    for b in range(N):
        for k in range(4):
            count = sum(s[:, b, k].tolist())
            want += (count - T * (right if k == int(y[b]) else wrong)) ** 2 / (N * 4) / T
    view = view_of(s, y)
    assert float(ready(SpikeCount(right, wrong), view)(view)) == pytest.approx(want, abs=1e-12)
    onehot = torch.nn.functional.one_hot(y, 4).double()
    assert float(SpikeCount(right, wrong)(view_of(s, onehot))) == pytest.approx(want, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_spike_count_equals_snntorch():
    functional = pytest.importorskip("snntorch.functional")
    s, y = spikes(10, 6, 4, seed=4).float(), torch.tensor([0, 1, 2, 3, 0, 1])
    want = functional.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)(s, y)
    assert float(SpikeCount(0.8, 0.2)(view_of(s, y))) == pytest.approx(float(want), rel=1e-6)


def test_spike_count_needs_a_spiking_head():
    with pytest.raises(SpikedistillError, match="outputs are not spikes; create it with head='spiking'"):
        SpikeCount().setup(setup_of(LOGITS))
    SpikeCount().setup(setup_of(spikes(T, N, 4, seed=1)))
    with pytest.raises(SpikedistillError, match="0 <= wrong < right <= 1"):
        SpikeCount(0.2, 0.8)
