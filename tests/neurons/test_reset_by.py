"""A soft reset that subtracts more than the threshold: snnTorch's, whose threshold is not decayed."""

from pathlib import Path

import pytest
import torch

import spikedistill as sd
from spikedistill import neurons, taps
from spikedistill.errors import SpikedistillError
from spikedistill.neurons import LIF, PLIF, compilation, fused
from spikedistill.neurons.dynamics import Constants, Grid, scan
from spikedistill.neurons.surrogate import Surrogate
from spikedistill.quantization import IntegerNetwork


def late(x, decay, threshold):
    """``U_t = decay U_{t-1} + I_t - threshold [U_{t-1} >= threshold]``, the reset a step later, undecayed."""
    u, spikes, charged = torch.zeros_like(x[0]), [], []
    for current in x:
        u = decay * u + current - threshold * (u >= threshold)
        spikes.append((u >= threshold).to(x.dtype))
        charged.append(u)
    return torch.stack(spikes), torch.stack(charged)


def test_one_over_the_decay_subtracts_an_undecayed_threshold_a_step_later():
    x = torch.randint(-16, 48, (20, 50), dtype=torch.float64) / 16  # exact, so ties too
    spikes, h, _ = scan(
        x, torch.zeros_like(x[0]), 0.5, 1.0, Constants(1.0, "soft", reset_by=2.0), membrane=True
    )  # fmt: skip
    want, u = late(x, 0.5, 1.0)
    assert torch.equal(spikes, want)
    assert torch.equal(h, u)
    assert (h == 1).any(), "ties"
    assert not torch.equal(spikes, scan(x, torch.zeros_like(x[0]), 0.5, 1.0, Constants(1.0, "soft"))[0])


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("detach", [False, True])
def test_fused_arithmetic_and_its_gradients_equal_the_plain_equations(smooth, detach):
    constants = Constants(0.9, "soft", Surrogate("atan"), detach, smooth, reset_by=1.7)
    x = (1.5 * torch.randn(15, 4, 3, dtype=torch.float64)).requires_grad_()
    decay, gain = torch.tensor([0.6, 1.2], dtype=torch.float64, requires_grad=True).unbind()
    with compilation.uncompiled():
        spikes, charged = fused.run(x, 5, False, decay, gain, 0.1, constants, membrane=True)
    plain, h, _ = scan(
        x.unflatten(0, (5, 3)), torch.full_like(x[:3], 0.1), decay, gain, constants, membrane=True
    )
    torch.testing.assert_close(spikes.unflatten(0, (5, 3)), plain)
    torch.testing.assert_close(charged, h)
    weights = torch.randn(2, *h.shape, dtype=torch.float64)
    mine = torch.autograd.grad(
        (spikes.unflatten(0, (5, 3)) * weights[0] + charged * weights[1]).sum(),
        (x, decay, gain),
        retain_graph=True,
    )
    theirs = torch.autograd.grad((plain * weights[0] + h * weights[1]).sum(), (x, decay, gain))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_on_a_grid_it_is_a_code_of_its_own():
    grid = Grid(1.0, 10, (1, 1), bits=8, reset_by=20)
    x = torch.tensor([[25.0], [0.0], [3.0], [7.0]])
    spikes, h, _ = scan(x, torch.zeros(1), 1.0, 1.0, Constants(reset="soft", grid=grid), membrane=True)
    assert h.flatten().tolist() == [25, 2, 4, 9]
    assert spikes.flatten().tolist() == [1, 0, 0, 0]
    with compilation.uncompiled():
        again, charged = fused.run(
            x, 4, False, 1.0, 1.0, 0.0, Constants(reset="soft", grid=grid), membrane=True
        )
    assert torch.equal(again.view_as(spikes), spikes)
    assert torch.equal(charged.view_as(h), h)


def network(**options):
    torch.manual_seed(0)
    neuron = LIF(decay=0.8, reset="soft", reset_by=1.25)
    x = torch.rand(6, 3, 8, 8)
    made = sd.networks.create("vgg5", width=0.125, pooling="avg", neuron=neuron, time_steps=6, **options)
    for norm in made.modules():
        if isinstance(norm, neurons.NormNeuron):
            torch.nn.init.uniform_(norm.weight, 1.5, 2.5)
            norm.momentum = 0.6
    with torch.no_grad():
        made.train()(x)
        made(x)
    return made.eval(), x


@pytest.mark.parametrize("options", [{}, {"membrane_bits": None}, {"scheme": "mint"}, {"unit": "weights"}])
def test_integer_network_and_its_file_are_equal(options, tmp_path: Path):
    made, x = network()
    quantized = sd.quantize(made, calibration=x, **options).eval()
    logits, seen = taps.captures(quantized, x, ["*@spikes"])
    integer = sd.to_integer(quantized)
    op = next(o for o in integer.header["ops"] if "reset_by" in o)
    assert op["reset_by"] == pytest.approx(1.25 * op["threshold"], abs=1.3)
    integer.save(tmp_path / "a.safetensors")
    steps, spikes = IntegerNetwork.load(tmp_path / "a.safetensors").steps(x)
    assert any(s.any() for s in spikes.values())
    for path, s in spikes.items():
        assert torch.equal(s.double(), seen.tensors[f"{path}@spikes"].double()), path
    assert torch.equal(steps.double() * integer.scale, logits.double())


def test_nir_keeps_it_beside_the_graph(tmp_path: Path):
    pytest.importorskip("nir")
    from spikedistill.export.nir_reader import from_nir

    made, x = network()
    with pytest.warns(UserWarning, match="soft reset"):
        sd.export.to_nir(made, tmp_path / "a.nir", x, allow_lossy=True)
    with torch.no_grad():
        back = from_nir(tmp_path / "a.nir")
        assert {n.reset_by for n in neurons.layers(back).values()} == {1.25}


def test_a_record_names_it_only_where_it_is_not_one():
    assert "reset_by" not in LIF(reset="soft").spec()
    again = neurons.build(LIF(decay=0.8, reset="soft", reset_by=1.25).spec())
    assert again.reset_by == 1.25
    assert "reset_by=1.25" in repr(again)
    assert "gain" not in PLIF().spec()
    assert neurons.build(PLIF(gain=1.0).spec()).gain == 1.0


def test_wrong_values_are_refused():
    with pytest.raises(SpikedistillError, match="soft reset subtracts"):
        LIF(reset_by=2.0)
    with pytest.raises(SpikedistillError, match="above 0"):
        LIF(reset="soft", reset_by=0.0)
