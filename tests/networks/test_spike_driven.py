"""The Spike-driven Transformer against its equations; what flows in it; its twin, its integers, its price."""

import pytest
import torch
from official import affine, assert_rows_are_alone, branch, conv, fire, lively, mlp, pool
from torch import Tensor, nn

import spikedistill as sd
from spikedistill import hardware, taps
from spikedistill.export import to_nir
from spikedistill.neurons import Neuron

NAME = "spike_driven_2_256"


def official(network: sd.networks.Network, x: Tensor, T: int, pools: int) -> Tensor:
    """Logits (T, N, K) of an image network in its plain form."""
    x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
    units = network.tokenizer.units
    for i in range(3):
        x = branch(x, units[i])
        x = pool(x) if i >= 4 - pools else x
    x = affine(conv(x, units[3].conv), units[3].norm)
    x = pool(x) if pools else x
    x = x + affine(conv(fire(x), network.tokenizer.conv), network.tokenizer.norm)
    for block in network.blocks:
        spikes = fire(x)
        q, k, v = (branch(spikes, block.attn.get_submodule(name)) for name in "qkv")
        counts = (k * v).sum((3, 4), keepdim=True)  # over tokens, channel by channel
        x = x + affine(conv(q * fire(counts, 0.5), block.attn.proj), block.attn_norm)
        x = x + mlp(fire(x), block)
    return nn.functional.linear(fire(x.mean((3, 4))), network.head.weight, network.head.bias)


@pytest.mark.parametrize("pools", [2, 4, 0])
def test_it_computes_the_published_equations(pools: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    network = sd.networks.create(NAME, width=0.25, pools=pools, time_steps=4, initialisation="plain")
    lively(network, x)
    with torch.no_grad():
        found = network(x)
        expected = official(network, x, 4, pools)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(found.unique(dim=0)) > 1


def test_rows_are_alone() -> None:
    torch.manual_seed(1)
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    assert_rows_are_alone(lively(sd.networks.create(NAME, width=0.25, initialisation="plain"), x), x)


@pytest.mark.parametrize("T", [1, 4])
def test_every_layer_but_the_first_reads_spikes(T: int) -> None:
    network = sd.networks.create(NAME, width=0.25, time_steps=T)
    x = torch.rand(4, 3, 16, 16)
    sd.balance(network, x)
    _, seen = taps.captures(network, x, ["*@input"])
    seen.tensors.pop("tokenizer.units.0.conv@input")
    assert len(seen.tensors) == 4 + 2 * 6 + 1
    for path, value in seen.tensors.items():
        assert set(value.detach().unique().tolist()) == {0.0, 1.0}, path


def test_thresholds_of_a_plain_network_are_the_official_ones() -> None:
    network = sd.networks.create(NAME, width=0.25, initialisation="plain")
    thresholds = {n: m.threshold for n, m in network.named_modules() if isinstance(m, Neuron)}
    assert {v for k, v in thresholds.items() if k.endswith("attn.neuron")} == {0.5}
    assert {v for k, v in thresholds.items() if not k.endswith("attn.neuron")} == {1.0}


def test_taps() -> None:
    network = sd.networks.create(NAME, width=0.25, depth=1, time_steps=2)
    x = torch.rand(2, 3, 16, 16)
    _, seen = taps.captures(network, x, ["stage1", "stage2", "before_head", "attention"])
    assert [str(t) for t in taps.resolve(network, "before_head", x)] == ["blocks.0"]
    assert seen["stage1"].shape == seen["stage2"].shape == (2, 2, 64, 4, 4)
    assert {"blocks.0.attn.q", "blocks.0.attn.k"} <= set(seen.tensors)


def test_its_price_counts_the_sums_of_attention() -> None:
    network = sd.networks.create(NAME, width=0.25, depth=1)
    x = torch.rand(2, 3, 16, 16)
    sd.balance(network, x)
    layers = hardware.layers(network.eval(), x)
    operations = hardware.operations.count(layers)
    assert not operations.unpriced
    additions = {layer.name: layer.additions for layer in operations.layers if layer.additions}
    # T = 4, 64 channels, 16 tokens: k * v is summed over the tokens.
    assert additions["blocks.0.attn/sum#0"] == 4 * 64 * 16


def test_formats_refuse_its_sums_by_path() -> None:
    with pytest.raises(sd.SpikedistillError, match=r"blocks\.0\.attn: sum"):
        to_nir(sd.networks.create(NAME, width=0.25, depth=1), "never.nir", torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("pools", [-1, 5])
def test_pools_are_checked(pools: int) -> None:
    with pytest.raises(sd.SpikedistillError, match="pools must be from 0 to 4"):
        sd.networks.create(NAME, pools=pools)
