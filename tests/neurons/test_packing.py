import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikedistill.errors import SpikedistillError
from spikedistill.neurons import LIF, MaskedPSN, NormNeuron, compilation
from spikedistill.neurons.packing import pack, packed_spikes, unpack
from spikedistill.neurons.recompute import checkpointed, lean
from spikedistill.simulation import Simulation

T, N, C = 4, 2, 8
WAYS = ("eager", "uncompiled")


@given(
    st.lists(st.booleans(), min_size=1, max_size=70),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=50, deadline=None)
def test_bits_come_back(bits, dtype):
    x = torch.tensor(bits).to(dtype)
    packed = pack(x)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-len(bits) // 8)
    assert torch.equal(unpack(packed, len(bits), dtype), x)


class Block(nn.Module):
    """Two convolutions with a shortcut that has its own norm and keeps the same spikes; sums of spikes."""

    def __init__(self):
        super().__init__()
        self.conv1, self.first = nn.Conv2d(C, C, 3, padding=1, bias=False), NormNeuron(C, LIF())
        self.conv2, self.second = nn.Conv2d(C, C, 3, padding=1, bias=False), NormNeuron(C, LIF())
        self.shortcut = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C))

    def forward(self, x):
        return self.second(self.conv2(self.first(self.conv1(x))), self.shortcut(x))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, C, 3, padding=1), NormNeuron(C, LIF(encode=True))),
        nn.Sequential(Block(), nn.Dropout(0.2), Block(), nn.AvgPool2d(2)),
        nn.Flatten(), nn.Linear(C * 16, 5),
    )  # fmt: skip


IMAGES = torch.randn(N, 3, 8, 8)


def measure(way, context):
    """Output, capture, gradients and buffers of one training step, and what the context said."""
    net = network()
    insides = [("1.0.second", 0, "membrane"), ("1.2.first", 0, "spikes")]
    torch.manual_seed(1)
    with compilation.use(way):
        with context(net) as said, Simulation(net, T, insides=insides) as sim:
            out = net(IMAGES)
        assert sim._calls
        counts = dict(sim._calls)
        loss = out.square().sum() + sum(v.sum() for v in sim.captured.values())
    loss.backward()
    assert sim._calls == counts
    captured = [sim.captured[key].detach() for key in insides]
    return [out.detach(), *captured, *[p.grad for p in net.parameters()], *net.buffers()], said


def same(found, wanted):
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Nothing:
    def __init__(self, net):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


class Both:
    def __init__(self, net):
        self.contexts = packed_spikes(), lean(net)

    def __enter__(self):
        said = self.contexts[0].__enter__()
        self.contexts[1].__enter__()
        return said

    def __exit__(self, *error):
        self.contexts[1].__exit__(*error)
        self.contexts[0].__exit__(*error)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("context", [lambda net: packed_spikes(), lean, Both], ids=["packed", "lean", "both"])
def test_less_memory_changes_no_bit(way, context):
    same(measure(way, context)[0], measure(way, Nothing)[0])


def masked_step(context, rounds=1):
    """Gradients, masks and counts of a training step whose neurons' masks come in slowly."""
    torch.manual_seed(0)
    common = {"order": 1, "anneal": 3, "mask_start": 0.1, "time_steps": T, "threshold": 0.1}
    first, second = MaskedPSN(**common), MaskedPSN(**common)
    block = nn.Sequential(nn.Linear(C, C), first, nn.Linear(C, C), second, nn.Linear(C, C), first)
    net = nn.Sequential(block, nn.Linear(C, 3))
    x, total = 3 * torch.randn(rounds, T * N, C), 0
    with context(net):
        for batch in x:
            with Simulation(net, T):
                total = total + net(batch).square().sum()
    masks = [first.mask, second.mask]
    total.backward()
    assert masks == [first.mask, second.mask]
    return [*(p.grad for p in net.parameters()), *net.buffers()]


