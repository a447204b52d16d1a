"""Inference: time of one image and of a batch, float and integer, beside peers and the ANN twin.

    python benchmarks/inference.py [--network conv6] [--time-steps 1 2 4 8] [--batches 1 64] [--json FILE]
    python benchmarks/inference.py --run RUN[:STAGE] --images 2000  # what early exit saves at equal accuracy

The same weights for all, norms of the images' statistics, so that neurons fire as in a trained network; equal
logits are checked before anything is timed: ours, the peers' and ONNX of it to rounding, the integer network
in PyTorch, in C and in onnxruntime exactly. Variants take turns, in random order; medians. C runs on one
thread, the others on as many as torch chooses. Peers get the image at each step, as their users do, and once
where they are compiled whole. The ANN twin has no time steps.
"""

import argparse
import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timing
import torch
from onnxruntime import quantization
from peers import PEERS, create, fired, reset, swapped
from torch import Tensor, nn

import spikedistill as sd
from spikedistill import taps
from spikedistill.neurons import compilation
from spikedistill.training.early_exit import predict_early
from spikedistill.training.reevaluate import open_run

TWIN = "ANN twin in onnxruntime"
CALIBRATION = 32  # images
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
Call = Callable[[Tensor], Any]


def session(file: Path) -> Call:
    """An ONNX file in onnxruntime, on as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow who comes next
    run = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run
    return lambda x: run(None, {"input": x.numpy()})[0]


def in_c(integer: sd.IntegerNetwork, folder: Path) -> Call:
    """The C program of an integer network, called image by image."""
    sd.export.to_c(integer, folder)
    flags = ["-std=c99", "-w", "-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, folder / "network.c", "-o", folder / "network.so"], check=True)
    network, steps = ctypes.CDLL(str(folder / "network.so")), integer.time_steps

    def run(x: Tensor) -> np.ndarray[Any, Any]:
        images = (x * 255).round().to(torch.uint8).numpy()
        logits = np.zeros((len(x), integer.header["ops"][-1]["shape"][0]), np.int32)
        for image, row in zip(images, logits):
            network.network_run(ctypes.c_void_p(image.ctypes.data), steps, ctypes.c_void_p(row.ctypes.data))
        return logits

    return run


def int8_twin(ann: nn.Module, x: Tensor, folder: Path) -> Call:
    """The ANN twin quantized by onnxruntime: 8 bits, a scale for each channel, calibrated on images."""

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(x[:CALIBRATION].split(8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch.numpy()}

    quantization.quantize_static(folder / "ann.onnx", folder / "int8.onnx", Images(), per_channel=True)
    return session(folder / "int8.onnx")


def variants(a: argparse.Namespace, T: int, x: Tensor, folder: Path) -> tuple[dict[str, Call], float]:
    """What is timed at T time steps, checked to give equal logits; and the firing rate."""
    network = fired(create(a.network, T, width=a.width), x)
    integer = sd.to_integer(sd.quantize(network, calibration=x[:CALIBRATION]))
    sd.export.to_onnx(network, folder / "snn.onnx", x[:2])

    def way(name: compilation.Mode) -> Call:
        def run(x: Tensor) -> Any:
            with torch.no_grad(), compilation.use(name):
                return network(x)

        return run

    found = {"ours, compiled": way("compiled"), "ours, eager": way("eager")}
    found["ours in onnxruntime"] = session(folder / "snn.onnx")
    logits = found["ours, eager"](x)
    check("ours in onnxruntime", torch.as_tensor(found["ours in onnxruntime"](x)), logits)
    check("ours, compiled", found["ours, compiled"](x), logits)
    each = create(a.network, T, frames=True, width=a.width)
    each.load_state_dict(network.state_dict())
    for name in PEERS if a.peers is None else a.peers:
        found[name] = partial(call_peer, swapped(each, name, T).eval(), T=T)
        check(name, found[name](x), logits)
        if name in a.whole:
            whole = torch.compile(swapped(network, name, T).eval())
            found[f"{name}, compiled whole, once"] = partial(call_peer, whole, T=None)
    found["integer network"] = integer
    found["integer network in C, one thread"] = in_c(integer, folder)
    assert np.array_equal(found["integer network in C, one thread"](x), integer(x).numpy())
    with torch.no_grad():
        spikes = taps.captures(network, x, ["*@spikes"])[1].tensors.values()
    rate = sum(float(s.sum()) for s in spikes) / sum(s.numel() for s in spikes)
    return found, rate


def check(name: str, found: Tensor, expected: Tensor) -> None:
    """Raise unless nine of ten images have equal logits: a rounding may turn a spike at the threshold."""
    same = (found - expected).abs().amax((0, 2)) < 1e-3
    if float(same.double().mean()) < 0.9:
        raise SystemExit(f"{name} gives other logits for {int((~same).sum())} of {len(same)} images")


def call_peer(network: nn.Module, x: Tensor, T: int | None) -> Tensor:
    """Reset, then the image at each of T steps, or once."""
    reset(network)
    with torch.no_grad():
        return network(x if T is None else x.unsqueeze(1).expand(-1, T, *x.shape[1:]))


def twins(a: argparse.Namespace, x: Tensor, folder: Path) -> dict[str, Call]:
    """The ANN twin in onnxruntime, float32 and int8."""
    ann = fired(create(a.network, None, width=a.width), x)
    sd.export.to_onnx(ann, folder / "ann.onnx", x[:2])
    return {TWIN: session(folder / "ann.onnx"), f"{TWIN}, int8": int8_twin(ann, x, folder)}


def early_exit(text: str, images: int, runs: int) -> dict[str, Any]:
    """Steps and time of one image at a time: all T, and leaving as soon as sure at no less accuracy.

    The confidence is chosen on half of the test images, what is told comes from the other half.
    """
    _, _, data, network = open_run(text)
    x, y = (torch.cat(parts)[:images] for parts in zip(*data.batches("test", 100)))
    half = len(x) // 2
    whole = network.predict(x).argmax(1) == y

    def right(confidence: float) -> Tensor:
        return predict_early(network, x, confidence).logits.argmax(1) == y

    enough = [c for c in CONFIDENCES if right(c)[:half].sum() >= whole[:half].sum()]
    confidence = enough[0] if enough else 1.0
    found = predict_early(network, x[half:], confidence)
    one_by_one = x[half:].split(1)[:runs]
    rows = timing.interleaved(
        {
            "all steps": lambda: [predict_early(network, one, 1.0) for one in one_by_one],
            "early exit": lambda: [predict_early(network, one, confidence) for one in one_by_one],
        },
        5,
    )
    return {
        "run": text,
        "confidence": confidence,
        "time_steps": network.time_steps,
        "mean_steps": float(found.steps.double().mean()),
        "accuracy": float(whole[half:].double().mean()),
        "accuracy_early": float((found.logits.argmax(1) == y[half:]).double().mean()),
        "time": rows["early exit"]["median_ms"] / rows["all steps"]["median_ms"],
    }


def main() -> None:
    p = timing.parser(__doc__, network="conv6", runs=15)
    p.add_argument("--width", type=float, default=1.0)
    p.add_argument("--time-steps", type=int, nargs="+", default=[1, 2, 4, 8])
    p.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    p.add_argument("--peers", nargs="*", choices=list(PEERS), help="default: all")
    p.add_argument("--whole", nargs="*", default=["SpikingJelly"], help="peers to compile whole as well")
    p.add_argument("--run", help="a run of which early exit is told, instead")
    p.add_argument("--images", type=int, default=2000, help="test images for early exit")
    a = p.parse_args()
    if a.run:
        told = early_exit(a.run, a.images, 100)
        print(*(f"{key}: {value}" for key, value in told.items()), sep="\n")
        timing.write(a.json, early_exit=told)
        return
    torch.manual_seed(0)
    x = (torch.rand(max(*a.batches, CALIBRATION), 3, 32, 32) * 255).round() / 255
    rows: dict[str, Any] = {}
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ann = twins(a, x, folder)
        for T in a.time_steps:
            own = folder / str(T)  # a library is loaded once from each path
            own.mkdir()
            calls, rates[str(T)] = variants(a, T, x, own)
            for n in a.batches:
                batch = x[:n].contiguous()
                calls_here = {name: partial(call, batch) for name, call in (calls | ann).items()}
                found = timing.interleaved(calls_here, a.runs)
                print(f"{a.network}, T = {T}, batch {n}, {100 * rates[str(T)]:.1f} % fire")
                timing.show(found, TWIN)
                rows[f"T={T} batch={n}"] = found
    settings = {k: v for k, v in vars(a).items() if k not in ("json", "run", "images")}
    timing.write(a.json, settings=settings, firing_rates=rates, rows=rows)


if __name__ == "__main__":
    main()
