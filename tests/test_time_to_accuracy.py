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


def test_a_way_that_does_not_get_there_in_an_hour_says_so(tmp_path, monkeypatch):
    steps, results = tmp_path / "steps.json", tmp_path / "curves.json"
    step = 600 / 390  # ten minutes an epoch of 390 steps
    rows = {way.row: {"median_ms": 1e3 * step} for way in time_to_accuracy.WAYS.values()}
    steps.write_text(time_to_accuracy.json.dumps({"rows": rows}))
    curves = {"ours": [0.5, 0.81], "SpikingJelly, users": [0.3] * 6, "snnTorch, users": [0.3] * 2}
    curves["SpikingJelly, best"] = [0.3] * 6 + [0.9]  # after the hour
    results.write_text(time_to_accuracy.json.dumps({"curves": curves}))
    monkeypatch.setattr(time_to_accuracy, "STEPS", steps)
    monkeypatch.setattr(time_to_accuracy, "RESULTS", results)
    minutes = [line.split("|")[4].strip() for line in time_to_accuracy.table().splitlines()[2:]]
    assert minutes == ["20.0", "> 60", "not finished", "> 60"]


def test_the_time_of_the_taught_way_is_of_a_step_with_its_teacher():
    import step

    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    network = step.sd.networks.create("conv6", width=0.25, time_steps=2)
    variant = step.Taught(network, x, half=False)
    assert time_to_accuracy.WAYS["ours, taught"].step == variant.name
    variant.prepare(x, y, torch.device("cpu"), 2)
    before = [p.clone() for p in variant.network.objectives.parameters()]
    variant.step(y)
    assert before
    assert any(not torch.equal(a, b) for a, b in zip(before, variant.network.objectives.parameters()))


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
