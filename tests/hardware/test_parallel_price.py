"""Neurons with weights over time: what is priced is what the integer network keeps and computes, stepwise."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill.hardware import Layer, at_bits, floorline, layers, memory, operations, price, twin
from spikedistill.hardware.costs import add_energy, multiply_energy
from spikedistill.hardware.held import signed_bits
from spikedistill.hardware.memory import MemoryConfig
from spikedistill.neurons import NormNeuron
from spikedistill.quantization import executor

T = 4


def quantized(name, x, kind="sliding_psn", order=3, **options):
    torch.manual_seed(0)
    neuron = {"type": kind} | ({} if kind == "psn" else {"order": order})
    network = sd.networks.create(name, width=0.25, time_steps=T, neuron=neuron, **options)
    sd.balance(network, x)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(x)
    return sd.quantize(network, weight_bits=4, calibration=[x]).eval()


def found_in(integer, x, monkeypatch):
    """Of an integer network run stepwise: bits of currents and H by path, each layer's calls, last state."""
    currents, potentials, calls = {}, {}, Counter()
    charge, layer, weigh = executor.charge, executor.layer, executor.weigh

    def widest(found, path, values):
        found[path] = max(found.get(path, 0), signed_bits(int(values.min()), int(values.max())))

    def seen_charge(i, op, tensors, given):
        out = charge(i, op, tensors, given)
        widest(currents, op["path"], out)
        return out

    def seen_layer(x, weight, op):
        calls[op["path"]] += 1
        return layer(x, weight, op)

    def seen_weigh(current, steps, op, weight, offset):
        for t in range(steps):
            h = offset[min(t, len(offset) - 1)].long()
            for j in range(steps):
                lag = t - j
                if weight.dim() == 1 and not 0 <= lag < len(weight):
                    continue
                w = int(weight[t, j] if weight.dim() == 2 else weight[len(weight) - 1 - lag])
                h = h + w * (current if op["encode"] else current[j]).long()
            widest(potentials, op["path"], h)
        return weigh(current, steps, op, weight, offset)

    monkeypatch.setattr(executor, "charge", seen_charge)
    monkeypatch.setattr(executor, "weigh", seen_weigh)
    integer.steps(x)
    monkeypatch.setattr(executor, "layer", seen_layer)
    state = None
    causal = all(op.get("causal", True) for op in integer.header["ops"])
    for t in range(T if causal else 0):
        _, _, state = integer.step(x if x.dim() == 4 else x[:, t], state)
    return currents, potentials, calls, state


@pytest.mark.parametrize("kind", ["sliding_psn", "masked_psn"])
@pytest.mark.parametrize("name", ["vgg9", "resnet20", "sew_resnet20", "ms_resnet20"])
def test_the_price_is_of_what_the_integer_network_keeps_and_computes(name, kind, monkeypatch):
    x = torch.rand(4, 3, 8, 8)
    network = quantized(name, x, kind, **({"pools": 2, "pooling": "avg"} if name == "vgg9" else {}))
    found = {layer.name: layer for layer in layers(network, x)}
    integer = sd.to_integer(network)
    currents, potentials, calls, state = found_in(integer, x, monkeypatch)
    neurons = [op for op in integer.header["ops"] if op["op"] in executor.PARALLEL]
    assert len(neurons) > 3
    for op in neurons:
        path = op["path"]
        layer = found.get(f"{path}.neuron") or found[path]
        assert layer.current_bits == currents[path]
        assert layer.potential_bits == potentials[path]
        assert layer.temporal_weights * layer.weight_bits == torch.Size(op["shape"]).numel() * op["bits"]
        bits = 0
        if path in state.bits:
            bits = state.bits[path][0].numel() * 8
            assert layer.kept_bits == op["history_bits"]
            assert layer.kept_steps == state.bits[path].shape[1]
        elif path in state.currents:
            assert layer.kept_bits == currents[path]
            bits = state.currents[path][0].numel() * currents[path]
        assert bits - 8 * 8 * (op["taps"] - 1) < layer.kept_memory_bits <= bits  # bytes are filled up
    weighted = {layer.name: layer for layer in found.values() if layer.kind in ("conv", "linear")}
    assert any(layer.passes > 1 for layer in weighted.values())
    for path, count in calls.items():
        layer = weighted[path]
        runs = T if layer.input_kind == "real" and layer.runs == 1 else layer.runs  # steps see an image anew
        assert count == pytest.approx(runs * layer.passes), path


