"""The widths in a price are those of the integer network's tensors on real data."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill.hardware import Config, Layer, at_bits, layers, memory, operations, price, spikesim, twin
from spikedistill.hardware.costs import add_energy, multiply_energy
from spikedistill.hardware.held import signed_bits
from spikedistill.hardware.memory import MemoryConfig
from spikedistill.quantization import executor


def digits(n=16):
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images[:n] / 16).float().unsqueeze(1)


def quantized(name="vgg9", T=3, **given):
    torch.manual_seed(0)
    size = {"width": 0.125, "pools": 2} if name.startswith("vgg") else {"width": 0.125}
    network = sd.networks.create(name, in_channels=1, time_steps=T, mean=0.3, std=0.38, **size)
    for module in network.modules():
        if isinstance(module, sd.NormNeuron):
            torch.nn.init.constant_(module.bias, 0.5)
    options = {"weight_bits": 4, "membrane_bits": 4, "calibration": [digits()]} | given
    return sd.quantize(network, **options).eval()


def found_in(integer, x, monkeypatch):
    """Bits of every accumulator tensor and charged membrane of an integer network on a batch, by path."""
    sums, charged = {}, {}
    layer, scan = executor.layer, executor.scan

    def width(*values):
        return signed_bits(min(int(v.min()) for v in values), max(int(v.max()) for v in values))

    def seen_layer(x, weight, op):
        out = layer(x, weight, op)
        sums[op["path"]] = width(out)
        return out

    def seen_scan(current, T, n):
        (l, L), v, all_h = n["leak"], None, []
        for t in range(T):
            i = (current if n["encode"] else current[t]).long()
            v = torch.full_like(i, n["initial"]) if v is None else v
            h = (v if n["leak_first"] else torch.div(v * l, 2**L, rounding_mode="floor")) + i
            all_h.append(h)
            v = torch.where(h >= n["threshold"], 0 if n["reset"] == "hard" else h - n["threshold"], h)
            if n["leak_first"]:
                v, q = v * l, L + n["shift"]
            else:
                q = n["shift"]
            rounded = torch.div(v + (2 ** (q - 1) if q > 0 else 0), 2**q, rounding_mode="floor")
            v = rounded.clamp(-(2 ** (n["bits"] - 1)), 2 ** (n["bits"] - 1) - 1) * 2 ** n["shift"]
        charged[n["path"]] = width(*all_h)
        return scan(current, T, n)

    monkeypatch.setattr(executor, "layer", seen_layer)
    monkeypatch.setattr(executor, "scan", seen_scan)
    integer.steps(x)
    return sums, charged


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("vgg9", {}), ("vgg9", {"weight_bits": 2, "membrane_bits": 2}), ("vgg9", {"scheme": "mint"}),
        ("resnet20", {}), ("ms_resnet20", {}), ("svgg11", {}),
    ],
)  # fmt: skip
def test_widths_are_those_of_the_integer_network(name, given, monkeypatch):
    network, x = quantized(name, **given), digits()
    found = {layer.name: layer for layer in layers(network, x)}
    sums, charged = found_in(sd.to_integer(network), x, monkeypatch)
    mine = {n: layer.accumulator_bits for n, layer in found.items() if layer.kind in ("conv", "linear")}
    assert mine == sums
    charged = {n.removesuffix(".neuron"): bits for n, bits in charged.items()}
    neurons = {n.removesuffix(".neuron"): f.potential_bits for n, f in found.items() if f.kind == "neuron"}
    assert neurons == charged
    assert max(charged.values()) > 8  # at 2 or 4 stored bits
    priced = {row.name: row for row in memory.estimate(list(found.values())).layers}
    for n, layer in found.items():
        if layer.kind == "neuron":
            assert priced[n].potential_bits == charged[n.removesuffix(".neuron")]
        elif layer.kind in ("conv", "linear"):
            assert priced[n].potential_bits == max(sums[n], layer.potential_bits or 0)


def test_a_layer_charges_the_neuron_behind_its_norm():
    network, x = quantized("resnet20"), digits()
    found = {layer.name: layer for layer in layers(network, x)}
    for layer in found.values():
        if layer.kind == "norm" and layer.inputs and found[layer.inputs[0]].kind == "conv":
            assert layer.accumulator_bits == found[layer.inputs[0]].accumulator_bits
        if layer.kind == "conv":
            assert layer.potential_bits in {f.potential_bits for f in found.values() if f.kind == "neuron"}
    assert [layer for layer in found.values() if layer.kind == "linear"][-1].potential_bits is None


HELD = Layer(
    name="c", in_channels=4, out_channels=6, kernel_size=3, in_size=9, time_steps=3, spikes_in=50.0,
    spikes_out=20.0,
    neuron="lif", leaky=True, weight_bits=4, membrane_bits=4, accumulator_bits=9, potential_bits=11,
)  # fmt: skip


def test_energy_at_the_held_width_and_the_papers_switch():
    stored = replace(HELD, accumulator_bits=None, potential_bits=None)
    papers = memory.estimate([HELD], MemoryConfig(potentials="stored"))
    assert papers.total_pj == memory.estimate([stored]).total_pj
    assert papers.layers[0].potential_bits == 4
    held = memory.estimate([HELD])
    wide = memory.estimate([replace(stored, membrane_bits=11)])
    for term in ("operations_pj", "potentials_pj"):
        assert getattr(held, term) == pytest.approx(getattr(wide, term))
    # word and capacity both grow
    assert held.potentials_pj == pytest.approx((11 / 4) ** 2 * papers.potentials_pj)
    assert any("not measured" in note for note in memory.estimate([stored]).notes)
    assert not any("not measured" in note for note in held.notes + papers.notes)


def test_operations_at_the_held_width():
    (counted,) = operations.count([HELD]).layers
    # whatever the batch, 36 weights fit
    assert counted.synaptic_pj == pytest.approx(counted.acs * add_energy(4 + 6))
    assert counted.neuron_pj == pytest.approx(counted.updates * (add_energy(11) + multiply_energy(11, 11)))
    norm = replace(HELD, kind="norm", norm_bits=8, neuron=None, in_channels=6)
    assert operations.norm_energy(norm) == pytest.approx(multiply_energy(8, 9) + add_energy(11))


def test_spikesim_at_the_held_width():
    stored = replace(HELD, accumulator_bits=None, potential_bits=None)
    mine, theirs = (spikesim.evaluate([layer]).components["neuron"] for layer in (HELD, stored))
    assert mine == pytest.approx(theirs * 11 / 4)
    off = Config(switches={"potential_bits": False})
    assert spikesim.evaluate([HELD], off).components["neuron"] == theirs
    released = Config(mode="released")
    assert spikesim.evaluate([HELD], released).energy_pj == spikesim.evaluate([stored], released).energy_pj
    areas = [spikesim.evaluate([layer]).area["membrane_memory"] for layer in (HELD, stored)]
    assert areas[0] == areas[1]  # between steps a membrane has its stored bits


def test_norms_are_priced_as_they_are_kept():
    network = quantized()
    integer = sd.to_integer(network)
    kept = sum(
        8 * t.element_size() * t.numel() for name, t in integer.tensors.items() if name.endswith((".M", ".B"))
    )
    found = layers(network, digits())
    norms = [layer for layer in found if layer.kind == "norm"]
    assert sum(layer.norm_memory_bits for layer in norms) == kept
    smaller = [replace(layer, norm_stored_bits=None) for layer in found]
    assert 8 * (operations.footprint(found) - operations.footprint(smaller)) == kept - kept * 16 / 48


def without_norms(bias, residual=False):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = (nn.Conv2d(c, 8, 3, padding=1, bias=bias) for c in (1, 8))
            self.first, self.second, self.pool = nn.ReLU(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(8, 10, bias=bias)

        def forward(self, x):
            x = self.stem(x)
            y = self.conv(self.first(x))
            return self.head(self.pool(self.second(y + x if residual else y)).flatten(1))

    torch.manual_seed(0)
    return sd.spiking(Small(), time_steps=3, example=digits(2))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (name, given)
        for given in ({}, {"scheme": "mint"}, {"unit": "weights"})
        for name in ("vgg9", "resnet20", "biased norms", "bias", "no bias", "stream")
        if name != "stream" or not given  # folded schemes refuse streams
    ],
)
def test_norms_and_rescalings_are_those_of_the_integer_network(name, given, monkeypatch):
    """As many multiplications, as many stored bits, with norms, with rescaled layers, folded or not."""
    options = {"weight_bits": 4, "membrane_bits": 4, "norm_bits": 8, "calibration": [digits()]} | given
    if name in ("vgg9", "resnet20"):
        network = quantized(name, **given)
    elif name == "biased norms":
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )
        network = sd.quantize(sd.spiking(model, time_steps=3, example=digits(2)), **options).eval()
    else:
        network = sd.quantize(without_norms(name != "no bias", name == "stream"), **options).eval()
    integer, multiplied, rescale = sd.to_integer(network), [], executor.rescale

    def counted(acc, *rest):
        multiplied.append(acc.numel())
        return rescale(acc, *rest)

    monkeypatch.setattr(executor, "rescale", counted)
    integer.steps(digits(8))
    found = layers(network, digits(8))
    rows = {row.name: row for row in operations.count(found).layers}
    norms = [layer for layer in found if layer.kind == "norm"]
    scaled = [layer for layer in norms if not layer.norm_folded]
    assert len(scaled) == len(multiplied)
    assert sum(rows[layer.name].normalisations for layer in scaled) == sum(multiplied) / 8
    assert bool(scaled) != bool(given)
    kept = sum(
        8 * t.element_size() * t.numel()
        for key, t in integer.tensors.items()
        if key.endswith((".M", ".B", ".bias"))
    )
    biases = sum(32 * layer.out_channels for layer in found if layer.bias)
    assert sum(layer.norm_memory_bits for layer in norms) + biases == kept
    # a rescaling reads its layer's sums and charges the neuron behind
    sums = {layer.name: layer.accumulator_bits for layer in found}
    assert all(layer.accumulator_bits == sums[layer.inputs[0]] is not None for layer in norms)
    neurons = [layer for layer in found if layer.kind == "neuron"]
    assert all(layer.potential_bits is not None for layer in neurons)


def test_a_folded_norm_is_an_addition():
    found = layers(quantized(scheme="mint"), digits())
    norms = [layer for layer in found if layer.kind == "norm"]
    assert norms
    assert all(operations.norm_energy(layer) == add_energy(layer.potential_bits) for layer in norms)
    report = {row.name: row.energy_pj for row in spikesim.evaluate(found).layers}
    for layer in norms:
        values = layer.out_channels * layer.out_size[0] * layer.out_size[1] * layer.runs
        assert report[layer.name] == pytest.approx(values * add_energy(layer.potential_bits))
    for changed in (at_bits(found), twin(found)):
        assert not any(layer.norm_folded for layer in changed)
    for layer in twin(found):
        if layer.kind == "norm":
            assert layer.norm_stored_bits == 48
            assert operations.norm_energy(layer) == pytest.approx(multiply_energy(8, 4) + add_energy(4))


def test_other_bits_and_the_twin_forget_what_was_seen():
    found = layers(quantized(), digits())
    for changed in (at_bits(found, membrane_bits=8), twin(found)):
        assert all(layer.accumulator_bits is None and layer.potential_bits is None for layer in changed)
    assert all(
        layer.accumulator_bits is None
        for layer in layers(sd.networks.create("vgg5", in_channels=1), digits())
    )


def test_the_price_says_the_widths():
    tree = price(layers(quantized(), digits()), {"memory": {"potentials": "stored"}})
    assert {row["potential_bits"] for row in tree["memory"]["layers"]} == {4}
    tree = price(layers(quantized(), digits()))
    assert max(row["potential_bits"] for row in tree["memory"]["layers"]) > 8
    assert tree["memory"]["total_pj"] > 0


def test_break_even_rates_follow_the_memory_settings():
    found = layers(quantized(), digits())
    stored = price(found, {"memory": {"potentials": "stored"}})["break_even"]["memory"]
    assert stored > price(found)["break_even"]["memory"]


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-2, 1, 2), (-129, 3, 9), (0, 255, 9)]
)
def test_signed_bits(low, high, bits):
    assert signed_bits(low, high) == bits


def test_measuring_leaves_a_simulated_crossbar_in_place():
    from spikedistill.hardware import crossbar

    network, x = quantized(), digits()
    with crossbar.simulate(network, Config(adc_bits=2)):
        before = network(x)
        layers(network, x)
        assert torch.equal(network(x), before)
    assert not any(
        "accumulate" in m.__dict__["forward"].__dict__ for m in network.modules() if "forward" in m.__dict__
    )
