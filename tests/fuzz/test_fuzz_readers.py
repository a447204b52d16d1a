"""Mutated files: every reader ends in success or in one line of a SpikedistillError, soon.

300 mutations a reader by default, 10,000 with the marker ``fuzz`` (``make test-fuzz``). A failure names its
seed, and ``SEEDS`` keeps those that once failed.
"""

import io
import json
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mutations import mutated_bytes, mutated_tree

from spikedistill import data, networks, recipe
from spikedistill.data import DataConfig
from spikedistill.data.arrays import read_npz
from spikedistill.data.event_files import read_aedat2, read_aedat3, read_bin, read_gesture_labels
from spikedistill.data.folders import decode
from spikedistill.data.images import read_batch
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import read_config
from spikedistill.hardware.pricing import price_file
from spikedistill.overrides import apply_override
from spikedistill.quantization import IntegerNetwork, quantize, to_integer
from spikedistill.training import metrics, summary

FEW, MANY = 300, 10_000
SLOWEST, LONGEST = (
    10.0,
    120.0,
)  # seconds for one file: of the processor, and of the clock (machines are shared)
# Of mutations that once failed, tried first.
SEEDS: dict[str, tuple[int, ...]] = {
    "integer_network": (354,),
    "cifar_batch": (695,),
    "nir_graph": (51,),
    "sound_columns": (81,),
}

Make = Callable[[random.Random, Path], Path]
READERS: dict[str, Callable[[Path], tuple[Make, Callable[[Path], Any]]]] = {}


def reader(function: Callable[[Path], tuple[Make, Callable[[Path], Any]]]) -> Any:
    READERS[function.__name__] = function
    return function


def of_bytes(content: bytes, name: str) -> Make:
    def make(rng: random.Random, folder: Path) -> Path:
        (folder / name).write_bytes(mutated_bytes(content, rng))
        return folder / name

    return make


def of_text(tree: Any, name: str, dump: Callable[[Any], str]) -> Make:
    """Half of the mutations are of values, half of bytes."""
    plain = dump(tree).encode()

    def make(rng: random.Random, folder: Path) -> Path:
        content = mutated_bytes(plain, rng) if rng.random() < 0.5 else dump(mutated_tree(tree, rng)).encode()
        (folder / name).write_bytes(content)
        return folder / name

    return make


def events(n: int = 40) -> tuple[np.ndarray, ...]:
    g = np.random.default_rng(0)
    return np.sort(g.integers(0, 3000, n)), g.integers(0, 9, n), g.integers(0, 7, n), g.integers(0, 2, n)


