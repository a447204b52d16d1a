"""Norm statistics are those of images as training shows them: augmented."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedistill as sd
import two_processes
from spikedistill.data import from_arrays
from spikedistill.data.config import DataConfig
from spikedistill.neurons import NormNeuron
from spikedistill.training.calibration import calibration_batches, recalibrate, settling_batches
from spikedistill.training.evaluate import evaluating
from spikedistill.training.reevaluate import reevaluate


def opened(images: int = 50, **augment: object):
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": rng.integers(60, 200, (images, 8, 8, 1)).astype(np.uint8)
        if kind == "x"
        else np.arange(images) % 4
        for kind in "xy"
        for part in ("train", "test")
    }
    return arrays, from_arrays(arrays, DataConfig(augment=augment))


def test_draws_are_the_same_each_time_and_take_none_from_the_training():
    _, data = opened(crop=2, flip=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = settling_batches(data, 16, 1024, "cpu", epoch=3)
    assert torch.equal(torch.get_rng_state(), before)
    again = settling_batches(data, 16, 1024, "cpu", epoch=3)
    assert [len(x) for x in first] == [16, 16, 13]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    plain = calibration_batches(data, 16, 1024, "cpu")
    assert all(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(first, plain, strict=True))


def test_without_augmentation_they_are_the_calibration_batches():
    _, data = opened()
    pairs = zip(settling_batches(data, 16, 30, "cpu"), calibration_batches(data, 16, 30, "cpu"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_images_are_mixed_only_while_training_mixes():
    _, data = opened(mixup=1.0, mix_until=2)
    plain = torch.cat(calibration_batches(data, 16, 1024, "cpu"))
    assert not torch.equal(torch.cat(settling_batches(data, 16, 1024, "cpu", epoch=1)), plain)
    assert torch.equal(torch.cat(settling_batches(data, 16, 1024, "cpu", epoch=2)), plain)
    assert torch.equal(torch.cat(settling_batches(data, 16, 1024, "cpu")), plain)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    arrays, data = opened(crop=4)
    recipe = {
        "data": {"batch_size": 10, "augment": {"crop": 4}},
        "time_steps": 2,
        "precision": "float32",
        "stages": [
            {"name": "net", "network": {"name": "vgg5", "width": 0.125}, "epochs": 2},
            {"name": "longer", "from": "net", "time_steps": 4, "epochs": 0},
        ],
    }
    out = tmp_path_factory.mktemp("settling") / "run"
    return sd.train(recipe, data=arrays, out=out, quiet=True, device="cpu"), data


@pytest.mark.parametrize("stage", ["net", "longer"])
def test_a_saved_networks_statistics_are_those_of_augmented_images(trained, stage):
    done, data = trained
    network = sd.load(done.folder, stage)
    modules = list(network.modules())
    conv, norm = next((a, b) for a, b in itertools.pairwise(modules) if isinstance(a, nn.Conv2d))
    found = []
    conv.register_forward_hook(lambda module, args, y: found.append(y.mean((-1, -2)).flatten(0, -2).mean(0)))

    def over(batches):
        """Means of what enters the first norm, which depends on no statistics."""
        found.clear()
        for x in batches:
            network(x)
        return torch.stack(found).mean(0)

    means = over(settling_batches(data, 10, 1024, "cpu"))
    plain = over(calibration_batches(data, 10, 1024, "cpu"))
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    assert (means - plain).abs().max() > 0.01  # black borders count


def test_recalibrated_columns_are_of_augmented_images_too(trained):
    done, data = trained
    found = reevaluate(f"{done.folder}:net", time_steps=[2], recalibrate=True, data=data)
    assert found.columns["recalibrated"][2] == found.columns["accuracy"][2]


def test_measuring_leaves_each_module_in_its_mode():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.Flatten())
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network] == [True, False, True]


def uneven(batches: int = 6, images: int = 16):
    """Batches of smooth images, one of them twenty times as strong as the others."""
    torch.manual_seed(3)
    found = [F.interpolate(torch.rand(images, 3, 4, 4), size=16, mode="bilinear") for _ in range(batches)]
    found[2] = 20 * found[2]
    return found


def small(time_steps: int | None = None):
    torch.manual_seed(0)
    return sd.networks.create("vgg9", num_classes=4, width=0.125, pools=2, time_steps=time_steps)


@pytest.mark.parametrize("time_steps", [None, 2])
def test_batches_that_differ_widely_are_measured_together_as_evaluation_runs(time_steps):
    network = small(time_steps)
    recalibrate(network, uneven())
    inputs: dict[str, list[torch.Tensor]] = {}
    norms = {path: m for path, m in network.named_modules() if isinstance(m, NormNeuron)}
    for path, m in norms.items():
        m.register_forward_pre_hook(lambda _, x, path=path: inputs.setdefault(path, []).append(x[0].double()))
    with torch.no_grad():
        for x in uneven():
            network.eval()(x)
    assert len(norms) == 7
    for path, m in norms.items():
        x = torch.cat(inputs[path])
        torch.testing.assert_close(m.running_mean.double(), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(m.running_var.double(), x.var((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert not any(m.training for m in norms.values())


def test_like_batches_give_the_mean_of_their_statistics():
    network = small()
    batches = [x for i, x in enumerate(uneven()) if i != 2]
    recalibrate(network, batches)
    found = []
    for x in batches:
        one = copy.deepcopy(network)
        recalibrate(one, [x])
        found.append(torch.stack([m.running_var.mean() for m in one.modules() if isinstance(m, NormNeuron)]))
    mean = torch.stack([m.running_var.mean() for m in network.modules() if isinstance(m, NormNeuron)])
    torch.testing.assert_close(mean, torch.stack(found).mean(0))


WORKER = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
from test_settling import recalibrate, small, uneven
from spikedistill.neurons.shared_norms import synchronize
dist.init_process_group("gloo")
network = synchronize(small())
recalibrate(network, [x[dist.get_rank() :: 2] for x in uneven()])
torch.save(dict(network.named_buffers()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_measure_together_what_one_measures(tmp_path):
    two_processes.run(WORKER, str(tmp_path), str(Path(__file__).parent))
    alone = small()
    recalibrate(alone, uneven())
    for rank in (0, 1):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, alone.get_buffer(name), rtol=1e-4, atol=1e-4)


def test_a_loop_of_ones_own_settles_from_its_loader():
    read = []

    def loader():
        for x in uneven()[3:]:
            read.append(len(x))
            yield x, torch.zeros(len(x))

    network, same = small(), small()
    assert sd.settle(network, loader(), images=20) is False
    assert read == [16, 16]
    recalibrate(same, uneven()[3:5])
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), same.buffers(), strict=True))
    sd.settle(network, uneven()[0])
    recalibrate(same, [uneven()[0]])
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), same.buffers(), strict=True))
    with pytest.raises(sd.SpikedistillError, match="there is no batch"):
        sd.settle(network, [])
    with pytest.raises(sd.SpikedistillError, match="settle: batch 1 has no image"):
        sd.settle(network, [uneven()[0], torch.zeros(0, 3, 16, 16)])


def test_one_input_left_over_is_settled_with_the_batch_before():
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=0.3))
    same, x = copy.deepcopy(network), torch.rand(9, 4)
    sd.settle(network, x.split(4))
    recalibrate(same, [x[:4], x[4:]])
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), same.buffers(), strict=True))
    with pytest.raises(sd.SpikedistillError, match="give batches of two inputs or more"):
        sd.settle(network, x[:1])
    assert network[1].momentum == 0.3


def test_a_compiled_network_is_settled_before_its_first_call():
    ann, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        torch.rand(8, 3, 6, 6),
    )
    network = sd.spiking(nn.Sequential(ann, nn.Linear(64, 4)), 2, example=x)
    same = copy.deepcopy(network)
    sd.settle(torch.compile(network, backend="eager"), x)
    sd.settle(same, x)
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), same.buffers(), strict=True))
