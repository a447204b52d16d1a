"""Data files that say something else than they seem to, or more than they hold."""

import io
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_events import pack, some, write_aedat2, write_aedat3, write_bin

from spikedistill import data
from spikedistill.data import DataConfig, FramesConfig
from spikedistill.data.arrays import labels, read_npz
from spikedistill.data.event_files import Events, read_aedat2, read_aedat3, read_bin, read_gesture_labels
from spikedistill.data.events import EventFiles, GestureTrials
from spikedistill.data.folders import Files, decode
from spikedistill.data.frames import bin_events, framed
from spikedistill.errors import SpikedistillError


@pytest.fixture
def public(shared_data: Path) -> Path:
    """Small recordings by other people; skips without them."""
    folder = shared_data / "public" / "events"
    if not folder.exists():
        pytest.skip(f"no recordings at {folder}")
    return folder


def test_recordings_of_another_sensor_are_refused(public: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SpikedistillError, match=r"TranslatingBarY.*10000 of 10000 addresses are no pixels of a DVS128"
    ):
        read_aedat2(public / "TranslatingBarY.aedat")
    with pytest.raises(
        SpikedistillError, match=r"of the sensor eu\.seebetter\.ini\.chips\.davis\.Davis346red"
    ):
        read_aedat2(public / "sample_aedat_header.aedat")
    with pytest.raises(SpikedistillError, match="empty or cut short"):
        read_aedat2(public / "aedat2_header_dvs128.aedat")
    # "$" ends that file
    header = (public / "aedat2_header_dvs128.aedat").read_bytes().rstrip(b"$\r\n") + b"\r\n"
    write_aedat2(tmp_path / "a.aedat", some(50, 128, 128))
    body = (tmp_path / "a.aedat").read_bytes()[-8 * 50 :]
    (tmp_path / "b.aedat").write_bytes(header + body)
    assert len(read_aedat2(tmp_path / "b.aedat")) == 50
    for change in ((b"tick: 1 us", b"tick: 1 ms"), (b"AER-DAT2.0", b"AER-DAT1.0"), (b"DVS128", b"DAVIS240C")):
        (tmp_path / "c.aedat").write_bytes((header + body).replace(*change))
        with pytest.raises(
            SpikedistillError, match=r"units of 1 ms|no AEDAT 2\.0 header|of the sensor .*DAVIS240C"
        ):
            read_aedat2(tmp_path / "c.aedat")


def test_public_recordings_are_read_as_their_authors_say(public: Path, tmp_path: Path) -> None:
    raw = bytearray((public / "aedat1_for_testing.aedat").read_bytes())
    with pytest.raises(SpikedistillError, match="no polarity events"):
        read_aedat3(public / "aedat1_for_testing.aedat")
    position = raw.find(b"#!END-HEADER\r\n") + 14
    while position < len(raw):
        number = struct.unpack_from("<I", raw, position + 20)[0]
        for i in range(number):
            raw[position + 28 + 8 * i] |= 1
        position += 28 + 8 * number
    path = tmp_path / "user01_led.aedat"
    path.write_bytes(raw)
    e = read_aedat3(path)
    assert list(zip(*(getattr(e, c).tolist() for c in "txyp"))) == [
        (10, 0, 0, 1), (25, 10, 20, 0), (38, 120, 59, 1), (48, 5, 9, 0), (59, 9, 5, 1),
        (102865, 15, 19, 1), (102898, 28, 36, 0), (119579, 32, 44, 1), (126562, 45, 59, 1),
        (2068981, 127, 127, 0), (2157619, 0, 15, 1), (2178812, 1, 1, 1),
    ]  # fmt: skip
    rows = read_gesture_labels(public / "aedat1_for_testing_labels.csv")
    trials = GestureTrials([(path, start, end) for _, start, end in rows], FramesConfig())
    assert [label + 1 for label, _, _ in rows] == [1, 5, 11]
    assert [len(trials.events(i)) for i in range(3)] == [3, 3, 0]
    with pytest.raises(SpikedistillError, match=r"user01_led\.aedat, 2157620 to 2178812 us: no events in it"):
        framed(trials, 2, FramesConfig())
    n, c = read_bin(public / "nmnist_sample.bin"), read_bin(public / "ncaltech101_faces_easy_0001.bin")
    assert (len(n), len(c)) == (4325, 67445)
    assert bin_events(n, 4, (34, 34), FramesConfig()).sum() == 4325
    assert bin_events(c, 4, (240, 180), FramesConfig()).sum() == 67445
    assert c.t.max() == 299364
    with pytest.raises(SpikedistillError, match=r"do not fit a sensor of 34 x 34"):
        bin_events(c, 4, (34, 34), FramesConfig())


EMPTY = b"".join((240 << 24).to_bytes(5, "big") for _ in range(3))


