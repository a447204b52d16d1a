"""Minutes until a network of four steps knows 80 % of CIFAR-10's test images: ours and other libraries.

    python benchmarks/all.py --only N128  # the seconds, on an idle machine
    python benchmarks/time_to_accuracy.py curves FOLDER/cifar10.npz [--teacher FILE] [--ways ...]
    python benchmarks/time_to_accuracy.py table

``curves`` trains `conv6` at width 1 and keeps the test accuracy of each epoch, and its state, so that it can
be stopped at any time; how busy the machine is does not matter. Time is the step's of the same way of
training, measured in turns with the others, times steps, times the epochs of the curve until the mark. A way
ends where 60 minutes of that time are over: "> 60" is a result.

The peers' curves are computed by our neuron with their equations, since theirs would take days: before a
curve, spikes and gradients of both are compared on random currents in float64. All have the same crops and
flips and batches of 128. ``users``: neuron, start, loss, optimizer and precision of the library's own example
(SpikingJelly's ``conv_fashion_mnist``: IF, atan, squared error of firing rates, SGD 0.1, one cosine over 64
epochs; snnTorch's tutorial 6: decay 0.5, fast sigmoid of slope 25, cross-entropy of each step's spikes, Adam
0.01), eager, float32. ``best``: a LIF neuron in the library's kernels with bf16, channels last, compiled
where that works, and our optimizer, schedule and loss; what differs is the start.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timing
import torch
from from_scratch import NORM, augmented, one_cycle, opened
from peers import PEERS, stepped
from step import TAUGHT
from torch import Tensor, nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.networks.outside.library import load_weights
from spikedistill.neurons import IF, LIF, Neuron
from spikedistill.precision import cpu_bf16_units
from spikedistill.training.calibration import settle

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "performance" / "time-to-accuracy.json"
STEPS = RESULTS.with_name("step-conv6-N128.json")
BATCH, TIME_STEPS, MARK, CAP = 128, 4, 0.80, 60.0  # CAP: minutes
Loss = Callable[[Tensor, Tensor], Tensor]  # logits or spikes (T, N, K), labels (N,)


def mean_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.mean(0), y)


def rate_squared_error(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out.mean(0), F.one_hot(y, out.shape[-1]).to(out.dtype))


def step_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), y.repeat(len(out)))


@dataclass
class Way:
    """How a curve is trained, and the row of ``step.py`` that says what a step costs."""

    step: str
    epochs: int  # of the schedule
    neuron: Callable[[], Neuron] | None = None  # None: ours, and our start
    head: str = "linear"
    loss: Loss = mean_cross_entropy
    adam: bool = False
    cosine: bool = False  # from the first step and epoch by epoch; else one cycle
    half: bool = True  # bfloat16 where the processor has units for it
    teacher: bool = False
    rate_based: bool = False
    fewer: dict[int, int] = field(default_factory=dict)  # time steps: the first epochs that have so many

    def from_rates(self, steps: int) -> bool:
        """Whether an epoch of so many time steps learns from rates: of one step there is no average."""
        return self.rate_based and steps > 1

    def row(self, steps: int) -> str:
        """Of ``step.py``, in the precision of this way on this machine."""
        step = "ours fused, once" if self.rate_based and steps == 1 else self.step
        return step + " bf16" * (self.half and cpu_bf16_units() is not None)

    def steps(self, epoch: int) -> int:
        """Time steps of an epoch, counted from 0."""
        for steps, epochs in self.fewer.items():
            if epoch < epochs:
                return steps
            epoch -= epochs
        return TIME_STEPS


def jelly_if() -> Neuron:
    return IF(surrogate="atan", detach_reset=False)


def jelly_lif() -> Neuron:
    return LIF(surrogate="atan")


def leaky_to_zero() -> Neuron:
    # What its reset takes off depends on the spike, and so does the gradient.
    return LIF(surrogate="atan", detach_reset=False)


def leaky() -> Neuron:
    # Its reset takes the whole threshold off a membrane that has leaked already.
    return LIF(decay=0.5, gain=1.0, reset="soft", reset_by=2.0, surrogate="fast_sigmoid")


WAYS = {
    "ours": Way("ours fused, once", 12, fewer={1: 3, 2: 5}),  # a third of the epochs at all four steps
    "ours, rate-based": Way("ours rate-based, once", 10, rate_based=True, fewer={1: 4, 2: 4}),
    "ours, taught": Way("ours, taught, once", 9, teacher=True, fewer={1: 2, 2: 4}),
    "ours, four steps throughout": Way("ours fused, once", 10),
    "SpikingJelly, users": Way(
        "SpikingJelly", 64, jelly_if, "spiking", rate_squared_error, cosine=True, half=False
    ),
    "snnTorch, users": Way("snnTorch", 64, leaky, "spiking", step_cross_entropy, adam=True, half=False),
    "SpikingJelly, best": Way("SpikingJelly, compiled whole, once", 16, jelly_lif),
    "snnTorch, best": Way("snnTorch, channels last", 12, leaky_to_zero),
}


def equal(mine: Neuron, name: str) -> None:
    """Stop unless the library's neuron gives the same spikes and gradients on random currents, in float64."""
    torch.manual_seed(0)
    current = torch.randn(TIME_STEPS, 256, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(TIME_STEPS, 256, dtype=torch.float64)
    found = []
    for run in (peer(mine, name), lambda x: mine(x.flatten(0, 1)).unflatten(0, x.shape[:2])):
        spikes = run(current)
        (gradient,) = torch.autograd.grad((spikes * weight).sum(), current)
        found.append((spikes.detach(), gradient))
    (theirs, slope), (ours, our_slope) = found
    # snnTorch's spikes, and with them its gradients, are float32 whatever enters
    if not torch.equal(theirs, ours) or (slope - our_slope).abs().max() > 1e-7:
        raise SystemExit(f"{name}: not the neuron of the curve")


def peer(neuron: Neuron, name: str) -> Callable[[Tensor], Tensor]:
    """The library's neuron: currents (T, N) to spikes; where it is not that of ``step.py``, the example's."""
    if isinstance(neuron, LIF) and neuron.reset == "hard":
        return PEERS[name.partition(",")[0]](neuron)
    if name.startswith("SpikingJelly"):
        from spikingjelly.activation_based import neuron as jelly
        from spikingjelly.activation_based import surrogate

        return jelly.IFNode(surrogate_function=surrogate.ATan(), step_mode="m")
    import snntorch
    from snntorch import surrogate as slopes

    return stepped(snntorch.Leaky(0.5, spike_grad=slopes.fast_sigmoid(slope=25)), neuron.gain)


def network_of(way: Way) -> sd.networks.Network:
    """Before training; peers' begin as torch's layers do."""
    torch.manual_seed(0)
    if way.neuron is None:
        return sd.networks.create("conv6", time_steps=TIME_STEPS, **NORM)
    network = sd.networks.create(
        "conv6", time_steps=TIME_STEPS, neuron=way.neuron(), head=way.head, initialisation="plain", **NORM
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return network


def optimizer_of(way: Way, network: nn.Module) -> torch.optim.Optimizer:
    if way.adam:
        return torch.optim.Adam(network.parameters(), lr=0.01)
    if way.cosine:
        return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    groups = sd.parameter_groups(network, lr=0.1, weight_decay=5e-4)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def factor(way: Way, epoch: int, position: float) -> float:
    """Of the learning rate; ``position`` in 0..1 of the schedule."""
    if way.adam:
        return 1.0
    return (1 + math.cos(math.pi * epoch / way.epochs)) / 2 if way.cosine else one_cycle(position)


def curve(name: str, data: dict[str, Tensor], teacher: nn.Module | None, state: Path, most: int) -> None:
    """Train ``most`` epochs or until the mark; the accuracies of all epochs so far are kept after each."""
    way = WAYS[name]
    if way.neuron is not None:
        equal(way.neuron(), name)
    network = network_of(way).to(memory_format=torch.channels_last)
    learning: Any = network
    if way.teacher:
        assert teacher is not None, "give --teacher"
        # What the terms learn, such as a way to the teacher's channels, learns beside the network.
        learning = sd.Distiller(network, teacher, TAUGHT)
    if way.rate_based:
        learning = sd.Distiller(network, None, backpropagation="rate_based")
    if learning is not network:
        learning.setup(data["x_train"][:2].float() / 255)
    learning = learning.to(memory_format=torch.channels_last)
    chosen = optimizer_of(way, learning)
    rates = [group["lr"] for group in chosen.param_groups]
    accuracies: list[float] = []
    if state.exists():
        kept = torch.load(state, weights_only=True)
        learning.load_state_dict(kept["network"])
        chosen.load_state_dict(kept["optimizer"])
        accuracies = kept["accuracies"]
    x, y = data["x_train"], data["y_train"]
    batches = len(x) // BATCH
    half = way.half and cpu_bf16_units() is not None
    while len(accuracies) < min(most, way.epochs) and max(accuracies, default=0.0) < MARK:
        epoch = len(accuracies)
        torch.manual_seed(1 + epoch)  # so that a stopped curve goes on as it would have
        learning.train()
        network.time_steps = way.steps(epoch)
        for step, picked in enumerate(torch.randperm(len(x))[: batches * BATCH].split(BATCH)):
            share = factor(way, epoch, (epoch * batches + step) / (batches * way.epochs))
            for group, rate in zip(chosen.param_groups, rates):
                group["lr"] = rate * share
            images = augmented(x[picked])
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = (
                    learning(images, y[picked]).total
                    if way.teacher or way.from_rates(network.time_steps)
                    else way.loss(network(images).float(), y[picked])
                )
            chosen.zero_grad()
            loss.backward()
            chosen.step()
        network.time_steps = TIME_STEPS
        accuracies.append(tested(network, data, half, settled=way.neuron is None))
        print(f"{name}: epoch {len(accuracies)}, {100 * accuracies[-1]:.2f} %", flush=True)
        state.parent.mkdir(parents=True, exist_ok=True)
        part = state.with_suffix(".part")
        torch.save(
            {"network": learning.state_dict(), "optimizer": chosen.state_dict(), "accuracies": accuracies},
            part,
        )
        part.replace(state)
        rows = json.loads(RESULTS.read_text())["curves"] if RESULTS.exists() else {}
        timing.write(RESULTS, curves=rows | {name: [round(a, 4) for a in accuracies]})


@torch.no_grad()
def tested(network: nn.Module, data: dict[str, Tensor], half: bool, settled: bool) -> float:
    """Accuracy on all test images; ours with settled statistics, of a copy, as its trainings do."""
    held = {key: value.clone() for key, value in network.state_dict().items()}
    if settled:
        settle(network, [augmented(part) for part in data["x_train"][:1024].split(BATCH)])
    network.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        guesses = [network(part.float() / 255).mean(0).argmax(-1) for part in data["x_test"].split(250)]
    network.load_state_dict(held)
    return float((torch.cat(guesses) == data["y_test"]).double().mean())


def epochs(way: Way, images: int = 50_000) -> list[float]:
    """Seconds of each epoch of the schedule, by the steps measured with as many time steps."""
    rows = {
        T: json.loads((STEPS if T == TIME_STEPS else STEPS.with_name(f"{STEPS.stem}-T{T}.json")).read_text())
        for T in {TIME_STEPS, *way.fewer}
    }
    missing = [T for T in {*map(way.steps, range(way.epochs))} if way.row(T) not in rows[T]["rows"]]
    if missing:
        raise SystemExit(
            f"{way.row(missing[0])!r} was not timed at T = {missing[0]}; first, on an idle machine: python "
            "benchmarks/all.py --only N128 --again"
        )
    return [
        rows[T]["rows"][way.row(T)]["median_ms"] / 1e3 * (images // BATCH)
        for T in map(way.steps, range(way.epochs))
    ]


def within(costs: list[float]) -> int:
    """How many epochs begin and end before the cap."""
    return sum(minutes <= CAP for minutes in ends(costs))


def ends(costs: list[float]) -> list[float]:
    """Minutes from the start to the end of each epoch."""
    return [sum(costs[: i + 1]) / 60 for i in range(len(costs))]


def table() -> str:
    """A row a way: seconds an epoch, epochs and minutes to the mark, best accuracy on the way."""
    curves = json.loads(RESULTS.read_text())["curves"]
    lines = [
        f"| | seconds an epoch | epochs to {100 * MARK:.0f} % | minutes | best until then |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in [name for name in WAYS if name in curves]:
        costs = epochs(WAYS[name])
        seen = curves[name][: within(costs)]
        reached = next((i for i, a in enumerate(seen, 1) if a >= MARK), None)
        spread = " / ".join(dict.fromkeys(f"{cost:.0f}" for cost in costs))
        # What lies beyond the curve has not been trained, and what lies beyond the cap is not looked at.
        minutes = (
            f"{ends(costs)[reached - 1]:.1f}"
            if reached
            else "not finished"
            if len(seen) < within(costs)
            else f"not in {len(costs)} epochs, {ends(costs)[-1]:.0f} minutes"
            if within(costs) == len(costs)
            else f"> {CAP:.0f}"
        )
        lines.append(f"| {name} | {spread} | {reached or '–'} | {minutes} | {100 * max(seen):.1f} % |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    curves = commands.add_parser("curves")
    curves.add_argument("data", type=Path)
    curves.add_argument("--teacher", type=Path, help="weights of a ResNet-20 for 'ours, taught'")
    curves.add_argument("--ways", nargs="*", choices=[*WAYS], default=[*WAYS])
    curves.add_argument("--states", type=Path, default=ROOT / "build" / "time-to-accuracy")
    commands.add_parser("table")
    given = p.parse_args()
    if given.command == "table":
        print(table())
        return
    data = opened(given.data, images=50_000)
    teacher = None
    if given.teacher:
        norm = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        teacher = load_weights(sd.networks.create("resnet20", time_steps=None, **norm), given.teacher)
    for name in given.ways:
        state = given.states / f"{name.replace(', ', '-')}.pt"
        curve(name, data, teacher, state, max(1, within(epochs(WAYS[name], len(data["x_train"])))))


if __name__ == "__main__":
    main()
