"""Peak training memory, each variant in a fresh process: peak after five steps minus after model and optimizer.

    python benchmarks/memory.py [--network conv6] [--batch 32] [--time-steps 8] [--json FILE]

Beside it the bytes of saved tensors, counted by hooks. Variants: ours in default, packed and lean memory; SpikingJelly's neurons
in the same network; the same through SpikingJelly's ``memopt`` where it can be applied.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VARIANTS = ("ours default", "ours packed", "ours lean", "SpikingJelly", "SpikingJelly memopt")


def measure(variant: str, name: str, batch: int, T: int) -> dict[str, float]:
    """In this process: peak resident memory of five steps, bytes of saved tensors of one."""
    import resource

    import torch
    from peers import swapped

    import spikedistill as sd
    from spikedistill.neurons import LIF, compilation
    from spikedistill.training.loop import saving

    torch.manual_seed(0)
    ours = variant.startswith("ours")
    network: Any = sd.networks.create(name, input="image" if ours else "frames", time_steps=T, neuron=LIF())
    if not ours:
        network = swapped(network, "SpikingJelly", T)
    x = torch.rand(batch, 3, 32, 32)
    if not ours:
        x = x.unsqueeze(1).expand(-1, T, *x.shape[1:])
    if variant.endswith("memopt"):
        from spikingjelly.activation_based.memopt import memory_optimization

        network = memory_optimization(network, None, x, compress_x=True, level=1)
    y = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    saved: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def step() -> None:
        with saving(variant.split()[-1] if ours else "default", network):
            loss = torch.nn.functional.cross_entropy(network(x).mean(0), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with compilation.use("compiled" if ours else "eager"):
        for _ in range(5):
            step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            step()
    return {"peak_mb": (peak - before) / 1e3, "saved_mb": sum(saved.values()) / 1e6}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--network", default="conv6")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--time-steps", type=int, default=8)
    p.add_argument("--variant", choices=VARIANTS, help="only this one, in this process")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    if a.variant:
        print(json.dumps(measure(a.variant, a.network, a.batch, a.time_steps)))
        return
    rows: dict[str, Any] = {}
    for variant in VARIANTS:
        args = ["--network", a.network, "--batch", str(a.batch), "--time-steps", str(a.time_steps)]
        done = subprocess.run([sys.executable, __file__, "--variant", variant, *args], capture_output=True, text=True)
        if done.returncode:
            rows[variant] = {"error": done.stderr.strip().splitlines()[-1]}
            print(f"{variant:24} does not run: {rows[variant]['error']}")
            continue
        rows[variant] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{variant:24} peak {rows[variant]['peak_mb']:9.1f} MB   saved tensors {rows[variant]['saved_mb']:9.1f} MB"
        )
    import timing

    timing.write(a.json, network=a.network, batch=a.batch, time_steps=a.time_steps, rows=rows)


if __name__ == "__main__":
    main()
