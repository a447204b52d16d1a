"""Parallel neurons on integer codes: equal to the integer network, whole and stepwise from its kept bits."""

import copy
import math

import pytest
import torch
from lively import assert_equal, awake, check, events, images, lively
from torch import nn

from spikedistill import networks, taps
from spikedistill.errors import SpikedistillError
from spikedistill.neurons import SlidingPSN, compilation
from spikedistill.quantization import IntegerNetwork, quantize, to_integer
from spikedistill.quantization.header_check import read_header
from spikedistill.quantization.preparation import restore
from spikedistill.quantization.stepping import packed, unpacked
from spikedistill.quantization.temporal import TemporalMembrane

FAMILIES = [
    ("vgg9", {"width": 0.1, "pools": 2, "pooling": "avg"}),
    ("vgg5", {"width": 0.125, "head": "spiking"}),
    ("vgg5", {"width": 0.25, "hidden": 64}),
    ("resnet20", {"width": 0.5}),
    ("sew_resnet20", {"width": 0.5}),
    ("ms_resnet20", {"width": 0.5}),
]


@pytest.fixture(autouse=True)
def plain():
    with compilation.eager():
        yield


def stepped(integer, x):
    """Step by step, from what is kept, everything is as in one run; returns the last state."""
    whole, spikes = integer.steps(x)
    state = None
    for t in range(integer.time_steps):
        out, fired, state = integer.step(x if x.dim() == 4 else x[:, t], state)
        assert torch.equal(out, whole[t])
        assert set(fired) == set(spikes)
        for path in spikes:
            assert torch.equal(fired[path], spikes[path][t]), (path, t)
    return state


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name, options", FAMILIES, ids=str)
def test_sliding_families_equal_their_integer_form_on_every_spike(name, options, bits):
    torch.manual_seed(0)
    x = images(4)
    neuron = {"type": "sliding_psn", "order": 3, "init": "uniform" if bits == 2 else "exponential"}
    integer = check(name, x, {**options, "neuron": neuron}, 0.5, weight_bits=bits)
    stepped(integer, x)


@pytest.mark.parametrize("kind", ["psn", "masked_psn"])
@pytest.mark.parametrize("name", ["vgg5", "resnet20", "ms_resnet20"])
def test_neurons_tied_to_t(name, kind):
    torch.manual_seed(1)
    x = images(4)
    integer = check(name, x, {"width": 0.25, "neuron": {"type": kind}}, 0.3)
    if kind == "masked_psn":
        stepped(integer, x)
    else:
        with pytest.raises(
            SpikedistillError, match=r"sums over all time steps: it cannot be run step by step"
        ):
            integer.step(x)
    with pytest.raises(SpikedistillError, match="has weights for 4 time steps, found T = 2; run all of them"):
        integer.steps(x, 2)


def test_frames_and_transformers():
    x = events()
    neuron = {"type": "sliding_psn", "order": 4}
    state = stepped(
        check("vgg5", x, {"width": 0.25, "in_channels": 2, "input": "frames", "neuron": neuron}, 0.6), x
    )
    assert set(state.currents) == {"stage1.1"}  # counts enter: currents are kept
    x = events(2, size=32)
    integer = check("spikformer_2_256", x, {"neuron": {"type": "sliding_psn"}}, 0.5)
    state = stepped(integer, x)
    assert "blocks.0.attn.neuron" in state.currents  # attention's sums


def test_learned_biases_and_weights_of_a_trained_network():
    torch.manual_seed(2)
    x = images(8)
    network = lively("vgg5", x, width=0.25, neuron={"type": "sliding_psn", "order": 3})
    q = quantize(network, calibration=x).train()
    optimizer = torch.optim.SGD(q.parameters(), lr=0.2)
    neurons = [m for m in q.modules() if isinstance(m, SlidingPSN)]
    before = [n.weight.detach().clone() for n in neurons]
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(q(x).mean(0), torch.arange(8)).backward()
        optimizer.step()
    q.requantize()
    assert all(
        not torch.equal(n.weight, w) and float(n.bias.detach().abs()) > 0 for n, w in zip(neurons, before)
    )
    integer = assert_equal(q, x)
    stepped(integer, x)
    assert any(int(t.abs().max()) > 0 for name, t in integer.tensors.items() if name.endswith(".offset"))


