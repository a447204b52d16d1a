"""Spiking transformers: attention against a plain loop, order of the parts, what flows between them."""

import pytest
import torch
from small_networks import make
from torch import Tensor, nn
from torch.nn import functional as F

from spikedistill import networks
from spikedistill.networks.builder import Builder
from spikedistill.networks.spikformer import SpikingSelfAttention, Tokenizer, attend
from spikedistill.neurons import IF, LIF, Neuron, NormNeuron
from spikedistill.simulation import Simulation


def attention_by_loop(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Over samples, heads and pairs of tokens; tensors (N, heads, d, L)."""
    out = torch.zeros_like(v)
    N, heads, d, L = q.shape
    for n in range(N):
        for h in range(heads):
            for i in range(L):
                for j in range(L):
                    score = sum(float(q[n, h, c, i]) * float(k[n, h, c, j]) for c in range(d))
                    out[n, h, :, i] += score * v[n, h, :, j]
    return out * scale


@pytest.mark.parametrize(("d", "tokens"), [(3, 7), (7, 3), (4, 4)])
def test_attention_equals_the_plain_loop(d: int, tokens: int) -> None:
    q, k, v = (torch.randint(0, 2, (2, 2, d, tokens)).float() for _ in range(3))
    assert torch.equal(attend(q, k, v), attention_by_loop(q, k, v, 0.125))
    assert attend(q, k, v).sum() > 0


def test_self_attention_equals_the_plain_loop() -> None:
    T, N, C, heads = 3, 2, 8, 2
    network = make("spikingformer_4_256", time_steps=T, neuron=IF(threshold=0.5), initialisation="plain")
    block = SpikingSelfAttention(Builder(network, IF(threshold=0.5)), C, heads).double().eval()
    x = torch.randint(0, 2, (T * N, C, 2, 2)).double()
    with torch.no_grad(), Simulation(network, T):
        out = block(x)

    def fire(current: Tensor, threshold: float) -> Tensor:  # (T*N, ...): integrate, fire, reset to zero
        membrane, spikes = torch.zeros_like(current[:N]), []
        for step in current.view(T, N, *current.shape[1:]):
            membrane = membrane + step
            spikes.append((membrane >= threshold).double())
            membrane = membrane * (1 - spikes[-1])
        return torch.cat(spikes)

    heads_of = {}
    for name in ("q", "k", "v"):
        conv, norm = block.get_submodule(name)
        weight = conv.weight[:, :, 0, 0]
        current = torch.einsum("oc,nchw->nohw", weight, x) / (1 + norm.eps) ** 0.5
        heads_of[name] = fire(current.detach(), 0.5).reshape(T * N, heads, C // heads, 4)
    charged = attention_by_loop(heads_of["q"], heads_of["k"], heads_of["v"], 0.125).reshape(T * N, C, 2, 2)
    spikes = fire(charged, 0.25)
    assert spikes.sum() > 0
    assert spikes.mean() < 1
    expected = F.conv2d(spikes, block.proj.weight, block.proj.bias)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-9, atol=1e-9)


def test_attention_neuron_has_half_the_threshold() -> None:
    network = make("spikformer_4_256", neuron=LIF(threshold=0.8), initialisation="plain")
    thresholds = {n: m.threshold for n, m in network.named_modules() if isinstance(m, Neuron)}
    assert {v for k, v in thresholds.items() if k.endswith("attn.neuron")} == {0.4}
    assert {v for k, v in thresholds.items() if not k.endswith("attn.neuron")} == {0.8}


@pytest.mark.parametrize("name", ["spikformer_4_384", "spikingformer_4_384"])
def test_order_of_pool_and_neuron(name: str) -> None:
    def order(downsampling: str) -> list[list[str]]:
        units = networks.create(name, width=0.084, downsampling=downsampling).tokenizer.units
        return [[type(m).__name__ for m in unit] for unit in units]

    plain = ["Conv2d", "NormNeuron"]
    assert order("cml") == [plain, plain, *[["Conv2d", "BatchNorm2d", "MaxPool2d", "LIF"]] * 2]
    assert order("original") == [plain, plain, *[[*plain, "MaxPool2d"]] * 2]
    both = [
        networks.create(name, width=0.084, downsampling=d).state_dict().keys() for d in ("cml", "original")
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(("name", "size", "tokens"), [("4_384", 32, 8), ("8_384", 64, 4), ("2_256", 32, 2)])
@pytest.mark.parametrize("family", ["spikformer", "spikingformer"])
def test_tokens_per_side(family: str, name: str, size: int, tokens: int) -> None:
    network = networks.create(
        f"{family}_{name}", width=0.125, depth=1, time_steps=1, input="image", in_channels=3
    )
    tokenizer = network.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    found: list[torch.Size] = []
    tokenizer.register_forward_hook(lambda m, a, out: found.append(out.shape))
    with torch.no_grad():
        network(torch.rand(1, 3, size, size))
    assert found[0][-2:] == (tokens, tokens)


def inputs_of_layers(network: networks.Network, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(lambda m, a, name=name: found.__setitem__(name, a[0]))
    with torch.no_grad():
        network(x)
    return found


@pytest.mark.parametrize("name", ["spikformer_4_256", "spikingformer_4_256"])
def test_layers_read_spikes(name: str) -> None:
    # As many tokens as it was balanced for: attention of a quarter of them would hardly fire.
    network = networks.create(name, width=0.0834, depth=2, neuron={"type": "lif", "threshold": 0.3})
    given = inputs_of_layers(network, torch.rand(2, 3, 32, 32))
    given.pop("tokenizer.units.0.conv"), given.pop("head")
    assert len(given) == 4 + 2 * 6
    spikformer = name.startswith("spikformer")
    for path, value in given.items():
        # Spikformer's residuals add spikes: small integers reach the next block.
        integers = spikformer and path.endswith(("q.conv", "k.conv", "v.conv", "fc1"))
        assert torch.equal(value, value.round() if integers else (value > 0).to(value.dtype)), path
        assert float(value.max()) >= 1, path


def test_event_versions_take_frames() -> None:
    network = networks.create("spikingformer_2_256", width=0.0626)
    assert (network.input, network.in_channels) == ("frames", 2)
    assert len(network.blocks) == 2
    assert network(torch.rand(1, 8, 2, 32, 32)).shape == (4, 1, 10)


def test_stages_are_tokenizer_and_blocks() -> None:
    assert networks.create("spikformer_2_384", width=0.084).stage_paths() == [
        "tokenizer",
        "blocks.0",
        "blocks.1",
    ]


def test_every_norm_of_spikformer_ends_in_a_neuron() -> None:
    kinds = {type(m) for m in networks.create("spikformer_4_256", width=0.0834, pools=0).modules()}
    assert NormNeuron in kinds
    assert nn.BatchNorm2d not in kinds
