import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spikedistill import data
from spikedistill.data import DataConfig, arrays
from spikedistill.data.images import cifar_batches
from spikedistill.errors import SpikedistillError

X, Y = np.zeros((6, 4, 4), np.uint8), np.asarray([0, 1, 2, 0, 1, 2])


def given(**over: Any) -> dict[str, Any]:
    return {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, **over}


@pytest.mark.parametrize(
    "shape,expected",
    [
        ((6, 4, 5), (1, 4, 5)),
        ((6, 4, 5, 3), (3, 4, 5)),
        ((6, 3, 4, 5), (3, 4, 5)),
        ((6, 3, 4, 4), (3, 4, 4)),
        ((6, 2, 3, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_every_layout_becomes_channels_first(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    out = arrays.images(x, "x")
    assert tuple(out.shape[1:]) == expected
    if shape == (6, 4, 5, 3):
        assert torch.equal(out[1, 2], torch.from_numpy(x[1, :, :, 2].copy()))


@pytest.mark.parametrize(
    "over,words",
    [
        ({"x_train": np.zeros((6, 4))}, r"found shape \(6, 4\)"),
        ({"x_train": np.full((6, 4, 4), np.nan)}, "NaN or infinity"),
        ({"x_train": np.full((6, 4, 4), 255.0)}, "divide by 255"),
        ({"x_train": np.full((6, 4, 4), -1)}, "from -1"),
        ({"x_train": np.asarray([["a"]])}, "give uint8 or float32"),
        ({"x_test": np.zeros((6, 5, 5), np.uint8)}, "differ in shape"),
        ({"y_train": np.asarray([0, 1, 2, 0, 1, -1])}, "found the label -1"),
        ({"y_train": np.asarray([0, 1, 3, 0, 1, 3])}, r"no training sample has \[2\]"),
        ({"y_train": np.asarray([0.5] * 6)}, "no whole numbers"),
        ({"y_train": np.arange(5)}, r"found shape \(5,\) for 6 samples"),
        ({"y_train": np.zeros((6, 14), int)}, r"\(6, 14\)"),
        ({"class_names": ["a", "b"]}, "label 2 but only 2 class names"),
        ({"x_trian": X}, "unknown keys"),
        ({"x_val": X}, "without labels"),
    ],
)
def test_what_is_wrong_is_said(over: dict[str, Any], words: str) -> None:
    with pytest.raises(SpikedistillError, match=words):
        data.from_arrays(given(**over))


@pytest.mark.parametrize("bytes_in", ["x_train", "x_test"])
def test_bytes_and_floats_are_one_scale_in_a_split_of_both(bytes_in: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8)
    x = {key: levels if key == bytes_in else np.float32(levels / 255) for key in ("x_train", "x_test")}
    y = np.arange(40) % 4
    config = DataConfig(test_from_train=12, validation=0.0)
    both = data.from_arrays({**x, "y_train": y, "y_test": y}, config)
    plain = data.from_arrays({"x_train": levels, "x_test": levels, "y_train": y, "y_test": y}, config)
    assert both.info.sizes == {"train": 28, "validation": 0, "test": 52}
    for split, train in (("train", False), ("train", True), ("test", False)):
        # 16: the third batch of the test split has rows of both parts.
        for (a, _), (b, _) in zip(
            both.batches(split, 16, train=train), plain.batches(split, 16, train=train), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_bytes_and_floats_of_frames_are_counts_both() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (20, 2, 1, 4, 4))
    y = np.arange(20) % 4
    given = {"x_train": counts.astype(np.uint8), "x_test": counts.astype(np.float32)}
    d = data.from_arrays(
        {**given, "y_train": y, "y_test": y}, DataConfig(test_from_train=8, validation=0.0), (2,)
    )
    whole = torch.cat([x for x, _ in d.batches("test", 16)])
    assert torch.equal(whole[:20], torch.from_numpy(counts).float())
    assert all(any(torch.equal(x, c) for c in whole[:20]) for x in whole[20:])


def test_missing_arrays_are_named() -> None:
    with pytest.raises(SpikedistillError, match="no y_train, x_test"):
        data.from_arrays({"x_train": X, "y_test": Y})


def test_medmnist_files_use_their_validation_part(tmp_path: Path) -> None:
    parts = {}
    for k, role in enumerate(("train", "val", "test")):
        parts[f"{role}_images"] = np.full((4, 28, 28), k, np.uint8)
        parts[f"{role}_labels"] = np.asarray([[0], [1], [0], [1]])
    np.savez(tmp_path / "breastmnist.npz", **parts)
    d = data.open(DataConfig(name="breastmnist", root=tmp_path))
    assert d.info.sizes == {"train": 4, "validation": 4, "test": 4}
    for k, split in enumerate(("train", "validation", "test")):
        assert torch.equal(next(d.batches(split, 4))[0], torch.full((4, 1, 28, 28), k / 255))


def test_two_files_and_one_file_are_the_same_data(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    np.savez(tmp_path / "both.npz", **given(x_train=x, x_test=x[:2], y_test=Y[:2]))
    np.savez(tmp_path / "a.npz", x=x, y=Y)
    np.savez(tmp_path / "b.npz", x=x[:2], y=Y[:2])
    one = data.open(DataConfig(name="arrays", root=tmp_path / "both.npz", validation=0.0)).info
    two = data.open(
        DataConfig(name="arrays", train=tmp_path / "a.npz", test=tmp_path / "b.npz", validation=0.0)
    ).info
    assert one == two
    np.savez(tmp_path / "b.npz", x=x)
    with pytest.raises(SpikedistillError, match=r"b.npz: none of y_test"):
        data.open(DataConfig(name="arrays", train=tmp_path / "a.npz", test=tmp_path / "b.npz"))


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_a_cut_npz_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, **given())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SpikedistillError, match=r"cannot read .*arrays.npz"):
        data.open(DataConfig(name="arrays", root=tmp_path))


def test_a_damaged_member_and_a_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, **given())
    body = bytearray(path.read_bytes())
    body[200] ^= 255
    path.write_bytes(body)
    with pytest.raises(SpikedistillError, match=r"cannot read .*arrays.npz"):
        data.open(DataConfig(name="arrays", root=tmp_path))
    np.savez(path, **given(y_train=np.asarray([{}] * 6, dtype=object)))
    with pytest.raises(SpikedistillError, match=r"cannot read .*arrays.npz"):
        data.open(DataConfig(name="arrays", root=tmp_path))


def write_cifar(folder: Path, fine: bool) -> tuple[np.ndarray, list[int]]:
    """The official batches, written as their authors' Python wrote them: protocol 2, rows of 3,072 bytes."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows, labels = generator.integers(0, 256, (60, 3072)).astype(np.uint8), [i % 10 for i in range(60)]
    names = [f"class {i}" for i in range(10)]
    key = "fine_labels" if fine else "labels"

    def write(file: str, part: slice) -> None:
        batch = {"data": rows[part], key: labels[part], "filenames": ["a"], "batch_label": file}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=2))

    if fine:
        write("train", slice(0, 50))
        write("test", slice(50, 60))
    else:
        for i in range(5):
            write(f"data_batch_{i + 1}", slice(10 * i, 10 * i + 10))
        write("test_batch", slice(50, 60))
    meta = {"fine_label_names" if fine else "label_names": names}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return rows, labels


@pytest.mark.parametrize("name,sub", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_official_cifar_batches(tmp_path: Path, name: str, sub: str) -> None:
    rows, labels = write_cifar(tmp_path / sub, name == "cifar100")
    d = data.open(DataConfig(name=name, root=tmp_path, validation=0.0))
    x, y = next(d.batches("train", 50))
    assert torch.equal((x * 255).round().to(torch.uint8), torch.from_numpy(rows[:50]).view(50, 3, 32, 32))
    assert y.tolist() == labels[:50]
    assert d.labels("test").tolist() == labels[50:]
    assert d.info.class_names[3] == "class 3"
    file = next(path for path in sorted((tmp_path / sub).iterdir()) if path.name in ("data_batch_3", "train"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SpikedistillError, match=f"cannot read .*{file.name}"):
        data.open(DataConfig(name=name, root=tmp_path))


def test_batches_repacked_by_python_3_and_batches_without_labels(tmp_path: Path) -> None:
    rows, labels = write_cifar(tmp_path / "batches", False)
    for path in (tmp_path / "batches").iterdir():
        found = pickle.loads(path.read_bytes())
        if "label_names" in found:
            found["label_names"] = [word.encode() for word in found["label_names"]]
        path.write_bytes(pickle.dumps({key.encode(): value for key, value in found.items()}, protocol=2))
    d = data.open(DataConfig(name="cifar10", root=tmp_path / "batches", validation=0.0))
    assert d.labels("train").tolist() == labels[:50]
    assert d.info.class_names[3] == "class 3"
    (tmp_path / "batches" / "test_batch").write_bytes(pickle.dumps({"data": rows[50:]}, protocol=2))
    with pytest.raises(SpikedistillError, match=r"test_batch: no labels in it"):
        data.open(DataConfig(name="cifar10", root=tmp_path / "batches"))


def test_a_batch_file_cannot_run_code(tmp_path: Path) -> None:
    write_cifar(tmp_path / "batches", False)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "batches" / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SpikedistillError, match="it asks for pathlib"):
        cifar_batches(tmp_path / "batches", "cifar10")
    assert not (tmp_path / "ran").exists()


def test_torchvisions_mnist_folder(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    x = {
        role: generator.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        for role, n in (("train", 20), ("t10k", 10))
    }
    for role, images in x.items():
        head = np.asarray([2051, len(images), 28, 28], ">u4").tobytes()
        (raw / f"{role}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        head = np.asarray([2049, len(images)], ">u4").tobytes()
        (raw / f"{role}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    d = data.open(DataConfig(name="mnist", root=tmp_path, validation=0.0))
    seen = next(d.batches("test", 10))[0]
    assert torch.equal((seen[:, 0] * 255).round().to(torch.uint8), torch.from_numpy(x["t10k"]))
    assert d.labels("train").tolist() == list(range(10)) * 2


def test_absent_sets_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(SpikedistillError, match=r"no mnist in .*download"):
        data.open(DataConfig(name="mnist", root=tmp_path))
    with pytest.raises(SpikedistillError, match=r"needs data.root"):
        data.open(DataConfig(name="cifar10"))
