"""Balanced start: neurons fire, gradients arrive, classifier's rate; measured on networks, not the model."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill import taps
from spikedistill.networks.balanced import FIRING_RATE
from spikedistill.neurons import LIF, Neuron, NormNeuron

NEURONS = {
    "if": {"type": "if"},
    "if soft": {"type": "if", "reset": "soft"},
    "lif": {"type": "lif"},
    "lif soft": {"type": "lif", "reset": "soft"},
    "plif": {"type": "plif"},
    "counting": {"type": "if", "reset": "soft", "initial": 0.5},
    "small": {"type": "lif", "decay": 0.25, "threshold": 0.5},
}
CASES = [
    *(("conv6", neuron, T) for neuron in NEURONS for T in (1, 4)),
    ("vgg16", "counting", 4), ("sew_resnet56", "counting", 4), ("resnet20", "counting", 4),
    ("vgg9", "counting", 1), ("conv6", "counting", 16), ("resnet56", "counting", 4),
    ("conv6", "if", 16), ("vgg9", "lif", 4), ("vgg9", "if soft", 16), ("sew_resnet20", "lif", 4),
    ("sew_resnet20", "if soft", 4), ("ms_resnet20", "small", 4), ("ms_resnet20", "lif soft", 4),
    ("resnet20", "lif", 4), ("resnet20", "if", 4), ("resnet20", "small", 1), ("resnet18", "lif", 4),
    ("spikformer_4_256", "lif", 4), ("spikingformer_2_384", "lif", 4), ("sew_7b_wide", "plif", 4),
    ("spike_driven_2_256", "lif", 4), ("spike_driven_2_256", "small", 1), ("qkformer_4_384", "lif", 4),
    ("resnet56", "small", 1), ("resnet56", "counting", 1), ("resnet56", "if", 8), ("resnet20", "if soft", 16),
    ("sew_resnet56", "if", 1), ("sew_resnet56", "small", 4), ("ms_resnet50", "lif", 4),
    ("vgg16", "if soft", 16),
]  # fmt: skip


def smooth(n: int, channels: int, size: int) -> torch.Tensor:
    """Images whose neighbours are alike, as real ones'."""
    x = torch.randn(n, channels, size // 4, size // 4)
    return (
        F.interpolate(x, size=(size, size), mode="bilinear") * 0.5
        + 0.5
        + 0.05 * torch.randn(n, channels, size, size)
    )


def measured(network: nn.Module, x: torch.Tensor) -> tuple[dict[str, float], list[float]]:
    """Firing rates by layer, and |w| |grad| of the convolutions, in training mode."""
    network.train()
    _, seen = taps.captures(network, x, ["*@spikes"])
    rates = {k.removesuffix("@spikes"): float(v.detach().mean()) for k, v in seen.tensors.items()}
    F.cross_entropy(network.predict(x), torch.arange(len(x)) % 10).backward()
    convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    return rates, [float(w.detach().norm() * w.grad.norm()) for w in convolutions if w.grad is not None]


def assert_level(gradients: list[float]) -> None:
    """All within a factor of 8 of their geometric mean."""
    middle = math.exp(sum(math.log(g) for g in gradients) / len(gradients))
    assert all(middle / 8 < g < middle * 8 for g in gradients), gradients


@pytest.mark.parametrize(("name", "neuron", "T"), CASES)
def test_rates_and_gradients_are_balanced(name: str, neuron: str, T: int) -> None:
    frames = name == "sew_7b_wide"
    size = 128 if frames else 32
    width = 0.25 if "former" in name or frames else 0.5
    network = sd.networks.create(name, num_classes=10, width=width, time_steps=T, neuron=NEURONS[neuron])
    x = smooth(24, network.in_channels, size)
    if frames:
        x = x[:6].abs().unsqueeze(1).repeat(1, T, 1, 1, 1)
    if network.balanced_by == "data":
        sd.balance(network, x)
    rates, gradients = measured(network, x)
    assert all(0.08 < rate < 0.30 for rate in rates.values()), rates
    assert_level(gradients)


def test_channels_that_a_shortcut_pads_keep_their_rate() -> None:
    """The norm's shift takes back the spikes that a shortcut brings; to half of these channels none come."""
    network = sd.networks.create("resnet20", width=0.5, neuron=NEURONS["small"])
    _, seen = taps.captures(network.train(), smooth(24, 3, 32), ["layer2.0.bn2@spikes"])
    rates = seen.tensors["layer2.0.bn2@spikes"].detach().mean((0, 2, 3))
    padded, joined = torch.cat([rates[:4], rates[12:]]).mean(), rates[4:12].mean()
    assert float(padded / joined) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize(
    ("name", "options"),
    [("svgg11", {}), ("vgg9", {"hidden": 256}), ("resnet19", {}), ("resnet19", {"neuron": {"type": "lif"}})],
)
def test_hidden_linear_layers_are_balanced_by_measurement(name: str, options: dict) -> None:
    """The form assumes small rates of a global pool: of one place, or behind max-pools, they are not."""
    network = sd.networks.create(name, width=0.25, **options)
    assert network.balanced_by == "data"
    x = smooth(24, 3, 32)
    sd.balance(network, x)  # as recipes do
    rates, _ = measured(network, x)
    assert all(0.08 < rate < 0.30 for rate in rates.values()), rates
    plain = sd.networks.create(name, width=0.25, initialisation="plain", **options)
    assert plain.balanced_by == "form"


@pytest.mark.parametrize("name", ["vgg9", "conv6", "dvs_gesture_cnn", "spike_driven_2_256"])
def test_a_spiking_classifier_fires(name: str) -> None:
    network = sd.networks.create(name, width=0.5, head="spiking", time_steps=4).train()
    x = smooth(64, network.in_channels, 32)
    if network.input == "frames":
        x = x.abs().round().unsqueeze(1).repeat(1, 4, 1, 1, 1)
    if network.balanced_by == "data":
        sd.balance(network, x)
    _, seen = taps.captures(network, x, ["head.neuron@spikes"])
    (spikes,) = seen.tensors.values()
    assert 0.04 < float(spikes.detach().mean()) < 0.6


def test_a_spiking_classifier_learns() -> None:
    """With currents as large as the other layers' its neurons fall silent, and all is chance (0.1)."""
    torch.manual_seed(1)
    templates = smooth(10, 2, 32).abs().unsqueeze(1).repeat(1, 4, 1, 1, 1)
    network = sd.networks.create("dvs_gesture_cnn", num_classes=10, time_steps=4)
    sd.balance(network, torch.poisson(0.4 * templates + 0.2))
    optimizer = torch.optim.AdamW(sd.parameter_groups(network.train(), lr=0.005, weight_decay=0.01))
    right = []
    for _ in range(80):
        y = torch.randint(10, (25,))
        logits = network.predict(torch.poisson(0.4 * templates[y] + 0.2))
        right.append(float((logits.argmax(1) == y).double().mean()))
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimizer.step()
    assert sum(right[-10:]) / 10 > 0.6


@pytest.mark.parametrize("T", [1, 2, 4])
def test_largest_values_of_a_map_tell_images_apart(T: int) -> None:
    """At the usual rate a spike is sure somewhere in each map: all images look alike to the classifier."""
    network = sd.networks.create("sresnet8", width=0.5, features=32, time_steps=T).train()
    x = smooth(24, 1, 64)[:, :, :32]
    _, seen = taps.captures(network, x, ["pool"])
    pooled = seen.tensors["pool"].mean(0).flatten(1)
    assert float((pooled.detach().std(0) / (pooled.detach().mean(0) + 1e-3)).mean()) > 0.22


@pytest.mark.slow
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("name", ["resnet56", "ms_resnet56", "vgg16", "sew_resnet56"])
def test_deep_networks_are_balanced(name: str, T: int, neuron: str) -> None:
    options = {"pools": 4} if name == "vgg16" else {}
    network = sd.networks.create(name, width=0.5, time_steps=T, neuron=NEURONS[neuron], **options)
    rates, gradients = measured(network, smooth(24, 3, 32))
    assert all(0.08 < rate < 0.30 for rate in rates.values()), rates
    assert_level(gradients)


@pytest.mark.parametrize(
    "name",
    [
        "vgg9",
        "conv6",
        "resnet20",
        "sew_resnet20",
        "ms_resnet20",
        "sresnet8",
        "sew_7b_wide",
        "spikingformer_2_384",
    ],
)
def test_the_classifier_reads_inputs_of_an_anns_size(name: str) -> None:
    """Times its factor: with 9 in place of 0.6 its rate would be 200 times too high, and the network dies."""
    options = {"pools": 5} if name == "sew_7b_wide" else {}
    network = sd.networks.create(name, num_classes=10, width=0.25, time_steps=4, **options).train()
    x = smooth(16, network.in_channels, 32)
    x = x.abs().unsqueeze(1).repeat(1, 4, 1, 1, 1) if network.input == "frames" else x
    if network.balanced_by == "data":
        sd.balance(network, x)
    head = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unflatten(0, (4, -1)).mean(0)))
    with torch.no_grad():
        network(x)
    assert 0.3 < float(seen[0].square().mean().sqrt()) * getattr(head, "input_factor", 1.0) < 3.5


