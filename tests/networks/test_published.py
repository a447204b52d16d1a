"""Published checkpoints by their authors' names give what the originals give."""

import pytest
import torch
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.errors import SpikedistillError


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Norms of a trained network: strong scales, statistics of data."""
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(m.weight, 1.5, 2.5)
            nn.init.uniform_(m.bias, 0.0, 0.5)
            nn.init.uniform_(m.running_mean, -0.1, 0.1)
            nn.init.uniform_(m.running_var, 0.2, 0.5)
    return model.eval()


def as_authors_name_sew(state: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """Convolution and norm in one container, as in the authors' repository."""
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0].startswith("layer"):
            if parts[2] == "downsample":
                parts[3:4] = ["0", *([module] if module else []), parts[3]]
            else:
                kind, number = parts[2][:-1], parts[2][-1]
                parts[2:3] = [f"conv{number}", *([module] if module else []), "0" if kind == "conv" else "1"]
        out[".".join(parts)] = value
    return out


def test_sew_resnet() -> None:
    sew = pytest.importorskip("spikingjelly.activation_based.model.sew_resnet")
    from spikingjelly.activation_based import functional, neuron

    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    model = settled(sew.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=7), x)
    functional.set_step_mode(model, "m")
    want = model(x.unsqueeze(0).repeat(4, 1, 1, 1, 1))
    options = {"num_classes": 7, "neuron": {"type": "if"}, "initialisation": "plain"}
    network = sd.networks.load_published(
        sd.networks.create("sew_resnet18", **options), model.state_dict()
    ).eval()
    torch.testing.assert_close(network(x), want, rtol=1e-5, atol=1e-5)
    assert want.std() > 1e-3
    for module in ("", "module"):
        again = sd.networks.create("sew_resnet18", **options)
        sd.networks.load_published(again, as_authors_name_sew(model.state_dict(), module))
        assert torch.equal(again.eval()(x), network(x))


SIZES = {"num_classes": 7, "width": 0.25, "depth": 2, "initialisation": "plain"}  # 96 channels, 3 heads


def test_spikformer_of_spikingjelly() -> None:
    module = pytest.importorskip("spikingjelly.activation_based.model.spikformer")
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    model = module.Spikformer(
        T=4, img_size_h=16, img_size_w=16, patch_size=4, num_classes=7, embed_dims=96, num_heads=3, depths=2
    )  # fmt: skip
    settled(model, x)
    for m in model.modules():
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear):
            m.weight.data.mul_(8)
    network = sd.networks.load_published(
        sd.networks.create("spikformer_4_384", **SIZES), model.state_dict()
    ).eval()
    out, want = network(x), model(x)
    torch.testing.assert_close(out if want.dim() == 3 else out.mean(0), want, rtol=1e-5, atol=1e-5)
    assert want.std() > 1e-3


class Block(nn.Module):
    """A block on tokens (T, N, C, L): ``ms`` Spikingformer's, else Spikformer's of linear layers (CIFAR)."""

    def __init__(self, c: int, heads: int, ms: bool) -> None:
        super().__init__()
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        self.heads, self.ms = heads, ms

        def lif(threshold: float = 1.0) -> nn.Module:
            return neuron.LIFNode(tau=2.0, v_threshold=threshold, step_mode="m")

        def add(owner: nn.Module, name: str, a: int, b: int, bias: bool = True) -> None:
            owner.add_module(
                f"{name}_conv" if ms else f"{name}_linear",
                nn.Conv1d(a, b, 1, bias=bias) if ms else nn.Linear(a, b),
            )
            owner.add_module(f"{name}_bn", nn.BatchNorm1d(b))
            owner.add_module(f"{name}_lif", lif())

        self.attn, self.mlp, self.norm1, self.norm2 = (
            nn.Module(),
            nn.Module(),
            nn.LayerNorm(c),
            nn.LayerNorm(c),
        )
        for name in "qkv":
            add(self.attn, name, c, c, bias=False)
        add(self.attn, "proj", c, c)
        self.attn.attn_lif = lif(0.5)
        for name, a, b in (("1", c, 4 * c), ("2", 4 * c, c)):
            add(self.mlp, ("mlp" if ms else "fc") + name, a, b)

    def unit(self, owner: nn.Module, name: str, x: Tensor, first: bool = False, last: bool = True) -> Tensor:
        fire = owner.get_submodule(f"{name}_lif")
        x = fire(x) if first else x
        y = x.flatten(0, 1)
        layer = owner.get_submodule(f"{name}_conv" if self.ms else f"{name}_linear")
        y = layer(y) if self.ms else layer(y.transpose(1, 2)).transpose(1, 2)
        y = owner.get_submodule(f"{name}_bn")(y).unflatten(0, x.shape[:2])
        return fire(y) if last else y

    def forward(self, x: Tensor) -> Tensor:
        a = self.attn
        given = a.proj_lif(x) if self.ms else x
        q, k, v = (self.unit(a, name, given).unflatten(2, (self.heads, -1)) for name in "qkv")
        out = (v @ k.transpose(-2, -1) @ q * 0.125).flatten(2, 3)
        x = x + self.unit(a, "proj", a.attn_lif(out), last=not self.ms)
        name = "mlp" if self.ms else "fc"
        h = self.unit(self.mlp, f"{name}1", x, first=self.ms, last=not self.ms)
        return x + self.unit(self.mlp, f"{name}2", h, first=self.ms, last=not self.ms)


