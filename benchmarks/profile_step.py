"""Where the time of our training step goes: convolutions, norm and neuron, optimizer, the rest.

    python benchmarks/profile_step.py [--network conv6] [--batch 32] [--precision bfloat16] [--json FILE]

From torch's profiler, over five steps; the profiler itself costs some per cent. "statistics" are in "the
rest".
"""

import timing
import torch
from torch.profiler import ProfilerActivity, profile

import spikedistill as sd
from spikedistill import heap
from spikedistill.neurons import LIF, compilation

PARTS = {
    "dense convolutions, forward": "aten::convolution",
    "dense convolutions, backward": "aten::convolution_backward",
    "event-driven convolutions, forward": "_EventConvolution",
    "event-driven convolutions, weights' gradient": "_EventConvolutionBackward",
    "norm and neuron, forward": "_Fused",
    "norm and neuron, backward": "_FusedBackward",
    "optimizer": "Optimizer.step#SGD.step",
}
STEPS = 5


def main() -> None:
    p = timing.parser(__doc__, network="conv6", batch=32, precision="float32")
    p.add_argument("--size", type=int, default=32)
    a = p.parse_args()
    torch.manual_seed(0)
    network = sd.networks.create(a.network, time_steps=4, neuron=LIF()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    x = torch.rand(a.batch, 3, a.size, a.size).to(memory_format=torch.channels_last)
    y = torch.randint(10, (a.batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bfloat16"):
            out = network(x)
        torch.nn.functional.cross_entropy(out.float().mean(0), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    heap.keep()
    with compilation.compiled():
        for _ in range(3):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.profiler.record_function("all"):
            for _ in range(STEPS):
                step()
    total = {event.key: event.cpu_time_total / 1e3 / STEPS for event in profiler.key_averages()}
    own = {event.key: event.self_cpu_time_total / 1e3 / STEPS for event in profiler.key_averages()}
    total |= {key: own[key] for key in own if key == "_EventConvolutionBackward"}  # the rest of it is dense
    rows = {
        name: {"median_ms": total.get(key, 0.0), "least_ms": total.get(key, 0.0)}
        for name, key in PARTS.items()
    }
    rest = total["all"] - sum(row["median_ms"] for row in rows.values())
    rows["the rest"] = {"median_ms": rest, "least_ms": rest}
    rows["a step"] = {"median_ms": total["all"], "least_ms": total["all"]}
    for name, row in rows.items():
        print(f"{name:32} {row['median_ms']:8.2f} ms  {100 * row['median_ms'] / total['all']:5.1f} %")
    timing.write(a.json, network=a.network, batch=a.batch, precision=a.precision, rows=rows)


if __name__ == "__main__":
    main()
