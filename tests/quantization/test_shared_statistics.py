"""Quantized norms in two processes, each with half of a batch: the statistics of the whole batch."""

from pathlib import Path

import pytest
import torch
from lively import lively
from torch.nn import functional as F

import two_processes
from spikedistill.neurons import NormNeuron
from spikedistill.neurons.shared_norms import synchronize
from spikedistill.quantization import quantize
from spikedistill.quantization.norm import CodedNorm

CASES = {
    "norms before neurons": ("vgg5", {}),
    "norms of streams": ("ms_resnet20", {}),
    "norms of shortcuts": ("resnet18", {}),
    "folded": ("vgg5", {"scheme": "mint"}),
    "folded, with shortcuts": ("resnet18", {"unit": "weights"}),
}
WORKER = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
from test_shared_statistics import CASES, statistics
dist.init_process_group("gloo")
for name in CASES:
    found = statistics(name, slice(dist.get_rank(), None, 2), shared=True)
    torch.save(found, f"{sys.argv[1]}/{name}-{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def statistics(name: str, part: slice, shared: bool = False) -> dict[str, torch.Tensor]:
    """What one training pass over a part of the batch leaves in the norms, and their weights' gradients."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    family, options = CASES[name]
    x, y = torch.rand(12, 3, 16, 16), torch.arange(12) % 10
    x[::2] *= 0.3  # the halves differ
    q = quantize(lively(family, x, width=0.06, time_steps=2), calibration=x, **options).train()
    if shared:
        synchronize(q)
    F.cross_entropy(q.predict(x[part]), y[part], reduction="sum").backward()
    found = {k: v for k, v in q.named_buffers() if k.endswith(("running_mean", "running_var"))}
    norms = [(n, m) for n, m in q.named_modules() if isinstance(m, NormNeuron | CodedNorm)]
    assert len(found) == 2 * len(norms)
    return found | {f"{n}.gradient": m.weight.grad for n, m in norms}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    two_processes.run(WORKER, str(folder), str(Path(__file__).parent))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_see_the_statistics_of_the_whole_batch(halves, name):
    whole = statistics(name, slice(None))
    parts = [torch.load(halves / f"{name}-{rank}.pt") for rank in (0, 1)]
    for key, value in whole.items():
        if key.endswith("gradient"):
            torch.testing.assert_close(
                parts[0][key] + parts[1][key], value, rtol=2e-2, atol=2e-3, msg=f"{name}: {key}"
            )
            continue
        assert torch.equal(parts[0][key], parts[1][key]), key
        torch.testing.assert_close(parts[0][key], value, rtol=1e-3, atol=1e-3, msg=f"{name}: {key}")
