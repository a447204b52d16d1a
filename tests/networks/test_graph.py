"""The traced graph: nodes, edges, shapes, source lines; tracing leaves no trace."""

import pytest
import torch
from small_networks import KINDS, example, make
from torch import Tensor, nn
from torch.nn import functional as F

from spikedistill import networks
from spikedistill.networks.graph import Graph, is_leaf, trace
from spikedistill.networks.operations import Ref
from spikedistill.neurons import LIF, NormNeuron, Repeat, compilation


def ancestors(graph: Graph, name: str) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for given in graph[waiting.pop()].inputs:
            if given not in found and ":" not in given and given != "constant":
                found.add(given)
                waiting.append(given)
    return found


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("time_steps", [4, None])
def test_every_node_lies_between_input_and_output(name: str, time_steps: int | None) -> None:
    network, x = make(name, time_steps=time_steps), example(name)
    graph = trace(network, x)
    assert (graph.batch, graph.time_steps) == (2, time_steps)
    known = {node.name for node in graph}
    assert len(known) == len(graph.nodes)
    for node in graph:
        assert all(i in known or i.startswith("parameter:") for i in node.inputs), node
    before = ancestors(graph, graph.output)
    # Sizes read from a shape leave no node; all others lead from the input to the output.
    assert known - before - {graph.output} <= set()
    assert "input" in before
    leaves = {path for path, m in network.named_modules() if is_leaf(m) and not _inside_norm(network, path)}
    assert {node.path for node in graph if node.path is not None} == leaves
    T = time_steps or (x.shape[1] if x.dim() == 5 else 1)
    assert graph[graph.output].shape == (T * 2, 5)


def _inside_norm(network: nn.Module, path: str) -> bool:
    return isinstance(network.get_submodule(path.rpartition(".")[0]), NormNeuron)


def test_plain_network_is_a_chain() -> None:
    graph = trace(make("vgg5"), torch.rand(2, 3, 8, 8))
    kinds = [node.kind for node in graph]
    conv = ["Conv2d", "NormNeuron"]
    pooled = ["AdaptiveAvgPool2d", "Flatten", "Identity", "Identity", "Linear"]
    assert kinds == ["input", *conv, "MaxPool2d", *conv, *conv, "MaxPool2d", *pooled]
    for before, node in zip(graph.nodes, graph.nodes[1:]):
        assert node.inputs == [before.name]
        assert node.in_shapes == [before.shape]
        assert [user.name for user in graph.readers(before.name)] == [node.name]
    assert all("/networks/vgg.py:" in node.source for node in graph if node.kind != "input")


def test_encoding_neuron_unfolds_time() -> None:
    graph = trace(make("vgg5"), torch.rand(2, 3, 8, 8))
    first, second = [node for node in graph if node.kind == "NormNeuron"][:2]
    assert (first.in_shapes[0][0], first.shape[0]) == (2, 8)
    assert (second.in_shapes[0][0], second.shape[0]) == (8, 8)


@pytest.mark.parametrize("name", ["ms_resnet20", "ms_resnet18"])
def test_ms_network_repeats_the_stem_and_adds_streams(name: str) -> None:
    network = make(name)
    graph = trace(network, torch.rand(2, 3, 16, 16))
    (repeat,) = [node for node in graph if isinstance(node.module, Repeat)]
    assert (repeat.in_shapes[0][0], repeat.shape[0]) == (2, 8)
    before = ancestors(graph, repeat.name)
    assert {graph[n].kind for n in before} <= {"input", "Conv2d", "BatchNorm2d", "MaxPool2d", "Identity"}
    adds = [node for node in graph if node.kind == "add"]
    blocks = [m for m in network.modules() if type(m).__name__ == "MSForm"]
    assert len(adds) == len(blocks)
    for node in adds:
        branch, stream = (graph[i] for i in node.inputs)
        assert branch.kind == "BatchNorm2d"
        assert stream.kind in ("add", "BatchNorm2d", "Repeat")
        assert node.source.rpartition(":")[0].endswith("resnet.py")


