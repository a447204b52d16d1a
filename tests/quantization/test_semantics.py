"""One test for each sentence of docs/quantization.md about single parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lively import assert_equal, images, lively
from torch import nn

from spikedistill import networks, taps
from spikedistill.errors import SpikedistillError
from spikedistill.neurons import IF, LIF
from spikedistill.neurons.compilation import eager
from spikedistill.neurons.dynamics import Grid, round_ste
from spikedistill.quantization import executor, quantize, to_integer, weights
from spikedistill.quantization.arithmetic import exact, exact_dtype, scalar, scalars
from spikedistill.quantization.bit_packing import pack, unpack
from spikedistill.quantization.folded import FoldedLayer
from spikedistill.quantization.membrane import Membrane
from spikedistill.quantization.norm import offset_shift_for, shift_for
from spikedistill.quantization.preparation import restore


@pytest.fixture(autouse=True)
def _uncompiled():
    with eager():
        yield


# -- rounding
# --------------------------------------------------------------------------------------------------------


def test_ties_round_up_in_floats_and_integers():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert round_ste(x).tolist() == [-2, -1, 0, 1, 2, 3]
    assert executor.shifted(torch.tensor([-5, -3, -1, 1, 3, 5]), 1).tolist() == [-2, -1, 0, 1, 2, 3]


@given(st.integers(-(2**20), 2**20), st.integers(-127, 127), st.integers(-10, 20), st.integers(-500, 500))
@settings(max_examples=200, deadline=None)
def test_rescaling_in_floats_is_the_add_and_shift(acc, m, k, b):
    integer = executor.rescale(torch.tensor([[acc]]), torch.tensor([m]), torch.tensor([b]), k, True)
    assert integer.item() == math.floor(acc * m * 2.0**-k + 0.5) + b


def test_the_leak_is_a_floor_also_below_zero():
    grid = Grid(1.0, 10, (3, 2))
    v = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0])
    assert grid.decayed(v).tolist() == [-4, -1, 0, 0, 3]
    spikes = executor.scan(torch.tensor([[-5], [0], [3]]), 3, _numbers(leak=(3, 2), threshold=10, bits=None))
    assert not spikes.any()


def _numbers(**given):
    defaults = {
        "leak": (1, 0), "threshold": 8, "reset": "hard", "bits": 4, "shift": 1, "encode": False, "initial": 0,
        "leak_first": False,
    }  # fmt: skip
    return defaults | given


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(["hard", "soft", None]), st.integers(0, 256),
    st.sampled_from([None, 2, 4, 8]),
    st.integers(0, 5), st.booleans(), st.integers(1, 300),
)  # fmt: skip
def test_neuron_on_a_grid_equals_the_integer_scan(seed, reset, l, bits, shift, leak_first, threshold):
    generator = torch.Generator().manual_seed(seed)
    current = torch.randint(-300, 300, (5, 40), generator=generator)
    neuron = IF(reset=reset, time_steps=5)
    neuron.grid = Grid(1 / threshold, threshold, (l, 8), bits, shift, leak_first)
    mine = executor.scan(
        current,
        5,
        _numbers(
            leak=(l, 8), threshold=threshold, reset=reset, bits=bits, shift=shift, leak_first=leak_first
        ),
    )
    assert torch.equal(neuron(current.flatten().double()).long(), mine.flatten())


def test_q_applies_after_the_reset_and_saturates():
    # H = 23 stays below the threshold and saturates at 7 * 2; 30 fires, the rest of 30 - 25 = 5 is stored as
    # 6 (half up).
    grid = Grid(1.0, 25, (1, 0), bits=4, shift=1)
    assert grid.store(torch.tensor([23.0, 5.0, -40.0])).tolist() == [14, 6, -16]
    spikes = executor.scan(
        torch.tensor([[30, 23], [18, 11], [1, 25]]), 3, _numbers(threshold=25, reset="soft")
    )
    # first neuron: 30 fires, 5 -> 6, 6 + 18 = 24, 24 -> saturates at 14, 14 + 1 = 15; second: 23 -> 14, 25
    # fires, 0 + 25 fires
    assert spikes.tolist() == [[1, 0], [0, 1], [0, 1]]


def test_saturation_passes_no_gradient_outside():
    v = torch.tensor([-40.0, -16.0, 5.0, 14.0, 30.0], requires_grad=True)
    Grid(1.0, 25, (1, 0), bits=4, shift=1).store(v).sum().backward()
    assert v.grad.tolist() == [0, 1, 1, 1, 0]


# -- the membrane's grid
# ---------------------------------------------------------------------------------------------


def test_threshold_leak_and_step_are_integers_of_the_unit():
    membrane = Membrane(LIF(tau=3.0, threshold=0.7), 4, 8, 8, None, 0.7)
    grid = membrane.grid()
    assert grid.unit == pytest.approx(0.7 / 256)
    assert grid.threshold == 256
    assert grid.leak == (171, 8)  # round(256 * 2/3)
    assert grid.shift == 5  # eight steps of 2^5 units reach the threshold
    assert abs(grid.decay - 2 / 3) <= 1 / 512


def test_leaks_are_reduced_and_limited_to_their_bits():
    assert Membrane(LIF(tau=2.0), 4, 8, 8, None, 1.0).leak() == (1, 1)
    assert Membrane(LIF(decay=0.25), 4, 8, 8, None, 1.0).leak() == (1, 2)
    assert Membrane(IF(), 4, 8, 8, None, 1.0).leak() == (1, 0)
    assert Membrane(LIF(decay=0.93), 4, 3, 8, None, 1.0).leak() == (7, 3)


def test_a_measured_unit_rounds_the_threshold():
    grid = Membrane(IF(threshold=1.0), 4, 8, 4, None, 1.7).grid()
    assert grid.threshold == round(16 / 1.7)
    assert grid.shift == 1


def test_a_stream_is_the_current_of_its_neurons():
    membrane = Membrane(LIF(tau=3.0), 4, 8, 8, 2.0**-6, 1.0)
    assert membrane.unit == pytest.approx(2.0**-6 / 3)
    assert membrane.per_unit() == 64
    assert membrane.threshold == 192  # a stream of 3 thresholds charges one


def test_learned_unit_has_the_gradient_of_unit_times_q():
    x = images(4)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x, unit="learned").train()
    q.predict(x).square().sum().backward()
    units = {k: p.grad for k, p in q.named_parameters() if k.endswith("membrane_unit")}
    assert len(units) == 3
    assert all(g is not None and g.isfinite() and g != 0 for g in units.values())


def test_surrogate_sees_the_distance_in_real_units():
    neuron = LIF(tau=2.0, time_steps=1, surrogate="triangle")
    neuron.grid = Grid(1 / 256, 256, (1, 1))
    codes = torch.tensor([128.0, 256.0, 600.0], requires_grad=True)
    neuron(codes).sum().backward()
    assert codes.grad.mul(256).tolist() == [0.5, 1.0, 0.0]


# -- norms
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top, k", [(0.9, 7), (127.0, 0), (128.0, -1), (5000.0, -6), (0.001, 16)])
def test_shift_is_the_largest_without_saturation(top, k):
    m = torch.tensor([top, -top / 3])
    assert shift_for(m, 8) == k
    assert round(top * 2.0**k) <= 127 < top * 2.0 ** (k + 1)


def test_offsets_have_a_step_of_their_own_and_do_not_clip():
    assert offset_shift_for(torch.tensor([100.0]), 8) == 0
    assert offset_shift_for(torch.tensor([-1000.0]), 8) == 3
    assert 127 * 2**3 >= 1000


def test_left_shift_rounds_nothing():
    acc = torch.tensor([[-7, 5]]).T
    assert executor.rescale(acc, torch.tensor([3]), torch.tensor([1]), -2, False).flatten().tolist() == [
        -83,
        61,
    ]


def test_shifts_move_only_in_requantize():
    x = images(4)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x).train()
    with torch.no_grad():
        q.stage1[1].weight.mul_(8)
        q.stage1[1].bias.add_(5)
    before = (q.stage1[1].norm_shift.item(), q.stage1[1].offset_shift.item())
    q(x)
    assert (q.stage1[1].norm_shift.item(), q.stage1[1].offset_shift.item()) == before
    q.requantize()
    assert q.stage1[1].norm_shift.item() in (before[0] - 3, before[0] - 2, before[0] - 4)
    assert q.stage1[1].offset_shift.item() > before[1]


def test_training_uses_the_batch_and_frozen_norms_do_not():
    x, other = images(4), images(4) * 0.3
    network = lively("vgg5", x, width=0.125)
    for frozen in (False, True):
        q = quantize(network, calibration=x, freeze_norms=frozen).train()
        mean = q.stage1[1].running_mean.clone()
        q(other)
        assert torch.equal(q.stage1[1].running_mean, mean) == frozen


def test_running_statistics_stay_those_of_real_values():
    x = images(16)
    network = lively("vgg5", x, width=0.25).train()
    q = quantize(network, calibration=x, weight_bits=8, first_last_bits=None, norm_bits=8).train()
    for n in (network, q):
        n.stage1[1].momentum = 1.0
        n(x)
    mine, theirs = q.stage1[1], network.stage1[1]
    assert torch.allclose(
        mine.running_mean, theirs.running_mean, atol=0.02 * theirs.running_var.sqrt().max().item()
    )
    assert torch.allclose(mine.running_var, theirs.running_var, rtol=0.05)


# -- weights
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scale", ["channel", "tensor"])
@pytest.mark.parametrize("kind", ["max", "percentile", "mse"])
def test_weight_codes_are_symmetric_and_near(bits, scale, kind):
    w = torch.randn(6, 5, 3, 3)
    f = weights.WeightFormat(bits, scale, kind, 95.0)
    s = weights.weight_scale(w, f)
    codes = weights.weight_codes(w, s, bits)
    assert codes.abs().max() <= weights.largest_code(bits) == 2 ** (bits - 1) - 1
    assert s.numel() == (6 if scale == "channel" else 1)
    inside = w.abs().double() <= s * weights.largest_code(bits) * (1 + 1e-12)
    assert ((codes * s - w).abs() <= s / 2 + 1e-9)[inside].all()
    if kind == "max":
        assert inside.all()
    else:
        assert bits == 8 or not inside.all()


@pytest.mark.parametrize("percentile", [0.1, 50.0, 97.3, 99.9, 100.0])
@pytest.mark.parametrize("scale", ["channel", "tensor"])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_percentiles_of_weights_are_torchs(percentile, scale, n):
    w, f = torch.randn(3, n), weights.WeightFormat(6, scale, "percentile", percentile)
    rows = w.double().abs() if scale == "channel" else w.double().abs().view(1, -1)
    wanted = torch.quantile(rows, percentile / 100, dim=1) / f.largest_code
    assert torch.equal(weights.weight_scale(w, f).flatten(), wanted)


def test_percentiles_of_more_weights_than_torchs_quantile_takes():
    n = 2**24 + 11
    # Whole magnitudes 0 to n - 1, in no order: a percentile is known without sorting.
    w = ((torch.arange(n) * 5) % n).double()
    w[::2] *= -1
    found = weights.weight_scale(w.view(1, n), weights.WeightFormat(8, "tensor", "percentile", 99.9))
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(0.999 * (n - 1) / 127, rel=1e-12)


class OnGPU(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("options", [{"scheme": "mint"}, {"unit": "weights"}], ids=str)
def test_statistics_of_folded_norms_are_of_real_products_on_a_gpu_too(options):
    x = torch.rand(6, 3, 8, 8)
    q = quantize(lively("vgg5", x, width=0.1, time_steps=2, pools=1), calibration=x, **options).train()
    folded = [m for m in q.modules() if isinstance(m, torch.nn.Conv2d) and isinstance(m.forward, FoldedLayer)]
    assert len(folded) > 1
    for layer in folded:
        spikes = (torch.rand(6, layer.in_channels, 8, 8) < 0.3).float()
        here, there = layer.forward.batch(spikes), layer.forward.batch(spikes.as_subclass(OnGPU))
        assert all(torch.equal(a, b.as_subclass(torch.Tensor)) for a, b in zip(here, there, strict=True))


def test_mse_is_no_worse_than_max():
    w = torch.randn(4, 50)
    errors = {}
    for kind in ("max", "mse"):
        s = weights.weight_scale(w, weights.WeightFormat(3, "channel", kind))
        errors[kind] = (weights.weight_codes(w, s, 3) * s - w).square().sum()
    assert errors["mse"] < errors["max"]


def test_weight_gradient_is_straight_through_inside_and_zero_outside():
    w = torch.tensor([[-2.0, -0.6, 0.2, 0.7, 3.0]], requires_grad=True)
    (weights.weight_codes(w, torch.tensor([[0.1]], dtype=torch.float64), 4) * 0.1).sum().backward()
    assert torch.allclose(w.grad, torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]))


def test_learned_scale_has_lsq_gradient():
    w, f = torch.randn(1, 40), weights.WeightFormat(3, "tensor", "learned")
    start = weights.learned_start(w, f)
    assert start.item() == pytest.approx(2 * w.abs().mean().item() / 3**0.5, rel=1e-5)
    s = start.clone().requires_grad_(True)
    scale = weights.learned_scale(s, w, f).double()
    codes = weights.weight_codes(w, scale, 3)
    (codes * scale).sum().backward()
    ratio = (w / start).double()
    by_hand = torch.where(ratio.abs() <= 3, (ratio + 0.5).floor() - ratio, ratio.sign() * 3)
    assert s.grad.item() == pytest.approx(by_hand.sum().item() / (40 * 3) ** 0.5, rel=1e-4)


@given(st.floats(1e-6, 10), st.integers(1, 2**24))
@settings(max_examples=100, deadline=None)
def test_logit_scale_keeps_integers_exact_in_float32(scale, bound):
    s = weights.exact_scale(torch.tensor(scale, dtype=torch.float64), bound)
    assert scale <= s.item() <= 2 * scale
    n = torch.tensor([bound, bound - 1, bound // 3], dtype=torch.float64)
    assert torch.equal((n * s).float().double(), n * s)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing(bits):
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (3, 7, 5))
    packed = pack(codes, bits)
    assert packed.numel() == math.ceil(105 * bits / 8)
    assert torch.equal(unpack(packed, bits, (3, 7, 5)).long(), codes)


# -- input, pooling, logits
# ------------------------------------------------------------------------------------------


def test_image_codes_have_one_step_and_padding_is_zero():
    x = images(2)
    network = lively("vgg5", x, width=0.125, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.5))
    q = quantize(network, calibration=x)
    codes, step = q.input_codes(x), q.stage1[0].input_step.item()
    assert codes.abs().max() <= 127
    assert step == pytest.approx(0.6 / 0.2 / 127)  # the largest normalised level over the largest code
    assert (codes * step - network.normalise((x * 255 + 0.5).floor() / 255)).abs().max() <= step / 2 + 1e-6
    assert torch.equal(q.input_codes((x * 255 + 0.5).floor().to(torch.uint8)), codes)
    corner = q.stage1[0](torch.zeros(1, 3, 8, 8))
    assert not corner.any()  # code 0 is what padding adds: the mean, not black


def test_counts_are_their_own_codes_and_clip():
    x = torch.tensor([0.0, 1.0, 126.0, 127.0, 300.0]).view(1, 1, 1, 1, 5).expand(2, 4, 2, 8, 5)
    network = lively("vgg5", x, width=0.125, in_channels=2, input="frames")
    codes = quantize(network, calibration=x).input_codes(x)
    assert codes[0, 0, 0, 0].tolist() == [0, 1, 126, 127, 127]


def test_average_pools_sum_and_their_divisor_moves_on():
    x = images(2)
    q = quantize(lively("vgg9", x, width=0.1, pools=2, pooling="avg"), calibration=x)
    pool = next(m for m in q.modules() if isinstance(m, nn.AvgPool2d))
    spikes = torch.randint(0, 2, (2, 3, 8, 8)).float()
    assert torch.equal(pool(spikes), nn.functional.avg_pool2d(spikes, 2) * 4)
    steps = [m.input_step.item() for m in q.modules() if isinstance(m, nn.Conv2d)]
    assert steps[1:] == [1, 0.25, 1, 0.25, 1, 1]  # images, spikes, pooled, spikes, ...
    assert q.head.input_step.item() == pytest.approx(1 / 4)  # global pooling over 2 x 2


def test_another_image_size_is_refused_in_words():
    x = images(2)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x)
    with pytest.raises(SpikedistillError, match=r"quantized for maps of \(2, 2\)"):
        q(images(2, size=16))


def test_taps_are_real_values():
    x = images(8)
    network = lively("vgg5", x, width=0.125, neuron={"type": "lif", "tau": 3.0})
    q = quantize(network, calibration=x, weight_bits=8, membrane_bits=None, fraction_bits=10)
    at = "stage1.1@membrane"
    with torch.no_grad():
        mine, theirs = (taps.captures(n, x, [at])[1][at] for n in (q, network))
    assert (mine - theirs).abs().mean() < 0.03 * theirs.abs().mean()


# -- structure
# -------------------------------------------------------------------------------------------------------


def test_no_layer_changes_class_and_the_state_dict_only_grows():
    x = images(2)
    network = lively("ms_resnet20", x, width=0.25)
    q = quantize(network, calibration=x)
    for path, module in network.named_modules():
        kept = type(module) is type(q.get_submodule(path))
        assert kept or isinstance(module, nn.modules.batchnorm._BatchNorm | nn.AdaptiveAvgPool2d), path
        assert isinstance(q.get_submodule(path), type(module) if kept else nn.Module)
    assert set(network.state_dict()) <= set(q.state_dict())
    assert {k for k, _ in network.named_parameters()} == {k for k, _ in q.named_parameters()}


@pytest.mark.parametrize(
    "options", [{}, {"weight_range": "learned", "unit": "learned"}, {"scheme": "mint"}], ids=str
)
def test_rebuilt_from_its_record_and_state(options):
    x = images(4)
    q = quantize(lively("resnet20", x, width=0.25), calibration=x, **options).eval()
    again = quantize(networks.create("resnet20", **q.config["options"]), **q.config["quantize"]).eval()
    again.load_state_dict(q.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), q(x))
    assert torch.equal(to_integer(again)(x), to_integer(q)(x))


def test_evaluation_above_t_is_refused_and_below_is_the_first_steps():
    from spikedistill.simulation import time_steps

    x = images(4)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x).eval()
    integer = to_integer(q)
    with torch.no_grad():
        full = q(x)
        with time_steps(q, 2):
            assert torch.equal(q(x), full[:2])
    assert torch.equal(integer.steps(x, 2)[0], integer.steps(x)[0][:2])
    with time_steps(q, 6), pytest.raises(SpikedistillError, match="not evaluated above their T"):
        q(x)
    with pytest.raises(SpikedistillError, match="1 to 4 time steps, found 6"):
        integer(x, 6)
    with time_steps(q.train(), 6):
        assert q(x).shape[0] == 6


def test_streaming_steps_equal_one_pass():
    x = images(4)
    q = quantize(lively("ms_resnet20", x, width=0.25), calibration=x).eval()
    with torch.no_grad():
        full, state = q(x), None
    for t in range(4):
        out, state = q.step(x, state)
        assert torch.equal(out, full[t])


def test_floats_hold_integers_below_their_bound():
    assert exact_dtype(2**24 - 1) is torch.float32
    assert exact_dtype(2**24) is torch.float64
    with pytest.raises(SpikedistillError, match="use fewer bits"):
        exact_dtype(2**53, "head")


def test_exact_leaves_no_autocast():
    x = torch.randint(-300, 300, (1, 512)).float()
    with torch.autocast("cpu", torch.bfloat16), exact(x):
        assert torch.equal(nn.functional.linear(x, x).long(), (x.long() * x.long()).sum().view(1, 1))


def test_autocast_around_the_network_changes_nothing():
    x = images(4)
    q = quantize(lively("resnet20", x, width=0.25), calibration=x).eval()
    with torch.no_grad():
        plain = q(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(q(x), plain)


def test_mint_has_no_multiplier_and_equal_steps():
    x = images(4)
    q = quantize(lively("resnet20", x, width=0.25), calibration=x, scheme="mint")
    integer = assert_equal(q, x, 0.5)
    ops = {op.get("path", op["op"]): op for op in integer.header["ops"]}
    assert not any("k" in op for op in ops.values())
    block = q.layer1[0]
    membrane = block.bn2.grid.membrane
    assert membrane.shift == 0
    assert membrane.unit == pytest.approx(block.conv2.forward.scale().item())  # V and W share the step
    assert ops["layer1.0.bn2"]["threshold"] == math.ceil(1 / membrane.unit)
    down = quantize(lively("resnet18", x, width=0.1, stem="cifar"), calibration=x, scheme="mint").layer2[0]
    # one step for the sum of branches
    assert down.conv2.forward.scale() == down.downsample[0].forward.scale()


def test_thresholds_scale_with_the_weights():
    x = images(4)
    network = lively("vgg5", x, width=0.125, hidden=32, neuron=LIF())
    with torch.no_grad():
        network.hidden[0].weight[0, 0] = 50.0
    q = quantize(
        network,
        calibration=x,
        weight_bits=8,
        membrane_bits=8,
        unit="weights",
        weight_range="percentile",
        percentile=99.0,
    )
    layer, membrane = q.hidden[0].forward, q.hidden[1].forward.membrane
    # s = percentile(gain |W|) / 127; the threshold's code is threshold / (input step * s)
    by_hand = torch.quantile(0.5 * network.hidden[0].weight.detach().abs().double(), 0.99) / 127
    assert layer.scale().item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert membrane.threshold == math.floor(1 / (membrane.layer.input_step.item() * by_hand.item()) + 0.5)
    assert layer.codes()[0, 0] == 127


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize(
    "options", [{"unit": "learned"}, {"weight_range": "learned"}, {"scheme": "mint"}], ids=str
)
def test_what_a_fused_optimizer_moves_is_computed_with(kind, options):
    """Fused optimizers do not raise a tensor's version."""
    x = images(4)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x, **options).train()
    learned = [p for name, p in q.named_parameters() if name.endswith(("membrane_unit", "weight_scale"))]
    before = [float(p.detach().mean()) for p in learned]
    optimizer = kind(learned, 1e-4, fused=True)
    for _ in range(4):
        for p in learned:
            p.grad = torch.full_like(p, 1e-1)
        q.predict(x)
        optimizer.step()
    assert len(learned) >= 3
    assert all(float(p.detach().mean()) < b for p, b in zip(learned, before))
    again = restore(lively("vgg5", x, width=0.125), q.config["quantize"])
    again.load_state_dict(q.state_dict())
    assert torch.equal(q.eval()(x), again.eval()(x))
    if "unit" in options:
        units = {
            id(m): m.forward.membrane.unit
            for m in q.modules()
            if hasattr(m, "membrane_unit") and "forward" in vars(m)
        }
        units |= {
            id(m.neuron): m.grid.membrane.unit
            for m in q.modules()
            if hasattr(getattr(m, "neuron", None), "membrane_unit")
        }
        assert len(units) == len(learned)
        assert sorted(units.values()) == pytest.approx(sorted(float(p.detach()) for p in learned))


