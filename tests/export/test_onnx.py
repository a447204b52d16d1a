import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_peers import lively
from torch import Tensor, nn

import spikedistill as sd
from spikedistill.export import to_onnx
from spikedistill.export.nir import spikes_of
from spikedistill.networks.base import Network
from spikedistill.quantization import quantize

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def whole(path: Path, x: Tensor) -> dict[str, np.ndarray]:
    """All outputs of a whole-simulation file."""
    run = session(path)
    return dict(zip([o.name for o in run.get_outputs()], run.run(None, {"input": x.numpy()}), strict=True))


def chained(path: Path, frames: Tensor) -> dict[str, np.ndarray]:
    """All outputs over T chained steps of a per-step file; frames (T, N, C, H, W)."""
    run = session(path)
    notes = json.loads(run.get_modelmeta().custom_metadata_map["spikedistill"])
    types = {i.name: np.float64 if "double" in i.type else np.float32 for i in run.get_inputs()}
    assert list(types) == ["input", *notes["states"]]
    state = {
        key: np.full((frames.shape[1], *note["shape"]), note["initial"], types[key])
        for key, note in notes["states"].items()
    }
    names, steps = [o.name for o in run.get_outputs()], []
    for frame in frames:
        steps.append(dict(zip(names, run.run(None, {"input": frame.numpy(), **state}), strict=True)))
        state = {key: steps[-1][key + ".next"] for key in state}
    return {name: np.stack([step[name] for step in steps]) for name in names}


def compare(network: Network, x: Tensor, path: Path, per_step: bool) -> tuple[int, int, float]:
    """Different spikes, all neuron-steps, largest difference of logits on samples whose spikes all agree."""
    to_onnx(network, path, x[:1], per_step=per_step, spikes=True)
    assert network.time_steps is not None
    frames = x.expand(network.time_steps, *x.shape) if network.input == "image" else x.transpose(0, 1)
    theirs = chained(path, frames) if per_step else whole(path, x)
    keys = [name.removesuffix(".spikes") for name in theirs if name.endswith(".spikes")]
    ours = spikes_of(network, x, [(key.split("#")[0], int(key.split("#")[1])) for key in keys])
    assert sum(float(s.mean()) > 0.01 for s in ours) > len(ours) / 2
    differ = [torch.from_numpy(theirs[key + ".spikes"]) != s for key, s in zip(keys, ours, strict=True)]
    agree = ~torch.stack([d.flatten(2).any(-1).any(0) for d in differ]).any(0)
    assert agree.any()
    with torch.no_grad():
        logits = (torch.from_numpy(theirs["logits"]) - network(x)).abs()
    return sum(int(d.sum()) for d in differ), sum(d.numel() for d in differ), float(logits[:, agree].max())


@pytest.mark.parametrize("per_step", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_float_network(per_step: bool, tmp_path: Path) -> None:
    x = torch.rand(5, 3, 8, 8)
    network = sd.networks.create(
        "vgg5",
        width=0.1,
        neuron=sd.LIF(threshold=0.4, initial=0.125),
        time_steps=3,
        mean=0.4,
        std=0.3,
        pooling="avg",
    )
    differ, of, logits = compare(lively(network, x), x, tmp_path / "a.onnx", per_step)
    assert differ <= 1e-4 * of
    assert logits < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("per_step", [False, True])
def test_frames_and_sum_pools(per_step: bool, tmp_path: Path) -> None:
    x = torch.poisson(torch.full((3, 4, 2, 16, 16), 0.4))
    network = sd.networks.create(
        "dvs_gesture_cnn", width=0.25, image_size=16, neuron=sd.LIF(decay=0.9, threshold=0.4)
    ).eval()
    differ, of, logits = compare(network, x, tmp_path / "a.onnx", per_step)
    assert differ <= 1e-4 * of
    assert logits < 1e-3


QUANTIZED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "uniform": ("vgg5", {"neuron": sd.LIF(threshold=0.5), "hidden": (12,)}, {}),
    "soft, 8 bits": (
        "vgg5",
        {"neuron": sd.IF(threshold=0.5, reset="soft"), "pooling": "avg"},
        {"weight_bits": 8},
    ),
    "mint": ("vgg5", {"neuron": sd.LIF(threshold=0.5)}, {"scheme": "mint"}),
}


