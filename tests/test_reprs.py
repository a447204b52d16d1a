"""What Python prints of things: what they are, in a line, and no pages of numbers."""

import torch

import spikedistill as sd
from spikedistill import taps
from spikedistill.distiller import Losses
from spikedistill.neurons.qcfs import QCFS
from spikedistill.quantization import quantize, to_integer
from spikedistill.training.early_exit import predict_early


def test_an_integer_network_says_what_it_is():
    torch.manual_seed(0)
    network = sd.networks.create("vgg5", num_classes=7, in_channels=1, width=0.125, pools=1, time_steps=2)
    x = torch.rand(4, 1, 8, 8)
    whole = to_integer(quantize(network, weight_bits=4, membrane_bits=6, calibration=[x]).eval())
    text = repr(whole)
    assert text.startswith("IntegerNetwork(image 1 x 8 x 8, 7 classes, T = 2, ")
    assert "weights of 4 and 8 bits, membranes of 6 bits" in text
    assert f"{whole.nbytes:,} bytes" in text


def test_losses_are_numbers_and_shapes():
    losses = Losses(torch.tensor(1.25, requires_grad=True), {"a": torch.tensor(0.5)}, torch.rand(4, 10))
    assert repr(losses) == "Losses(total: 1.25, parts: {a: 0.5}, logits: 4 x 10)"


def test_a_plif_says_its_present_time_constant():
    neuron = sd.PLIF(init_tau=3.0)
    assert "init_tau=3.0" in repr(neuron)
    assert repr(neuron).endswith("tau=3)")
    with torch.no_grad():
        neuron.w.fill_(0.0)
    assert repr(neuron).endswith("tau=2)")


def test_captures_and_early_exits_are_shapes():
    torch.manual_seed(0)
    network = sd.networks.create("vgg5", in_channels=1, width=0.125, pools=1, time_steps=2).eval()
    x = torch.rand(3, 1, 8, 8)
    _, found = taps.captures(network, x, ["stage1.0", "logits"])
    assert repr(found) == "Captures(stage1.0: 2 x 3 x 8 x 8 x 8, : 2 x 3 x 10)"
    assert repr(predict_early(network, x, 1.0)) == "Exit(logits: 3 x 10, steps: 2 on average)"


def test_a_qcfs_says_its_present_threshold():
    activation = QCFS(levels=4, init_threshold=2.5)
    assert repr(activation) == "QCFS(levels=4, threshold=2.5)"
