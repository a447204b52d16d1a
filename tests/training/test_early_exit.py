import pytest
import torch

import spikedistill as sd
from spikedistill.training.early_exit import predict_early


@pytest.fixture
def network():
    net = sd.networks.create("vgg5", width=0.125, time_steps=4, neuron={"type": "if", "threshold": 0.5})
    for module in net.modules():
        if isinstance(module, sd.NormNeuron):
            module.weight.data.fill_(1.0)  # lively enough that logits differ between samples and steps
    for _ in range(30):
        net(torch.rand(16, 3, 8, 8) * torch.rand(16, 1, 1, 1))
    net.head.weight.data.mul_(10)
    return net.eval()


def test_never_leaving_is_predicting(network):
    x = torch.rand(6, 3, 8, 8)
    found = predict_early(network, x, confidence=1.0)
    torch.testing.assert_close(found.logits, network.predict(x))
    assert found.steps.tolist() == [4] * 6


def test_each_sample_leaves_at_its_first_confident_step(network):
    x = torch.rand(12, 3, 8, 8)
    with torch.no_grad():
        logits = network(x)
    means = logits.cumsum(0) / torch.arange(1, 5).view(-1, 1, 1)
    confidence = float(means.softmax(-1).amax(-1)[1:3].median()) + 1e-6
    sure = means.softmax(-1).amax(-1) >= confidence
    expected = [int(s.nonzero()[0]) + 1 if s.any() else 4 for s in sure.T]
    assert len(set(expected)) > 1
    found = predict_early(network, x, confidence=confidence)
    assert found.steps.tolist() == expected
    for i, t in enumerate(expected):
        torch.testing.assert_close(found.logits[i], means[t - 1, i])


def test_frames(network):
    net = sd.networks.create("conv6", width=0.125, time_steps=2, input="frames", in_channels=2)
    x = torch.randint(0, 3, (3, 4, 2, 8, 8)).float()
    torch.testing.assert_close(predict_early(net.eval(), x, 1.0).logits, net.predict(x))


def test_an_ann_is_refused():
    with pytest.raises(sd.SpikedistillError, match="an ANN has no time steps"):
        predict_early(sd.networks.create("conv6", time_steps=None), torch.rand(1, 3, 8, 8))