def test_a_plain_start_is_what_balance_cures() -> None:
    network = sd.networks.create("conv6", initialisation="plain", neuron=LIF())
    rates, gradients = measured(network, smooth(24, 3, 32))
    assert max(list(rates.values())[1:]) < 0.06
    assert gradients[0] < gradients[-1] / 3


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_the_rate_is_aimed_at(rate: float) -> None:
    rates, _ = measured(sd.networks.create("vgg9", width=0.25, firing_rate=rate), smooth(24, 3, 32))
    mean = sum(rates.values()) / len(rates)
    assert mean == pytest.approx(rate, rel=0.35)


def test_the_users_surrogate_is_kept() -> None:
    neuron = {"type": "lif", "surrogate": {"name": "triangle", "alpha": 0.5}}
    network = sd.networks.create("conv6", neuron=neuron)
    assert {m.surrogate.name for m in network.modules() if isinstance(m, Neuron)} == {"triangle"}
    assert {m.surrogate.name for m in sd.networks.create("conv6").modules() if isinstance(m, Neuron)} == {
        "rectangle"
    }


def test_copied_weights_are_balanced_by_factors_that_files_keep(tmp_path) -> None:
    from spikedistill.training.store import load_network, save_network

    x = smooth(16, 3, 32)
    for name in ("vgg9", "resnet20"):
        ann = sd.networks.create(name, width=0.25, time_steps=None)
        snn = sd.networks.create(name, width=0.25)
        snn.load_state_dict(ann.state_dict())
        before = {k: v.clone() for k, v in snn.state_dict().items()}
        sd.balance(snn, x)
        rates, _ = measured(snn, x)
        assert all(0.08 < rate < 0.30 for rate in rates.values()), rates
        for key, value in snn.state_dict().items():
            if "conv" in key and value.dim() == 4:
                assert torch.equal(value, before[key])
        assert snn.config.get("thresholds") if name == "resnet20" else "thresholds" not in snn.config
        save_network(tmp_path / name, snn, {}, "")
        found = load_network(tmp_path / name)
        assert torch.equal(found.predict(x), snn.eval().predict(x))