def test_recordings_without_events_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(EMPTY)
    with pytest.raises(SpikedistillError, match=r"a\.bin: no events in it"):
        read_bin(tmp_path / "a.bin")
    pack(tmp_path / "a.npz", [some(9, 9, 7), some(0, 9, 7), some(5, 9, 7)], [0, 1, 1])
    with pytest.raises(SpikedistillError, match=r"a\.npz, sample 1: no events in it"):
        data.open(DataConfig(name="events", train=tmp_path / "a.npz", test=tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"p": lambda p: 2 * p - 1}, "polarities from -1 to 1; 1 is ON and 0 is OFF"),
        ({"p": lambda p: p + 1}, "polarities from 1 to 2"),
        ({"t": lambda t: t / 1e6}, "numbers that are not whole"),
        ({"t": lambda t: t * 1_000_000_000}, "days if they are microseconds"),
        ({"t": lambda t: t.astype(np.uint64) + np.uint64(1 << 63)}, "t: found 9223372036854"),
        ({"t": lambda t: t.astype(str)}, "t: found <U"),
        ({"t": lambda t: t[:, None]}, "have one axis"),
        ({"x": lambda x: x - 1}, "do not fit a sensor"),
        ({"x": lambda x: x * np.nan}, "not whole"),
        ({"label": lambda v: v.astype(np.uint64) + np.uint64(1 << 63)}, "the label 9223372036854"),
        ({"label": lambda v: v * 10**9 + v}, "labels end at 999999"),
        ({"label": lambda v: np.where(v == 1, np.inf, v)}, "labels end at"),
        ({"label": lambda v: v[0]}, r"found shape \(\)"),
        ({"off": lambda v: v[0]}, "off: found int64 of shape"),
        ({"off": lambda v: v.astype(str)}, "off: found <U"),
        ({"off": lambda v: v[:0]}, "off must rise"),
        ({"off": lambda v: v[::-1]}, "off must rise"),
        ({"sensor_size": lambda v: v[0]}, "sensor_size: found"),
        ({"sensor_size": lambda v: v[:1]}, r"sensor_size is \(width, height\)"),
        ({"sensor_size": lambda v: v.astype(str)}, "sensor_size: found <U"),
        ({"sensor_size": lambda v: v * 10**9}, "sensor_size: found"),
        ({"sensor_size": lambda v: -v}, "sensor_size: found"),
    ],
)  # fmt: skip
def test_columns_of_events_are_checked(change: Any, words: str, tmp_path: Path) -> None:
    pack(tmp_path / "a.npz", [some(20, 9, 7, seed=k) for k in range(4)], [0, 1, 0, 1])
    z = dict(np.load(tmp_path / "a.npz"))
    for key, made in change.items():
        z[key] = made(z[key])
    np.savez(tmp_path / "a.npz", **z)
    with pytest.raises(SpikedistillError, match=words) as raised:
        data.open(DataConfig(name="events", train=tmp_path / "a.npz", test=tmp_path / "a.npz"))
    assert "\n" not in str(raised.value)


def test_objects_with_odd_polarities_are_refused() -> None:
    item = {"t": [0, 1], "x": [0, 1], "y": [0, 1], "p": [-1, 1]}
    with pytest.raises(SpikedistillError, match="polarities from -1 to 1"):
        data.from_events([(item, 0)] * 4, [(item, 0)], (4, 4))
    with pytest.raises(SpikedistillError, match="sensor_size"):
        data.from_events([(item, 0)] * 4, [(item, 0)], ("wide", 4))


def test_labels_of_arrays() -> None:
    for y in ([2**63, 0], np.asarray([2**63, 2**64 - 1], np.uint64), [1e300, 0.0], [np.inf, 0]):
        with pytest.raises(SpikedistillError, match="labels end at 999999"):
            labels(np.asarray(y), 2, "here")
    with pytest.raises(SpikedistillError, match="no samples"):
        labels(np.zeros(0, int), 0, "here")
    with pytest.raises(SpikedistillError, match="no array"):
        labels([[1], [1, 2]], 2, "here")


def packet(kind: int = 1, size: int = 8, place: int = 4, overflow: int = 0, capacity: int = 2,
number: int = 2,
           valid: int = 2, t: int = 5) -> bytes:  # fmt: skip
    head = struct.pack("<HHIIIIII", kind, 1, size, place, overflow, capacity, number, valid)
    return b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + head + struct.pack("<IIII", 1, t, 1, t + 1)


