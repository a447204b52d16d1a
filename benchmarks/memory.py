"""Training memory, each variant in a fresh process: peak of five steps minus that after model and optimizer.

    python benchmarks/memory.py [--network conv6] [--batch 32] [--time-steps 8] [--precision float32]
        [--json FILE]

A step on two images comes before, so that what libraries load or compile at first use is not counted. Beside
it the bytes of saved tensors, counted by hooks (ours: by the packer's), and the time of a step. Variants:
ours in default, packed and lean memory and rate-based (backward keeps nothing of single steps), each with the
allocator setting that such a run has (``spikedistill.heap``); SpikingJelly's neurons in the same network, as
they are and through its ``memopt`` (level 1, the highest that runs on a CPU, on units of convolution, norm
and neuron or on residual blocks; all of them checkpointed, spikes compressed), with the allocator as the
system has it.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timing

VARIANTS = (
    "ours default",
    "ours packed",
    "ours lean",
    "ours rate-based",
    "SpikingJelly",
    "SpikingJelly memopt",
)


def _memory(name: str) -> float:
    """Resident memory of this process in MB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def optimized(network: Any, x: Any) -> Any:
    """SpikingJelly's memory optimization of our network with its neurons."""
    from peers import Unit, grouped, reset
    from spikingjelly.activation_based.memopt import optimize_memory

    from spikedistill.networks.resnet import BasicForm, MSForm

    def example(model: Any) -> Any:
        reset(model)
        return model(x)

    targets = (Unit, BasicForm, MSForm)
    network = optimize_memory(
        grouped(network), targets, example, level=1, checkpoint_budget="memory", compress=True
    )
    reset(network)
    return network


def measure(variant: str, name: str, batch: int, T: int, half: bool) -> dict[str, float]:
    """In this process: peak resident memory and time of five steps, bytes of saved tensors of one."""
    import torch
    from peers import create, reset, swapped

    from spikedistill import heap, taps
    from spikedistill.neurons import compilation
    from spikedistill.neurons.packing import _packers
    from spikedistill.training.machine import saving

    ours, on_rates = variant.startswith("ours"), variant.endswith("rate-based")
    memory = variant.split()[-1] if ours and not on_rates else "default"
    network: Any = create(name, T, frames=not ours)
    images = torch.rand(batch, 3, 32, 32)
    labels = torch.randint(10, (batch,))
    if ours:
        heap.suit(memory)
        network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    else:
        network = swapped(network, "SpikingJelly", T)
        images = images.unsqueeze(1).expand(-1, T, *images.shape[1:])
    if variant.endswith("memopt"):
        network = optimized(network, images[:2])
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    saved: dict[int, int] = {}
    packed = 0

    def keep(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def logits(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = taps.run(network, x, rate_based=True)[0] if on_rates else network(x)
        return out

    def forward(n: int) -> torch.Tensor:
        nonlocal packed
        reset(network)
        with (
            saving(memory, network),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            loss = torch.nn.functional.cross_entropy(logits(images[:n]).float().mean(0), labels[:n])
            packed = _packers[-1].bytes if _packers else 0
            return loss

    def step(n: int = batch) -> None:
        forward(n).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with compilation.use("compiled" if ours else "eager"):
        step(2)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        peak = _memory("VmHWM")
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = forward(batch)  # held until all is counted, so that no address is used twice
        kept = packed or sum(n for address, n in saved.items() if address not in own)
        del loss
    return {
        "peak_mb": peak - before,
        "saved_mb": kept / 1e6,
        "median_ms": 1e3 * statistics.median(seconds[1:]),
    }


def main() -> None:
    p = timing.parser(__doc__, network="conv6", batch=32, precision="float32")
    p.add_argument("--time-steps", type=int, default=8)
    p.add_argument("--variant", choices=VARIANTS, help="only this one, in this process")
    a = p.parse_args()
    if a.variant:
        print(json.dumps(measure(a.variant, a.network, a.batch, a.time_steps, a.precision == "bfloat16")))
        return
    rows: dict[str, Any] = {}
    args = ["--network", a.network, "--batch", str(a.batch), "--time-steps", str(a.time_steps)]
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, *args, "--precision", a.precision]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            rows[variant] = {"error": done.stderr.strip().splitlines()[-1]}
            print(f"{variant:24} does not run: {rows[variant]['error']}")
            continue
        rows[variant] = row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{variant:24} peak {row['peak_mb']:9.1f} MB   saved tensors {row['saved_mb']:9.1f} MB   "
            f"step {row['median_ms']:9.1f} ms"
        )
    settings = {k: v for k, v in vars(a).items() if k not in ("json", "variant")}
    timing.write(a.json, settings=settings, rows=rows)


if __name__ == "__main__":
    main()