@pytest.mark.parametrize("rounds", [1, 2], ids=["one pass", "two passes before backward"])
@pytest.mark.parametrize("whole", [False, True], ids=["by runs", "as a whole"])
def test_masks_that_come_in_slowly_are_the_same_in_backward(whole, rounds):
    def context(net):
        return lean(net, [net[0]]) if whole else lean(net)

    found, wanted = masked_step(context, rounds), masked_step(Nothing, rounds)
    assert [int(count) for count in wanted[-2:]] == [2 * rounds, rounds]
    assert all(grad.abs().sum() > 0 for grad in wanted[:-2])
    same(found, wanted)


def test_what_is_kept_is_counted():
    spikes = T * N * C * 8 * 8 * 4
    _, packer = measure("uncompiled", lambda net: packed_spikes())
    # Spikes enter: first block conv1 and shortcut (the same ones, one copy), conv2; second block conv2;
    # average pooling. What enters the second block went through dropout and is no spikes any more.
    assert packer.bytes_unpacked - packer.bytes == 5 * spikes - 4 * spikes // 32
    _, tight = measure("uncompiled", Both)
    assert tight.bytes < 0.35 * packer.bytes_unpacked


def test_only_spikes_are_packed():
    x = torch.randn(4 * 16, C, 4, 4, requires_grad=True)
    weight = torch.randn(C, C, 1, 1, requires_grad=True)
    with packed_spikes() as packer, compilation.uncompiled():
        s = LIF()(x)
        kept = packer.bytes
        nn.functional.conv2d(s, weight)
        assert packer.bytes - kept == s.numel() // 8 + weight.numel() * 4
        kept = packer.bytes
        nn.functional.conv2d(s + s, weight)
        assert packer.bytes - kept == s.numel() * 4 + weight.numel() * 4
        smooth = LIF(smooth=True)(x)
        kept = packer.bytes
        nn.functional.conv2d(smooth, weight)
        assert packer.bytes - kept == s.numel() * 4 + weight.numel() * 4
        s = LIF()(x)
        s += 1  # no longer zeros and ones
        kept = packer.bytes
        nn.functional.conv2d(s, weight)
        assert packer.bytes - kept == s.numel() * 4 + weight.numel() * 4


def test_memory_of_dead_spikes_is_not_taken_for_spikes():
    with packed_spikes() as packer, compilation.uncompiled():
        for _ in range(20):
            x = torch.randn(4 * 16, C, 4, 4, requires_grad=True)
            LIF()(x)  # freed at once, its memory used again
            y = torch.randn(4 * 16, C, 4, 4)
            z = nn.functional.conv2d(y, torch.ones(1, C, 1, 1, requires_grad=True))
            kept = z.grad_fn._saved_input
            assert torch.equal(kept, y)
        assert packer.bytes_unpacked > 0


def test_a_tensor_changed_in_place_is_refused():
    x = torch.randn(2000, requires_grad=True)
    with packed_spikes():
        y = x.exp()
        z = y.square()
        y += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        z.sum().backward()


def test_checkpointing_alone():
    layer = NormNeuron(C, LIF())
    x = torch.randn(T * N, C, requires_grad=True)
    with compilation.uncompiled():
        (want,) = torch.autograd.grad(layer(x).square().sum(), x)
        (found,) = torch.autograd.grad(checkpointed(layer, x, modules=(layer,)).square().sum(), x)
        with torch.no_grad():
            assert torch.equal(checkpointed(layer, x), layer(x))
    assert torch.equal(found, want)


def test_blocks_by_name_and_networks_without_sequences():
    net = network()
    with lean(net, [net[1][0]]):
        assert "forward" in vars(net[1][0])
    assert "forward" not in vars(net[1][0])
    with pytest.raises(SpikedistillError, match="name its blocks"), lean(Block()):
        pass


def test_a_block_with_a_forward_of_its_own_has_it_again():
    block = nn.Sequential(nn.Linear(4, 4), LIF(time_steps=1))
    quantized = block[0].forward = nn.Linear(4, 4).forward
    with lean(block, [block[0], block[1]]):
        block(torch.randn(2, 4))
    assert block[0].forward is quantized
    assert "forward" not in vars(block[1])
