"""Time and memory of a training step on the device: ours, the compiled ANN twin at equal T*N, SpikingJelly.

One process for each kind. Before each measurement steps that are not timed; a step ends when the device says
so. Peak memory is what a step takes beyond parameters, optimizer and batch, by torch's allocator: what a
library allocates by other ways is not in it. The first loss stands in each row: one for all spiking variants,
as far as the precision goes.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
from gpu import attempt
from peers import create, swapped
from step import Variant
from torch import Tensor, nn

from spikedistill.training.machine import saving

# Network, batch, T. The first is short of work for a large GPU: there the time of launching shows.
SHAPES = (("conv6", 32, 4), ("conv6", 256, 4), ("ms_resnet18", 64, 4))
MEMORY = (("conv6", 256, 4), ("conv6", 256, 16), ("ms_resnet18", 64, 4))
RUNS = 20


class Step(Variant):
    """A variant whose forward pass keeps spikes as ``memory`` says; it remembers its last loss."""

    memory = "default"
    last_loss: Tensor

    def step(self, y: Tensor) -> None:
        with self.context():
            with (
                torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.half),
                saving(self.memory, self.network),
            ):
                loss = self.loss(self.call, self.x, y)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_loss = loss.detach()


def network(name: str, T: int | None, frames: bool, quick: bool) -> nn.Module:
    """One of ours, the same weights for both entrances; how many neurons fire does not matter on a GPU."""
    return create(name, T, frames, width=0.125 if quick else 1.0, initialisation="plain")


def peer(name: str, T: int, frames: bool, quick: bool, kind: str) -> nn.Module:
    """With SpikingJelly's neurons, of one implementation where its version lets us choose by attribute."""
    found = swapped(network(name, T, frames, quick), "SpikingJelly", T)
    for module in found.modules():
        if type(module).__name__ == "LIFNode" and hasattr(module, "supported_backends"):  # before version 2
            module.backend = {"cuda": "cupy", "": "torch"}.get(kind, kind)  # type: ignore[assignment]
    return found


def variants(part: str, name: str, T: int, half: bool, quick: bool) -> dict[str, Callable[[], Step]]:
    """What a part measures, each made when its turn comes."""
    fused, what = "uncompiled" if quick else "compiled", part.split(" ", 1)[1]
    if what.startswith("SpikingJelly"):
        kind = what.removeprefix("SpikingJelly").strip()
        found: dict[str, Callable[[], Step]] = {
            what: lambda: Step(what, peer(name, T, True, quick, kind), frames=True, half=half)
        }
        if part.startswith("step") and not quick and kind != "cuda":
            found[f"{what}, compiled whole, once"] = lambda: Step(
                what, peer(name, T, False, quick, kind), "whole", half=half
            )
        return found
    ours = {
        "ours fused, once": lambda: Step("ours", network(name, T, False, quick), fused, half=half),
        "ours eager, once": lambda: Step("ours", network(name, T, False, quick), half=half),
    }
    twins = {"ANN twin": lambda: Step("twin", network(name, None, False, quick), half=half, ann_steps=T)}
    if not quick:
        twins["ANN twin compiled"] = lambda: Step(
            "twin", network(name, None, False, quick), "whole", half=half, ann_steps=T
        )
    if part == "memory ours":
        return {f"ours {memory}": partial(kept, ours["ours fused, once"], memory) for memory in KINDS}
    return ours | twins


KINDS = ("default", "packed", "lean")


def kept(make: Callable[[], Step], memory: str) -> Step:
    """The variant with another setting of memory."""
    v = make()
    v.memory = memory
    return v


def measured(
    make: Callable[[], Step], n: int, T: int, device: str, quick: bool, graph: bool
) -> dict[str, Any]:
    """One row; with ``graph`` also the step captured and played again."""
    v, size, runs = make(), 8 if quick else 32, 2 if quick else RUNS
    torch.manual_seed(1)
    x, y = torch.rand(n, 3, size, size), torch.randint(10, (n,)).to(device)
    start = time.perf_counter()
    v.prepare(x, y, torch.device(device), T)
    first_loss = float(v.last_loss)
    found: dict[str, Any] = {"first_seconds": time.perf_counter() - start, "first_loss": first_loss}
    for _ in range(1 if quick else 3):
        v.step(y)
    found |= timed(lambda: v.step(y), runs, device)
    if graph:
        replay = captured(v, y, device)
        found["graph"] = timed(replay, runs, device)
        # What was read wrongly from freed memory would show here.
        found["graph"]["loss"] = float(v.last_loss)
    found["images_per_second"] = 1e3 * n / found["median_ms"]
    found["ok"] = (
        math.isfinite(first_loss)
        and math.isfinite(float(v.last_loss))
        and float(v.last_loss) < 2 * first_loss
    )
    return found


def timed(step: Callable[[], None], runs: int, device: str) -> dict[str, float | None]:
    """Milliseconds, and the peak above what was there before, in MB."""
    cuda, seconds = device.startswith("cuda"), []
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    for _ in range(runs):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if cuda else None
    return {**timing.spread(seconds), "peak_mb": peak}


def captured(v: Step, y: Tensor, device: str) -> Callable[[], None]:
    """The whole step, forward to update, as one CUDA graph; on a CPU, for the rehearsal, the step itself."""
    if not device.startswith("cuda"):
        return lambda: v.step(y)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            v.step(y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        v.step(y)
    return graph.replay


def run(name: str, device: str, quick: bool) -> None:
    """One part: shapes, precisions, variants."""
    graph = name.endswith("CUDA graphs")
    shapes: Any = (
        (MEMORY if name.startswith("memory") else SHAPES[:2] if graph else SHAPES)
        if not quick
        else (("conv6", 2, 2),)
    )
    for network_name, n, T in shapes:
        for half in (False,) if quick else (True, False):
            for what, make in variants(name, network_name, T, half, quick).items():
                label = f"{network_name} N={n} T={T} {'bfloat16' if half else 'float32'}: {what}"
                attempt(label, measured, make, n, T, device, quick, graph)
                if device.startswith("cuda"):
                    torch.cuda.empty_cache()
