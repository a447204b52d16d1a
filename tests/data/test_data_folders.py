import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spikedistill import data
from spikedistill.data import AugmentConfig, DataConfig
from spikedistill.data.verify import verify
from spikedistill.errors import SpikedistillError


def picture(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if mode == "RGB" else size
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def tree(root: Path, train: int = 10) -> None:
    for k, c in enumerate(("cat", "dog")):
        for i in range(train):
            picture(root / "train" / c / f"{i}.png", 100 * k + i)
        picture(root / "val" / c / "x.png", 100 * k + 50, mode="L")


def values(d: data.Data, split: str) -> list[int]:
    return [int(v) for x, _ in d.batches(split, 4) for v in (x[:, 0, 0, 0] * 255).round()]


def test_a_folder_with_train_and_val(tmp_path: Path) -> None:
    tree(tmp_path)
    d = data.open(DataConfig(name="folder", root=tmp_path, validation=0.2))
    assert d.info.sizes == {"train": 16, "validation": 4, "test": 2}
    assert values(d, "test") == [50, 150]
    assert sorted(values(d, "train") + values(d, "validation")) == [*range(10), *range(100, 110)]
    assert (d.info.class_names, d.info.size) == (("cat", "dog"), (8, 8))


def test_one_folder_is_split(tmp_path: Path) -> None:
    tree(tmp_path)
    d = data.open(DataConfig(name="folder", root=tmp_path / "train", validation=0.0))
    assert d.info.sizes == {"train": 18, "validation": 0, "test": 2}
    assert d.labels("test").tolist() == [0, 1]


def test_streamed_images_are_the_same_whatever_reads_them(tmp_path: Path) -> None:
    for k, c in enumerate(("n01", "n02")):
        for i in range(6):
            path = tmp_path / "train" / c / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(10 * k + i).integers(0, 256, (40, 60, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        picture(tmp_path / "val" / c / "a.png", 77, size=(30, 20))
    runs = []
    for workers in (0, 2):
        config = DataConfig(name="imagenet", root=tmp_path, size=16, workers=workers, validation=0.0)
        d = data.open(config)
        assert d.splits["train"].streams
        torch.manual_seed(3)
        runs.append([x for x, _ in d.batches("train", 4, train=True, seed=1)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert runs[0][0].shape == (4, 3, 16, 16)
    assert d.info.mean == (0.485, 0.456, 0.406)
    assert values(d, "test") == [77, 77]


def test_test_images_are_resized_and_cut_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 30:50] = 255
    for role in ("train", "val"):
        for c in ("a", "b"):
            (tmp_path / role / c).mkdir(parents=True)
            Image.fromarray(wide).save(tmp_path / role / c / "x.png")
    words = AugmentConfig(centre_crop=1.0)
    d = data.open(DataConfig(name="imagenet", root=tmp_path, size=20, augment=words, validation=0.0))
    x = next(d.batches("test", 1))[0][0, 0]
    # half the size, then columns 10..30 of 40: white from 5 to 15
    assert x[:, 7:13].min() > 0.95
    assert x[:, :3].max() < 0.05
    assert x[:, 17:].max() < 0.05


def test_tiny_imagenets_own_tree(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for k, wnid in enumerate(("n01443537", "n02056570")):
        for i in range(3):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 100 * k + 10 * i, (64, 64))
    picture(root / "val" / "images" / "val_0.JPEG", 200, (64, 64))
    picture(root / "val" / "images" / "val_1.JPEG", 20, (64, 64), "L")
    notes = root / "val" / "val_annotations.txt"
    notes.write_text("val_0.JPEG\tn02056570\t0\t0\t9\t9\nval_1.JPEG\tn01443537\t0\t0\t9\t9\n")
    (root / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn02056570\tking penguin\nn9\tother\n"
    )
    config = DataConfig(name="tinyimagenet", root=tmp_path, validation=0.0)
    d = data.open(config)
    assert d.info.class_names == ("goldfish", "king penguin")
    assert d.info.sizes == {"train": 6, "validation": 0, "test": 2}
    assert d.labels("test").tolist() == [1, 0]
    assert values(d, "test") == [200, 20]
    assert d.info == data.open(config).info
    broken = root / "train" / "n01443537" / "images" / "n01443537_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(SpikedistillError, match=r"cannot read .*n01443537_1\.JPEG"):
        data.open(config)
    notes.write_text("val_7.JPEG\tn02056570\t0\t0\t9\t9\n")
    with pytest.raises(SpikedistillError, match=r"no file .*val_7\.JPEG"):
        data.open(config)


def test_verify_counts_and_names_every_bad_file(tmp_path: Path) -> None:
    tree(tmp_path)
    config = DataConfig(name="folder", root=tmp_path, validation=0.2)
    report = verify(config)
    assert report.ok
    assert report.files == 22
    assert report.counts == {
        "train": {"cat": 8, "dog": 8},
        "validation": {"cat": 2, "dog": 2},
        "test": {"cat": 1, "dog": 1},
    }
    assert report.hash == data.open(config).info.hash
    for name in ("train/cat/3.png", "val/dog/x.png"):
        body = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(body[: len(body) // 2])
    report = verify(config)
    assert [path for path, _ in report.bad] == [
        str(tmp_path / n) for n in ("train/cat/3.png", "val/dog/x.png")
    ]
    assert not report.ok
    assert "3.png: cut short" in str(report)


def test_verify_notes_leaks_and_unofficial_sizes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8)).astype(np.uint8)
    y = np.arange(20) % 2
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    notes = "\n".join(verify(DataConfig(name="mnist", root=tmp_path, validation=0.0)).notes)
    assert "20 + 4 samples; the official set has 60000 + 10000" in notes
    assert "4 test samples are exact copies" in notes


def test_verify_reads_cifars_batches_and_knows_the_official_ones(tmp_path: Path) -> None:
    for file in ("train", "test"):
        batch = {"data": np.zeros((4, 3072), np.uint8), "fine_labels": [0, 1, 0, 1]}
        (tmp_path / file).write_bytes(pickle.dumps(batch, protocol=2))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b"]}, protocol=2))
    report = verify(DataConfig(name="cifar100", root=tmp_path, validation=0.0))
    assert (report.ok, report.files, report.counts["test"]) == (True, 3, {"a": 2, "b": 2})
    assert sum("not that of the official file" in note for note in report.notes) == 3
    (tmp_path / "test").write_bytes((tmp_path / "test").read_bytes()[:-40])
    report = verify(DataConfig(name="cifar100", root=tmp_path))
    assert [path for path, _ in report.bad] == [str(tmp_path / "test")]


def test_verify_answers_an_empty_folder(tmp_path: Path) -> None:
    report = verify(DataConfig(name="folder", root=tmp_path))
    assert not report.ok
    assert "one folder of images per class" in report.bad[0][1]


def test_a_validation_folder_beside_a_test_folder_is_the_validation_part(tmp_path: Path) -> None:
    tree(tmp_path)
    for k, c in enumerate(("cat", "dog")):
        picture(tmp_path / "test" / c / "y.png", 100 * k + 70)
    d = data.open(DataConfig(name="folder", root=tmp_path, validation=0.2))
    assert d.info.sizes == {"train": 20, "validation": 2, "test": 2}
    assert values(d, "validation") == [50, 150]
    assert values(d, "test") == [70, 170]


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_root_that_is_no_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpikedistillError, match="file: no folder; it needs one folder of images per class"):
        data.open(DataConfig(name=name, root=tmp_path / "file"))


def test_a_test_part_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpikedistillError, match=r"data\.test is the test part beside data\.train"):
        data.open(DataConfig(name="arrays", root=tmp_path, test=tmp_path / "b.npz"))


def test_two_files_keep_the_validation_part_of_the_first(tmp_path: Path) -> None:
    x, y = np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x=x, y=y, x_val=x[:2], y_val=y[:2])
    np.savez(tmp_path / "b.npz", x=x[:4], y=y[:4])
    d = data.open(DataConfig(name="arrays", train=tmp_path / "a.npz", test=tmp_path / "b.npz"))
    assert d.info.sizes == {"train": 6, "validation": 2, "test": 4}
