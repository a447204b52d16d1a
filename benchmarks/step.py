"""One training step: ours, the same network with other libraries' neurons, and the compiled ANN twin at the same T*N.

    python benchmarks/step.py [--network conv6] [--width 1] [--batch 32] [--size 32] [--time-steps 4] [--precision float32]

Interleaved runs, medians, a table and JSON. Before anything is timed, all spiking variants must give the same loss in
float64. "once": what stands before the first neuron runs once for each image; otherwise at every time step.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import timing
import torch
from peers import PEERS, reset, swapped
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.neurons import LIF, compilation


class Variant:
    """A way to train one step: a network and how it is run."""

    def __init__(
        self, name: str, network: nn.Module, frames: bool, way: str = "eager", half: bool = False, ann_steps: int = 0
    ):
        self.name, self.network, self.frames, self.half, self.ann_steps = name, network, frames, half, ann_steps
        self.context: Callable = (lambda: compilation.use(way)) if way != "whole" else nullcontext
        self.call: Callable = torch.compile(network) if way == "whole" else network
        self.seconds: list[float] = []
        self.first = 0.0

    def prepare(self, x: Tensor, device: torch.device, T: int) -> None:
        self.network.to(device=device, dtype=torch.float32, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9)
        self.x = self.input(x, T).to(device)
        if self.x.dim() == 4:
            self.x = self.x.to(memory_format=torch.channels_last)

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


def variants(a: argparse.Namespace, half: bool) -> list[Variant]:
    """All there are for one precision; every network has the same weights."""

    def create(input: str, T: int | None) -> nn.Module:
        torch.manual_seed(0)
        return sd.networks.create(
            a.network, input=input, time_steps=T, width=a.width, neuron=None if T is None else LIF()
        )

    def ours(input: str) -> nn.Module:
        return create(input, a.time_steps)

    suffix = " bf16" if half else ""
    out = [
        Variant("ours fused, once" + suffix, ours("image"), False, "compiled", half),
        Variant("ours fused" + suffix, ours("frames"), True, "compiled", half),
        Variant("ours eager, once" + suffix, ours("image"), False, "eager", half),
        Variant(
            "ANN twin compiled at T*N" + suffix, create("image", None), False, "whole", half, ann_steps=a.time_steps
        ),
    ]
    for peer in PEERS:
        out.append(Variant(peer + suffix, swapped(ours("frames"), peer, a.time_steps), True, "eager", half))
        if a.whole and peer in ("SpikingJelly", "plain loop"):
            network = swapped(ours("image"), peer, a.time_steps)
            out.append(Variant(peer + " compiled whole, once" + suffix, network, False, "whole", half))
    return [v for v in out if not a.only or any(word in v.name for word in a.only)]


def check_equal_work(found: list[Variant], x: Tensor, y: Tensor, T: int) -> float:
    """The first loss in float64, equal for all spiking variants."""
    losses = {}
    for v in found:
        if v.ann_steps:
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


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--network", default="conv6")
    p.add_argument("--width", type=float, default=1.0)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--time-steps", type=int, default=4)
    p.add_argument("--precision", choices=("float32", "bfloat16", "both"), default="float32")
    p.add_argument("--runs", type=int, default=15)
    p.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--whole", action="store_true", help="also peers' networks under torch.compile")
    p.add_argument("--only", nargs="*", help="variants whose name contains one of these")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    device = torch.device(a.device)
    torch.manual_seed(1)
    x, y = torch.rand(a.batch, 3, a.size, a.size), torch.randint(10, (a.batch,))
    halves = {"float32": [False], "bfloat16": [True], "both": [False, True]}[a.precision]
    found = [v for half in halves for v in variants(a, half)]
    loss = check_equal_work(found, x, y, a.time_steps)
    y = y.to(device)
    for v in found:
        v.prepare(x, device, a.time_steps)
        v.first = v.timed(y)
        v.step(y)
    for _ in range(a.runs):
        for v in random.sample(found, len(found)):
            v.seconds.append(v.timed(y))
    rows = [
        {
            "variant": v.name,
            "median_ms": 1e3 * statistics.median(v.seconds),
            "least_ms": 1e3 * min(v.seconds),
            "first_s": v.first,
        }
        for v in found
    ]
    rows.sort(key=lambda row: row["median_ms"])
    print(
        f"{a.network} width {a.width}, T={a.time_steps}, N={a.batch}, {a.size}x{a.size}; first loss {loss:.9f} everywhere"
    )
    for row in rows:
        print(
            f"{row['variant']:42} {row['median_ms']:9.1f} ms  least {row['least_ms']:9.1f}  first step {row['first_s']:7.1f} s"
        )
    machine = {**timing.machine(), "device": str(device)}
    if a.json:
        settings = {k: v for k, v in vars(a).items() if k != "json"}
        a.json.write_text(
            json.dumps({"settings": settings, "machine": machine, "first_loss": loss, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