@reader
def bin_file(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    t, x, y, p = events()
    return of_bytes(
        b"".join(int(w).to_bytes(5, "big") for w in (x << 32) | (y << 24) | (p << 23) | t), "a.bin"
    ), read_bin


@reader
def aedat2(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    t, x, y, p = events()
    pairs = np.stack([((127 - x) << 8) | ((127 - y) << 1) | (1 - p), t], 1).astype(">u4").tobytes()
    header = b"#!AER-DAT2.0\r\n# Timestamps tick is 1 us\r\n# AEChip: ch.unizh.DVS128\r\n"
    return of_bytes(header + pairs, "a.aedat"), read_aedat2


@reader
def aedat3(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    import struct

    t, x, y, p = events()
    words = np.stack([(x << 17) | (y << 2) | (p << 1) | 1, t], 1).astype("<u4")
    body = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
    for i in range(0, 40, 8):
        body += struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 8, 8, 8) + words[i : i + 8].tobytes()
    return of_bytes(body, "a.aedat"), read_aedat3


@reader
def gesture_labels(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    content = b"class,startTime_usec,endTime_usec\n1,24,50\n5,102865,126562\n"
    return of_bytes(content, "a.csv"), read_gesture_labels


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@reader
def npz(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    return of_bytes(
        saved(x=np.arange(50), y=np.zeros((3, 4), np.float32), names=np.asarray(["a", "b"])), "a.npz"
    ), read_npz


def of_columns(columns: dict[str, Any]) -> Make:
    """Columns that are fine archives, but hold something else."""

    def make(rng: random.Random, folder: Path) -> Path:
        changed = dict(columns)
        for key in rng.sample([*columns], rng.choice((1, 1, 2))):
            a = changed[key]
            change = rng.randrange(8)
            if change == 0:
                changed[key] = a.reshape(-1)[0]
            elif change == 1:
                changed[key] = a[: rng.randrange(len(a) + 1)] if a.ndim else a[None]
            elif change == 2:
                kinds = (
                    ["f8", "f2", "u8", "i1", "S3", "U4", "?", "c8", "M8[s]"]
                    if a.dtype.kind in "ui"
                    else ["S3", "U9"]
                )
                changed[key] = a.astype(rng.choice(kinds))
            elif change == 3:
                changed[key] = a[..., None]
            elif change == 4:
                del changed[key]
            elif a.ndim and a.dtype.kind in "ui":
                odd = a.astype(np.float64 if change == 5 else np.int64)
                odd[rng.randrange(len(odd))] = (
                    rng.choice([-1.0, 1e300, np.inf, np.nan, 0.5])
                    if change == 5
                    else max(
                        -(1 << 63), min(rng.choice([-1, 3, 1 << 20, 1 << 40, (1 << 63) - 1]), (1 << 63) - 1)
                    )
                )
                changed[key] = odd
        np.savez(folder / "a.npz", **changed)
        return folder / "a.npz"

    return make


@reader
def event_columns(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    t, x, y, p = events()
    columns = {"t": t, "x": x, "y": y, "p": p, "off": np.asarray([0, 10, 20, 30, 40]),
               "label": np.asarray([0, 1, 0, 1]),
               "sensor_size": np.asarray([9, 7]), "rec": np.asarray([0, 1, 2, 3]),
               "names": np.asarray(["a", "b"])}  # fmt: skip
    return of_columns(columns), lambda path: data.open(DataConfig(name="events", train=path, test=path))


@reader
def sound_columns(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    columns = {"audio": np.arange(400, dtype=np.int16), "off": np.asarray([0, 100, 200, 300, 400]),
               "rate": np.asarray([8000]),
               "label": np.asarray([0, 1, 0, 1]), "names": np.asarray(["a", "b"])}  # fmt: skip
    return of_columns(columns), lambda path: data.open(
        DataConfig(name="audio", train=path, test=path, validation=0.0)
    )


@reader
def image_columns(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    x, y = np.zeros((6, 4, 4), np.uint8), np.asarray([0, 1] * 3)
    columns = {
        "x_train": x,
        "y_train": y,
        "x_test": x[:2],
        "y_test": y[:2],
        "class_names": np.asarray(["a", "b"]),
        "group_train": np.arange(6),
    }
    return of_columns(columns), lambda path: data.open(DataConfig(name="arrays", train=path))


@reader
def wav(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    import wave

    from spikedistill.data.audio_sets import read_wav

    with wave.open(str(folder / "one.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(200, dtype=np.int16).tobytes())
    return of_bytes((folder / "one.wav").read_bytes(), "a.wav"), read_wav


@reader
def image(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    from PIL import Image

    made = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
        made.append(buffer.getvalue())

    def make(rng: random.Random, folder: Path) -> Path:
        (folder / "a.png").write_bytes(mutated_bytes(rng.choice(made), rng))
        return folder / "a.png"

    return make, decode


@reader
def cifar_batch(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    import pickle

    content = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol=2)
    return of_bytes(content, "batch"), lambda path: read_batch(path, "data", "labels")


@reader
def recipe_file(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    tree = yaml.safe_load(recipe.shipped()["digits"].read_text())
    make = of_text(tree, "a.yaml", lambda tree: yaml.safe_dump(tree, sort_keys=False))
    return make, recipe.read_yaml


@reader
def override(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    make = of_bytes(b"student.optimizer={lr: 0.1, betas: [0.9, 0.99]}", "a")

    def read(path: Path) -> None:
        apply_override({"stages": [{"name": "student"}]}, path.read_bytes().decode("latin-1"))

    return make, read


LAYERS = {
    "layers": [
        {"name": "conv1", "kind": "conv", "in_channels": 3, "out_channels": 8, "kernel_size": 3, "in_size": 8,
        "spikes_in": 9.5},
        {"name": "conv2", "kind": "conv", "in_channels": 8, "out_channels": 8, "kernel_size": 3,
        "in_size": [8, 8],
         "stride": 2, "padding": 1, "groups": 2, "bits": {"weight": 4, "membrane": 8},
         "input": {"kind": "spikes"}},
        {"name": "fc", "kind": "linear", "in_channels": 128, "out_channels": 10, "neuron": None,
        "input": "integers",
         "events": {"block": 8, "rows": [1.0] * 16, "patches": {8: 3.0, 16: 2.0}, "sites": 1.0}},
    ],
    "time_steps": 4,
    "spikesim": {"mode": "corrected", "crossbar_size": 64, "switches": {"norm": False},
    "technology": {"adc_pj": 2.0}},
}  # fmt: skip


@reader
def layer_file(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    return of_text(LAYERS, "a.yaml", lambda tree: yaml.safe_dump(tree, sort_keys=False)), price_file


@reader
def chip_file(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    tree = {"spikesim": LAYERS["spikesim"]}
    return of_text(tree, "a.yaml", lambda tree: yaml.safe_dump(tree, sort_keys=False)), read_config


@reader
def summary_file(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    stage = {"name": "student", "kind": "snn", "network": {"name": "vgg5"}, "parameters": 10, "epochs": 1,
             "seconds": 1.0, "accuracy": 0.5, "accuracy_at": {"2": 0.5},
             "layers": [{"path": "a", "firing_rate": 0.1, "neurons": 3}]}  # fmt: skip
    tree = {
        "kind": "run",
        "format": 1,
        "title": "t",
        "recipe": "r",
        "seed": 0,
        "stages": [stage],
        "environment": {"a": [1]},
    }
    return of_text(tree, "summary.json", json.dumps), lambda path: summary.read(path.parent)


@reader
def metrics_file(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    lines = [{"event": "start"}] + [
        {"event": "epoch", "stage": "a", "epoch": i, "train": {"loss": 1.0, "accuracy": 0.5}}
        for i in range(3)
    ]

    def read(path: Path) -> None:
        metrics.read(path.parent).epochs("a")

    return of_text(
        lines, "metrics.jsonl", lambda tree: "".join(json.dumps(line) + "\n" for line in tree)
    ), read


@reader
def integer_network(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    """Forged headers with a right checksum: what is not refused must run."""
    made = []
    for name, options in (("vgg5", {"width": 0.0625}), ("ms_resnet20", {"width": 0.125})):
        torch.manual_seed(0)
        x = torch.rand(2, 3, 8, 8)
        network = networks.create(name, time_steps=2, **options).eval()
        made.append(to_integer(quantize(network, calibration=x)))

    def make(rng: random.Random, folder: Path) -> Path:
        good, path = rng.choice(made), folder / "a.safetensors"
        header = good.header
        if rng.random() < 0.9:
            header = mutated_tree(header, rng)
        tensors = dict(good.tensors)
        if rng.random() < 0.2:
            name = rng.choice([*tensors])
            kind = rng.choice([torch.int8, torch.int64, torch.float32, torch.bool, tensors[name].dtype])
            tensors[name] = tensors[name].to(kind)[: rng.randrange(5)]
        IntegerNetwork(header, tensors).save(path)
        if rng.random() < 0.1:
            path.write_bytes(mutated_bytes(path.read_bytes(), rng))
        return path

    def read(path: Path) -> None:
        network = IntegerNetwork.load(path)
        form = network.header["input"]
        frames = () if form["kind"] == "image" else (network.time_steps,)
        if np.prod(form["size"]) * (frames or (1,))[0] < 1 << 20:
            network(torch.zeros(1, *frames, *form["size"]))

    return make, read


@reader
def nir_graph(folder: Path) -> tuple[Make, Callable[[Path], Any]]:
    """Values of datasets changed through h5py, and bytes of the notes."""
    pytest.importorskip("nir")
    h5py = pytest.importorskip("h5py")
    from spikedistill.export import from_nir, to_nir

    torch.manual_seed(0)
    lif = {"type": "lif"}  # which NIR has
    network = networks.create("vgg5", width=0.0625, pooling="avg", time_steps=2, neuron=lif).eval()
    to_nir(network, folder / "good.nir", torch.rand(1, 3, 8, 8))
    content = (folder / "good.nir").read_bytes()

    def make(rng: random.Random, folder: Path) -> Path:
        path = folder / "a.nir"
        path.write_bytes(content)
        with h5py.File(path, "a") as file:
            found: list[Any] = []
            file["node"].visititems(
                lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None
            )
            for item in rng.sample(found, rng.choice((1, 1, 2))):
                name, parent = item.name.rsplit("/", 1)[1], item.parent
                value = item[()]
                del parent[name]
                if isinstance(value, bytes):
                    parent[name] = mutated_bytes(value, rng).replace(b"\0", b"").decode("latin-1")
                elif rng.random() < 0.8 and np.asarray(value).dtype.kind in "iuf":
                    odd = np.asarray(value).reshape(-1).copy()
                    kind = odd.dtype
                    new = rng.choice([0, 1, -1, 3, 1_000_003, 1e-9, 1e30, np.nan, np.inf])
                    odd[rng.randrange(len(odd)) if rng.random() < 0.3 else slice(None)] = (
                        new
                        if kind.kind == "f"
                        else int(np.nan_to_num(new, nan=7, posinf=1 << 40) % (1 << 40))
                    )
                    shaped = odd.reshape(np.shape(value))
                    parent[name] = shaped if rng.random() < 0.7 else shaped.reshape(-1)[: rng.randrange(4)]
        return path

    def read(path: Path) -> None:
        network = from_nir(path)
        if network.time_steps <= 64:
            network(
                torch.rand(1, 3, 8, 8)
                if network.input == "image"
                else torch.rand(1, network.time_steps, 3, 8, 8)
            )

    return make, read


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPIKEDISTILL_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tried(name: str, seeds: Any, folder: Path) -> None:
    make, read = READERS[name](folder)
    for seed in seeds:
        path = make(random.Random(f"{name} {seed}"), folder)
        start, begun = time.process_time(), time.monotonic()
        try:
            read(path)
        except SpikedistillError as error:
            words = str(error)
            assert words.strip(), f"{name}, seed {seed}: an error without words"
            assert "\n" not in words or name in ("layer_file", "chip_file"), f"{name}, seed {seed}: {words}"
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
        took, waited = time.process_time() - start, time.monotonic() - begun
        assert took < SLOWEST, f"{name}, seed {seed}: {took:.1f} s"
        assert waited < LONGEST, f"{name}, seed {seed}: {waited:.1f} s by the clock"


@pytest.mark.parametrize("name", READERS)
def test_a_few_mutations_of_each_file(name: str, tmp_path: Path) -> None:
    tried(name, (*SEEDS.get(name, ()), *range(FEW)), tmp_path)


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("name", READERS)
def test_many_mutations_of_each_file(name: str, tmp_path: Path) -> None:
    tried(name, range(FEW, FEW + MANY), tmp_path)
