"""One training step: ours, the network with other libraries' neurons, the compiled ANN twin at equal T*N.

    python benchmarks/step.py [--network conv6] [--width 1] [--batch 32] [--time-steps 4] [--precision both]
        [--peers best]

Each variant lives in a process of its own, so that none profits or suffers from another's allocations; they
take turns, in random order, two steps a turn, of which the second is timed. Medians, a table and JSON. Before
anything is timed, all spiking variants must give the same loss in float64. "once": what stands before the
first neuron runs once for each image; otherwise at every time step. "ours, rate-based": a pass of spikes
without a graph, and one of their rates, whose gradients are others. "ours, taught": with a ResNet-20 as
teacher and the objectives :data:`TAUGHT`, all that they cost included. ``--peers users``: as their users run
them, eager and channels first; ``best``: also with channels last and our allocator setting
(``spikedistill.heap.keep``), which ours and the ANN twin have too, and torch.compile of the whole network
with the image entering once, wherever these work; one that does not work is a row with its error.

Ours computes convolutions event by event where few neurons fire, so its time depends on the firing rate,
which is printed. ``--bias`` is that of all norms: 0 as initialised; with more of it more neurons fire.
"""

import argparse
import multiprocessing
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Any

import timing
import torch
from peers import PEERS, create, reset, swapped
from torch import Tensor, nn

import spikedistill as sd
from spikedistill import heap, taps
from spikedistill.neurons import NormNeuron, compilation
from spikedistill.recipe import load

ARM = "evidence-unit", "features"  # the form that is best on 10,000 images of CIFAR-10
TAUGHT = [one.model_dump(exclude_none=True) for one in load(ARM[0]).stage(ARM[1]).objectives]


class Variant:
    """A way to train one step: a network and how it is run."""

    def __init__(
        self, name: str, network: nn.Module, way: str = "eager", *, frames: bool = False, half: bool = False,
        last: bool = True, ann_steps: int = 0,
    ):  # fmt: skip
        self.name, self.network, self.frames, self.ann_steps = (
            name + " bf16" * half,
            network,
            frames,
            ann_steps,
        )
        self.kept = last  # freed memory is kept: in all but what runs as its users run it
        self.half, self.form = half, torch.channels_last if last else torch.contiguous_format
        self.context: Callable = (lambda: compilation.use(way)) if way != "whole" else nullcontext
        self.call: Callable = torch.compile(network) if way == "whole" else network

    def prepare(self, x: Tensor, y: Tensor, device: torch.device, T: int) -> None:
        """Move to the device and take the first two steps; the first one's time includes compiling."""
        self.network.to(device=device, dtype=torch.float32, memory_format=self.form).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9)
        self.x = self.input(x, T).to(device)
        if self.x.dim() == 4:
            self.x = self.x.to(memory_format=self.form)
        self.step(y)

    def input(self, x: Tensor, T: int) -> Tensor:
        if self.ann_steps:
            return x.repeat(self.ann_steps, 1, 1, 1)
        return x.unsqueeze(1).expand(-1, T, *x.shape[1:]) if self.frames else x

    def loss(self, call: Callable, x: Tensor, y: Tensor) -> Tensor:
        reset(self.network)
        out = call(x)
        if out.dim() == 3:
            out = out.mean(0)
        out = out.float() if out.dtype == torch.bfloat16 else out
        return nn.functional.cross_entropy(out, y.repeat(self.ann_steps) if self.ann_steps else y)

    def step(self, y: Tensor) -> None:
        with self.context():
            with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.half):
                loss = self.loss(self.call, self.x, y)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed(self, y: Tensor) -> float:
        if self.x.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.step(y)
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


class Distilled(Variant):
    """Ours by way of a distiller: beside a teacher, or learning from rates."""

    def __init__(self, name: str, distiller: sd.Distiller, x: Tensor, half: bool) -> None:
        super().__init__(name, distiller.setup(x[:2]), "compiled", half=half)

    def loss(self, call: Callable, x: Tensor, y: Tensor) -> Tensor:
        total: Tensor = call(x, y).total
        return total


def variants(a: argparse.Namespace, half: bool) -> list[Variant]:
    """All there are for one precision; every network has the same weights."""
    T = a.time_steps

    def ours(T: int | None = T, frames: bool = False) -> nn.Module:
        network = create(a.network, T, frames, width=a.width)
        for m in network.modules():
            if isinstance(m, NormNeuron):
                nn.init.constant_(m.bias, a.bias)
        return network

    def peer(name: str, way: str = "eager", suffix: str = "", last: bool = True) -> Variant:
        once = way == "whole"
        network = swapped(ours(frames=not once), name, T)
        return Variant(name + suffix, network, way, frames=not once, half=half, last=last)

    def on_rates() -> sd.Distiller:
        return sd.Distiller(ours(), None, backpropagation="rate_based")

    def taught() -> sd.Distiller:
        return sd.Distiller(ours(), sd.networks.create("resnet20", time_steps=None), TAUGHT)

    x = batch(a)[0]
    out = [
        Variant("ours fused, once", ours(), "compiled", half=half),
        Variant("ours fused", ours(frames=True), "compiled", frames=True, half=half),
        Variant("ours eager, once", ours(), half=half),
        Distilled("ours rate-based, once", on_rates(), x, half),
        *([Distilled("ours, taught, once", taught(), x, half)] if a.taught else []),
        Variant("ANN twin compiled at T*N", ours(None), "whole", half=half, ann_steps=T),
    ]
    if a.peers == "users":
        out += [peer(name, last=False) for name in ("SpikingJelly", "snnTorch")]
    if a.peers == "best":
        for name in PEERS:
            out += [
                peer(name, last=False),
                peer(name, suffix=", channels last"),
            ]
            if any(name.startswith(word) for word in a.whole):
                out.append(peer(name, "whole", ", compiled whole, once"))
    return [v for v in out if not a.only or any(word in v.name for word in a.only)]


