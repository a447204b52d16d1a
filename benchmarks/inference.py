"""Inference, images a second: ours (eager, compiled), SpikingJelly's neurons in the same network, ANN twin.

    python benchmarks/inference.py [--network conv6] [--batch 32] [--precision bfloat16] [--json FILE]

Equal work is checked: the same logits in float64 before anything is timed.
"""

from typing import Any

import timing
import torch
from peers import swapped

import spikedistill as sd
from spikedistill.neurons import LIF, compilation


def main() -> None:
    p = timing.parser(__doc__, network="conv6", batch=32, runs=15, precision="float32")
    p.add_argument("--time-steps", type=int, default=4)
    a = p.parse_args()
    half = a.precision == "bfloat16"
    T = a.time_steps

    def create(input: str, steps: int | None) -> Any:
        torch.manual_seed(0)
        neuron = None if steps is None else LIF()
        return sd.networks.create(a.network, input=input, time_steps=steps, neuron=neuron).eval()

    ours, peer, ann = (
        create("image", T),
        swapped(create("frames", T), "SpikingJelly", T).eval(),
        create("image", None),
    )
    x = torch.rand(a.batch, 3, 32, 32)
    frames = x.unsqueeze(1).expand(-1, T, *x.shape[1:])
    with torch.no_grad(), compilation.eager():
        mine, theirs = ours.double()(x.double()), peer.double()(frames.double())
    torch.testing.assert_close(mine, theirs)
    for network in (ours.float(), peer.float(), ann):
        network.to(memory_format=torch.channels_last)
    wide = x.repeat(T, 1, 1, 1).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    whole = torch.compile(ann)

    def run(network: Any, given: torch.Tensor, way: str) -> Any:
        def once() -> None:
            cast = torch.autocast("cpu", torch.bfloat16, enabled=half)
            with torch.no_grad(), cast, compilation.use(way):  # type: ignore[arg-type]
                network(given)

        return once

    rows = timing.interleaved(
        {
            "ours compiled, once": run(ours, x, "compiled"),
            "ours eager, once": run(ours, x, "eager"),
            "SpikingJelly": run(peer, frames, "eager"),
            "ANN twin compiled at T*N": run(whole, wide, "compiled"),
        },
        a.runs,
    )
    timing.show(rows, "ANN twin compiled at T*N")
    timing.write(a.json, network=a.network, batch=a.batch, time_steps=T, precision=a.precision, rows=rows)


if __name__ == "__main__":
    main()
