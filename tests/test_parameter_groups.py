"""Groups with rates of their own: a layer with an input factor learns as one whose input is multiplied."""

import copy

import pytest
import torch
from torch import Tensor, nn

import spikedistill as sd

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Multiplied(nn.Module):
    """The layer that the factor stands for: its input is multiplied, its weight as much smaller."""

    def __init__(self, layer: nn.Linear, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = copy.deepcopy(layer), factor
        with torch.no_grad():
            self.layer.weight.div_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.factor * x)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_equal_those_of_the_multiplied_input(name: str, clip: float | None) -> None:
    hidden, head = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
    hidden.input_factor, head.input_factor = 2.5, 4.0
    ours = nn.Sequential(hidden, nn.Tanh(), head)
    theirs = nn.Sequential(Multiplied(hidden, 2.5), nn.Tanh(), Multiplied(head, 4.0))
    extra = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    mine = OPTIMIZERS[name](sd.parameter_groups(ours, 0.05, 0.1, name), **extra)
    weights = [p for p in theirs.parameters() if p.dim() > 1]
    vectors = [p for p in theirs.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    other = OPTIMIZERS[name](groups, lr=0.05, **extra)
    for step in range(20):
        x, y = torch.randn(8, 6).double(), torch.randint(0, 3, (8,))
        for network, optimizer in ((ours, mine), (theirs, other)):
            for group in optimizer.param_groups:  # a schedule: rates move, factors stay
                group["lr"] = 0.05 * (1 + step / 20) * group.get("lr_factor", 1.0)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            if clip and network is ours:
                assert sd.clip_gradients(optimizer, clip) > clip  # or nothing would be tested
            elif clip:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
    torch.testing.assert_close(head.weight, theirs[2].layer.weight * 4.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(hidden.weight, theirs[0].layer.weight * 2.5, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(head.bias, theirs[2].layer.bias, rtol=1e-9, atol=1e-9)


def test_norms_biases_and_neuron_parameters_are_not_decayed() -> None:
    network = sd.networks.create("conv6", width=0.125, neuron={"type": "plif"})
    groups = {g["name"]: g for g in sd.parameter_groups(network, 0.1, 0.1)}
    names = {id(p): n for n, p in network.named_parameters()}
    assert set(groups) == {"weights", "vectors", "head"}
    assert all(names[id(p)].endswith("weight") and p.dim() > 1 for p in groups["weights"]["params"])
    assert {names[id(p)].split(".")[-1] for p in groups["vectors"]["params"]} == {"weight", "bias", "w"}
    assert groups["vectors"]["weight_decay"] == 0
    assert [names[id(p)] for p in groups["head"]["params"]] == ["head.weight"]
    assert groups["head"]["lr_factor"] == pytest.approx(network.head.input_factor**2)
    assert sum(len(g["params"]) for g in groups.values()) == len(names)


def test_factors_survive_copies_quantization_and_files(tmp_path) -> None:
    from spikedistill.training.store import load_network, save_network

    network = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2)
    x = torch.rand(8, 1, 8, 8)
    sd.balance(network, x)
    factor = network.head.input_factor
    quantized = sd.quantize(copy.deepcopy(network), unit="learned", calibration=x)
    groups = {g["name"]: g for g in sd.parameter_groups(quantized, 0.1, 0.1)}
    assert groups["head"]["lr_factor"] == pytest.approx(factor**2)
    assert groups["learned scales"]["lr_factor"] == 0.1
    assert groups["learned scales"]["weight_decay"] == 0
    for i, one in enumerate((network, quantized)):
        save_network(tmp_path / str(i), one, {}, "")
        found = load_network(tmp_path / str(i))
        assert found.head.input_factor == pytest.approx(factor)
        assert torch.equal(found.eval().predict(x), one.eval().predict(x))


@pytest.mark.parametrize(
    "options", [{"unit": "learned"}, {"weight_range": "learned"}, {"scheme": "mint"}], ids=str
)
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_learned_scales_are_steady_whatever_their_size(optimizer: str, options: dict) -> None:
    """54 steps at 1e-3 that all push one way: more than that no gradients can do."""
    network = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2)
    quantized = sd.quantize(network, calibration=torch.rand(8, 1, 8, 8), **options)
    groups = sd.parameter_groups(quantized, 1e-3, 0.1, optimizer)
    stepped = torch.optim.AdamW(groups) if optimizer == "adamw" else torch.optim.Adam(groups)
    scales = {n: p for n, p in quantized.named_parameters() if n.endswith(("weight_scale", "membrane_unit"))}
    assert len(scales) >= 3
    start = {n: p.detach().clone() for n, p in scales.items()}
    for p in scales.values():
        p.grad = torch.ones_like(p)
    for _ in range(54):
        stepped.step()
    for name, p in scales.items():
        assert 0.85 < float((p.detach() / start[name]).mean()) < 1, name
    assert all(g["weight_decay"] == 0 for g in groups if g["name"].startswith("learned scales"))


@pytest.mark.parametrize("kind", ["sliding_psn", "masked_psn", "psn"])
def test_weights_over_time_do_not_run_away_under_a_large_loss(kind: str) -> None:
    """A loss of about 20, as logit distillation at temperature 4 has, at SGD's usual rate of 0.1."""
    torch.manual_seed(0)
    network = sd.networks.create("conv6", in_channels=1, width=0.25, time_steps=4, neuron={"type": kind})
    own = {n: p for n, p in network.named_parameters() if "neuron" in n and n.endswith((".weight", ".bias"))}
    assert len(own) >= 12
    groups = {g["name"]: g for g in sd.parameter_groups(network, 0.1, 0.1)}
    assert {id(p) for p in groups["weights over time"]["params"]} == {id(p) for p in own.values()}
    assert groups["weights over time"]["lr_factor"] == 0.01
    assert groups["weights over time"]["weight_decay"] == 0
    for adam in ("adam", "adamw"):
        slow = {g["name"]: g for g in sd.parameter_groups(network, 1e-3, 0.1, adam)}["weights over time"]
        assert (slow["lr_factor"], slow["weight_decay"]) == (1.0, 0.0)
    start = {n: p.detach().clone() for n, p in own.items()}
    optimizer = torch.optim.SGD(groups.values(), momentum=0.9, nesterov=True)
    x, y = torch.rand(64, 1, 16, 16), torch.arange(64) % 10
    for _ in range(15):
        optimizer.zero_grad()
        (8 * nn.functional.cross_entropy(network(x).mean(0), y)).backward()
        optimizer.step()
    most = max(float((p.detach() - start[n]).abs().max()) for n, p in own.items())
    assert 0.001 < most < 0.3


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(sd.SpikedistillError, match=r"unknown optimizer 'adamv'.*adamw"):
        sd.parameter_groups(nn.Linear(2, 2), 0.1, optimizer="adamv")


def test_a_reparametrised_classifier_is_named(caplog) -> None:
    """weight_norm makes the weight of two parameters: no exact rate is left, and none is lost in silence."""
    network = sd.networks.create("conv6", width=0.25)
    nn.utils.parametrizations.weight_norm(network.get_submodule(network.head_path))
    groups = sd.parameter_groups(network, 0.1)
    assert network.head_path not in {group["name"] for group in groups}
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"{network.head_path}: ")]