def check_equal_work(found: list[Variant], x: Tensor, y: Tensor, T: int) -> float:
    """The first loss in float64, equal for all spiking variants."""
    losses = {}
    for v in found:
        if v.ann_steps or isinstance(v, Distilled):
            continue
        state = {k: t.clone() for k, t in v.network.state_dict().items()}
        v.network.double().train()
        for way in ("eager", "uncompiled"):
            with torch.no_grad(), compilation.use(way):  # type: ignore[arg-type]
                losses[v.name, way] = float(v.loss(v.network, v.input(x, T).double(), y))
        v.network.load_state_dict(state)
    values = list(losses.values())
    if values and max(values) - min(values) > 1e-9:
        raise SystemExit("not the same work: " + ", ".join(f"{k}: {x:.12f}" for k, x in losses.items()))
    return values[0] if values else float("nan")


def arguments() -> argparse.Namespace:
    p = timing.parser(__doc__, network="conv6", batch=32, runs=9)
    p.add_argument("--width", type=float, default=1.0)
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--time-steps", type=int, default=4)
    p.add_argument("--bias", type=float, default=0.0)
    p.add_argument("--precision", choices=("float32", "bfloat16", "both"), default="float32")
    p.add_argument("--peers", choices=("none", "users", "best"), default="users")
    p.add_argument(
        "--whole", nargs="*", default=list(PEERS), help="peers to compile whole, with --peers best"
    )
    p.add_argument("--taught", action="store_true", help="ours with a teacher too (images of 32x32)")
    p.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--only", nargs="*", help="variants whose name contains one of these")
    return p.parse_args()


def batch(a: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The same images and labels in all processes."""
    torch.manual_seed(1)
    return torch.rand(a.batch, 3, a.size, a.size), torch.randint(10, (a.batch,))


def serve(ends: Connection, a: argparse.Namespace, half: bool, name: str) -> None:
    """One variant in this process: prepares, says so, then answers each word with the seconds of a step."""
    if a.threads:
        torch.set_num_threads(a.threads)
    v = next(v for v in variants(a, half) if v.name == name)
    if v.kept:
        heap.keep()
    x, y = batch(a)
    device = torch.device(a.device)
    y = y.to(device)
    try:
        v.prepare(x, y, device, a.time_steps)
    except Exception as error:
        ends.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        return
    ends.send(None)
    while ends.recv():
        v.step(y)
        ends.send(v.timed(y))


def firing_rates(network: nn.Module, x: Tensor) -> dict[str, float]:
    """Spikes per neuron and step of each layer, in training mode."""
    with torch.no_grad(), compilation.eager():
        _, found = taps.captures(network.train(), x, ["*@spikes"])
    return {name.removesuffix("@spikes"): float(s.float().mean()) for name, s in found.tensors.items()}


def race(a: argparse.Namespace, half: bool, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Seconds of each variant, spread over the run; what does not run, and why."""
    spawn = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    seconds: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    for name in names:
        start = time.perf_counter()
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, a, half, name), daemon=True)
        process.start()
        theirs.close()
        workers[name] = process, ours
        try:
            error = ours.recv()
        except EOFError:
            error = "the process died"
        print(f"{name}: {error or 'ready'} after {time.perf_counter() - start:.0f} s", flush=True)
        if error:
            errors[name] = error
        else:
            seconds[name] = []
    for _ in range(a.runs):
        for name in random.sample(list(seconds), len(seconds)):
            try:
                workers[name][1].send(True)
                seconds[name].append(workers[name][1].recv())
            except (EOFError, OSError):  # such as one that the system ended for want of memory
                errors[name] = "the process died"
                print(f"{name}: {errors[name]}", flush=True)
                del seconds[name]
    for name, (process, ends) in workers.items():
        if name in seconds:
            ends.send(False)
        process.join()
    return {name: timing.spread(s) for name, s in seconds.items()}, errors


def main() -> None:
    a = arguments()
    x, y = batch(a)
    halves = {"float32": [False], "bfloat16": [True], "both": [False, True]}[a.precision]
    loss, rows, errors = float("nan"), {}, {}
    print(f"{a.network}, width {a.width:g}, T={a.time_steps}, N={a.batch}, {a.size}x{a.size}")
    for half in halves:
        found = variants(a, half)
        loss = check_equal_work(found, x, y, a.time_steps)
        if not a.runs:
            continue
        mine, wrong = race(a, half, [v.name for v in found])
        base = "ANN twin compiled at T*N" + " bf16" * half
        timing.show(mine, base if base in mine else None)
        rows, errors = rows | mine, errors | wrong
    rates = firing_rates(variants(a, False)[0].network, x)
    print(f"first loss {loss:.9f}, firing rates {' '.join(f'{100 * r:.1f}' for r in rates.values())} %")
    settings = {k: v for k, v in vars(a).items() if k != "json"}
    timing.write(a.json, settings=settings, first_loss=loss, firing_rates=rates, rows=rows, errors=errors)


if __name__ == "__main__":
    main()
