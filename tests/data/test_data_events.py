import errno
import hashlib
import struct
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikedistill import data
from spikedistill.data import DataConfig, FramesConfig
from spikedistill.data.event_files import Events, read_aedat2, read_aedat3, read_bin, read_gesture_labels
from spikedistill.data.events import EventFiles
from spikedistill.data.frames import bin_events, framed
from spikedistill.data.splits import split_file
from spikedistill.data.verify import verify
from spikedistill.errors import SpikedistillError


def some(n: int, width: int, height: int, span: int = 300_000, seed: int = 0) -> Events:
    g = np.random.default_rng(seed)
    t = np.sort(g.integers(0, span, n))
    return Events(t, g.integers(0, width, n), g.integers(0, height, n), g.integers(0, 2, n))


def same(found: Events, expected: Events) -> None:
    for column in "txyp":
        assert np.array_equal(getattr(found, column), getattr(expected, column)), column


def write_bin(path: Path, e: Events) -> None:
    """Bits 39-32 x, 31-24 y, 23 polarity, 22-0 time."""
    words = (e.x << 32) | (e.y << 24) | (e.p << 23) | e.t
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(int(word).to_bytes(5, "big") for word in words))


def write_aedat2(path: Path, e: Events) -> None:
    """As jAER writes a DVS128: axes from the far corner, polarity bit 1 for OFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    address = ((127 - e.x) << 8) | ((127 - e.y) << 1) | (1 - e.p)
    pairs = np.stack([address, e.t], 1).astype(">u4")
    path.write_bytes(b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n" + pairs.tobytes())


def write_aedat3(path: Path, e: Events, packet: int = 7, overflow: int = 0) -> None:
    """Packets of polarity events, with one special event packet between that a reader must pass over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    for start in range(0, len(e), packet):
        rows = slice(start, start + packet)
        words = (e.x[rows] << 17) | (e.y[rows] << 2) | (e.p[rows] << 1) | 1
        n = len(words)
        body += struct.pack("<HHIIIIII", 1, 1, 8, 4, overflow, n, n, n)
        body += np.stack([words, e.t[rows]], 1).astype("<u4").tobytes()
        body += struct.pack("<HHIIIIII", 0, 1, 8, 4, overflow, 1, 1, 1) + struct.pack("<II", 1, 5)
    path.write_bytes(body)


FORMATS = [
    (write_bin, read_bin, 34, 34),
    (write_aedat2, read_aedat2, 128, 128),
    (write_aedat3, read_aedat3, 128, 128),
]


@pytest.mark.parametrize("write,read,width,height", FORMATS)
def test_official_formats_give_the_events_that_were_written(
    write: Any, read: Any, width: int, height: int, tmp_path: Path
) -> None:
    e = some(100, width, height)
    write(tmp_path / "a.bin", e)
    same(read(tmp_path / "a.bin"), e)


@pytest.mark.parametrize("write,read,width,height", FORMATS)
@pytest.mark.parametrize("cut", [1, 3])
def test_cut_files_are_named(
    write: Any, read: Any, width: int, height: int, cut: int, tmp_path: Path
) -> None:
    path = tmp_path / "broken.dat"
    write(path, some(50, width, height))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SpikedistillError, match=r"broken\.dat.*cut short"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(SpikedistillError, match=r"broken\.dat"):
        read(path)
    with pytest.raises(SpikedistillError, match=r"no file .*gone"):
        read(tmp_path / "gone")


def test_a_packet_cut_at_a_whole_event_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    write_aedat3(path, some(50, 128, 128))
    path.write_bytes(path.read_bytes()[: -36 - 8])
    with pytest.raises(SpikedistillError, match="cut short in a packet"):
        read_aedat3(path)


def test_time_overflows(tmp_path: Path) -> None:
    e = some(10, 34, 34, span=1000)
    write_aedat3(tmp_path / "a.aedat", e, overflow=1)
    assert np.array_equal(read_aedat3(tmp_path / "a.aedat").t, e.t + 2**31)
    mark = Events(*(np.insert(getattr(e, c), 4, v) for c, v in zip("txyp", (0, 0, 240, 0))))
    write_bin(tmp_path / "a.bin", mark)
    late = Events(np.where(np.arange(10) >= 4, e.t + 8192, e.t), e.x, e.y, e.p)
    same(read_bin(tmp_path / "a.bin"), late)


