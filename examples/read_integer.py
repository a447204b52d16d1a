"""Run the file of an integer network, a VGG's or a residual one's, with numpy alone: docs/integer_file.md."""

import json

import numpy as np


def windows(x, kernel, op, outside=0):
    x = np.pad(x, [(0, 0)] * 2 + [(p, p) for p in op["padding"]], constant_values=outside)
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
    return view[:, :, :: op["stride"][0], :: op["stride"][1]]


def neuron(currents, op):
    (leak, L), q, v, spikes = op["leak"], op["shift"], op["initial"], []
    for current in currents:
        h = (v * leak >> L) + current
        s = (h >= op["threshold"]).astype(np.int64)
        v = {"hard": h * (1 - s), "soft": h - s * op.get("reset_by", op["threshold"]), None: h}[op["reset"]]
        if (bits := op["bits"]) is not None:
            v = np.clip(v + (1 << q >> 1) >> q, -(1 << (bits - 1)), (1 << (bits - 1)) - 1) << q
        spikes.append(s)
    return np.concatenate(spikes)


def run(path, images):
    data, tensors, values = np.fromfile(path, np.uint8).tobytes(), {}, []
    index = json.loads(data[8 : (start := 8 + int.from_bytes(data[:8], "little"))])
    network = json.loads(index.pop("__metadata__")["network"])
    for name, t in index.items():
        kind, (first, end) = f"<{t['dtype'][0].lower()}{int(t['dtype'][1:]) // 8}", t["data_offsets"]
        tensors[name] = np.frombuffer(data[start + first : start + end], kind).reshape(t["shape"])
    known = "input layer norm norm_neuron neuron add reshape max_pool sum_pool repeat"
    for i, op in enumerate(network["ops"]):
        assert (None if op.get("leak_first") or "factors" in op else op["op"]) in known.split(), op
        kind, (x, *others), T = op["op"], [values[j] for j in op["in"]] or [images], network["time_steps"]
        if kind == "input":
            x = np.stack([t[x[:, c]] for c, t in enumerate(tensors["input.table"].astype(np.int64))], 1)
        elif kind == "layer":
            shape, bits, w = op["shape"], op["bits"], np.unpackbits(tensors[f"{i}.weight"], bitorder="little")
            w = w[: np.prod(shape) * bits].reshape(-1, bits) @ (1 << np.arange(bits)) - 2.0 ** (bits - 1)
            x, axes = (windows(x, shape[2:], op), (1, 4, 5)) if len(shape) == 4 else (x, (1,))
            x = np.tensordot(x * 1.0, w.reshape(shape), (axes, range(1, len(shape))))  # exact
            x = np.moveaxis(x, -1, 1).astype(np.int64) + tensors.get(f"{i}.bias", 0)
        elif kind == "add":
            x = x + others[0]
        elif kind in ("reshape", "repeat"):
            x = x.reshape(len(x), *op["shape"]) if kind == "reshape" else np.concatenate([x] * T)
        elif pool := {"max_pool": (np.max, -1 << 62), "sum_pool": (np.sum, 0)}.get(kind):
            x = pool[0](windows(x, op["kernel"], op, pool[1]), (4, 5))
        if "k" in op:
            M, B = (tensors[f"{i}.{n}"].astype(np.int64).reshape(-1, *[1] * (x.ndim - 2)) for n in "MB")
            x = ((x * M << max(-op["k"], 0)) + (1 << max(op["k"], 0) >> 1) >> max(op["k"], 0)) + B
        x = np.clip(x, op["low"], op["high"]) if "low" in op else x
        if kind in ("norm_neuron", "neuron"):
            x = x * op["ratio"] if kind == "neuron" else x + others[0] * op["ratio"] if others else x
            x = neuron([x] * T if op["encode"] else x.reshape(T, -1, *x.shape[1:]), op)
        values.append(x)
    return x.reshape(T, len(images), -1).sum(0)
