"""Runs an integer network: integer tensors, adds, multiplications and shifts, nothing else.

Written from ``docs/quantization.md`` alone; it shares no code with the fake quantizers whose results it has
to equal. A right shift of a negative number rounds down (arithmetic shift), as in hardware.

Torch has no fast convolution of integers. Where no sum can reach 2^24, its float32 one forms the same sums
(:func:`layer`): float32 holds every such integer, so nothing is rounded.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PARALLEL = ("norm_parallel", "parallel")
NEURONS = ("norm_neuron", "neuron", *PARALLEL)
INT = {False: torch.int32, True: torch.int64}
EXACT = 1 << 24  # float32 holds every integer up to here
FEWER_BITS = {"ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"}


def shifted(x: Tensor, k: int) -> Tensor:
    """``x / 2^k``, halves up: an add and a right shift; ``k <= 0``: a left shift."""
    return (x + (1 << (k - 1))).bitwise_right_shift_(k) if k > 0 else x << -k


def rescale(acc: Tensor, M: Tensor, B: Tensor, k: int, wide: bool) -> Tensor:
    """``((acc * M + 2^(k-1)) >> k) + B`` per channel. Shape: (n, C, ...)."""
    shape = (1, -1, *[1] * (acc.dim() - 2))
    acc = acc.to(INT[wide])
    # `shifted` gives a new tensor, so the offset may be added in place.
    return shifted(acc * M.to(acc.dtype).view(shape), k).add_(B.to(acc.dtype).view(shape))


def scan(current: Tensor, T: int, n: dict[str, Any]) -> Tensor:
    """A neuron over T steps: spikes (T, N, ...) from currents (T, N, ...), or (N, ...) when it encodes.

    ``H = ((V * l) >> L) + I``; ``S = H >= threshold``; reset; ``V = saturate((V + 2^(q-1)) >> q) << q``. With
    ``leak_first`` the leak comes after the reset, before Q, instead.
    """
    v = torch.full_like(current if n["encode"] else current[0], n["initial"])
    # As the current lies in memory, so that the next convolution finds its map as it wants it.
    spikes = v.new_empty(T, *v.shape) if n["encode"] else torch.empty_like(current)
    for t in range(T):
        spikes[t], v = tick(current if n["encode"] else current[t], v, n)
    return spikes


def tick(i: Tensor, v: Tensor, n: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One step of a neuron: spikes (bool) and the stored membrane, from current and membrane (N, ...)."""
    l, L = n["leak"]
    threshold, reset, bits, q = n["threshold"], n["reset"], n["bits"], n["shift"]
    by = threshold if n.get("reset_by") is None else n["reset_by"]
    leaks = not n["leak_first"] and (l, L) != (1, 0)
    # New in both cases: the reset below may write over h, never over the state or the current.
    h = (v * l).bitwise_right_shift_(L).add_(i) if leaks else v + i
    s = h >= threshold
    v = h.masked_fill_(s, 0) if reset == "hard" else h.sub_(s.to(h.dtype), alpha=by) if reset == "soft" else h
    if n["leak_first"]:
        v = shifted_leak(v, l, L, q, bits)
    elif bits is not None:
        v = saturated(shifted(v, q), bits, q)
    return s, v


def weigh(current: Tensor, T: int, n: dict[str, Any], weight: Tensor, offset: Tensor) -> Tensor:
    """A parallel neuron over T steps: spikes (T, N, ...) from currents (T, N, ...), or (N, ...) if encoding.

    ``H_t = sum_j W_tj I_j + b_t``; ``S = H >= threshold``. ``weight``: (T, T), or (k,): by lag, the present
    last.
    """
    w, b = weight.to(current.dtype), offset.to(current.dtype)
    spikes = []
    for t in range(T):
        h = b[min(t, len(b) - 1)]
        for j in range(max(0, t - n["taps"] + 1), t + 1) if n["causal"] else range(T):
            i = current if n["encode"] else current[j]
            h = h + (w[t, j] if w.dim() == 2 else w[len(w) - 1 - (t - j)]) * i
        spikes.append((h >= n["threshold"]).to(current.dtype))
    return torch.stack(spikes)


