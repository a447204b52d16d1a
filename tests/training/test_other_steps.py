"""A student whose weights come from a spiking stage of another T starts with norm statistics of its own T."""

import pytest
import torch

import spikedistill as sd
from spikedistill.data import from_arrays
from spikedistill.training.calibration import calibration_batches
from spikedistill.training.run import train


def statistics(network):
    return torch.cat([b.flatten() for name, b in network.named_buffers() if name.endswith("running_mean")])


def of_batches(network, batches):
    """Means of what enters the norms, over the batches, each batch normalised by itself."""
    found = []
    norms = [m for m in network.modules() if isinstance(m, sd.NormNeuron)]
    for x in batches:
        for norm in norms:
            norm.momentum = 1.0  # the running statistics are this batch's
        network.train()
        with torch.no_grad():
            network(x)
        found.append(statistics(network))
    return sum(found) / len(found)


@pytest.mark.parametrize("asked", [None, False])
def test_statistics_are_those_of_the_students_steps(tmp_path, recipe, arrays, asked):
    first = {
        **recipe["stages"][1],
        "teacher": None,
        "objectives": [],
        "init": None,
        "name": "first",
        "epochs": 1,
    }
    options = {} if asked is None else {"recalibrate": asked}
    stages = [
        first,
        {"name": "same", "from": "first", "epochs": 0},
        {"name": "other", "from": "first", "time_steps": 1, "epochs": 0, **options},
        {"name": "copied", "network": first["network"], "time_steps": 1, "epochs": 0, **options,
         "init": {"from": "first", "method": "copy"}},
    ]  # fmt: skip
    run = train({**recipe, "stages": stages}, data=arrays, out=tmp_path / "run", quiet=True)
    before = statistics(sd.load(run.folder, "first"))
    assert torch.equal(statistics(sd.load(run.folder, "same")), before)
    data = from_arrays(arrays, sd.data.DataConfig(name="arrays", batch_size=16, validation=0.1))
    with sd.eager():
        want = of_batches(sd.load(run.folder, "other"), calibration_batches(data, 16, 1024, "cpu"))
    for name in ("other", "copied"):
        found = statistics(sd.load(run.folder, name))
        if asked is False:
            assert torch.equal(found, before)
        else:
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found, before, rtol=1e-3)