def test_sew_joins_spikes() -> None:
    graph = trace(make("sew_resnet20"), torch.rand(1, 3, 16, 16))
    adds = [node for node in graph if node.kind == "add"]
    assert len(adds) == 9
    assert all(node.scope.endswith(".join") for node in adds)
    for node in adds:
        assert {graph[i].kind for i in node.inputs} <= {"NormNeuron", "add", "Identity"}


def test_basic_block_adds_before_its_neuron() -> None:
    graph = trace(make("resnet18"), torch.rand(1, 3, 32, 32))
    joined = [node for node in graph if node.kind == "NormNeuron" and len(node.inputs) == 2]
    assert len(joined) == 8
    for node in joined:
        branch, shortcut = (graph[i] for i in node.inputs)
        assert branch.kind == "Conv2d"
        assert shortcut.kind in ("NormNeuron", "BatchNorm2d", "MaxPool2d")
        assert branch.shape == shortcut.shape


class Odd(nn.Module):
    """A reused activation, functions, a parameter, a constant, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        a, b = self.relu(x * self.scale).chunk(2, dim=1)
        return F.relu(a + torch.ones(1)) + b


def test_reused_modules_and_functions_are_nodes() -> None:
    graph = trace(Odd(), torch.rand(1, 3, 4, 4))
    assert [n.name for n in graph.of_path("relu")] == ["relu#0", "relu#1"]
    mul, split = graph["mul#0"], graph["chunk#0"]
    assert mul.inputs == ["relu#0", "parameter:scale"]
    assert (split.args, split.kwargs) == ((Ref("relu#1"), 2), {"dim": 1})
    add = graph["add#0"]
    assert add.args[0] == Ref("chunk#0", 0)
    assert graph["relu#0"].function is None
    (functional,) = [n for n in graph if n.kind == "relu"]
    assert functional.function is F.relu
    assert graph.output == "add#1"
    assert graph["add#1"].args == (Ref(functional.name), Ref("chunk#0", 1))
    lines = {int(n.source.rpartition(":")[2]) for n in graph if n.kind != "input"}
    assert all(n.source.startswith(__file__) for n in graph if n.kind != "input")
    assert len(lines) == 3


def test_tracing_changes_nothing() -> None:
    network = make("resnet20", encoding="poisson").train()
    network.layer1.eval()
    modes = [m.training for m in network.modules()]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    generator = torch.get_rng_state()
    trace(network, torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert "body" not in network.__dict__
    assert "fold" not in network.__dict__


def test_a_failing_forward_leaves_no_hooks() -> None:
    network = make("vgg5")
    with pytest.raises(ValueError, match="takes image input"):
        trace(network, torch.rand(1, 1, 8, 8))
    assert network.training
    assert network(torch.rand(1, 3, 8, 8)).shape == (4, 1, 5)


def test_calls_know_composite_modules() -> None:
    graph = trace(make("resnet20"), torch.rand(2, 3, 16, 16))
    calls = {call.path: call for call in graph.calls}
    assert calls["layer1"].output == calls["layer1.2"].output == calls["layer1.2.bn2"].output
    assert calls["layer2"].input == calls["layer1"].output
    assert calls["layer3"].shape[-2:] == (4, 4)


def test_leaves() -> None:
    assert is_leaf(nn.Conv2d(1, 1, 1))
    assert is_leaf(LIF())
    assert is_leaf(NormNeuron(2, LIF()))
    assert not is_leaf(nn.Sequential(nn.ReLU()))
    assert not is_leaf(Odd())


def test_tracing_compiles_nothing() -> None:
    network = networks.create("conv6", width=0.125)
    modes: list[str] = []
    network.head.register_forward_pre_hook(lambda module, args: modes.append(compilation.mode()))
    with compilation.use("compiled"):
        trace(network, torch.rand(2, 3, 8, 8))
    assert modes == ["eager"]
