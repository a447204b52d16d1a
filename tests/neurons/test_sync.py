import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from spikedistill.neurons import PLIF, NormNeuron, compilation, shared_norms
from spikedistill.neurons.recompute import checkpointed
from spikedistill.neurons.shared_norms import synchronize

T, SIZES, C = 3, (3, 5), 4
WAYS = ("eager", "uncompiled")


def layers():
    net = nn.Sequential(
        NormNeuron(C, PLIF(encode=True, time_steps=T)),
        nn.BatchNorm2d(C),
        NormNeuron(C, PLIF(1.5, time_steps=T)),
    )
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return synchronize(net.double())


def measure(x, weights):
    """Output, gradient of the input, of the parameters, running statistics: for both ways of running."""
    found = []
    for way in WAYS:
        net, leaf = layers(), x.clone().requires_grad_()
        with compilation.use(way):
            out = net(leaf)
            (out * weights.flatten(0, 1)).sum().backward()
        found.append(
            (
                out.detach().unflatten(0, (T, -1)),
                leaf.grad,
                [p.grad for p in net.parameters()],
                dict(net.named_buffers()),
            )
        )
    return found


def work(rank, folder, x, weights):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    torch.save(measure(x[part], weights[:, part]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    x, weights = (
        torch.randn(8, C, 2, 3, dtype=torch.float64) + 3,
        torch.randn(T, 8, C, 2, 3, dtype=torch.float64),
    )
    mp.spawn(work, (str(tmp_path), x, weights), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for way, (out, gx, parameters, buffers) in enumerate(measure(x, weights)):
        (out0, gx0, parameters0, buffers0), (out1, gx1, parameters1, buffers1) = (part[way] for part in parts)
        assert torch.equal(torch.cat([out0, out1], 1), out)
        assert 0.05 < out.mean() < 0.95
        torch.testing.assert_close(torch.cat([gx0, gx1]), gx, rtol=1e-9, atol=1e-10)
        for g0, g1, g in zip(parameters0, parameters1, parameters, strict=True):
            torch.testing.assert_close(g0 + g1, g, rtol=1e-9, atol=1e-10)
        for name, value in buffers.items():
            torch.testing.assert_close(buffers0[name], value, rtol=1e-9, atol=1e-10)
            assert torch.equal(buffers0[name], buffers1[name])


def test_sharing_is_switched_in_place():
    net = layers()
    assert isinstance(net[1], nn.BatchNorm2d)
    assert type(net[1]) is not nn.BatchNorm2d
    assert net[0].sync
    x = torch.randn(6, C, 2, 3, dtype=torch.float64)
    alone = nn.BatchNorm2d(C).double()
    alone.load_state_dict(net[1].state_dict())
    assert torch.equal(net[1](x), alone(x))  # one process: nothing to share
    synchronize(net, on=False)
    assert type(net[1]) is nn.BatchNorm2d
    assert not net[0].sync


def test_a_shared_norm_computed_twice_counts_its_batch_once(monkeypatch):
    monkeypatch.setattr(shared_norms, "is_distributed", lambda: True)
    monkeypatch.setattr(
        shared_norms, "shared_moments", lambda mean, var, n: (mean, var, torch.tensor(float(n)))
    )
    norm, alone = synchronize(nn.Sequential(nn.BatchNorm2d(C))), nn.BatchNorm2d(C)
    x = torch.randn(6, C, 2, 3, requires_grad=True)
    checkpointed(norm, x, modules=(norm,)).sum().backward()
    alone(x)
    for name, value in alone.named_buffers():
        torch.testing.assert_close(norm.state_dict()[f"0.{name}"], value)