FAST = [("uniform", True), ("mint", False)]
SLOW = [("uniform", False), ("soft, 8 bits", False), ("soft, 8 bits", True), ("mint", True)]


@pytest.mark.parametrize(
    ("name", "per_step"), [*FAST, *(pytest.param(*p, marks=pytest.mark.slow) for p in SLOW)]
)
def test_quantized_network_is_exact(name: str, per_step: bool, tmp_path: Path) -> None:
    x = torch.rand(5, 3, 8, 8)
    kind, options, bits = QUANTIZED[name]
    network = quantize(
        lively(sd.networks.create(kind, width=0.1, time_steps=2, **options), x), calibration=x, **bits
    ).eval()
    differ, _, logits = compare(network, x, tmp_path / "a.onnx", per_step)
    assert (differ, logits) == (0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("kind", ["resnet20", "sew_resnet18", "ms_resnet18"])
def test_quantized_residual_network_is_exact(kind: str, per_step: bool, tmp_path: Path) -> None:
    x = torch.rand(3, 3, 12, 12)
    options: dict[str, Any] = {} if kind == "resnet20" else {"stem": "cifar"}
    if kind != "ms_resnet18":  # whose own neurons are lively enough
        options["neuron"] = sd.LIF(threshold=0.3)
    network = lively(sd.networks.create(kind, width=0.1, time_steps=2, **options), x)
    network = quantize(network, calibration=x, weight_bits=8).eval()
    differ, _, logits = compare(network, x, tmp_path / "a.onnx", per_step)
    assert (differ, logits) == (0, 0.0)


def test_sums_beyond_float32_in_exact_pieces() -> None:
    from spikedistill.export.frozen import _Pieces

    class Wide:
        layer = nn.Conv2d(64, 4, 3, padding=1, stride=2)
        fan_in, bound_in = 576, 1 << 15

        class format:
            largest_code = 127

    x = torch.randint(-(1 << 15), 1 << 15, (2, 64, 8, 8)).double()
    w = torch.randint(-127, 128, (4, 64, 3, 3)).double()
    exact = nn.functional.conv2d(x, w, stride=2, padding=1)
    assert exact.abs().max() > 1 << 24
    assert torch.equal(_Pieces(Wide()).__call__(x, w), exact)  # type: ignore[arg-type]


@pytest.mark.slow
def test_ann_twin(tmp_path: Path) -> None:
    x = torch.rand(3, 3, 8, 8)
    network = lively(sd.networks.create("vgg5", width=0.1, time_steps=None), x)
    to_onnx(network, tmp_path / "a.onnx", x)
    torch.testing.assert_close(
        torch.from_numpy(whole(tmp_path / "a.onnx", x)["logits"]), network(x).detach(), atol=1e-4, rtol=0
    )


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_refused_by_path(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    network = sd.networks.create("vgg5", width=0.05, time_steps=2)
    network.stage1.append(Undecided())
    with pytest.raises(sd.SpikedistillError, match=r"stage1\.2: cannot be traced"):
        to_onnx(network, tmp_path / "a.onnx", x)
    with pytest.raises(sd.SpikedistillError, match="poisson"):
        to_onnx(sd.networks.create("vgg5", width=0.05, encoding="poisson"), tmp_path / "a.onnx", x)
    with pytest.raises(sd.SpikedistillError, match="there is no folder"):
        to_onnx(network, tmp_path / "no" / "a.onnx", x)
    with pytest.raises(sd.SpikedistillError, match="ANN"):
        to_onnx(
            sd.networks.create("vgg5", width=0.05, time_steps=None), tmp_path / "a.onnx", x, per_step=True
        )
    assert list(tmp_path.iterdir()) == []
