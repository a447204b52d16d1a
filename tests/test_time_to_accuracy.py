import sys
from pathlib import Path

import pytest

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
