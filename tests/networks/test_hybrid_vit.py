"""HDKD's networks: attention module, stages that match, tokens, positions, the spiking form."""

import pytest
import torch
from small_networks import make
from torch import Tensor, nn

from spikedistill import networks
from spikedistill.networks.hybrid_vit import CBAM, Transformer
from spikedistill.neurons import Neuron


def outputs(network: networks.Network, x: Tensor, paths: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(p).register_forward_hook(lambda m, a, out, p=p: found.__setitem__(p, out))
        for p in paths
    ]
    with torch.no_grad():
        found["logits"] = network(x)
    for hook in hooks:
        hook.remove()
    return found


def test_cbam_by_hand() -> None:
    module, x = CBAM(32), torch.randn(2, 32, 5, 6)
    first, _, second = module.mlp
    a, b = first.weight[:, :, 0, 0], second.weight[:, :, 0, 0]
    assert a.shape == (2, 32)

    def mlp(v: Tensor) -> Tensor:
        return nn.functional.gelu(v @ a.T) @ b.T

    ca = torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values))
    y = x * ca[:, :, None, None]
    padded = nn.functional.pad(torch.stack([y.mean(1), y.max(1).values], 1), (3, 3, 3, 3))
    sa = torch.zeros(2, 5, 6)
    for i in range(5):
        for j in range(6):
            sa[:, i, j] = (padded[:, :, i : i + 7, j : j + 7] * module.conv.weight).sum((1, 2, 3))
    expected = y * torch.sigmoid(sa)[:, None] + x
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("time_steps", [None, 2])
def test_stages_match_without_an_aligner(time_steps: int | None) -> None:
    teacher, student = make("hdkd_teacher", time_steps=None), make("hdkd_student", time_steps=time_steps)
    assert teacher.stage_paths() == student.stage_paths() == ["stage1", "stage2", "stage3"]
    x = torch.rand(1, 3, 32, 32)
    theirs, ours = (outputs(n, x, n.stage_paths()) for n in (teacher, student))
    T = time_steps or 1
    for path, side in (("stage1", 16), ("stage2", 8), ("stage3", 4)):
        assert theirs[path].shape[-2:] == (side, side)
        assert ours[path].shape == (T, *theirs[path].shape[1:])


def test_widths_and_depths_are_the_papers() -> None:
    with torch.device("meta"):
        teacher, student = networks.create("hdkd_teacher"), networks.create("hdkd_student", time_steps=None)
    assert [len(teacher.get_submodule(s)) for s in teacher.stage_paths()] == [6, 6, 9]
    assert [len(student.get_submodule(s)) for s in student.stage_paths()] == [2, 2, 3]
    assert student.transformer.embed[1].in_features == 768
    assert (student.head.in_features, student.distill_head.in_features) == (256, 256)
    assert student.transformer.positions.shape == (1, 256, 14, 14)


@pytest.mark.parametrize("time_steps", [None, 2])
def test_logits_are_the_average_of_both_heads(time_steps: int | None) -> None:
    network = make("hdkd_student", time_steps=time_steps)
    found = outputs(network, torch.rand(2, 3, 32, 32), ["head", "distill_head", "transformer"])
    mean = (found["head"] + found["distill_head"]) / 2
    torch.testing.assert_close(found["logits"].reshape(mean.shape), mean)
    assert not torch.equal(found["head"], found["distill_head"])
    assert found["transformer"].shape == ((time_steps or 1) * 2, 2 + 4, 32)


def test_patches_are_two_by_two() -> None:
    transformer = Transformer(3, 32, 1, 2)
    seen: list[Tensor] = []
    transformer.embed[0].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    x = torch.arange(48.0).view(1, 3, 4, 4)
    transformer(x)
    patch = x[0, :, 2:4, 0:2]  # second row, first column
    assert sorted(seen[0][0, 2].tolist()) == sorted(patch.flatten().tolist())