def test_a_learned_unit_keeps_a_usable_range_whatever_its_parameter_says():
    membrane = Membrane(LIF(), 4, 8, 8, None, 1.0, learned=True)
    for value, unit in ((-1 / 200, 1 / 200), (0.0, 2.0**-12), (-1e-9, 2.0**-12), (7.0, 1.0)):
        with torch.no_grad():
            membrane.neuron.membrane_unit.fill_(value)
        assert membrane.grid().unit == pytest.approx(unit)
        stored = membrane.grid().store(torch.tensor([300.0], requires_grad=True))
        stored.backward()
        assert stored.isfinite().all()
        assert membrane.neuron.membrane_unit.grad.isfinite()


def test_all_numbers_of_a_network_are_read_at_once():
    x = images(4)
    q = quantize(lively("vgg5", x, width=0.125), calibration=x, unit="learned")
    known = scalars(q)
    assert len(known) > 10
    for module in q.modules():
        for name, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            assert (t.dim() > 0) == (id(t) not in known)
            assert t.dim() > 0 or known[id(t)] == scalar(module, name)


@pytest.mark.parametrize("scheme, found", [("uniform", "max"), ("mint", "learned")])
def test_the_range_of_weights_is_decided_once_and_recorded(scheme, found):
    x = images(2)
    network = lively("vgg5", x, width=0.125)
    q = quantize(network, calibration=x, scheme=scheme)
    assert q.config["quantize"]["weight_range"] == found
    assert any(name.endswith("weight_scale") for name, _ in q.named_parameters()) == (found == "learned")
    given = quantize(network, calibration=x, scheme=scheme, weight_range="max")  # as records before had it
    assert given.config["quantize"]["weight_range"] == "max"
    assert not any(name.endswith("weight_scale") for name, _ in given.named_parameters())
    if scheme == "mint":
        first = network.stage1[0].weight.detach()
        start = q.stage1[0].weight_scale.detach()
        a, _ = network.stage1[1].affine(network.stage1[1].running_mean, network.stage1[1].running_var)
        folded = first * (a * network.stage1[1].neuron.gain).detach().view(-1, 1, 1, 1)
        assert float(start) == pytest.approx(
            float(2 * folded.abs().mean() / weights.largest_code(8) ** 0.5), rel=1e-5
        )
