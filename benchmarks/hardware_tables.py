"""Writes the tables of docs/hardware.md: switches, constants, the walk on VGG9, memory models' differences.

python benchmarks/hardware_tables.py
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import hardware_walk

import spikedistill.networks as networks
from spikedistill.hardware import layers, memory
from spikedistill.hardware.config import Switches, Technology
from spikedistill.hardware.memory import MemoryConfig

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"


def switches() -> str:
    """Every switch, its default in corrected mode, its sentence."""
    rows = ["| switch | corrected | why |", "| --- | --- | --- |"]
    for name, field in Switches.model_fields.items():
        rows.append(
            f"| `{name}` | {'on' if field.default else 'off'} | "
            f"{' '.join((field.description or '').split())} |"
        )
    return "\n".join(rows)


def technology() -> str:
    """Every constant, its value, its source."""
    rows = ["| constant | value | source |", "| --- | --- | --- |"]
    for name, field in Technology.model_fields.items():
        rows.append(f"| `{name}` | {field.default:g} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows)


def memory_walk() -> str:
    """From our memory-inclusive estimate to SpikingJelly's, change by change, on a small VGG."""
    torch.manual_seed(0)
    net = networks.create(
        "vgg5", width=0.5, time_steps=4, neuron={"type": "lif", "tau": 2.0, "threshold": 0.1}
    )
    for _ in range(10):
        net(torch.rand(8, 3, 32, 32))
    found = layers(net, torch.rand(1, 3, 32, 32), image_bits=32)
    weights = [layer for layer in found if layer.kind not in ("norm", "pool")]
    steps = [
        ("ours, 32 bits", weights, MemoryConfig()),
        ("the stem runs at each step", [replace(layer, executions=4) for layer in weights], MemoryConfig()),
    ]
    again = steps[-1][1]
    steps.append(
        (
            "no additions without a bias (`adds_without_bias: false`)",
            again,
            MemoryConfig(adds_without_bias=False),
        )
    )
    steps.append(
        (
            "addresses of a linear layer N_in + N_out (`dense_linear_addresses: sum`)",
            again,
            memory.SPIKINGJELLY,
        )
    )
    rows = ["| change | energy nJ | against the row above |", "| --- | --- | --- |"]
    before = None
    for name, there, config in steps:
        energy = memory.estimate(there, config).total_pj
        rows.append(
            f"| {name} | {energy / 1e3:,.1f} | "
            f"{'' if before is None else f'{100 * (energy / before - 1):+.3f} %'} |"
        )
        before = energy
    return "\n".join(rows)


TABLES = {"switches": switches, "technology": technology, "walk": hardware_walk.table, "memory": memory_walk}


def refreshed(page: str) -> str:
    """The page with every table between its markers written anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        page = re.sub(
            f"{begin}.*?{end}",
            lambda _: f"{begin}\n{table().strip()}\n{end}",  # noqa: B023
            page,
            flags=re.DOTALL,
        )
    return page


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