def shifted_leak(v: Tensor, l: int, L: int, q: int, bits: int | None) -> Tensor:
    """Leak and Q in one rounding: ``saturate((V * l + 2^(L+q-1)) >> (L+q)) << q``."""
    if bits is None:
        return (v * l) >> L
    return saturated(shifted(v * l, L + q), bits, q)


def saturated(v: Tensor, bits: int, q: int) -> Tensor:
    """``v``, changed in place: held within ``bits`` bits, times ``2^q``."""
    return v.clamp_(-(1 << (bits - 1)), (1 << (bits - 1)) - 1).bitwise_left_shift_(q)


def sum_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Sums over windows (N, C, H, W)."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    # One window, whatever the stride.
    if list(x.shape[-2:]) == kernel:
        return x.sum((-2, -1), keepdim=True).to(x.dtype)
    windows = x.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])
    # Torch sums integers into int64; back to the width that the file states.
    return windows.sum((-2, -1)).to(x.dtype)


def adaptive_max(x: Tensor, size: list[int]) -> Tensor:
    """Largest values of ``size`` windows of (N, C, H, W).

    Rows ``floor(i H / h)`` to ``ceil((i+1) H / h)``.
    """
    for dim, n in zip((-2, -1), size):
        H = x.shape[dim]
        parts = [x.narrow(dim, i * H // n, -(-(i + 1) * H // n) - i * H // n) for i in range(n)]
        x = torch.cat([part.amax(dim, keepdim=True) for part in parts], dim)
    return x


def layer(x: Tensor, weight: Tensor, op: dict[str, Any]) -> Tensor:
    """Accumulators of a convolution or linear layer, (n, C, ...)."""
    dtype = INT[op["wide"]]
    floats = exact_in_float32(x, weight) and op.get("groups", 1) == 1
    x, w = (v.to(torch.float32 if floats else dtype) for v in (x, weight))
    if w.dim() == 2:
        return F.linear(x, w).to(dtype)
    if floats and w.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    convolve = F.conv2d if w.dim() == 4 else F.conv1d
    with torch.backends.nnpack.flags(enabled=False):  # it transforms maps, in fractions
        out = convolve(x, spread(w, op["dilation"]), None, op["stride"], op["padding"], 1, op["groups"])
    return out.to(dtype)


def exact_in_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether float32 forms the layer's sums without rounding: no part of one reaches 2^24."""
    if x.device.type != "cpu" or not x.numel() or not _whole_float32():
        return False
    low, high = (int(end) for end in x.aminmax())
    # Magnitudes bound partial sums in whatever order they are added. int64: int8 has no |-128|.
    return max(-low, high) * int(weight.to(torch.int64).abs().flatten(1).sum(1).max()) < EXACT


def _whole_float32() -> bool:
    """Whether torch multiplies float32 as such here; a user may let it take fewer bits for speed."""
    if torch.is_autocast_enabled("cpu") or os.environ.keys() & FEWER_BITS:
        return False
    if hasattr(torch.backends.mkldnn, "conv"):
        backend: Any = torch.backends.mkldnn
        kinds = backend.conv, backend.matmul
        return all(kind.fp32_precision in ("none", "ieee") for kind in kinds)
    return torch.get_float32_matmul_precision() == "highest"


def spread(weight: Tensor, dilation: list[int]) -> Tensor:
    """A dilated kernel as a plain one, zeros between its weights: torch has none for integers."""
    if all(d == 1 for d in dilation):
        return weight
    size = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:])]
    out = weight.new_zeros(*weight.shape[:2], *size)
    every: Any = (..., *(slice(None, None, d) for d in dilation))
    out[every] = weight
    return out


def run(
    ops: list[dict[str, Any]], tensors: dict[str, Tensor], weights: list[Tensor | None], x: Tensor, T: int
) -> Any:
    """All operations in order on input codes; returns output (T*N, K) and the neurons' spikes by path."""
    values: list[Any] = []
    # Behind its last reader a value is let go, so that not all maps of all steps are held at once.
    last = {j: i for i, op in enumerate(ops) for j in op["in"]}
    spikes: dict[str, Tensor] = {}
    for i, op in enumerate(ops):
        given = [values[j] for j in op["in"]]
        out = x if op["op"] == "input" else _one(i, op, tensors, weights[i], given, T)
        if op["op"] in NEURONS:
            spikes[op["path"]] = out
            out = out.flatten(0, 1)
        values.append(out)
        for j in op["in"]:
            if last[j] == i:
                values[j] = None
    return values[-1], spikes


