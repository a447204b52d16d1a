"""QKFormer against its equations, image by image; attention over tokens and channels; integers and price."""

import pytest
import torch
from official import affine, assert_rows_are_alone, branch, conv, fire, lively, mlp, pool
from torch import Tensor, nn

import spikedistill as sd
from spikedistill import hardware, taps
from spikedistill.export import to_nir

NAME = "qkformer_4_384"
# How a form's embeddings pool, unit by unit, and where their shortcut leaves.
LATE, EARLY = ([False, True], 0), ([True, False], 0)
FORMS = {
    "qkformer_4_384": [([False, False], 1), LATE, LATE],
    "qkformer_10_384": [([True, True, False], 1), EARLY, EARLY],
    "qkformer_2_256": [([False, True, True, True], 2), LATE],
}


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(T, N, C, H, W) to (T, N, heads, d, L)."""
    return x.flatten(3).unflatten(2, (heads, -1))


def official(network: sd.networks.Network, x: Tensor, T: int, kind: str = "token") -> Tensor:
    """Logits (T, N, K) of a network in plain form; ``x``: images (N, C, H, W), or frames (T, N, C, H, W)."""
    x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1) if x.dim() == 4 else x
    form = FORMS[network.config["name"]]
    for i, (pools, before) in enumerate(form):
        embed, stage = network.get_submodule(f"embed{i + 1}"), network.get_submodule(f"stage{i + 1}")
        for j, pooled in enumerate(pools):
            if j == before:
                short = x
            x = affine(conv(x, embed.units[j].conv), embed.units[j].norm)
            x = fire(pool(x) if pooled else x)
        x = x + fire(affine(conv(short, embed.shortcut), embed.shortcut_norm))
        for block in stage:
            attn, heads, size = block.attn, block.attn.heads, x.shape[2:]
            if i < len(form) - 1:
                q, k = (heads_of(branch(x, attn.get_submodule(name)), heads) for name in "qk")
                out = k * fire(q.sum(3 if kind == "token" else 4, keepdim=True), 0.5)
            else:
                q, k, v = (heads_of(branch(x, attn.get_submodule(name)), heads) for name in "qkv")
                scores = torch.einsum("tnhdi,tnhdj->tnhij", q, k)
                out = fire(torch.einsum("tnhij,tnhdj->tnhdi", scores, v) * 0.125, 0.5)
            out = out.reshape(T, -1, *size)
            x = x + fire(affine(conv(out, attn.proj), block.attn_norm))
            x = x + fire(mlp(x, block))
    return nn.functional.linear(x.mean((3, 4)), network.head.weight, network.head.bias)


@pytest.mark.parametrize("kind", ["token", "channel"])
@pytest.mark.parametrize("name", FORMS)
def test_it_computes_the_published_equations(name: str, kind: str) -> None:
    torch.manual_seed(0)
    frames = name.endswith("2_256")
    x = torch.rand(3, 3, 16, 16) if not frames else torch.poisson(torch.ones(2, 4, 2, 32, 32))
    x = x.double()
    depth = 4 if name == "qkformer_10_384" else None
    network = sd.networks.create(name, width=0.25, depth=depth, attention=kind, initialisation="plain")
    lively(network, x)
    with torch.no_grad():
        found = network(x)
        expected = official(network, x.transpose(0, 1) if frames else x, 4, kind)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(found.unique(dim=0)) > 1


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_images_of_a_batch_do_not_charge_each_other(kind: str) -> None:
    """In the public code the last neuron of self-attention runs over T*N as if it were time."""
    torch.manual_seed(1)
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    network = sd.networks.create(NAME, width=0.25, attention=kind, initialisation="plain")
    assert_rows_are_alone(lively(network, x), x)


def test_blocks_are_where_the_names_say() -> None:
    for name, blocks in {"4_384": [1, 1, 2], "10_512": [1, 2, 7], "2_256": [1, 1]}.items():
        network = sd.networks.create(f"qkformer_{name}", width=0.125, time_steps=None)
        assert [len(network.get_submodule(path)) for path in network.stage_paths()] == blocks
    assert len(sd.networks.create(NAME, width=0.125, depth=6).stage3) == 4


def test_published_size_of_the_event_network() -> None:
    assert sum(p.numel() for p in sd.networks.create("qkformer_2_256").parameters()) == 1_504_138


def test_taps() -> None:
    network = sd.networks.create(NAME, width=0.25, time_steps=2)
    x = torch.rand(2, 3, 16, 16)
    _, seen = taps.captures(network, x, ["stage1", "stage2", "stage3", "before_head", "attention"])
    assert [seen[f"stage{i}"].shape for i in (1, 2, 3)] == [
        (2, 2, 24, 16, 16),
        (2, 2, 48, 8, 8),
        (2, 2, 96, 4, 4),
    ]
    assert torch.equal(seen["before_head"], seen["stage3"])
    assert {"stage1.0.attn.q", "stage3.1.attn.k"} <= set(seen.tensors)


def test_its_price_counts_the_sums_and_names_the_products_of_attention() -> None:
    network = sd.networks.create(NAME, width=0.25, depth=3)
    x = torch.rand(2, 3, 16, 16)
    sd.balance(network, x)
    operations = hardware.operations.count(hardware.layers(network.eval(), x))
    additions = {layer.name: layer.additions for layer in operations.layers if layer.additions}
    assert additions["stage1.0.attn/sum#0"] == 4 * 24 * 256
    assert additions["stage2.0.attn/sum#0"] == 4 * 48 * 64
    # as of every self-attention
    assert {entry.split("/")[0] for entry in operations.unpriced} == {"stage3.0.attn"}


def test_formats_refuse_its_sums_by_path() -> None:
    with pytest.raises(sd.SpikedistillError, match=r"stage1\.0\.attn: sum"):
        to_nir(sd.networks.create(NAME, width=0.25), "never.nir", torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"attention": "both"}, "attention must be 'token' or 'channel', found 'both'"),
    ({"depth": 2}, "depth must be at least 3")],
)  # fmt: skip
def test_options_are_checked(given: dict, message: str) -> None:
    with pytest.raises(sd.SpikedistillError, match=message):
        sd.networks.create(NAME, **given)
