"""``to_integer``: a quantized network as integers alone, in one file."""

import hashlib
import json
from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpikedistillError
from ..files import destination, exported
from ..networks.base import Network
from ..networks.encoding import encode
from ..reading import parse_json
from ..terminal import amount
from . import executor
from .bit_packing import pack, unpack
from .header import FORMAT, VERSION
from .header_check import read_header
from .norm import affine
from .plan import Op
from .quantized import Quantization
from .stepping import START, State, Stepper
from .temporal import TemporalMembrane, history

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class IntegerNetwork:
    """A network of integer tensors: packed weight codes, norm multipliers and offsets, thresholds, shifts.

    ``header`` is JSON (operations in order, input, T, the logits' scale), ``tensors`` are uint8, int8, int16
    and int32. It runs on the CPU. Equal, spike for spike and logit for logit, to the quantized network in
    eval mode.
    """

    def __init__(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.header, self.tensors = header, tensors
        self._weights: list[Tensor | None] | None = None

    def __repr__(self) -> str:
        form, ops = self.header["input"], self.header["ops"]
        size = " x ".join(map(str, form["size"]))
        classes = [amount(ops[-1]["shape"][0], "class", "classes")] if ops[-1]["op"] == "layer" else []
        widths = [
            f"{what} of {' and '.join(map(str, bits))} bits"
            for what, kinds in (("weights", ("layer",)), ("membranes", ("neuron", "norm_neuron")))
            if (bits := sorted({op["bits"] for op in ops if op["op"] in kinds and op.get("bits")}))
        ]
        parts = [
            f"{form['kind']} {size}", *classes, f"T = {self.time_steps}", amount(len(ops), "operation"),
            *widths, amount(self.nbytes, "byte"),
        ]  # fmt: skip
        return f"IntegerNetwork({', '.join(parts)})"

    @property
    def time_steps(self) -> int:
        """T."""
        return int(self.header["time_steps"])

    @property
    def scale(self) -> float:
        """Value of one unit of the logits."""
        return float(self.header["scale"])

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return len(self._serialized())

    def codes(self, x: Tensor, T: int) -> Tensor:
        """Input codes of images (N, C, ...), frames (N, F, C, ...) or spikes (N, T, C, ...).

        Images lie in [0, 1] or are uint8, frames are counts.
        """
        x, form = x.detach().cpu(), self.header["input"]
        dims = len(form["size"])
        if x.dim() != dims + (1 if form["kind"] == "image" else 2) or list(x.shape[-dims:]) != list(
            form["size"]
        ):
            shape = "(N, C, ...)" if form["kind"] == "image" else "(N, F, C, ...)"
            what = "the encoding's spikes" if form["kind"] == "spikes" else form["kind"]
            raise SpikedistillError(
                f"this integer network takes {what} {shape} of {form['size']}, found {tuple(x.shape)}"
            )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise SpikedistillError("the input holds values that are not finite (NaN or infinity)")
        if form["kind"] == "image":
            levels = x if x.dtype == torch.uint8 else (x * 255 + 0.5).floor().clamp(0, 255)
            table = self.tensors["input.table"].to(torch.int32)
            return torch.stack([table[c][levels[:, c].long()] for c in range(table.shape[0])], 1)
        own, groups = self.time_steps, x.shape[1]
        if groups % own:
            raise SpikedistillError(f"{groups} frames cannot be summed in equal groups to T = {own} steps")
        summed = x.unflatten(1, (own, groups // own)).sum(2).transpose(0, 1)[:T].flatten(0, 1)
        # In float32, as the quantized network: half precision would round half a count up.
        counts = (summed.float() + 0.5).floor() if summed.is_floating_point() else summed
        return counts.clamp(-form["limit"], form["limit"]).to(torch.int32)

    def steps(self, x: Tensor, time_steps: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Integer logits of each step (T, N, K) and every neuron layer's spikes (T, N, ...) by path."""
        T = self.time_steps if time_steps is None else time_steps
        if not 1 <= T <= self.time_steps:
            raise SpikedistillError(f"this integer network runs 1 to {self.time_steps} time steps, found {T}")
        tied = next(
            (op for op in self.header["ops"] if op["op"] in executor.PARALLEL and len(op["shape"]) == 2), None
        )
        if tied is not None and self.time_steps != T:
            raise SpikedistillError(
                f"{tied['path']} has weights for {self.time_steps} time steps, found T = {T}; run all of them"
            )
        out, spikes = executor.run(self.header["ops"], self.tensors, self.weights(), self.codes(x, T), T)
        return out.unflatten(0, (T, -1)).to(torch.int64), spikes

    def weights(self) -> list[Tensor | None]:
        """Unpacked codes of every operation that has weights: layers, and neurons with weights over time."""
        if self._weights is None:
            kept = {"layer": "weight", "parallel": "temporal", "norm_parallel": "temporal"}
            self._weights = [
                unpack(self.tensors[f"{i}.{kept[op['op']]}"], op["bits"], tuple(op["shape"]))
                if op["op"] in kept
                else None
                for i, op in enumerate(self.header["ops"])
            ]
        return self._weights

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, dict[str, Tensor], State]:
        """One step of a stream: integer logits (N, K), spikes by path (N, ...), and what the next step needs.

        ``x``: the image, the same at each step, or one step's counts or spikes (N, C, ...). T chained steps
        give what :meth:`steps` gives. Raises :class:`SpikedistillError` for neurons that see later steps.
        """
        state = START if state is None else state
        if state.steps >= self.time_steps:
            raise SpikedistillError(
                f"this integer network runs 1 to {self.time_steps} time steps, found one more"
            )
        image = self.header["input"]["kind"] == "image"
        x = (
            self.codes(x, 1)
            if image
            # codes() sums frames in T equal groups: this step's stand for each, and the first is taken.
            else self.codes(x.unsqueeze(1).expand(-1, self.time_steps, *x.shape[1:]), 1)
        )
        out, spikes, after = Stepper(self.header["ops"], self.tensors, self.weights()).step(x, state)
        return out.to(torch.int64), spikes, after

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """Integer logits (N, K), int64: summed over T."""
        return self.steps(x, time_steps)[0].sum(0)

    __call__ = forward

    def predict(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """Logits (N, K), float32: ``scale * forward(x) / T``, on x's device.

        It is what the quantized network's ``predict`` gives.
        """
        # float32 holds this product exactly, as the network's own sum over T: both divide one number.
        logits = (self.forward(x, time_steps).double() * self.scale).float() / (time_steps or self.time_steps)
        return logits.to(x.device)

    def _serialized(self) -> bytes:
        from safetensors.torch import save

        # Sorted: one network is always the same bytes.
        tensors = {k: v.contiguous() for k, v in sorted(self.tensors.items())}
        header = json.dumps(self.header, separators=(",", ":"), sort_keys=True)
        return save(tensors, {"network": header, "sha256": _digest(header, tensors)})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the header is JSON in its metadata, with a checksum of both."""
        with exported(destination(path)) as temporary:
            temporary.write_bytes(self._serialized())

    @classmethod
    def load(cls, path: str | Path) -> "IntegerNetwork":
        """Read what :meth:`save` wrote; anything else, damaged or forged, is refused before anything runs."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise SpikedistillError(
                f"{path}: no such file; give one written by IntegerNetwork.save"
            ) from None
        except (SafetensorError, OSError) as error:
            raise SpikedistillError(
                f"{path} is no integer network, or was damaged ({error}); give a file written by "
                "IntegerNetwork.save"
            ) from None
        if "network" not in metadata or "sha256" not in metadata:
            raise SpikedistillError(
                f"{path} holds weights, but no integer network; write one with IntegerNetwork.save"
            )
        real = [name for name, tensor in tensors.items() if tensor.dtype not in INTEGERS]
        if real:
            raise SpikedistillError(
                f"{path}: the tensor {real[0]!r} holds no integers; give a file of IntegerNetwork.save"
            )
        if _digest(metadata["network"], tensors) != metadata["sha256"]:
            raise SpikedistillError(f"{path} was damaged: its checksum differs; write it anew")
        header = parse_json(metadata["network"], f"{path}: its header")
        if not isinstance(header, dict):
            raise SpikedistillError(
                f"{path}: its header is {type(header).__name__}, no mapping; write it anew"
            )
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise SpikedistillError(
                f"{path}: found format {header.get('format')!r} version {header.get('version')!r}; this "
                f"release reads {FORMAT!r} version {VERSION}"
            )
        read_header(header, tensors, str(path))
        return cls(header, tensors)


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    out = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        out.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        out.update(tensor.contiguous().numpy().tobytes())
    return out.hexdigest()


def to_integer(network: nn.Module) -> IntegerNetwork:
    """The integer network of a quantized one, as it stands now.

    Raises :class:`SpikedistillError` where something is not quantized (weights, norms or leaks of None bits).
    """
    quantization = getattr(network, "quantization", None)
    if not isinstance(network, Network) or not isinstance(quantization, Quantization):
        raise SpikedistillError(
            "to_integer takes a quantized network; make one with sd.quantize(network, ...), or by a "
            "stage with `quantize` in a recipe"
        )
    options = network.config["quantize"]
    for name in real_parts(options):
        raise SpikedistillError(
            f"to_integer: {name} is None, so real numbers would remain; quantize with 2 to 8 bits"
        )
    with torch.no_grad():
        return _Converter(network, quantization).convert()


def real_parts(options: Mapping[str, Any]) -> list[str]:
    """Options of :func:`quantize` that leave real numbers in a network, which then has no integer form."""
    return [name for name in ("weight_bits", "norm_bits", "leak_bits") if options[name] is None]


def entering(network: Network, x: Tensor) -> Tensor:
    """What the integer form of ``network`` takes for a batch: it, or the spikes that the encoding draws next.

    Shape: (N, C, H, W) to the same, or with an encoding to (N, T, C, H, W); torch's generators are left as
    they were.
    """
    if network.encoding == "direct":
        return x
    assert network.time_steps is not None
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        return encode(x, network.time_steps, network.encoding).transpose(0, 1)


class _Converter:
    """Reads the codes out of a quantized network."""

    def __init__(self, network: Network, quantization: Quantization) -> None:
        self.network, self.plan = network, quantization.plan
        self.parts: dict[str, Any] = dict(quantization.parts)
        self.tensors: dict[str, Tensor] = {}
        self.scale = 1.0
        self.bits = quantization.options.weight_bits or 8
        assert network.time_steps is not None
        self.T = network.time_steps

    def convert(self) -> IntegerNetwork:
        plan, entrance = self.plan, self.network.input_codes
        if entrance.kind == "image":
            self.tensors["input.table"] = self.network.get_buffer("input_table").cpu()
        index = self.index = {op.name: i for i, op in enumerate(plan.ops)}
        ops = []
        for i, op in enumerate(plan.ops):
            one = {"op": op.kind, "in": [index[name] for name in op.inputs], **op.options}
            if op.path and op.kind in ("layer", "norm", "norm_neuron", "neuron"):
                one |= {"path": op.path, **getattr(self, op.kind)(i, op)}
            elif op.kind in ("add", "cat", "mul", "sum_pool", "affine"):
                one["wide"] = plan.edges[op.name].bound >= 1 << 31
            if op.kind in ("add", "cat"):
                finest = self.value(op.name)
                # Whole numbers: the plan joins equal steps, or powers of two.
                factors = [int(self.value(name) / finest) for name in op.inputs]
                one |= {"factors": factors} if set(factors) != {1} else {}
            ops.append(one)
        out = index[plan.output]
        if plan.edges[plan.output].base != "layer":
            self.scale = self.value(plan.output)
        header = {
            "format": FORMAT, "version": VERSION, "ops": ops[: out + 1], "time_steps": self.T,
            "scale": self.scale,
            "input": {"kind": entrance.kind, "limit": entrance.limit,
            "size": self.network.config["quantize"]["input_size"]},
        }  # fmt: skip
        return IntegerNetwork(header, self.tensors)

    def value(self, name: str) -> float:
        """What one code means, up to a step that all which are compared share."""
        edge = self.plan.edges[name]
        if edge.base != "norm" or edge.group not in self.plan.real:
            return edge.step * edge.share
        return float(self.network.get_submodule(self.plan.groups[edge.group][0]).output_step) * edge.share  # type: ignore[arg-type]

    def layer(self, i: int, op: Op) -> dict[str, Any]:
        coded = self.parts[op.path]
        codes = coded.codes()
        self.tensors[f"{i}.weight"] = pack(codes.cpu().to(torch.int8), coded.format.bits)
        out = {"bits": coded.format.bits, "shape": list(codes.shape), "wide": 2 * coded.bound >= 1 << 31}
        if coded.rescale is not None:
            out |= self.rescale(i, coded.rescale, *coded.plain())
        if coded.output_grid is not None:
            out |= {"low": coded.output_grid.low, "high": coded.output_grid.high}
        if coded.logits:
            self.scale = float(coded.step().flatten()[0].float())  # few mantissa bits: exact
        bias = coded.offset()
        if bias is not None:
            self.tensors[f"{i}.bias"] = bias.cpu().to(torch.int64 if out["wide"] else torch.int32)
        return out

    def rescale(self, i: int, part: Any, a: Tensor, b: Tensor) -> dict[str, Any]:
        M, B = part.codes(a, b)
        self.tensors[f"{i}.M"] = M.cpu().to(torch.int16)
        # An offset beyond 32 bits would come back as another number.
        if not float(B.abs().max()) < 1 << 31:
            raise SpikedistillError(
                f"ops.{i}: an offset of {float(B.abs().max()):.3g} units does not fit 32 bits; use fewer "
                "fraction_bits, or look for a bias that is far above the threshold"
            )
        self.tensors[f"{i}.B"] = B.cpu().to(torch.int32)
        return {"k": part.k, "wide_scale": max(part.bounds()) >= 1 << 31}

    def norm(self, i: int, op: Op) -> dict[str, Any]:
        norm = self.parts[op.path]
        if norm.rescale is None:
            return {}
        limits = {"low": norm.output_grid.low, "high": norm.output_grid.high}
        return self.rescale(i, norm.rescale, *affine(norm)) | limits

    def neuron_numbers(self, neuron: Any, membrane: Any, bound: float) -> dict[str, Any]:
        grid = membrane.grid()
        return {
            "threshold": grid.threshold, "leak": list(grid.leak), "bits": grid.bits, "shift": grid.shift,
            "leak_first": grid.leak_first, "reset": neuron.reset, "encode": neuron.encode,
            "initial": floor(neuron.initial / grid.unit + 0.5), "wide": bound >= 1 << 31,
        } | ({} if grid.reset_by is None else {"reset_by": grid.reset_by})  # fmt: skip

    def parallel(self, i: int, op: Op, membrane: TemporalMembrane, bound: float) -> dict[str, Any]:
        """A neuron with weights over time: their codes, and what it keeps of the past."""
        neuron, grid, wide = membrane.parallel, membrane.grid(), bound >= 1 << 31
        codes = grid.weights(membrane.weights())
        self.tensors[f"{i}.temporal"] = pack(codes.cpu().to(torch.int8), self.bits)
        self.tensors[f"{i}.offset"] = grid.offsets(neuron.bias).flatten().cpu().to(INTEGERS[3 + wide])
        kept = None if neuron.encode else history(self.plan, op)
        return {
            "op": "norm_parallel" if op.kind == "norm_neuron" else "parallel", "threshold": grid.threshold,
            "encode": neuron.encode, "wide": wide, "bits": self.bits, "shape": list(codes.shape),
            "taps": neuron.taps,
            "causal": neuron.causal, "history": None if kept is None else self.index[kept[0]],
            "history_bits": None if kept is None else kept[1],
        }  # fmt: skip

    def norm_neuron(self, i: int, op: Op) -> dict[str, Any]:
        grid = self.parts[op.path]
        out = self.rescale(i, grid.rescale, *affine(grid.norm)) if grid.rescale is not None else {}
        grid.membrane.prepare()
        return (
            out
            | self.numbers(i, op, grid.norm.neuron, grid.membrane, grid.bound(self.T))
            | {"ratio": int(grid.ratio())}
        )

    def numbers(self, i: int, op: Op, neuron: Any, membrane: Any, bound: float) -> dict[str, Any]:
        if isinstance(membrane, TemporalMembrane):
            return self.parallel(i, op, membrane, bound)
        return self.neuron_numbers(neuron, membrane, bound)

    def neuron(self, i: int, op: Op) -> dict[str, Any]:
        coded = self.parts[op.path]
        edge = self.plan.edges[op.inputs[0]]
        coded.membrane.prepare()
        r = 1 if edge.base == "layer" else int(coded.ratio())
        bound = edge.bound * r
        if edge.base == "layer":
            layer = self.parts[edge.layer]
            bound = layer.rescale.bounds()[1] if layer.rescale is not None else 2 * layer.bound
        bound = coded.membrane.bound(bound, self.T)
        return self.numbers(i, op, coded.neuron, coded.membrane, bound) | {"ratio": r}


__all__ = ["IntegerNetwork", "entering", "to_integer"]
