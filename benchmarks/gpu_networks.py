"""Whole networks on the device beside the CPU in float64, and how often anything compiles."""

import copy
import warnings
from typing import Any

import torch
from gpu import attempt, row
from torch import Tensor, nn

import spikedistill as sd
from spikedistill import taps
from spikedistill.neurons import LIF, PSN, MaskedPSN, SlidingPSN, compilation, over_time, packing
from spikedistill.quantization import quantize, to_integer
from spikedistill.training.machine import saving

T = 4


def network(width: float = 0.25, name: str = "conv6", **options: Any) -> Any:
    """A small network, the same each time."""
    torch.manual_seed(0)
    return sd.networks.create(name, width=width, time_steps=T, **options)


def batch(n: int, device: str, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images and labels, the same on each device."""
    torch.manual_seed(1)
    return torch.rand(n, 3, size, size).to(device), torch.randint(10, (n,)).to(device)


def gradients(net: Any, x: Tensor, y: Tensor, way: Any, memory: str = "default") -> dict[str, Tensor]:
    """The first loss, logits and gradients, on the CPU."""
    net.zero_grad()
    with compilation.use(way):
        with saving(memory, net):
            logits = net(x).mean(0)
            loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
    found = {
        "loss": loss,
        "logits": logits,
        **{k: p.grad for k, p in net.named_parameters() if p.grad is not None},
    }
    return {k: v.detach().double().cpu() for k, v in found.items()}


def error(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Any]:
    """The largest relative error of anything, and whose."""
    if set(mine) != set(theirs):
        raise RuntimeError(f"not the same gradients: {sorted(set(mine) ^ set(theirs))}")
    errors = {k: float((mine[k] - v).norm() / (v.norm() + 1e-12)) for k, v in theirs.items()}
    worst = max(errors, key=lambda k: errors[k])
    return {"error": errors[worst], "of": worst}


def whole(device: str, way: str, name: str) -> dict[str, Any]:
    """One step in float64: the device by the fused arithmetic, the CPU by the plain equations."""
    net = network(name=name).double().train()
    x, y = batch(4, "cpu")
    theirs = gradients(copy.deepcopy(net), x.double(), y, "eager")
    mine = gradients(net.to(device), x.double().to(device), y.to(device), way)
    found = error(mine, theirs)
    return {"ok": found["error"] < 1e-7, **found}


def memory(device: str, way: str, kind: str) -> dict[str, Any]:
    """Spikes kept as bits, blocks computed a second time: the same gradients."""
    net = network().to(device, memory_format=torch.channels_last).train()
    x, y = batch(8, device)
    theirs = gradients(copy.deepcopy(net), x, y, way)
    found = error(gradients(net, x, y, way, kind), theirs)
    return {"ok": found["error"] < 1e-5, **found}  # the device's own sums may come in another order


def quantized(device: str, form: torch.memory_format) -> dict[str, Any]:
    """A quantized network on the device against the integer network: all spikes and logits equal."""
    x, _ = batch(8, "cpu")
    net = network().eval()
    made = quantize(net, weight_bits=4, membrane_bits=4, norm_bits=8, calibration=[x])
    integer = to_integer(made)
    given = x.to(device).to(memory_format=form)
    with torch.no_grad():
        logits, seen = taps.captures(made.to(device).eval().to(memory_format=form), given, ["*@spikes"])
    codes, spikes = integer.steps(x)
    differ = {}
    for tap, mine in seen.tensors.items():
        differ[tap] = int((mine.cpu() != spikes[tap.removesuffix("@spikes")]).sum())
    wrong = float((logits.double().cpu() / integer.scale - codes.double()).abs().max())
    return {
        "ok": not any(differ.values()) and wrong < 0.01,
        "spikes_differ": sum(differ.values()),
        "logits": wrong,
    }


def made_on_the_device(device: str) -> dict[str, Any]:
    """Quantizing there gives the scales that quantizing here gives."""
    x, _ = batch(8, "cpu")
    options: Any = {"weight_bits": 4, "membrane_bits": 4, "norm_bits": 8}
    here = quantize(network().eval(), **options, calibration=[x])
    there = quantize(network().to(device).eval(), **options, calibration=[x.to(device)])
    states = [{k: v.double().cpu() for k, v in n.state_dict().items()} for n in (there, here)]
    found = error(*states)
    return {"ok": found["error"] < 1e-4, **found}


def streamed(device: str) -> dict[str, Any]:
    """Step by step is the whole simulation."""
    net, (x, _) = network().to(device).double().eval(), batch(4, device)
    state, steps = None, []
    with torch.no_grad(), compilation.eager():
        whole = net(x.double())
        for _ in range(T):
            out, state = net.step(x.double(), state)
            steps.append(out)
    found = error({"logits": torch.stack(steps).cpu()}, {"logits": whole.cpu()})
    return {"ok": found["error"] < 1e-9, **found}


def packed(device: str, dtype: torch.dtype, way: Any) -> dict[str, Any]:
    """Zeros and ones to bits and back."""
    wrong = 0
    for n in (8, 1000, 4099):
        x = torch.randint(0, 2, (n,), device=device).to(dtype)
        with compilation.use(way):
            wrong += int((packing.unpack(packing.pack(x), n, dtype) != x).sum())
    return {"ok": wrong == 0, "differ": wrong}


def reductions(device: str, dtype: torch.dtype, way: Any) -> dict[str, Any]:
    """What objectives read of whole simulations, with gradients."""
    torch.manual_seed(0)
    a, b = (torch.randn(T, 5, 6, 4, 3, device=device).to(dtype) for _ in range(2))
    found = []
    for x, z, mode in ((a, b, way), (a.double(), b.double(), "eager")):
        x = x.detach().clone().requires_grad_()
        with compilation.use(mode):
            mean, square = (
                (over_time.time_mean(x), over_time.mean_square(x, z))
                if mode != "eager"
                else (x.mean(0), (x - z).square().mean())
            )
        (mean.sum() + 3 * square).backward()
        assert x.grad is not None
        found.append(
            {
                "mean": mean.detach().double().cpu(),
                "square": square.detach().double().cpu(),
                "x": x.grad.double().cpu(),
            }
        )
    worst = error(found[0], found[1])
    return {"ok": worst["error"] < (1e-2 if dtype == torch.bfloat16 else 1e-5), **worst}


def parallel(device: str, kind: Any) -> dict[str, Any]:
    """Neurons with weights over time, in float32 and float64."""
    torch.manual_seed(0)
    layer = kind(time_steps=T).to(device)
    x = torch.randn(T * 4, 6, 5, 3, device=device)
    wide = copy.deepcopy(layer).double()
    found = []
    for one, given in ((layer, x), (wide, x.double())):
        given = given.clone().requires_grad_()
        with sd.simulation.Simulation(one, T, insides=[("", 0, "membrane")]) as sim:
            one(given)
        h = next(iter(sim.captured.values()))
        h.square().sum().backward()
        assert given.grad is not None
        found.append({"membranes": h.detach().double().cpu(), "x": given.grad.double().cpu()})
    worst = error(found[0], found[1])
    return {"ok": worst["error"] < 1e-5, **worst}


def networks(device: str, quick: bool) -> None:
    """All of it, row by row."""
    way = "uncompiled" if quick else "compiled"
    torch.backends.cudnn.allow_tf32 = False  # what is calibrated in 10 bits of mantissa is not the CPU's
    for name in ("conv6",) if quick else ("conv6", "ms_resnet20"):
        attempt(f"{name}, float64, against the CPU", whole, device, way, name)
    for kind in ("packed", "lean"):
        attempt(f"memory {kind}", memory, device, way, kind)
    for form in (torch.contiguous_format, torch.channels_last):
        attempt(f"integer network, {str(form).removeprefix('torch.')}", quantized, device, form)
    attempt("quantized on the device", made_on_the_device, device)
    attempt("streamed", streamed, device)
    for dtype in (torch.float32, torch.bfloat16):
        attempt(f"spikes as bits, {str(dtype).removeprefix('torch.')}", packed, device, dtype, way)
        attempt(f"time averages, {str(dtype).removeprefix('torch.')}", reductions, device, dtype, way)
    for kind in (PSN, MaskedPSN, SlidingPSN):
        attempt(kind.__name__, parallel, device, kind)


def counts(device: str) -> None:
    """Graphs that each change compiles: other widths, batches, sizes and constants none."""
    from torch._dynamo.utils import counters

    changes: dict[str, dict[str, Any]] = {
        "first step": {}, "second step": {}, "width 0.5": {"width": 0.5}, "batch 24": {"n": 24},
        "images 24x24": {"size": 24},
        "tau 1.5, threshold 0.8": {"neuron": LIF(tau=1.5, threshold=0.8)},
    }  # fmt: skip
    allowed = {"first step": 12}
    for name, change in changes.items():
        before = counters["stats"]["unique_graphs"]
        net = network(change.get("width", 0.25), neuron=change.get("neuron", LIF()))
        net = net.to(device, memory_format=torch.channels_last).train()
        x, y = batch(change.get("n", 8), device, change.get("size", 16))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradients(net, x.to(memory_format=torch.channels_last), y, "compiled")
        new = counters["stats"]["unique_graphs"] - before
        row(
            name,
            ok=new <= allowed.get(name, 0) and compilation.failure() is None,
            graphs=new,
            failure=compilation.failure(),
        )