@pytest.mark.parametrize(
    "counts",
    [{"number": 3}, {"number": 2**31}, {"valid": 3}, {"size": 16, "capacity": 1, "number": 1, "valid": 1},
    {"size": 0},
     {"overflow": 2**32 - 1}, {"place": 0}, {"t": 2**31},
     {"size": 0, "capacity": 2**32 - 1, "number": 2**32 - 1}],
)  # fmt: skip
def test_false_counts_in_packets(counts: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(packet())
    assert len(read_aedat3(path)) == 2
    path.write_bytes(packet(**counts))
    with pytest.raises(SpikedistillError, match=r"a\.aedat.*damaged"):
        read_aedat3(path)


@pytest.mark.parametrize(
    "row",
    [
        "12,0,5",
        "0,0,5",
        "1,9,3",
        "1,-4,3",
        f"1,0,{10**30}",
        "1,0,\0",
        f"1,0,{'9' * 5000}",
        '1,0,"' + "x" * 200_000,
    ],
)
def test_rows_of_gestures_are_checked(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"class,startTime_usec,endTime_usec\n{row}\n")
    with pytest.raises(SpikedistillError, match=r"a\.csv"):
        read_gesture_labels(tmp_path / "a.csv")


def test_lists_of_trials_that_are_no_text_or_name_nothing(tmp_path: Path) -> None:
    for content, words in (
        (b"\xff\xfe", "no UTF-8"),
        (b"a\0b.aedat\n", "null bytes"),
        (b"gone.aedat\n", "no file .*gone"),
    ):
        for role in ("train", "test"):
            (tmp_path / f"trials_to_{role}.txt").write_bytes(content)
        with pytest.raises(SpikedistillError, match=words):
            data.open(DataConfig(name="dvsgesture", root=tmp_path))
    (tmp_path / "gone_labels.csv").write_text("class,startTime_usec,endTime_usec\n1,0,5\n")
    with pytest.raises(SpikedistillError, match=r"gone\.aedat"):
        data.open(DataConfig(name="dvsgesture", root=tmp_path))


def test_classes_of_train_and_test_are_the_same(tmp_path: Path) -> None:
    for role, names in (("Train", "01"), ("Test", "1")):
        for name in names:
            write_bin(tmp_path / role / name / "1.bin", some(5, 34, 34))
    with pytest.raises(SpikedistillError, match="Train has the classes"):
        data.open(DataConfig(name="nmnist", root=tmp_path))


def npy(shape: tuple[int, ...], descr: str = "<f8", body: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + body


def archive(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


def test_archives_that_promise_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for shape, descr in (((2**40,), "<f8"), ((2**62, 2**62), "<f8"), ((-1,), "<f8"), ((0, 2**62), "<f8"),
    ((5,), "|O"),
                         ((1,), "<f100000"), ((2,), "<f8")):  # fmt: skip
        archive(path, "x.npy", npy(shape, descr, b"\0" * 8))
        with pytest.raises(SpikedistillError, match=r"cannot read .*a\.npz"):
            read_npz(path)
    for content in (b"", b"\x93NUMPY", npy((1,), version=9), npy((1,), version=3), b"[" * 5000):
        archive(path, "x.npy", content)
        with pytest.raises(SpikedistillError, match=r"cannot read .*a\.npz"):
            read_npz(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(SpikedistillError, match="cannot read"):
        read_npz(tmp_path / "b.npy")


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_archives_of_every_compression_are_read(method: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(100_000).reshape(10, -1))
    path = archive(tmp_path / "a.npz", "x.npy", buffer.getvalue(), method)
    assert np.array_equal(read_npz(path)["x"], np.arange(100_000).reshape(10, -1))


def test_unknown_compression_encryption_and_bombs(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", "x.npy", npy((1,), body=b"\0" * 8))
    raw = bytearray(path.read_bytes())
    central = raw.find(b"PK\1\2")
    for offset, value in ((10, 99), (10, 12), (8, 1)):  # method, method with other content, encrypted
        changed = bytearray(raw)
        changed[central + offset] = value
        changed[offset - 2] = value
        path.write_bytes(changed)
        with pytest.raises(SpikedistillError, match="cannot read"):
            read_npz(path)
    changed = bytearray(raw)
    struct.pack_into("<I", changed, central + 24, 0xFFFFFFF0)  # says that it unpacks to 4 GiB
    path.write_bytes(changed)
    with pytest.raises(SpikedistillError, match=r"its .* bytes unpack to 4,294,967,280; at most"):
        read_npz(path)


def test_an_archive_that_unpacks_beyond_what_it_says(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", "x.npy", npy((1 << 20,), body=b"\0" * (8 << 20)), zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    central = raw.find(b"PK\1\2")
    content = npy((1,), body=b"\0" * 8)
    # the directory says 8 bytes, the stream holds 8 MiB
    struct.pack_into("<I", raw, central + 24, len(content))
    path.write_bytes(raw)
    with pytest.raises(SpikedistillError, match="cannot read"):
        read_npz(path)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_images_that_are_too_large(tmp_path: Path) -> None:
    start = time.monotonic()
    for width, height in ((60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (0, 5)):
        (tmp_path / "a.png").write_bytes(png(width, height))
        with pytest.raises(SpikedistillError, match=r"cannot read .*a\.png"):
            decode(tmp_path / "a.png")
    assert time.monotonic() - start < 5
    from PIL import Image

    Image.new("RGB", (60_000, 1)).save(tmp_path / "long.png")
    with pytest.raises(SpikedistillError, match="60000 x 1 pixels cannot be brought to"):
        Files([tmp_path / "long.png"], (224, 224)).image(tmp_path / "long.png")


def test_names_of_images_do_not_choose_programs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(SpikedistillError, match="no image"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize(
    "change,words",
    [
        ({"audio": np.zeros(20)}, None),
        ({"audio": np.full(20, 0.5)}, "not whole"),
        ({"audio": np.full(20, 40_000)}, "allowed are -32768 to 32767"),
        ({"audio": np.zeros((20, 2), np.int16)}, "audio: found int16 of shape"),
        ({"off": np.asarray(3)}, "off: found"),
        ({"rate": np.asarray(2**40)}, "a rate of 1099511627776 Hz"),
        ({"rate": np.asarray("fast")}, "rate: found"),
        ({"rate": np.asarray(0)}, "a rate of 0 Hz"),
        ({"label": np.asarray(["a", "b"])}, "no whole numbers"),
    ],
)
def test_columns_of_sound_are_checked(change: Any, words: str | None, tmp_path: Path) -> None:
    z = {
        "audio": np.zeros(20, np.int16),
        "off": np.asarray([0, 10, 20]),
        "label": np.asarray([0, 1]),
        "rate": np.asarray(8000),
    }
    np.savez(tmp_path / "a.npz", **{**z, **change})
    config = DataConfig(name="audio", train=tmp_path / "a.npz", test=tmp_path / "a.npz", validation=0.0)
    if words is None:
        assert data.open(config).info.sizes["train"] == 2
        return
    with pytest.raises(SpikedistillError, match=words):
        data.open(config)


def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path) -> None:
    write_bin(tmp_path / "a.bin", some(50, 34, 34))
    recordings = EventFiles([tmp_path / "a.bin"], (34, 34), read_bin, FramesConfig())
    first = framed(recordings, 2, FramesConfig()).digest()
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    again = framed(recordings, 2, FramesConfig())
    assert again.digest() == first
    assert bin_events(read_bin(tmp_path / "a.bin"), 2, (34, 34), FramesConfig()).sum() == 50


def test_times_near_the_end_of_64_bits(tmp_path: Path) -> None:
    write_aedat3(tmp_path / "a.aedat", some(10, 9, 9), overflow=2**31 - 1)
    e = read_aedat3(tmp_path / "a.aedat")
    assert (e.t > 2**61).all()
    assert bin_events(e, 7, (9, 9), FramesConfig()).sum() == 10
    far = Events(np.asarray([0, 2**61]), *[np.zeros(2, np.int64)] * 3)
    with pytest.raises(SpikedistillError, match="days"):
        bin_events(far, 7, (9, 9), FramesConfig())


@pytest.mark.parametrize("far", [1 << 62, (1 << 63) - 1])
def test_times_whose_difference_needs_more_than_64_bits(far: int, tmp_path: Path) -> None:
    item = {"t": [-far, far], "x": [0, 1], "y": [0, 1], "p": [0, 1]}
    config = FramesConfig(duration=1000)
    for frames in (FramesConfig(), config):
        with pytest.raises(SpikedistillError, match="days"):
            bin_events(Events(*(np.asarray(item[key], np.int64) for key in "txyp")), 2, (4, 4), frames)
    with pytest.raises(SpikedistillError, match=r"days|allowed are"):
        data.from_events([(item, 0)] * 4, [(item, 0)] * 4, (4, 4))
    columns = {key: np.asarray(item[key] * 4, np.int64) for key in "txyp"}
    off, label = np.arange(5) * 2, np.asarray([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", **columns, off=off, label=label, sensor_size=np.asarray([4, 4]))
    with pytest.raises(SpikedistillError, match=r"a\.npz, sample 0: .* days"):
        data.open(DataConfig(name="events", train=tmp_path / "a.npz", test=tmp_path / "a.npz"))


def test_a_list_of_trials_without_a_trial_is_refused(tmp_path: Path) -> None:
    for role in ("train", "test"):
        (tmp_path / f"trials_to_{role}.txt").write_text("")
    with pytest.raises(SpikedistillError, match="'dvsgesture' has no samples in its train part"):
        data.open(DataConfig(name="dvsgesture", root=tmp_path, validation=0.0))