def without_norms(layers: int, neuron: nn.Module | dict, x: torch.Tensor) -> sd.networks.Network:
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return sd.spiking(model, neuron=neuron, example=x)


@pytest.mark.parametrize("kind", ["lif", "if"])
def test_gradients_reach_all_layers_of_a_network_without_norms(kind: str) -> None:
    """Thresholds shrink from layer to layer, as currents do: a surrogate of one width would be too wide."""
    torch.manual_seed(1)  # over seeds and real images the layers lie within factors of 4 to 8
    x = smooth(24, 3, 16)
    network = without_norms(20, {"type": kind}, x)
    _, gradients = measured(network, x)
    assert len(gradients) == 20
    assert_level(gradients)


@pytest.mark.parametrize(("neuron", "T"), [("lif", 1), ("if", 4)])
def test_gradients_reach_all_layers_of_a_deep_network_without_pools(neuron: str, T: int) -> None:
    """Its layers behind norms double the gradients' variance, and nothing takes it back: 500-fold over 40."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(40):
        parts += [nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    x = smooth(16, 3, 16)
    network = sd.spiking(model, neuron=NEURONS[neuron], time_steps=T, example=x)
    rates, gradients = measured(network, x)
    assert all(0.08 < rate < 0.30 for rate in rates.values()), rates
    assert_level(gradients)
    assert set(network.config["stretches"]) == {
        n for n, m in network.named_modules() if isinstance(m, Neuron)
    }
    assert all(p.grad is not None for p in network.parameters())  # of ``measured``; a balance leaves none
    other = sd.spiking(model, neuron=NEURONS[neuron], time_steps=T, example=x)
    assert all(p.grad is None for p in other.parameters())


def test_a_familys_widths_are_levelled_by_data() -> None:
    """QKFormer at T = 1 with neurons of threshold 0.5: 40-fold as created."""
    torch.manual_seed(0)
    x = smooth(12, 3, 32)
    network = sd.networks.create("qkformer_4_384", width=0.25, time_steps=1, neuron=NEURONS["small"])
    sd.balance(network, x)
    _, gradients = measured(network, x)
    assert_level(gradients)
    chosen = sd.networks.create(
        "qkformer_4_384", width=0.25, time_steps=1,
        neuron={**NEURONS["small"], "surrogate": {"name": "rectangle", "alpha": 0.4}},
    )  # fmt: skip
    sd.balance(chosen, x)
    assert {m.stretch for m in chosen.modules() if isinstance(m, Neuron)} == {1.0}


def test_files_keep_the_width_that_followed_a_threshold(tmp_path) -> None:
    from spikedistill.training.store import load_network, save_network

    x = smooth(16, 3, 32)
    network = without_norms(3, {"type": "lif"}, x)
    save_network(tmp_path / "saved", network, {}, "")
    found = load_network(tmp_path / "saved", without_norms(3, {"type": "lif"}, x))
    sd.balance(network, 2 * x)
    sd.balance(found, 2 * x)  # after loading too
    for one, other in zip(network.modules(), found.modules(), strict=True):
        if isinstance(one, Neuron):
            assert (one.threshold, one.stretch) == (other.threshold, other.stretch)
    assert measured(network, x) == measured(found, x)
    assert len(network.config["stretches"]) == len(network.config["thresholds"]) > 0
    quantized = sd.quantize(found, calibration=x)
    assert {m.stretch for m in quantized.modules() if isinstance(m, Neuron)} == {
        m.stretch for m in found.modules() if isinstance(m, Neuron)
    }


def test_a_loop_of_ones_own_keeps_the_balance_with_the_config(tmp_path) -> None:
    """As docs/networks.md says."""
    from spikedistill.networks.balancing import restore_balance

    x = smooth(16, 3, 32)
    network = sd.balance(sd.networks.create("resnet20", width=0.25), x).eval()
    torch.save({"weights": network.state_dict(), "config": network.config}, tmp_path / "snn.pt")
    saved = torch.load(tmp_path / "snn.pt")
    again = sd.networks.create(saved["config"]["name"], **saved["config"]["options"]).eval()
    again.load_state_dict(saved["weights"])
    assert not torch.equal(again.predict(x), network.predict(x))
    restore_balance(again, saved["config"])
    assert torch.equal(again.predict(x), network.predict(x))
    assert measured(again, x) == measured(network, x)


def test_a_width_of_the_users_choice_stays() -> None:
    x = smooth(16, 3, 16)
    neuron = LIF(surrogate={"name": "rectangle", "alpha": 0.7})
    network = without_norms(3, neuron, x)
    assert network.config["thresholds"]
    assert {m.stretch for m in network.modules() if isinstance(m, Neuron)} == {1.0}


def test_balance_leaves_statistics_and_flags_alone() -> None:
    network = sd.networks.create("vgg5", in_channels=1, width=0.25, pools=1).train()
    x = torch.rand(8, 1, 8, 8)
    state = torch.get_rng_state()
    buffers = {k: v.clone() for k, v in network.named_buffers()}
    sd.balance(network, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, buffers[k]) for k, v in network.named_buffers())
    assert all(m.training for m in network.modules())
    assert not any("simulate" in m.__dict__ for m in network.modules())


def test_an_ann_needs_no_balance() -> None:
    with pytest.raises(sd.SpikedistillError, match="no neurons to balance"):
        sd.balance(sd.networks.create("conv6", time_steps=None), torch.rand(2, 3, 32, 32))


def test_options_are_checked() -> None:
    with pytest.raises(
        sd.SpikedistillError, match="initialisation must be 'balanced' or 'plain', found 'kaiming'"
    ):
        sd.networks.create("conv6", initialisation="kaiming")
    with pytest.raises(sd.SpikedistillError, match=r"firing_rate must lie between 0 and 0\.5, found 0\.6"):
        sd.networks.create("conv6", firing_rate=0.6)
    with pytest.raises(sd.SpikedistillError, match="firing_rate aims a balanced start"):
        sd.networks.create("conv6", firing_rate=0.1, initialisation="plain")
    assert 0.08 < FIRING_RATE < 0.3


def test_a_neuron_that_no_other_process_finds_is_balanced_as_its_like():
    class Local(LIF):
        def __init__(self, half_life: float = 1.0, **common):
            super().__init__(**common)
            self.half_life = half_life

    assert not Local().rebuilds
    options = {"width": 0.125, "time_steps": 4}
    norms = []
    for neuron in (Local(), LIF()):
        network = sd.networks.create("conv6", neuron=neuron, **options)
        norms.append([m.weight.tolist() for m in network.modules() if isinstance(m, NormNeuron)])
    assert norms[0] == norms[1]
    assert sd.networks.create("qkformer_4_384", width=0.125, neuron=Local(), time_steps=2)


@pytest.mark.parametrize("T", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["vgg9", "resnet20", "sew_resnet20"])
def test_without_a_papers_neuron_spikes_are_the_rounded_current(name: str, T: int) -> None:
    network = sd.networks.create(name, width=0.25, time_steps=T)
    neuron = [m.neuron for m in network.modules() if isinstance(m, NormNeuron)][1]  # the first one encodes
    current = torch.linspace(-1.5, 2.5, 1000, dtype=torch.float64)  # no half steps of 1 / T among them
    counts = neuron.simulate(current.expand(T, -1).contiguous(), None, T, False)[0].sum(0)
    assert torch.equal(counts, torch.floor(T * current + 0.5).clamp(0, T))


def test_a_scaled_threshold_scales_where_the_neuron_starts() -> None:
    """A spiking classifier's small currents get a small threshold; half of the usual one lies above it."""
    counting = {"type": "if", "reset": "soft", "initial": 0.5}
    head = sd.networks.create("vgg9", neuron=counting, initialisation="plain", head="spiking").head
    assert head.neuron.initial == pytest.approx(0.5 * head.neuron.threshold)


def test_spiking_classifiers_come_with_lif() -> None:
    for name in ("vgg5", "resnet20"):
        assert sd.networks.create(name, head="spiking").neuron_spec["type"] == "lif"
        assert sd.networks.create(name).neuron_spec["type"] == "if"


class ChannelLIF(LIF):
    @property
    def decay(self):
        return torch.full((64, 1, 1), 0.5)


def test_a_decay_for_each_channel_is_refused_by_name() -> None:
    with pytest.raises(sd.SpikedistillError, match=r"ChannelLIF.decay has 64 values.*initialisation: plain"):
        sd.networks.create("conv6", neuron=ChannelLIF())
    network = sd.networks.create("conv6", neuron=ChannelLIF(), initialisation="plain")
    with pytest.raises(sd.SpikedistillError, match="64 values"):
        sd.balance(network, torch.rand(2, 3, 32, 32))