def test_rescaled_sums_are_rescaled_again(monkeypatch):
    """Layers without norms: the sums that are made again pass their multiplier again."""
    torch.manual_seed(0)
    x = torch.rand(4, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 3),
    )  # fmt: skip
    neuron = {"type": "sliding_psn", "order": 3}
    network = sd.spiking(model, time_steps=T, example=x, neuron=neuron)
    network = sd.quantize(network, weight_bits=4, calibration=[x]).eval()
    found = {layer.name: layer for layer in layers(network, x)}
    multiplied, rescale = [], executor.rescale

    def counted(acc, *rest):
        multiplied.append(acc.numel() / len(x))
        return rescale(acc, *rest)

    monkeypatch.setattr(executor, "rescale", counted)
    integer, state = sd.to_integer(network), None
    for _ in range(T):
        _, _, state = integer.step(x, state)
    conv = next(layer for layer in found.values() if layer.passes > 1)
    assert found[f"{conv.name}.rescale"].passes == conv.passes
    rows = {row.name: row for row in operations.count(list(found.values())).layers}
    # stepwise the stem sees its image, and rescales its sums, at each step
    again = (T - 1) * 512
    assert sum(row.normalisations for row in rows.values()) + again == sum(multiplied)


def test_neurons_that_see_all_steps_keep_all_inputs(monkeypatch):
    x = torch.rand(4, 3, 8, 8)
    network = quantized("vgg5", x, "psn")
    found = {layer.name: layer for layer in layers(network, x)}
    currents, potentials, _, _ = found_in(sd.to_integer(network), x, monkeypatch)
    layer = found["stage2.4.neuron"]
    assert (layer.terms, layer.kept_steps, layer.kept_bits, found["stage2.3"].passes) == (T, T, 1, T)
    assert (layer.current_bits, layer.potential_bits) == (currents["stage2.4"], potentials["stage2.4"])


@pytest.mark.parametrize(
    ("name", "options"), [("sew_resnet20", {}), ("vgg5", {"pools": 1, "pooling": "avg"})]
)
def test_the_rule_is_the_same_before_quantization(name, options):
    x = torch.rand(4, 3, 8, 8)
    neuron = {"type": "sliding_psn", "order": 3}
    network = sd.networks.create(name, width=0.25, time_steps=T, neuron=neuron, **options)
    sd.balance(network, x)
    before = layers(network, x)
    after = layers(sd.quantize(network, calibration=[x]).eval(), x)
    kept = ("passes", "terms", "kept_steps", "kept_values", "kept_bits")
    mine, theirs = (
        [tuple(getattr(layer, key) for key in kept) for layer in found] for found in (before, after)
    )
    assert mine == theirs
    assert any(layer.passes > 1 for layer in before)


def test_sums_of_pooled_spikes_are_made_again_in_every_model():
    """Behind an average pool inputs are real to a layer, and kept as the spikes that they sum."""
    x = torch.rand(4, 3, 8, 8)
    network = quantized("vgg5", x, pools=1, pooling="avg")
    found = layers(network, x)
    again = next(layer for layer in found if layer.kind == "conv" and layer.passes > 1)
    assert again.input_kind == "real"
    once = [replace(layer, passes=1.0) for layer in found]
    for model in (operations.count, memory.estimate, floorline.evaluate):
        many, single = (
            next(row for row in model(there).layers if row.name == again.name) for there in (found, once)
        )
        for term in ("macs", "synaptic_pj", "operations_pj", "addressing_pj", "parameters_pj", "synops"):
            if hasattr(single, term):
                assert getattr(many, term) == pytest.approx(again.passes * getattr(single, term)), term


