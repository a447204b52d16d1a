"""What a stage takes over from another's network (``init``): from a spiking one all that it has learned."""

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill.conversion import copy_weights
from spikedistill.neurons import Neuron
from spikedistill.training.run import train
from spikedistill.training.store import load_network, save_network

NETWORKS = {
    "spikformer": ("spikformer_2_384", {"width": 0.125, "neuron": {"type": "plif"}}),
    "events": ("dvs_gesture_cnn", {}),
    "resnet": ("ms_resnet20", {"width": 0.25}),
    "over time": ("vgg5", {"width": 0.25, "neuron": {"type": "sliding_psn"}}),
    "masked": ("vgg5", {"width": 0.25, "neuron": {"type": "masked_psn"}}),
}


def trained(name: str, **options) -> tuple[sd.networks.Network, torch.Tensor]:
    """A network that was balanced by measurement and whose parameters have all moved; and images."""
    network = sd.networks.create(name, time_steps=2, **options)
    x = torch.rand(4, network.in_channels, 32, 32)
    x = 3 * x.unsqueeze(1).repeat(1, 2, 1, 1, 1) if network.input == "frames" else x
    sd.balance(network, x)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.1).add_(0.02)
    return network.eval(), x


def balance_record(network: nn.Module) -> dict[str, dict[str, float]]:
    return {key: network.config[key] for key in ("thresholds", "input_factors") if key in network.config}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_spiking_network_is_copied_whole(kind: str) -> None:
    name, options = NETWORKS[kind]
    source, x = trained(name, **options)
    network = sd.networks.create(name, time_steps=2, **options).eval()
    copy_weights(network, source)
    theirs = source.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())
    assert torch.equal(network.predict(x), source.predict(x))
    assert balance_record(network) == balance_record(source)
    factors = [getattr(m, "input_factor", 1.0) for m in source.modules()]
    assert [getattr(m, "input_factor", 1.0) for m in network.modules()] == factors


def test_neurons_of_another_type_stay_and_the_balance_comes() -> None:
    source, _ = trained("dvs_gesture_cnn", neuron={"type": "plif", "reset": "soft"})
    network = sd.networks.create("dvs_gesture_cnn", time_steps=2, neuron={"type": "lif", "reset": "soft"})
    copy_weights(network, source)
    thresholds = [[m.threshold for m in net.modules() if isinstance(m, Neuron)] for net in (network, source)]
    assert thresholds[0] == thresholds[1]
    assert torch.equal(network.fc1.weight, source.fc1.weight)
    over_time = sd.networks.create("dvs_gesture_cnn", time_steps=2, neuron={"type": "sliding_psn"})
    before = over_time.neuron1.weight.detach().clone()
    copy_weights(over_time, source)
    assert torch.equal(over_time.neuron1.weight, before)


def test_weights_over_more_steps_stay_the_networks_own() -> None:
    options = {"width": 0.25, "neuron": {"type": "psn"}}
    source, _ = trained("vgg5", **options)
    network = sd.networks.create("vgg5", time_steps=3, **options)
    own = {k: v.clone() for k, v in network.state_dict().items() if ".neuron." in k}
    copy_weights(network, source)
    assert own
    assert all(torch.equal(network.state_dict()[key], value) for key, value in own.items())


def test_a_threshold_that_was_asked_for_stays() -> None:
    source, _ = trained("dvs_gesture_cnn")
    asked = {"type": "lif", "decay": 0.93, "reset": "soft", "threshold": 0.5}
    network = sd.networks.create("dvs_gesture_cnn", time_steps=2, neuron=asked)
    copy_weights(network, source)
    assert network.neuron1.threshold == 0.5 != source.neuron1.threshold
    assert torch.equal(network.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("neuron", [None, "plif", "masked_psn"])
def test_from_an_ann_neurons_and_balance_stay_the_networks_own(neuron: str | None) -> None:
    ann = sd.networks.create("vgg5", width=0.25, time_steps=None)
    network = sd.networks.create("vgg5", width=0.25, neuron=neuron and {"type": neuron})
    kept = {k: v.clone() for k, v in network.state_dict().items() if ".neuron." in k}
    factor = network.head.input_factor
    copy_weights(network, ann)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in kept.items())
    assert network.head.input_factor == factor
    assert balance_record(network) == {}


def test_a_stage_begins_where_the_spiking_one_ended(recipe, arrays, tmp_path) -> None:
    options = {"name": "spikformer_2_384", "width": 0.0625, "pools": 1, "neuron": {"type": "plif"}}
    recipe["stages"] = [
        {"name": "a", "network": options, "epochs": 1},
        {"name": "b", "network": options, "init": {"from": "a"}, "epochs": 0},
        {"name": "c", "from": "a", "epochs": 0},
    ]
    run = train(recipe, data=arrays, out=tmp_path / "run", quiet=True, device="cpu")
    folders = [run.folder / "stages" / stage for stage in "abc"]
    a, b, c = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert b == c == a
    networks = [load_network(folder) for folder in folders]
    assert balance_record(networks[0])["thresholds"]
    assert balance_record(networks[1]) == balance_record(networks[0])


def test_a_network_that_was_loaded_is_saved_with_its_balance(tmp_path) -> None:
    network, x = trained("resnet20", width=0.25)
    save_network(tmp_path / "one", network, {}, "")
    save_network(tmp_path / "two", load_network(tmp_path / "one"), {}, "")
    assert torch.equal(load_network(tmp_path / "two").predict(x), network.predict(x))
