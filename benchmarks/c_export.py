"""C files of integer networks: size of code and constants, static memory, images a second beside onnxruntime.

    python benchmarks/c_export.py [--networks conv6 ...] [--images 32] [--json FILE]

The same quantized networks, one image at a time, one thread; equal logits are checked on the first images
(the integer network in PyTorch is slow) before anything is timed. Times are of the processor, not of the
clock; the two take turns, and the median of their rounds counts.
Weights are those of a balanced start, norms those of the random images, so that neurons fire about as often
as in a trained network; the share of neuron-steps that spike is given, since the C code's time follows it. At
the end the rows stand as a table for the docs.
"""

import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import timing
import torch
from peers import fired

import spikedistill as sd
from spikedistill.neurons.compilation import eager

ROUNDS = 5
CHECKED = 4  # images
LIF = {"neuron": {"type": "lif"}}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vgg5": ({"in_channels": 1, "width": 0.25, **LIF}, (1, 8, 8)),
    "conv6": ({"width": 0.5, **LIF}, (3, 32, 32)),
    "resnet20": (LIF, (3, 32, 32)),
    "sew_resnet20": (LIF, (3, 32, 32)),
    "ms_resnet20": ({}, (3, 32, 32)),
    "dvs_gesture_cnn": ({"image_size": 32, "num_classes": 11}, (2, 32, 32)),
}


def quantized(name: str, n: int) -> tuple[Any, torch.Tensor]:
    """A quantized network whose layers fire, and its samples."""
    torch.manual_seed(0)
    options, size = NETWORKS[name]
    network = sd.networks.create(name, time_steps=4, **options)
    if network.input == "frames":
        x = torch.poisson(torch.full((n, 4, *size), 0.2))
        sd.balance(network, x[:16])  # it has no norms
    else:
        x = (torch.rand(n, *size) * 255).round() / 255
    return sd.quantize(fired(network, x), calibration=x[:16]), x


def sections(file: Path) -> dict[str, int]:
    """Bytes of an object file: code, constants, memory."""
    text = subprocess.run(["size", "-A", file], capture_output=True, text=True, check=True).stdout
    sizes = {name: int(n) for name, n in re.findall(r"^(\.[\w.]+)\s+(\d+)", text, re.M)}
    kinds = {"text": (".text",), "rodata": (".rodata", ".data.rel.ro"), "bss": (".bss", ".data ")}
    return {
        kind: sum(n for key, n in sizes.items() if key.startswith(prefixes))
        for kind, prefixes in kinds.items()
    }


def measured(name: str, images: int, folder: Path) -> dict[str, Any]:
    """One network's row."""
    q, x = quantized(name, images)
    integer = sd.to_integer(q)
    sd.export.to_c(integer, folder / name)
    flags = ["-std=c99", "-w"]
    sources = [folder / name / f for f in ("network.c", "network_main.c")]
    subprocess.run(["gcc", *flags, "-Os", "-c", sources[0], "-o", folder / "small.o"], check=True)
    subprocess.run(["gcc", *flags, "-O3", "-march=native", *sources, "-o", folder / "program"], check=True)
    if integer.header["input"]["kind"] == "image":
        given = (x * 255).round().to(torch.uint8).numpy()
    else:
        given = x.numpy().astype(np.int16)
    program = folder / "program"
    out = subprocess.run([program], input=given.tobytes(), capture_output=True, check=True).stdout
    logits = np.array([[int(n) for n in line.split()] for line in out.decode().splitlines()])
    expected, spikes = integer.steps(x[:CHECKED])
    assert (logits[:CHECKED] == expected.sum(0).numpy()).all()

    sd.export.to_onnx(q, folder / "network.onnx", x[:2])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "network.onnx", options, providers=["CPUExecutionProvider"]
    )
    theirs = np.stack([session.run(None, {"input": one[None].numpy()})[0].sum(0)[0] for one in x])
    assert np.allclose(theirs / integer.scale, logits)
    c_seconds, onnx_seconds = [], []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([program], input=given.tobytes(), capture_output=True, check=True)
        c_seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        before = time.process_time()
        for one in x:
            session.run(None, {"input": one[None].numpy()})
        onnx_seconds.append(time.process_time() - before)
    total = sum(s.numel() for s in spikes.values())
    return {
        **sections(folder / "small.o"),
        "weights": sum(t.numel() for key, t in integer.tensors.items() if key.endswith(".weight")),
        "onnx_file": (folder / "network.onnx").stat().st_size,
        "spike_rate": sum(int(s.sum()) for s in spikes.values()) / total,
        "images_per_second": len(x) / median(c_seconds),
        "images_per_second_onnxruntime": len(x) / median(onnx_seconds),
    }


def main() -> None:
    p = timing.parser(__doc__)
    p.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    p.add_argument("--images", type=int, default=32)
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in a.networks:
        with tempfile.TemporaryDirectory() as folder, eager():
            rows[name] = measured(name, a.images, Path(folder))
        print(name, *(f"{key} {value:,.3g}" for key, value in rows[name].items()), sep="  ", flush=True)
        timing.write(a.json, networks=rows, images=a.images, time_steps=4, bits="4/4/8")
    print(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown."""
    columns = "network", "code [kB]", "constants [kB]", "static memory [kB]", "spikes [%]", "images/s"
    lines = [f"| {' | '.join((*columns, 'onnxruntime', 'ratio'))} |", "| --- " * 8 + "|"]
    for name, row in rows.items():
        ours, theirs = row["images_per_second"], row["images_per_second_onnxruntime"]
        sizes = " | ".join(f"{row[key] / 1000:.1f}" for key in ("text", "rodata", "bss"))
        spikes, ratio = 100 * row["spike_rate"], ours / theirs
        lines.append(f"| `{name}` | {sizes} | {spikes:.1f} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
