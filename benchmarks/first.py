"""The first step of a fresh process: empty and warm compiler cache, and what compiles anew afterwards.

    python benchmarks/first.py [--network conv6] [--precision float32] [--json FILE]

Ours (the encoding neuron included), in two processes that share a compiler cache, empty for the first one;
then, in the same process: other widths, batch and image sizes, other constants, further T. Beside it
SpikingJelly's network compiled whole.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import timing
import torch
from peers import reset, swapped
from torch import nn
from torch._dynamo.utils import counters

import spikedistill as sd
from spikedistill.neurons import LIF, compilation

# What differs from the first network (T = 4, width 1, 32 images of 32x32), one after another in one process.
CHANGES: dict[str, dict[str, Any]] = {
    "first step": {},
    "second step": {},
    "width 0.5": {"width": 0.5},
    "batch 24": {"batch": 24},
    "images 24x24": {"size": 24},
    "tau 1.5, threshold 0.8": {"neuron": LIF(tau=1.5, threshold=0.8)},
    "soft reset": {"neuron": LIF(reset="soft")},
    "T 8": {"T": 8},
    "T 8, second step": {"T": 8},
}


def seconds(network: nn.Module, call: Any, batch: int, size: int, half: bool) -> float:
    """Of one training step."""
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    x = torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    start = time.perf_counter()
    reset(network)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = nn.functional.cross_entropy(call(x).float().mean(0), y)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - start


def measure(variant: str, name: str, half: bool) -> dict[str, dict[str, float]]:
    """Seconds and newly compiled graphs of each change, in this process."""
    found: dict[str, dict[str, float]] = {}

    def graphs() -> int:
        return counters["stats"]["unique_graphs"]

    for what, change in CHANGES.items() if variant == "ours" else [("first step", CHANGES["first step"])]:
        before, T = graphs(), change.get("T", 4)
        network = sd.networks.create(
            name, width=change.get("width", 1.0), time_steps=T, neuron=change.get("neuron", LIF())
        )
        call: Any = network
        if variant != "ours":
            network = swapped(network, variant, T)
            call = torch.compile(network)
        with compilation.use("compiled" if variant == "ours" else "eager"):
            took = seconds(network, call, change.get("batch", 32), change.get("size", 32), half)
        found[what] = {"seconds": took, "graphs": graphs() - before}
    return found


def main() -> None:
    p = timing.parser(__doc__, network="conv6", precision="float32")
    p.add_argument("--variant", choices=("ours", "SpikingJelly"), help="only this one, in this process")
    a = p.parse_args()
    if a.variant:
        print(json.dumps(measure(a.variant, a.network, a.precision == "bfloat16")))
        return
    rows: dict[str, Any] = {}
    for variant in ("ours", "SpikingJelly"):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("empty cache", "warm cache"):
                command = [sys.executable, __file__, "--variant", variant, "--network", a.network]
                done = subprocess.run(
                    [*command, "--precision", a.precision],
                    env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "SPIKEDISTILL_CACHE": cache},
                    capture_output=True,
                    text=True,
                )
                name = f"{variant}, {kind}"
                if done.returncode:
                    rows[name] = {"error": done.stderr.strip().splitlines()[-1]}
                    print(f"{name:28} does not run: {rows[name]['error']}")
                    continue
                rows[name] = json.loads(done.stdout.splitlines()[-1])
                for what, row in rows[name].items():
                    print(
                        f"{name:28} {what:24} {row['seconds']:8.2f} s   {row['graphs']:3.0f} graphs compiled"
                    )
    timing.write(a.json, network=a.network, precision=a.precision, rows=rows)


if __name__ == "__main__":
    main()