def test_h_is_summed_on_codes():
    x = images(2)
    network = lively("vgg5", x, width=0.25, neuron={"type": "sliding_psn", "order": 3, "threshold": 0.7})
    q = quantize(network, calibration=x).eval()
    _, seen = taps.captures(q, x, ["stage2.2@membrane", "stage2.2@current", "stage2.2@spikes"])
    neuron = q.get_submodule("stage2.2").neuron
    grid = neuron.grid
    h, current = (seen.tensors[f"stage2.2@{what}"] for what in ("membrane", "current"))
    codes = (current.double() / grid.current_unit).round()
    torch.testing.assert_close(codes * grid.current_unit, current.double())
    w = [2, 4, 7]  # 1/4, 1/2, 1 in four bits: 1.75 and 3.5 go up
    for t in range(4):
        expected = sum(w[2 - i] * codes[t - i] for i in range(min(t, 2) + 1))
        assert torch.equal((h[t].double() / grid.unit).round(), expected)
        assert torch.equal(seen.tensors["stage2.2@spikes"][t], (expected >= grid.threshold).float())
    assert grid.scale == pytest.approx(1 / 7)
    assert grid.current_unit == pytest.approx(0.7 / 256)
    assert grid.threshold == math.floor(0.7 / (grid.current_unit * grid.scale) + 0.5) == 1792


def test_gradients_pass_straight_through_codes():
    mine = SlidingPSN(order=2, time_steps=4, surrogate={"name": "rectangle", "alpha": 8.0})
    x = torch.rand(4, 5)
    coded = copy.deepcopy(mine)
    grid = TemporalMembrane(coded, 8, 8, None, 1.0).prepare()
    codes = (x / grid.current_unit).round()
    current = codes.clone().requires_grad_()
    coded(current).sum().backward()
    real = (codes * grid.current_unit).requires_grad_()
    mine(real).sum().backward()
    torch.testing.assert_close(coded.weight.grad, mine.weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(coded.bias.grad, mine.bias.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(current.grad / grid.current_unit, real.grad, rtol=1e-2, atol=1e-3)


def test_no_membrane_is_stored_and_no_bits_of_one_count():
    x = images(4)
    network = lively("vgg5", x, width=0.25, neuron={"type": "sliding_psn", "order": 3})
    outs = [quantize(network, calibration=x, membrane_bits=bits).eval()(x) for bits in (2, 4, None)]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_what_is_kept_between_steps():
    x = images(3)
    integer = check("ms_resnet20", x, {"width": 0.5, "neuron": {"type": "sliding_psn", "order": 3}}, 0.3)
    state = stepped(integer, x)
    assert not state.membranes
    by_path = {op["path"]: op for op in integer.header["ops"] if op["op"] in ("parallel", "norm_parallel")}
    for path, kept in state.bits.items():
        op = by_path[path]
        source = integer.header["ops"][op["history"]]
        assert source["op"] == "layer"
        assert op["history_bits"] == 1
        assert kept.dtype == torch.uint8
        assert kept.shape[:2] == (3, 2)
    assert state.currents
    assert set(state.bits) | set(state.currents) == set(by_path)
    assert by_path["layer1.0.neuron"]["history"] is None  # reads a stream: a sum of real values


def test_counts_are_packed_at_their_bits():
    for bits in (1, 2, 3):
        x = torch.randint(0, 1 << bits, (3, 5, 2, 2))
        kept = packed(x, bits)
        assert kept.shape == (3, 3 * bits)  # 20 values, padded to 24
        assert torch.equal(unpacked(kept, bits, (5, 2, 2)), x.to(torch.int32))


def test_file_round_trip_and_forged_headers(tmp_path):
    x = images(4)
    integer = check("vgg5", x, {"width": 0.25, "neuron": {"type": "sliding_psn", "order": 3}})
    integer.save(tmp_path / "n.safetensors")
    back = IntegerNetwork.load(tmp_path / "n.safetensors")
    assert torch.equal(back(x), integer(x))
    stepped(back, x)
    i = next(i for i, op in enumerate(integer.header["ops"]) if op.get("history") is not None)
    for change in (
        {"history": 1}, {"history_bits": None}, {"taps": 4}, {"shape": [3, 3]}, {"causal": False},
        {"encode": True},
        {"shape": [2, 3]}, {"threshold": 1 << 62},
    ):  # fmt: skip
        forged = copy.deepcopy(integer.header)
        forged["ops"][i] |= change
        with pytest.raises(SpikedistillError, match="here"):
            read_header(forged, integer.tensors, "here")
    for name in (f"{i}.temporal", f"{i}.offset"):
        tensors = {k: v for k, v in integer.tensors.items() if k != name}
        with pytest.raises(SpikedistillError, match=f"the tensor '{name}' is missing"):
            read_header(integer.header, tensors, "here")


def test_rebuilt_from_its_record_and_state():
    x = images(4)
    options = {"width": 0.25, "neuron": {"type": "masked_psn", "order": 2}}
    q = quantize(lively("vgg5", x, **options), calibration=x).eval()
    again = restore(networks.create("vgg5", **options), q.config["quantize"]).eval()
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x), q(x))
    assert torch.equal(to_integer(again)(x), to_integer(q)(x))