def test_layer_norm_before_attention_only() -> None:
    transformer = make("hdkd_student", time_steps=None).transformer
    norms = [name for name, m in transformer.named_modules() if isinstance(m, nn.LayerNorm)]
    assert norms == ["embed.0", "embed.2", "attn.0.norm", "attn.1.norm", "attn.2.norm", "norm"]


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (64, 32)])
@pytest.mark.parametrize("time_steps", [None, 2])
def test_other_sizes(size: tuple[int, int], time_steps: int | None) -> None:
    network = make("hdkd_student", time_steps=time_steps, image_size=32)
    assert network.predict(torch.rand(1, 3, *size)).shape == (1, 5)


def test_positions_of_their_own_size_are_not_resized() -> None:
    network = make("hdkd_student", time_steps=None, image_size=32).eval()
    tokens = torch.randn(1, 32, 4)
    out = network.transformer.add(tokens, (2, 2))
    t = network.transformer
    assert torch.equal(out[:, :, 2:], tokens + t.positions.flatten(2))
    assert torch.equal(out[:, :, :2], t.tokens + t.token_positions)
    nn.init.constant_(t.positions, 3.0)
    assert torch.equal(t.add(torch.zeros(1, 32, 12), (3, 4))[:, :, 2:], torch.full((1, 32, 12), 3.0))


def test_spiking_student_computes_on_spikes() -> None:
    network = make("hdkd_student", neuron={"type": "lif", "threshold": 0.3})
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(lambda m, a, name=name: found.__setitem__(name, a[0]))
    with torch.no_grad():
        network(torch.rand(2, 3, 32, 32))
    # Real values enter the stem and, as in every MS network, the convolutions in shortcuts.
    real = {"stage1.0.conv", "stage2.0.shortcut.1", "stage3.0.shortcut.1"}
    for path, value in found.items():
        assert (set(value.unique().tolist()) <= {0.0, 1.0}) == (path not in real), path
    assert not any(isinstance(m, CBAM | nn.GELU | nn.LayerNorm) for m in network.modules())
    assert not any(isinstance(m, Neuron) for m in make("hdkd_student", time_steps=None).modules())


def test_gradients_reach_both_tokens() -> None:
    for time_steps in (None, 2):
        network = make("hdkd_student", time_steps=time_steps, neuron={"type": "lif", "threshold": 0.3})
        network.predict(torch.rand(2, 3, 32, 32)).square().sum().backward()
        tokens = network.transformer.tokens.grad
        assert tokens is not None
        assert (tokens.abs().sum(1) > 0).all()


def test_spiking_tokens_see_the_image_without_attention() -> None:
    """Spiking attention tells a fresh network's tokens nothing of an image's class: they learn from the mean
    of the patches.
    """
    network = make("hdkd_student", neuron={"type": "lif", "threshold": 0.3})
    for block in network.transformer.blocks:
        nn.init.zeros_(block.attn_norm.weight)
    x = torch.stack([torch.zeros(3, 32, 32), torch.rand(3, 32, 32)])
    tokens = outputs(network, x, ["transformer"])["transformer"].unflatten(0, (-1, 2)).mean(0)
    for token in (0, 1):
        assert (tokens[0, token] - tokens[1, token]).abs().mean() > 0.02


def test_spiking_tokens_are_given_the_mean_of_the_patches() -> None:
    network = make("hdkd_student", neuron={"type": "lif", "threshold": 0.3}).eval()
    seen: list[Tensor] = []
    network.transformer.norm.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    blocks = outputs(network, torch.rand(2, 3, 32, 32), ["transformer.blocks"])["transformer.blocks"]
    mean = blocks[:, :, 2:].mean(2)
    for token in (0, 1):
        torch.testing.assert_close(seen[0][:, :, token], blocks[:, :, token] + mean)
    assert torch.equal(seen[0][:, :, 2:], blocks[:, :, 2:])