def test_readers_agree_with_spikingjelly(tmp_path: Path) -> None:
    sj = pytest.importorskip("spikingjelly.datasets")
    from spikingjelly.datasets import cifar10_dvs

    cases = [
        (write_bin, read_bin, sj.load_ATIS_bin),
        (write_aedat3, read_aedat3, sj.load_aedat_v3),
        (write_aedat2, read_aedat2, cifar10_dvs._load_origin_data),
    ]
    for k, (write, read, oracle) in enumerate(cases):
        path = tmp_path / f"{k}.dat"
        write(path, some(60, 34, 34, seed=k))
        found, theirs = read(path), oracle(path)
        for column in "txyp":
            assert np.array_equal(getattr(found, column), np.asarray(theirs[column]).astype(np.int64))


def test_frames_by_number_agree_with_spikingjelly() -> None:
    sj = pytest.importorskip("spikingjelly.datasets")
    e = some(120, 34, 20)
    theirs = sj.integrate_events_by_fixed_frames_number(
        {c: getattr(e, c) for c in "txyp"}, "number", 8, 20, 34
    )
    assert np.array_equal(bin_events(e, 8, (34, 20), FramesConfig(split_by="number")), theirs)


@given(
    st.integers(1, 60),
    st.sampled_from([(12, 4), (12, 6), (8, 2), (6, 1)]),
    st.sampled_from(["time", "number"]),
)
def test_sums_of_groups_are_the_coarser_frames(n: int, counts: tuple[int, int], split_by: str) -> None:
    fine, coarse = counts
    e = some(n, 9, 7, span=50, seed=n)
    config = FramesConfig(split_by=split_by)  # type: ignore[arg-type]
    frames = bin_events(e, fine, (9, 7), config)
    assert frames.sum() == n
    assert np.array_equal(
        frames.reshape(coarse, fine // coarse, 2, 7, 9).sum(1), bin_events(e, coarse, (9, 7), config)
    )


def test_binning_options() -> None:
    e = Events(*(np.asarray(v) for v in ([10, 11, 14, 30], [0, 3, 2, 3], [0, 1, 1, 3], [0, 1, 1, 0])))
    steps = bin_events(e, 3, (4, 4), FramesConfig(duration=4))
    assert steps.sum((1, 2, 3)).tolist() == [2, 1, 0]  # the event 20 us in falls behind the third frame
    small = bin_events(e, 1, (4, 4), FramesConfig(size=2))
    assert small[0].sum(0).tolist() == [[1, 2], [0, 1]]
    one = bin_events(e, 1, (4, 4), FramesConfig(polarity="merged"))
    assert one.shape == (1, 1, 4, 4)
    assert one.sum() == 4
    cut = bin_events(e, 1, (4, 4), FramesConfig(size=2, polarity="merged", limit=1))
    assert cut[0, 0].tolist() == [[1, 1], [0, 1]]
    full = bin_events(e, 1, (4, 4), FramesConfig())
    nearest = bin_events(e, 1, (4, 4), FramesConfig(size=2, resize="nearest"))
    expected = torch.nn.functional.interpolate(torch.from_numpy(full).float(), 2, mode="nearest")
    assert np.array_equal(nearest, expected.numpy())
    with pytest.raises(SpikedistillError, match="do not fit a sensor of 3 x 4"):
        bin_events(e, 1, (3, 4), FramesConfig())
    assert bin_events(Events(*[np.zeros(0, np.int64)] * 4), 2, (4, 4), FramesConfig()).sum() == 0


def pack(path: Path, samples: list[Events], label: list[int], **more: Any) -> None:
    columns = {c: np.concatenate([getattr(e, c) for e in samples]) for c in "txyp"}
    off = np.cumsum([0, *map(len, samples)])
    np.savez(path, **columns, off=off, label=np.asarray(label), sensor_size=np.asarray([9, 7]), **more)


def test_packed_events_are_binned_once_and_cut_afterwards(tmp_path: Path, cache: Path) -> None:
    samples = [some(20 + i, 9, 7, seed=i) for i in range(12)]
    rec = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    pack(tmp_path / "a.npz", samples, [0] * 6 + [1] * 6, rec=np.asarray(rec), names=np.asarray(["x", "y"]))
    pack(tmp_path / "b.npz", samples[:2], [0, 1])
    config = DataConfig(name="events", train=tmp_path / "a.npz", test=tmp_path / "b.npz", validation=0.25)
    d = data.open(config, (2, 3))
    assert (d.info.frames, d.info.size, d.info.in_channels, d.info.class_names) == (6, (7, 9), 2, ("x", "y"))
    assert d.info.sizes == {"train": 6, "validation": 6, "test": 2}
    held = next(d.batches("validation", 6))[0].sum((1, 2, 3, 4)).tolist()
    groups = {rec[int(n) - 20] for n in held}
    assert len(groups) == 2  # two whole recordings of three windows each
    kept = sorted((cache / "frames").iterdir())
    before = [path.stat().st_mtime_ns for path in kept]
    again = data.open(config.model_copy(update={"validation": 0.0, "group": "rec"}), (2, 3))
    assert sorted((cache / "frames").iterdir()) == kept
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert again.info.sizes["train"] == 12
    assert again.info.hash == d.info.hash
    expected = np.stack([bin_events(e, 6, (9, 7), FramesConfig()) for e in samples])
    assert torch.equal(next(again.batches("train", 12))[0], torch.from_numpy(expected).float())
    assert data.open(config, (4,)).info.hash == d.info.hash  # of the events, however they are binned
    assert len(list((cache / "frames").iterdir())) == 2 * len(kept)
    with pytest.raises(SpikedistillError, match="no 'user' with one entry a sample"):
        data.open(config.model_copy(update={"group": "user"}))
    assert data.open(config.model_copy(update={"size": (3, 4)})).info.size == (3, 4)
    with pytest.raises(SpikedistillError, match=r"10 is no multiple of 6"):
        data.open(config.model_copy(update={"frames": FramesConfig(number=10)}), (2, 3))


def test_offsets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.npz", [some(20, 9, 7)] * 2, [0, 1])
    z = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", **{**z, "t": z["t"][:-1]})
    with pytest.raises(SpikedistillError, match=r"a\.npz: off must rise"):
        data.open(DataConfig(name="events", train=tmp_path / "a.npz", test=tmp_path / "a.npz"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    write_bin(tmp_path / "a.bin", some(5, 2, 2))
    with pytest.raises(SpikedistillError, match="SPIKEDISTILL_CACHE"):
        framed(EventFiles([tmp_path / "a.bin"], (2, 2), read_bin, FramesConfig()), 2, FramesConfig())


def test_busy_pixels_are_counted_exactly(tmp_path: Path) -> None:
    zeros = np.zeros(1000, np.int64)
    busy = Events(np.arange(1000), zeros, zeros, zeros)
    write_bin(tmp_path / "a.bin", busy)
    store = framed(EventFiles([tmp_path / "a.bin"], (2, 2), read_bin, FramesConfig()), 2, FramesConfig())
    assert store.take(torch.tensor([0]), torch.device("cpu")).flatten().max() == 500


def test_official_folders(tmp_path: Path) -> None:
    written: dict[str, Events] = {}
    for k, (role, c, i) in enumerate(
        (r, c, i) for r in ("Train", "Test") for c in range(2) for i in range(5)
    ):
        e = some(30 + k, 34, 34, seed=k)
        write_bin(tmp_path / "n" / role / str(c) / f"{k:05d}.bin", e)
        written[f"{role}{c}{i}"] = e
    d = data.open(DataConfig(name="nmnist", root=tmp_path / "n", validation=0.0), (4,))
    assert d.labels("train").tolist() == [0] * 5 + [1] * 5
    expected = bin_events(written["Train12"], 4, (34, 34), FramesConfig())
    assert torch.equal(list(d.batches("train", 1))[7][0][0], torch.from_numpy(expected).float())

    for c in ("airplane", "bird"):
        for i in range(20):
            write_aedat2(tmp_path / "c" / c / f"cifar10_{c}_{i}.aedat", some(10 + i, 128, 128))
    d = data.open(
        DataConfig(name="cifar10dvs", root=tmp_path / "c", validation=0.0, frames=FramesConfig(size=48))
    )
    assert d.info.sizes == {"train": 36, "validation": 0, "test": 4}
    assert d.info.size == (48, 48)
    # the first nine tenths by number, not by letters: 18 and 19 are left, with 28 and 29 events
    assert next(d.batches("test", 4))[0].sum((1, 2, 3, 4)).tolist() == [28, 29, 28, 29]

    # what the shipped list names is tested as soon as it is there; a class without such files keeps its last
    # tenth
    for i in (91, 919, 920):
        write_aedat2(tmp_path / "c" / "bird" / f"cifar10_bird_{i}.aedat", some(100, 128, 128))
    more = data.open(
        DataConfig(name="cifar10dvs", root=tmp_path / "c", validation=0.0, frames=FramesConfig(size=48))
    )
    assert next(more.batches("test", 5))[0].sum((1, 2, 3, 4)).tolist() == [28, 29, 100, 100, 100]
    sha = hashlib.sha256((files("spikedistill.data") / "split_cifar10dvs.txt").read_bytes()).hexdigest()
    assert (
        more.info.split_file
        == f"split_cifar10dvs.txt, sha256 {sha}; the last tenth of airplane, of which it names "
        + ("no file here")
    )
    assert sha in (d.info.split_file or "")
    assert more.info.split_hash != d.info.split_hash

    for c in ("anchor", "zebra"):
        for i in range(1, 11):
            write_bin(tmp_path / "k" / "Caltech101" / c / f"image_{i:04d}.bin", some(10 + i, 240, 180))
    d = data.open(DataConfig(name="ncaltech101", root=tmp_path / "k", validation=0.0))
    assert d.info.sizes == {"train": 18, "validation": 0, "test": 2}
    assert d.info.size == (180, 240)
    broken = tmp_path / "k" / "Caltech101" / "zebra" / "image_0004.bin"
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(SpikedistillError, match=r"image_0004\.bin.*cut short"):
        data.open(DataConfig(name="ncaltech101", root=tmp_path / "k"))
    write_bin(broken, some(10, 240, 180))
    outside = broken.with_name("image_0007.bin")
    write_bin(outside, Events(*(np.asarray([v]) for v in (0, 250, 3, 1))))
    with pytest.raises(
        SpikedistillError, match=r"image_0007\.bin: events at x 250\.\.250, .* do not fit a sensor"
    ):
        data.open(DataConfig(name="ncaltech101", root=tmp_path / "k"))
    assert not list(tmp_path.rglob("*.part"))


def test_the_shipped_split_of_cifar10dvs_is_what_spikingjellys_leaves_for_the_test() -> None:
    listed, _ = split_file("cifar10dvs")
    words = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    samples = [
        (f"{w}/{n}", k)
        for k, w in enumerate(words)
        for n in sorted(f"cifar10_{w}_{i}.aedat" for i in range(1000))
    ]
    sj = pytest.importorskip("spikingjelly.datasets")
    train, test = sj.split_to_train_test_set(0.9, samples, 10)
    assert {samples[i][0] for i in test.indices} == listed
    assert len(train) == 9000


def test_the_shipped_split_of_ncaltech101_is_a_tenth_of_each_class() -> None:
    listed, _ = split_file("ncaltech101")
    numbers: dict[str, list[int]] = {}
    for name in sorted(listed):
        word, file = name.split("/")
        numbers.setdefault(word, []).append(int(file.removeprefix("image_").removesuffix(".bin")))
    assert len(numbers) == 101
    assert sum(max(found) for found in numbers.values()) == 8709  # the published number of samples
    for found in numbers.values():
        n = max(found)
        assert found == list(range(n * 9 // 10 + 1, n + 1))


def test_gesture_trials_are_cut_by_their_times(tmp_path: Path) -> None:
    counts = {}
    for user, role in (("user01_led", "train"), ("user02_led", "train"), ("user24_led", "test")):
        e = some(300, 128, 128, span=1000)
        write_aedat3(tmp_path / f"{user}.aedat", e)
        rows = [(k + 1, 80 * k, 80 * k + 70) for k in range(11)]
        text = "class,startTime_usec,endTime_usec\n" + "\n".join(",".join(map(str, row)) for row in rows)
        (tmp_path / f"{user}_labels.csv").write_text(text + "\n")
        with (tmp_path / f"trials_to_{role}.txt").open("a") as listing:
            listing.write(f"{user}.aedat\n")
        counts[user] = [int(((e.t >= a) & (e.t < b)).sum()) for _, a, b in rows]
    d = data.open(DataConfig(name="dvsgesture", root=tmp_path, validation=0.5), (2,))
    assert d.info.sizes == {"train": 11, "validation": 11, "test": 11}  # one whole recording each
    assert d.labels("test").tolist() == list(range(11))
    assert next(d.batches("test", 11))[0].sum((1, 2, 3, 4)).tolist() == counts["user24_led"]
    assert d.info.class_names[7] == "arm roll"
    path = tmp_path / "user01_led_labels.csv"
    path.write_text("class,start\n1,2\n")
    with pytest.raises(SpikedistillError, match=r"user01_led_labels\.csv: rows must be"):
        read_gesture_labels(path)


def test_any_object_of_events_and_labels() -> None:
    kind = np.dtype([("t", int), ("x", int), ("y", int), ("p", bool)])

    def item(k: int) -> tuple[np.ndarray, int]:
        e = some(15 + k, 9, 7, seed=k)
        return np.array(list(zip(e.t, e.x, e.y, e.p)), dtype=kind), k % 2

    train, test = [item(k) for k in range(20)], [item(k) for k in range(4)]
    d = data.from_events(train, test, (9, 7, 2), (2, 4), class_names=["a", "b"])
    assert d.info.frames == 4
    assert next(d.batches("test", 4))[0].sum((1, 2, 3, 4)).tolist() == [15, 16, 17, 18]
    yielded = data.from_events(
        (item(k) for k in range(20)), iter(test), (9, 7), (2, 4), class_names=["a", "b"]
    )
    assert yielded.info.hash == d.info.hash
    with pytest.raises(SpikedistillError, match="missing: p"):
        data.from_events([({"t": [1], "x": [1], "y": [1]}, 0)], test, (9, 7))


@pytest.mark.data
def test_real_events_are_read_whole(shared_data: Path) -> None:
    d = data.open(DataConfig(name="nmnist", root=shared_data, test_from_train=300), (4,))
    assert d.info.sizes == {"train": 630, "validation": 70, "test": 400}
    total = sum(float(x.sum()) for split in d.splits for x, _ in d.batches(split, 100))
    assert total == 4_133_231 + 385_596
    assert d.labels("test")[:5].tolist() == [7, 2, 1, 0, 4]


def nmnist_folder(root: Path) -> Path:
    for k, (role, c, i) in enumerate(
        (r, c, i) for r in ("Train", "Test") for c in range(2) for i in range(5)
    ):
        write_bin(root / role / str(c) / f"{k:05d}.bin", some(30 + k, 34, 34, seed=k))
    return root


def test_a_part_in_place_of_the_whole_is_refused(tmp_path: Path) -> None:
    root = nmnist_folder(tmp_path / "n")
    with pytest.raises(
        SpikedistillError, match="Train: no folder Train; give the one that holds Train and Test"
    ):
        data.open(DataConfig(name="nmnist", root=root / "Train", validation=0.0), (4,))


def test_augmentations_that_do_nothing_on_frames_are_refused(tmp_path: Path) -> None:
    root, augment = nmnist_folder(tmp_path / "n"), data.AugmentConfig(crop=2)
    with pytest.raises(SpikedistillError, match=r"data\.augment\.crop does nothing here: .* event frames"):
        data.open(DataConfig(name="nmnist", root=root, validation=0.0, augment=augment), (4,))
    augment = data.AugmentConfig.model_validate({"events": {"roll": 1}})
    with pytest.raises(SpikedistillError, match=r"data\.augment\.events does nothing here: .* images"):
        data.open(DataConfig(name="digits", augment=augment))


def test_data_are_verified_for_the_time_steps_of_the_recipe(tmp_path: Path) -> None:
    config = DataConfig(name="nmnist", root=nmnist_folder(tmp_path / "n"), frames=FramesConfig(number=10))
    assert verify(config, (5, 10)).ok
    assert "no multiple of 4" in str(verify(config).bad)


def test_a_disk_without_room_for_frames_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    frames = FramesConfig(cache=tmp_path / "cache")
    config = DataConfig(name="nmnist", root=nmnist_folder(tmp_path / "n"), frames=frames)
    with pytest.raises(SpikedistillError, match=r"no room for .* MB of frames in .*cache"):
        data.open(config, (4,))
    assert not [*(tmp_path / "cache" / "frames").iterdir()]
