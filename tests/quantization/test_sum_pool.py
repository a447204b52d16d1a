"""Pools that add without dividing (``divisor_override=1``) quantize as they are."""

import torch
from lively import assert_equal, events
from torch import nn

from spikedistill import networks, taps
from spikedistill.neurons.compilation import eager
from spikedistill.quantization import quantize


def gesture(head: str = "linear") -> networks.Network:
    network = networks.create(
        "dvs_gesture_cnn",
        num_classes=5,
        image_size=16,
        head=head,
        time_steps=4,
        neuron={"type": "lif", "decay": 0.75},
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.uniform_(layer.weight, -0.4, 0.6)
    return network


def test_a_network_with_sum_pools_equals_its_integer_form():
    x = events(4, 4, 2, 16)
    with eager():
        assert_equal(quantize(gesture(), weight_bits=4, membrane_bits=6, calibration=[x]), x)


def test_with_many_bits_the_sums_reach_the_next_layer_undivided():
    x = events(4, 4, 2, 16)
    with eager(), torch.no_grad():
        network = gesture().eval()
        quantized = quantize(
            network, weight_bits=8, first_last_bits=8, membrane_bits=8, fraction_bits=8, calibration=[x]
        ).eval()
        mine, theirs = (taps.captures(n, x, ["*@spikes"])[1].tensors for n in (quantized, network))
    for path in theirs:
        assert theirs[path].mean() > 0.05, path
        assert (mine[path] - theirs[path]).abs().mean() < 0.1, path