class Authors(nn.Module):
    """A small independent form of the authors' networks, with their parameters' names."""

    def __init__(self, ms: bool, tokenizer: str, c: int = 96, heads: int = 3) -> None:
        super().__init__()
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        self.ms, self.tokenizer, self.patch_embed, a = ms, tokenizer, nn.Module(), 3
        for i, b in enumerate((c // 8, c // 4, c // 2, c, c)):
            self.patch_embed.add_module(self.names(i)[0], nn.Conv2d(a, b, 3, 1, 1, bias=False))
            self.patch_embed.add_module(self.names(i)[1], nn.BatchNorm2d(b))
            a = b
        self.lifs = [neuron.LIFNode(tau=2.0, step_mode="m") for _ in range(5)]
        self.block = nn.ModuleList([Block(c, heads, ms) for _ in range(2)])
        self.head = nn.Linear(c, 7)

    def names(self, i: int) -> tuple[str, str]:
        if self.ms:
            n = "" if i == 0 and self.tokenizer == "proj" else str(i)
            return f"{self.tokenizer}{n}_conv", f"{self.tokenizer}{n}_bn"
        n = "" if i == 0 else str(i)
        return ("rpe_conv", "rpe_bn") if i == 4 else (f"proj_conv{n}", f"proj_bn{n}")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(4, 1, 1, 1, 1)
        for i in range(5):
            before = x
            conv, bn = (self.patch_embed.get_submodule(n) for n in self.names(i))
            x = bn(conv(x.flatten(0, 1))).unflatten(0, (4, -1))
            if i < 4 or not self.ms:
                x = self.lifs[i](x)
            if i in (2, 3):
                x = nn.functional.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, (4, -1))
            if i == 4 and not self.ms:
                x = x + before
        x = x.flatten(3)
        for block in self.block:
            x = block(x)
        return self.head(x.mean(3))


@pytest.mark.parametrize("ms, tokenizer", [(False, "proj"), (True, "proj"), (True, "block")])
def test_transformers_as_their_authors_name_them(ms: bool, tokenizer: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    model = settled(Authors(ms, tokenizer), x)
    name = "spikingformer_4_384" if ms else "spikformer_4_384"
    network = sd.networks.create(name, downsampling="original", **SIZES)
    sd.networks.load_published(network.eval(), model.state_dict())
    want = model(x)
    torch.testing.assert_close(network(x), want, rtol=1e-5, atol=1e-5)
    assert want.std() > 1e-3


def test_what_does_not_fit_is_refused() -> None:
    model = Authors(False, "proj")
    balanced = sd.networks.create("spikformer_4_384", **SIZES | {"initialisation": "balanced"})
    with pytest.raises(SpikedistillError, match=r"threshold 0\.5.*initialisation='plain'"):
        sd.networks.load_published(balanced, model.state_dict())
    state = model.state_dict()
    del state["head.bias"]
    with pytest.raises(
        SpikedistillError, match=r"the state dict: 1 tensors of the network are missing, first 'head\.bias'"
    ):
        sd.networks.load_published(sd.networks.create("spikformer_4_384", **SIZES), state)
