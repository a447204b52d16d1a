"""MS-ResNet-18 for N-Caltech101 (48x48 event frames, 101 classes): float against 4/4/8 bits, MD-SNN's ratios.

    python benchmarks/hardware_mdsnn.py EVENTS.npz [--steps 60] [--out TABLE.md]

MD-SNN (Lee, Moitra, Kim, Yin, Panda, DATE 2026, arXiv 2512.04443): 14.85 x lower EDAP, 2.64 x higher TOPS/W,
6.19 x higher TOPS/mm2 at equal accuracy. Its bit widths, T, SpikeSim settings and absolute values are not
known to us. Spikes are measured on real event recordings (keys t, x, y, p, off, label, sensor_size), after a
few steps of training from scratch: enough that all layers fire, far from a trained network. The same spikes
are used at both precisions, so the two prices are not at equal measured accuracy.
"""

import argparse
from math import nan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import spikedistill.networks as networks
from spikedistill.hardware import Config, Layer, against, at_bits, at_rate, layers, spikesim
from spikedistill.hardware.config import RELEASED

PAPER = {"EDAP": 14.85, "TOPS/W": 2.64, "TOPS/mm2": 6.19}
T, SIZE = 6, 48


def frames(path: Path, samples: np.ndarray) -> tuple[Tensor, Tensor]:
    """Events of some samples as counts (N, T, 2, 48, 48), and labels."""
    with np.load(path) as z:
        t, x, y, p, off, label = (z[k] for k in ("t", "x", "y", "p", "off", "label"))
        width, height = (int(v) for v in z["sensor_size"])
    out = np.zeros((len(samples), T, 2, SIZE, SIZE), np.float32)
    for k, i in enumerate(samples):
        s = slice(off[i], off[i + 1])
        step = np.minimum(t[s].astype(np.int64) * T // (int(t[s].max()) + 1), T - 1)
        np.add.at(
            out[k], (step, p[s], y[s].astype(int) * SIZE // height, x[s].astype(int) * SIZE // width), 1
        )
    return torch.from_numpy(out), torch.from_numpy(label[samples].astype(np.int64))


def trained(path: Path, steps: int, batch: int = 16) -> tuple[torch.nn.Module, Tensor, float]:
    """The network after some steps, a batch of real frames it has not seen, and its accuracy there."""
    torch.manual_seed(0)
    net = networks.create("ms_resnet18", num_classes=101, in_channels=2, input="frames", time_steps=T)
    with np.load(path) as z:
        order = np.random.default_rng(0).permutation(len(z["label"]))
    held, order = order[:64], order[64:]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net.train()
    for step in range(steps):
        x, y = frames(path, np.take(order, range(step * batch, (step + 1) * batch), mode="wrap"))
        loss = torch.nn.functional.cross_entropy(net(x).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    net.eval()
    x, y = frames(path, held)
    with torch.no_grad():
        accuracy = float((net.predict(x).argmax(1) == y).float().mean())
    return net, x, accuracy


def ratios(full: list[Layer], low: list[Layer], config: Config) -> dict[str, float]:
    """How much better the low-precision network is, by the paper's three figures."""
    a, b = spikesim.evaluate(full, config), spikesim.evaluate(low, config)
    found = against(b.as_dict(), a.as_dict())
    return {
        "EDAP": 1 / (found["edap"] or nan),
        "TOPS/W": found["tops_per_w"] or nan,
        "TOPS/mm2": found["tops_per_mm2"] or nan,
    }


def table(found: list[Layer]) -> str:
    """Ratios under several settings, and over an activity sweep."""
    published = RELEASED.model_copy(update={"any_order": True, "any_depth": True, "layer_kernels": True})
    sliced = published.model_copy(update={"bit_slicing": True, "memory_bits": True, "linear_layers": True})
    full, low = at_bits(found, None, None, None, residual_bits=32), at_bits(found)
    all_four = at_bits(found, first_last_bits=None)
    rows: list[tuple[str, dict[str, float]]] = [
        ("MD-SNN, as published", PAPER),
        (
            "published formulas (any order, depth, kernel): no precision in them",
            ratios(full, low, Config(switches=published)),
        ),
        (
            "the same with bit slicing, memory bits, linear layers; 1 bit a cell",
            ratios(full, low, Config(switches=sliced)),
        ),
        ("the same, 4 bits a cell", ratios(full, low, Config(switches=sliced, cell_bits=4))),
    ]
    for name, config in (
        ("corrected", {}), ("corrected, 4 bits a cell", {"cell_bits": 4}),
        ("corrected, 4-bit ADC", {"adc_bits": 4}),
        ("corrected, 128x128 arrays", {"crossbar_size": 128}),
    ):  # fmt: skip
        for activity in ("dense", "event"):
            rows.append((f"{name}, {activity}", ratios(full, low, Config(activity=activity, **config))))
    rows.append(
        (
            "corrected, event, 4 bits in first and last layer too",
            ratios(full, all_four, Config(activity="event")),
        )
    )
    for rate in (0.05, 0.10, 0.15, 0.20, 0.25, 0.30):
        sweep = Config(activity="event")
        rows.append(
            (
                f"corrected, event, independent spikes at {rate:.0%}",
                ratios(at_rate(full, rate), at_rate(low, rate), sweep),
            )
        )
    lines = ["| setting | EDAP | TOPS/W | TOPS/mm² |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |" for name, row in rows
    ]
    return "\n".join(lines) + "\n"


def absolute(found: list[Layer]) -> str:
    """Absolute figures behind the default ratios."""
    lines = [
        "| precision | activity | PEs | energy µJ | latency ms | area mm² | EDAP µJ·ms·mm² |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, there in (
        ("float", at_bits(found, None, None, None, residual_bits=32)),
        ("4/4/8 bits", at_bits(found)),
    ):
        for activity in ("dense", "event"):
            r = spikesim.evaluate(there, Config(activity=activity))
            figures = (
                r.energy_pj / 1e6,
                (r.latency_ns or nan) / 1e6,
                (r.area_um2 or nan) / 1e6,
                r.edap or nan,
            )
            cells = " | ".join(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in figures)
            lines.append(f"| {name} | {activity} | {r.pes:,} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("events", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    net, x, accuracy = trained(given.events, given.steps)
    found = layers(net, x[:16])
    spikes = [layer for layer in found if layer.kind == "neuron"]
    rate = sum(n.spikes_out or 0 for n in spikes) / sum(n.outputs_per_run * n.time_steps for n in spikes)
    text = (
        f"{given.steps} steps of 16 recordings, held-out accuracy {accuracy:.2f}, "
        f"mean firing rate {100 * rate:.1f} %\n\n"
    )
    text += absolute(found) + "\n" + table(found)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    print(text, end="")