def test_a_mean_of_means_sums_all_their_spikes():
    x = torch.rand(2, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    network = sd.spiking(model, time_steps=T, example=x)
    assert layers(network, x)[-1].input_bits == (4 * 4).bit_length()


CONV = Layer(
    name="c", in_channels=2, out_channels=3, kernel_size=3, in_size=4, time_steps=4, weight_bits=4,
    spikes_in=10.0,
    accumulator_bits=9, potential_bits=12, passes=1.75,
)  # fmt: skip
NEURON = Layer(
    name="n", kind="neuron", in_channels=3, out_channels=3, out_size=(4, 4), time_steps=4,
    neuron="sliding_psn",
    weight_bits=4, temporal_weights=2, terms=1.75, kept_steps=1, kept_values=32, kept_bits=1, current_bits=12,
    potential_bits=16, spikes_out=5.0,
)  # fmt: skip


def test_operations_in_closed_form():
    counted = operations.count([CONV, NEURON])
    conv, neuron = counted.layers
    once = operations.count(
        [Layer(**{**{k: getattr(CONV, k) for k in CONV.__dataclass_fields__}, "passes": 1.0})]
    )
    assert conv.acs == pytest.approx(1.75 * once.acs)
    assert conv.synaptic_pj == pytest.approx(1.75 * once.energy_pj)
    products = 3 * 16 * 4 * 1.75
    assert neuron.neuron_pj == pytest.approx(products * (multiply_energy(4, 12) + add_energy(16)))
    assert counted.footprint_bytes == (3 * 2 * 9 * 4 + 32 + 2 * 4) / 8


def test_memory_in_closed_form():
    config = MemoryConfig()
    estimate = memory.estimate([CONV, NEURON], config)
    conv, neuron = estimate.layers
    assert conv.counts["weight_reads"] == 1.75 * 10 * 3 * 9
    assert conv.counts["input_reads"] == 10  # the sums made again read kept bits
    assert neuron.counts["history_reads"] == neuron.counts["history_writes"] == 32 / 32 * 4
    assert neuron.history_pj == pytest.approx(8 * config.access(32, 32))
    assert neuron.potentials_pj == 0
    assert neuron.counts["temporal_macs"] == 3 * 16 * 4 * 1.75
    assert neuron.operations_pj == pytest.approx(
        3 * 16 * 4 * 1.75 * (multiply_energy(4, 12) + add_energy(16))
    )
    assert estimate.history_pj == neuron.history_pj
    assert estimate.total_pj == pytest.approx(conv.total_pj + neuron.total_pj)
    assert memory.estimate([CONV, NEURON], MemoryConfig(potentials="stored")).layers[
        1
    ].operations_pj == pytest.approx(neuron.operations_pj)


def test_other_models_say_what_they_do():
    x = torch.rand(4, 3, 8, 8)
    network = quantized("vgg5", x)
    found = layers(network, x)
    tree = price(found)
    unpriced = {item["name"]: item["reason"] for item in tree["spikesim"]["dense"]["unpriced"]}
    for layer in found:
        if layer.kind == "neuron":
            assert (
                "sliding_psn has no membrane that SpikeSim's neuron module could hold" in unpriced[layer.name]
            )
    assert all(
        layer.terms == 0 and layer.passes == 1 and layer.kept_memory_bits == 0 for layer in twin(found)
    )
    loads = {load.name: load for load in floorline.evaluate(found).layers}
    conv = next(layer for layer in found if layer.passes > 1)
    assert loads[conv.name].synops == pytest.approx(operations.synaptic_events(conv) * conv.passes / T)
    wider = {layer.name: layer for layer in at_bits(found, weight_bits=8)}
    assert wider["stage2.4.neuron"].weight_bits == 8
    assert wider["stage2.4.neuron"].kept_bits == 1


def test_a_membrane_is_priced_as_before():
    x = torch.rand(4, 3, 8, 8)
    network = sd.networks.create("vgg5", width=0.25, time_steps=T)
    assert isinstance(network.get_submodule("stage1.1"), NormNeuron)
    tree = price(layers(network, x))
    assert tree["memory"]["history_pj"] == 0
    assert all(layer.passes == 1 for layer in layers(network, x))
