import copy
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import time_to_accuracy

PEERS = [name for name, way in time_to_accuracy.WAYS.items() if way.neuron is not None]


@pytest.mark.parametrize("name", PEERS)
def test_the_curve_of_a_peer_is_of_its_own_neuron(name):
    pytest.importorskip("snntorch" if name.startswith("snnTorch") else "spikingjelly")
    neuron = time_to_accuracy.WAYS[name].neuron
    time_to_accuracy.equal(neuron(), name)
    wrong = neuron()
    wrong.threshold = 1.25
    with pytest.raises(SystemExit, match="not the neuron"):
        time_to_accuracy.equal(wrong, name)


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The column of minutes, by curves and the minutes of an epoch of 390 steps by T."""
    monkeypatch.setattr(time_to_accuracy, "STEPS", tmp_path / "steps.json")
    monkeypatch.setattr(time_to_accuracy, "RESULTS", tmp_path / "curves.json")

    def minutes(curves, **by_steps):
        for name, epoch in by_steps.items():
            step = {"median_ms": 1e3 * epoch * 60 / 390}
            rows = {way.row(4): step for way in time_to_accuracy.WAYS.values()}
            path = tmp_path / f"steps{'' if name == 'T4' else f'-{name}'}.json"
            path.write_text(time_to_accuracy.json.dumps({"rows": rows}))
        (tmp_path / "curves.json").write_text(time_to_accuracy.json.dumps({"curves": curves}))
        lines = (line.split("|") for line in time_to_accuracy.table().splitlines()[2:])
        return {line[1].strip(): line[4].strip() for line in lines}

    return minutes


def test_a_way_that_does_not_get_there_in_an_hour_says_so(told):
    curves = {
        "ours": [0.4] * 3 + [0.6] * 5 + [0.81],  # three epochs of one step, five of two, one of four
        "SpikingJelly, users": [0.3] * 6,
        "snnTorch, users": [0.3] * 2,
        "SpikingJelly, best": [0.3] * 6 + [0.9],  # after the hour
    }
    assert told(curves, T1=3, T2=5, T4=10) == {
        "ours": "44.0",
        "SpikingJelly, users": "> 60",
        "snnTorch, users": "not finished",
        "SpikingJelly, best": "> 60",
    }
    curves = {"ours, four steps throughout": [0.79] * 10}
    assert told(curves, T4=2.5) == {"ours, four steps throughout": "not in 10 epochs, 25 minutes"}


@pytest.mark.parametrize("way", ["ours, taught", "ours, rate-based"])
def test_the_time_of_a_distilled_way_is_of_a_step_of_its_own_kind(monkeypatch, way):
    import step

    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    monkeypatch.setattr(
        "sys.argv", ["step", "--taught", "--width", "0.25", "--time-steps", "2", "--batch", "4"]
    )
    named = {v.name: v for v in step.variants(step.arguments(), half=False)}
    variant = named[time_to_accuracy.WAYS[way].step]
    assert variant.network.rate_based == (way == "ours, rate-based")
    variant.prepare(x, y, torch.device("cpu"), 2)
    # What the terms of a teacher learn, learns too.
    learning = variant.network.objectives if way == "ours, taught" else variant.network.student
    before = [p.clone() for p in learning.parameters()]
    variant.step(y)
    assert before
    assert any(not torch.equal(a, b) for a, b in zip(before, learning.parameters()))


def test_what_the_terms_of_the_taught_way_learn_is_trained_and_kept(tmp_path, monkeypatch):
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8), torch.arange(32) % 10
    data = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    small = time_to_accuracy.sd.networks.create("conv6", width=0.125, time_steps=2)
    monkeypatch.setattr(time_to_accuracy, "network_of", lambda way: copy.deepcopy(small))
    monkeypatch.setattr(time_to_accuracy, "BATCH", 16)
    monkeypatch.setattr(time_to_accuracy, "RESULTS", tmp_path / "curves.json")
    teacher = time_to_accuracy.sd.networks.create("resnet20", width=0.25, time_steps=None)
    states = []
    for epochs in (1, 2):
        time_to_accuracy.curve("ours, taught", data, teacher, tmp_path / "state.pt", epochs)
        kept = torch.load(tmp_path / "state.pt", weights_only=True)
        states.append({k: v for k, v in kept["network"].items() if "aligner" in k and "weight" in k})
        assert len(kept["accuracies"]) == epochs
    assert states[0]
    assert all(not torch.equal(v, states[1][k]) for k, v in states[0].items())