def one_shape(
    i: int, op: dict[str, Any], tensors: dict[str, Tensor], weight: Tensor | None, given: list[Tensor]
) -> Tensor:
    """What one operation gives at one time step, folded; with tensors on the meta device its shape alone."""
    out = _one(i, op, tensors, weight, given, 1)
    return out.flatten(0, 1) if op["op"] in NEURONS else out


def charge(i: int, op: dict[str, Any], tensors: dict[str, Tensor], given: list[Tensor]) -> Tensor:
    """The current of a neuron, folded: behind a norm its multiplier and offset, then a residual."""
    x = given[0]
    if op["op"] in ("neuron", "parallel"):
        return x.to(INT[op["wide"]]) * op["ratio"]
    if "k" in op:
        x = rescale(x, tensors[f"{i}.M"], tensors[f"{i}.B"], op["k"], op["wide_scale"])
    x = x.to(INT[op["wide"]])
    return x + given[1].to(x.dtype) * op["ratio"] if len(given) > 1 else x


def _one(
    i: int, op: dict[str, Any], tensors: dict[str, Tensor], weight: Tensor | None, given: list[Tensor], T: int
) -> Tensor:
    kind, x = op["op"], given[0]
    if kind == "layer":
        assert weight is not None
        out = layer(x, weight, op)
        if "k" in op:
            out = rescale(out, tensors[f"{i}.M"], tensors[f"{i}.B"], op["k"], op["wide_scale"])
            return out.clamp(op["low"], op["high"]) if "low" in op else out
        if f"{i}.bias" not in tensors:
            return out
        return out + tensors[f"{i}.bias"].to(out.dtype).view(1, -1, *[1] * (out.dim() - 2))
    if kind == "norm":
        if "k" not in op:
            return x  # folded into the layer before it
        out = rescale(x, tensors[f"{i}.M"], tensors[f"{i}.B"], op["k"], op["wide_scale"])
        return out.clamp(op["low"], op["high"])
    if kind in NEURONS:
        current = charge(i, op, tensors, given)
        current = current if op["encode"] else current.unflatten(0, (T, -1))
        if kind in PARALLEL:
            assert weight is not None
            return weigh(current, T, op, weight, tensors[f"{i}.offset"])
        return scan(current, T, op)
    if kind == "max_pool":
        return F.max_pool2d(x, op["kernel"], op["stride"], op["padding"], op["dilation"], op["ceil"])
    if kind == "sum_pool":
        return sum_pool(x.to(INT[op["wide"]]), op["kernel"], op["stride"], op["padding"])
    if kind in ("add", "mul", "cat"):
        parts = [v.to(INT[op["wide"]]) * f for v, f in zip(given, op.get("factors", [1] * len(given)))]
        if kind == "cat":
            return torch.cat(parts, op["dim"])
        return parts[0] + parts[1] if kind == "add" else parts[0] * parts[1]
    if kind == "matmul":
        return torch.matmul(*(v.to(INT[op["wide"]]) for v in given))
    if kind == "adaptive_max":
        return adaptive_max(x, op["size"])
    if kind == "replicate":
        return x.repeat_interleave(op["times"][0], -2).repeat_interleave(op["times"][1], -1)
    if kind == "sum":
        return x.to(INT[op["wide"]]).sum(op["dims"], dtype=INT[op["wide"]])
    if kind == "permute":
        return x.permute(op["dims"])
    if kind == "affine":
        return x * op["factor"] + op["offset"]
    if kind == "repeat":
        return x.unsqueeze(0).expand(T, *x.shape).flatten(0, 1)
    if kind == "reshape":
        return x.reshape(x.shape[0], *op["shape"])
    if kind == "slice":
        return x[tuple(slice(*s) for s in op["index"])]
    assert kind == "pad"
    return F.pad(x, op["pad"])