def test_streaming_a_quantized_network():
    x = images(4)
    q = quantize(
        lively("vgg5", x, width=0.25, neuron={"type": "sliding_psn", "order": 3}), calibration=x
    ).eval()
    state, outs = None, []
    for _ in range(4):
        out, state = q.step(x, state)
        outs.append(out)
    assert torch.equal(torch.stack(outs), q(x))


@pytest.mark.parametrize("options", [{"scheme": "mint"}, {"unit": "weights"}])
def test_folded_schemes_refuse_neurons_without_a_membrane(options):
    network = networks.create("vgg5", neuron={"type": "sliding_psn"})
    name = "scheme 'mint'" if "scheme" in options else "unit='weights'"
    with pytest.raises(
        SpikedistillError, match=rf"{name} counts membranes .* sliding_psn at stage1\.1 has no membrane"
    ):
        quantize(network, input_size=(3, 8, 8), **options)


class Own(SlidingPSN):
    """Equations of its own."""

    def matrix(self, start, T, history):
        return 2 * super().matrix(start, T, history)


def test_equations_of_their_own_are_refused_by_path():
    network = networks.create("vgg5", neuron={"type": "sliding_psn"})
    network.get_submodule("stage2.2").neuron.__class__ = Own
    with pytest.raises(
        SpikedistillError, match=r"cannot quantize stage2\.2: .*computes by matrix\(\) of its own"
    ):
        quantize(network, input_size=(3, 8, 8))


def test_a_soft_mask_has_an_integer_form_of_all_steps():
    x = images(4)
    network = awake(
        networks.create("vgg5", width=0.25, neuron={"type": "masked_psn", "anneal": 100, "mask_start": 0.5}),
        x,
    )
    integer = assert_equal(quantize(network, calibration=x), x)
    assert all(not op["causal"] for op in integer.header["ops"] if "causal" in op)


@pytest.mark.parametrize("measured", ["max", "percentile"])
def test_measured_units(measured):
    x = images(4)
    check("vgg5", x, {"width": 0.25, "neuron": {"type": "sliding_psn", "order": 3}}, unit=measured)
