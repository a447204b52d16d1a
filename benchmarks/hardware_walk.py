"""From SpikeSim's code to corrected mode, switch by switch, on its VGG9 example; writes a Markdown table.

    python benchmarks/hardware_walk.py [OUT]

Each row switches one more correction on and keeps those before it; numbers are absolute, percentages are
against the row above. Weights have 4 bits, as the published example's README says, membranes and norms 8;
ADCs the lossless 7.
"""

import sys
from dataclasses import replace
from pathlib import Path

from spikedistill.hardware import Config, Layer, spikesim
from spikedistill.hardware.config import RELEASED, Switches

C_IN, C_OUT = [3, 64, 64, 128, 128, 256, 256], [64, 64, 128, 128, 256, 256, 256]
SIZE_IN, SIZE_OUT = [32, 32, 16, 16, 8, 8, 8], [32, 16, 16, 8, 8, 8, 4]
FIRST = [
    "conv_positions",
    "tile_charge",
    "tile_sharing",
    "latency_cycles",
    "latest_end",
    "membrane_all_layers",
    "memory_bits",
]


def vgg9() -> list[Layer]:
    """The published example with what its code does not know: bits, norms, the constant image, the head."""
    layers: list[Layer] = []
    for i, (c_in, c_out, h_in, h_out) in enumerate(zip(C_IN, C_OUT, SIZE_IN, SIZE_OUT)):
        conv = Layer(
            name=f"conv{i + 1}", in_channels=c_in, out_channels=c_out, kernel_size=3, in_size=(h_in, h_in),
            out_size=(h_out, h_out), time_steps=5, weight_bits=4, membrane_bits=8, neuron="lif", leaky=True,
        )  # fmt: skip
        if i == 0:
            conv = replace(conv, input_kind="real", input_bits=8, executions=1)
        norm = Layer(
            name=f"norm{i + 1}", kind="norm", in_channels=c_out, out_channels=c_out, in_size=(h_in, h_in),
            time_steps=5,
            executions=conv.runs, norm_bits=8, membrane_bits=8,
        )  # fmt: skip
        layers += [conv, norm]
    for name, c_in, c_out in (("fc1", 256 * 16, 1024), ("fc2", 1024, 10)):
        layers.append(
            Layer(name=name, kind="linear", in_channels=c_in, out_channels=c_out, time_steps=5, weight_bits=4,
                  membrane_bits=8, neuron="lif", leaky=True)
        )  # fmt: skip
    return layers


def order() -> list[str]:
    """Switches on in corrected mode: accounting first, then precision, then layers and memories beyond."""
    names = [name for name, field in Switches.model_fields.items() if field.default]
    return [*FIRST, *(name for name in names if name not in FIRST)]


def row(name: str, report: spikesim.HardwareReport, before: spikesim.HardwareReport | None) -> str:
    cells = [f"`{name}`" if name in Switches.model_fields else name, str(report.pes), str(report.tiles)]
    for figure, scale in (
        ("energy_pj", 1e-6),
        ("latency_ns", 1e-6),
        ("area_um2", 1e-6),
        ("edap", 1.0),
        ("tops_per_w", 1.0),
    ):
        value = getattr(report, figure)
        change = 100 * (value / getattr(before, figure) - 1) if before else 0.0
        shown = f"{value * scale:,.0f}" if value * scale >= 1e4 else f"{value * scale:.4g}"
        cells.append(shown + (f" ({change:+.0f} %)" if abs(change) >= 0.5 else ""))
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The walk as Markdown."""
    switches = RELEASED
    lines = [
        "| switched on | PEs | tiles | energy µJ | latency ms | area mm² | EDAP µJ·ms·mm² | TOPS/W |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    before = spikesim.evaluate(vgg9(), Config(switches=switches))
    lines.append(row("released", before, None))
    for name in order():
        switches = switches.model_copy(update={name: True})
        report = spikesim.evaluate(vgg9(), Config(switches=switches))
        lines.append(row(name, report, before))
        before = report
    assert switches == Switches()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    print(text, end="")
