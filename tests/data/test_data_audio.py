import math
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from spikedistill import data
from spikedistill.data import AudioConfig, AugmentConfig, DataConfig
from spikedistill.data.audio import FLOOR, Features, cosine_transform, disturb, mel_filters
from spikedistill.data.audio_sets import fit, read_wav
from spikedistill.data.config import AudioAugmentConfig
from spikedistill.errors import SpikedistillError


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def tone(hertz: float, samples: int = 8000, rate: int = 8000, amplitude: float = 0.5) -> torch.Tensor:
    return (
        amplitude * torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate).float()
    )


def test_cosine_transform_is_orthonormal_and_scipys() -> None:
    matrix = cosine_transform(24, 24)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(24), atol=1e-5, rtol=0)
    fft = pytest.importorskip("scipy.fft")
    x = np.random.default_rng(0).normal(size=(24, 5))
    np.testing.assert_allclose(
        cosine_transform(24, 10).numpy() @ x, fft.dct(x, axis=0, norm="ortho")[:10], atol=1e-5
    )


def test_mel_filters_are_triangles_that_sum_to_one_between_the_outer_tops() -> None:
    filters = mel_filters(20, 2049, 16000, 100.0, 7000.0)
    tops = filters.argmax(1)
    assert (tops.diff() > 0).all()
    inside = filters[:, tops[0] + 1 : tops[-1]]
    torch.testing.assert_close(inside.sum(0), torch.ones(inside.shape[1]), atol=1e-5, rtol=0)
    hertz = torch.arange(2049) * 8000 / 2048
    assert filters[:, (hertz < 100) | (hertz > 7000)].abs().max() == 0
    mels = 2595 * torch.log10(1 + hertz[tops] / 700)
    assert mels.diff().std() < 0.05 * mels.diff().mean()


def test_mel_filters_are_torchaudios() -> None:
    try:
        from torchaudio.functional import melscale_fbanks
    except Exception:
        pytest.skip("torchaudio does not load")
    theirs = melscale_fbanks(257, 20.0, 8000.0, 40, 16000, norm=None, mel_scale="htk")
    torch.testing.assert_close(mel_filters(40, 257, 16000, 20.0, 8000.0), theirs.T, atol=1e-4, rtol=0)


def test_a_tone_lights_its_band_with_its_power() -> None:
    # 256 samples at 8 kHz: bins of 31.25 Hz; a Hann window of a bin's tone has power (A/2 * sum(w))^2 in that
    # bin
    features = Features(AudioConfig(mels=16), 8000)
    hertz = 31.25 * 32
    out = features(tone(hertz)[None])
    assert out.shape == (1, 16, 61)
    assert int(out[0, :, 30].argmax()) == int(features.filters[:, 32].argmax())
    peak = (0.5 / 2 * torch.hann_window(256).sum()) ** 2
    side = peak / 4  # Hann leaks half the amplitude into each neighbour
    expected = features.filters[:, 32] * peak + (features.filters[:, 31] + features.filters[:, 33]) * side
    band = int(out[0, :, 30].argmax())
    assert abs(float(out[0, band, 30] - expected[band].log())) < 1e-3


def test_windows_are_counted_without_padding_and_stand_where_they_say() -> None:
    config = AudioConfig(window_ms=40, hop_ms=20, rate=16000, feature="mfcc")
    features = Features(config, 16000)
    assert (features.columns, features.rows) == (49, 10)
    click = torch.zeros(1, 16000)
    click[0, 20 * 320 + 320] = 1  # the middle of window 20
    out = Features(AudioConfig(window_ms=40, hop_ms=20), 16000)(click)[0]
    lit = (out > math.log(FLOOR) + 1).any(0).nonzero().flatten().tolist()
    assert lit == [20]  # the neighbours' Hann windows are zero there


def test_mfcc_is_the_transform_of_log_mel() -> None:
    x = torch.randn(2, 8000) * 0.1
    log_mel = Features(AudioConfig(mels=24), 8000)(x)
    mfcc = Features(AudioConfig(mels=24, feature="mfcc", coefficients=12), 8000)(x)
    torch.testing.assert_close(mfcc, torch.einsum("cm,nmt->nct", cosine_transform(24, 12), log_mel))


def test_shift_moves_whole_recordings_and_silence_enters() -> None:
    x = torch.arange(1.0, 101.0).expand(200, 100)
    out = disturb(x, 1000, AudioAugmentConfig(shift_ms=10))
    moves = set()
    for row in out:
        first = int((row != 0).nonzero()[0])
        late = first if first else 1 - int(row[0])
        expected = torch.zeros(100)
        expected[max(late, 0) : 100 + min(late, 0)] = x[0, max(-late, 0) : 100 - max(late, 0)]
        assert torch.equal(row, expected)
        moves.add(late)
    assert min(moves) >= -10
    assert max(moves) <= 10
    assert len(moves) > 15


def test_noise_is_in_proportion_to_the_loudest_sample() -> None:
    x = tone(440.0)[None].expand(50, -1)
    noise = disturb(x, 8000, AudioAugmentConfig(noise=0.1)) - x
    level = noise.std(1)
    assert level.max() < 0.1 * 0.5 * 1.1
    assert level.min() < 0.02
    assert noise.mean().abs() < 1e-3


@pytest.mark.parametrize("width,kind,scale", [(2, "<i2", 1), (4, "<i4", 65536)])
def test_wav_files_of_every_width(tmp_path: Path, width: int, kind: str, scale: int) -> None:
    samples = np.asarray([0, 1, -1, 300, -32768, 32767], np.int64)
    write_wav(tmp_path / "a.wav", (samples * scale).astype(kind), width=width)
    found, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000
    assert found.tolist() == samples.tolist()


def test_eight_and_24_bits_and_two_channels(tmp_path: Path) -> None:
    write_wav(tmp_path / "8.wav", np.asarray([0, 128, 255], np.uint8), width=1)
    assert read_wav(tmp_path / "8.wav")[0].tolist() == [-32768, 0, 127 * 256]
    values = np.asarray([-32768, -1, 0, 32767], "<i4") * 256
    three = values.view(np.uint8).reshape(-1, 4)[:, :3].copy()
    write_wav(tmp_path / "24.wav", three, width=3)
    assert read_wav(tmp_path / "24.wav")[0].tolist() == [-32768, -1, 0, 32767]
    write_wav(tmp_path / "2.wav", np.asarray([[100, 300], [-100, 100]], "<i2"), channels=2)
    assert read_wav(tmp_path / "2.wav")[0].tolist() == [200, 0]


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_cut_wav_files_are_named(tmp_path: Path, keep: int) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(100, "<i2"))
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:keep])
    with pytest.raises(SpikedistillError, match=r"a\.wav.*cut short"):
        read_wav(tmp_path / "a.wav")


def test_recordings_are_centred() -> None:
    assert fit(np.asarray([1, 2]), 5).tolist() == [0, 1, 2, 0, 0]
    assert fit(np.asarray([1, 2, 3, 4, 5]), 3).tolist() == [2, 3, 4]


def pack(path: Path, n: int) -> None:
    waves = [(tone(200.0 + 300 * (i % 3)) * 30000).short().numpy()[: 6000 + 10 * i] for i in range(n)]
    off = np.cumsum([0, *map(len, waves)])
    label = np.arange(n) % 3
    np.savez(path, audio=np.concatenate(waves), off=off, label=label, rate=8000, speaker=np.arange(n) // 6)


def test_packed_sound_becomes_images_or_frames(tmp_path: Path) -> None:
    pack(tmp_path / "a.npz", 30)
    pack(tmp_path / "b.npz", 6)
    config = DataConfig(name="audio", train=tmp_path / "a.npz", test=tmp_path / "b.npz", validation=0.2)
    d = data.open(config)
    assert (d.info.input, d.info.in_channels, d.info.size, d.info.num_classes) == ("image", 1, (32, 61), 3)
    x, _ = next(d.batches("train", 24))
    assert x.min() == 0
    assert x.max() == 1
    torch.testing.assert_close(x * 255, (x * 255).round(), atol=1e-4, rtol=0)
    by_speaker = data.open(config.model_copy(update={"group": "speaker"}))
    assert by_speaker.info.sizes == {"train": 24, "validation": 6, "test": 6}
    frames = data.open(config.model_copy(update={"audio": AudioConfig(output="frames")}), (2, 4))
    assert (frames.info.frames, frames.info.in_channels, frames.info.size) == (4, 1, (32, 15))
    steps, _ = next(frames.batches("train", 24))
    assert steps.shape == (24, 4, 1, 32, 15)
    joined = steps.permute(0, 2, 3, 1, 4).reshape(24, 1, 32, 60)
    torch.testing.assert_close(joined / 127, x[..., :60], atol=0.006, rtol=0)
    assert torch.equal(steps, steps.round())


def test_training_sound_is_disturbed_and_test_sound_is_not(tmp_path: Path) -> None:
    pack(tmp_path / "a.npz", 12)
    words = AugmentConfig(audio=AudioAugmentConfig(shift_ms=100, noise=0.1))
    d = data.open(DataConfig(name="audio", train=tmp_path / "a.npz", test=tmp_path / "a.npz", augment=words))
    assert torch.equal(next(d.batches("test", 12))[0], next(d.batches("test", 12))[0])
    first, second = next(d.batches("train", 4, train=True))[0], next(d.batches("train", 4, train=True))[0]
    assert not torch.equal(first, second)


def test_settings_that_fit_no_sound_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.npz", 6)
    config = DataConfig(name="audio", train=tmp_path / "a.npz", test=tmp_path / "a.npz")
    for audio, words in (
        (AudioConfig(seconds=0.01), "do not give 1 columns"),
        (AudioConfig(high_hz=6000.0), "allowed are 0 to 4000"),
        (AudioConfig(feature="mfcc", mels=8), "10 coefficients of 8 mels"),
        (AudioConfig(rate=16000), "recordings have 8000 Hz"),
    ):
        with pytest.raises(SpikedistillError, match=words):
            data.open(config.model_copy(update={"audio": audio}))


def test_folders_of_wav_files(tmp_path: Path) -> None:
    for word in ("go", "stop"):
        for i in range(10):
            write_wav(tmp_path / "w" / word / f"{i}.wav", np.full(4000, 100 * i, "<i2"))
    d = data.open(DataConfig(name="wavfolder", root=tmp_path / "w", validation=0.0))
    assert d.info.sizes == {"train": 18, "validation": 0, "test": 2}
    assert d.info.class_names == ("go", "stop")
    write_wav(tmp_path / "w" / "go" / "odd.wav", np.full(4000, 1, "<i2"), rate=44100)
    with pytest.raises(SpikedistillError, match=r"odd\.wav: rate differs"):
        data.open(DataConfig(name="wavfolder", root=tmp_path / "w", validation=0.0))


def test_a_part_without_recordings_is_refused(tmp_path: Path) -> None:
    for word in ("go", "stop"):
        for i in range(4):
            write_wav(tmp_path / "split" / "train" / word / f"{i}.wav", np.full(4000, 1, "<i2"))
        for i in range(2):
            write_wav(tmp_path / "few" / word / f"{i}.wav", np.full(4000, 1, "<i2"))
    write_wav(tmp_path / "split" / "test" / "left" / "0.wav", np.full(4000, 1, "<i2"))
    for k in range(10):
        write_wav(tmp_path / "lone" / str(k) / "0.wav", np.full(4000, 1, "<i2"))
    for name, words in (
        ("split", "split: no recordings in the test part of 'wavfolder'; give .wav files of the training"),
        ("few", "few: no recordings in the test part of 'wavfolder'; .* 6 files or more"),
        ("lone", "lone: no training recordings of class '0' .* give more"),
    ):
        with pytest.raises(SpikedistillError, match=words):
            data.open(DataConfig(name="wavfolder", root=tmp_path / name, validation=0.0))


@pytest.mark.parametrize("classes", [12, 35])
def test_a_list_of_speech_commands_that_names_none_is_refused(tmp_path: Path, classes: int) -> None:
    for word in ("go", "stop"):
        for i in range(3):
            write_wav(tmp_path / word / f"{i}.wav", np.full(8000, 1, "<i2"))
    config = DataConfig(name="speechcommands", root=tmp_path, classes=classes)
    every = [f"{word}/{i}.wav" for word in ("go", "stop") for i in range(3)]
    for validation, testing, role in (
        ([], every[:1], "validation"),
        (every[:1], [], "test"),
        (every[:3], every[3:], "train"),
    ):
        (tmp_path / "validation_list.txt").write_text("\n".join(validation))
        (tmp_path / "testing_list.txt").write_text("\n".join(testing))
        with pytest.raises(SpikedistillError, match=f"no recordings in the {role} part of 'speechcommands'"):
            data.open(config)


def test_speech_commands_follow_the_official_lists(tmp_path: Path) -> None:
    words = ["bed", "cat", "down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"]
    lists: dict[str, list[str]] = {"validation": [], "testing": []}
    for k, word in enumerate(words):
        for i in range(6):
            write_wav(tmp_path / word / f"{i}_nohash_0.wav", np.full(8000, 10 * k + i, "<i2"))
        lists["validation"].append(f"{word}/1_nohash_0.wav")
        lists["testing"].append(f"{word}/4_nohash_0.wav")
    for name, rows in lists.items():
        (tmp_path / f"{name}_list.txt").write_text("\n".join(rows) + "\n")
    write_wav(tmp_path / "_background_noise_" / "pink.wav", np.arange(30000, dtype="<i2"))
    config = DataConfig(name="speechcommands", root=tmp_path)
    d = data.open(config)
    assert d.info.sizes == {"train": 48, "validation": 12, "test": 12}
    assert d.info.class_names == tuple(words)
    part, rows = d.splits["test"].pieces[0]
    first = part.store.memory.data[rows][:, 0].tolist()  # type: ignore[attr-defined]
    assert first == [10 * k + 4 for k in range(12)]
    assert d.labels("test").tolist() == list(range(12))
    twelve = data.open(config.model_copy(update={"classes": 12}))
    assert twelve.info.class_names[-2:] == ("unknown", "silence")
    assert twelve.labels("train").bincount().tolist() == [4] * 12
    (tmp_path / "up" / "4_nohash_0.wav").unlink()
    with pytest.raises(SpikedistillError, match=r"up/4_nohash_0\.wav stands in the test list but is no file"):
        data.open(config)


@pytest.mark.data
def test_real_digits_can_be_told_apart(shared_data: Path) -> None:
    d = data.open(DataConfig(name="fsdd", root=shared_data, validation=0.0))
    assert d.info.sizes == {"train": 1200, "validation": 0, "test": 300}
    from sklearn.linear_model import RidgeClassifier

    x, y = next(d.batches("train", 1200))
    xt, yt = next(d.batches("test", 300))
    score = RidgeClassifier(100.0).fit(x.flatten(1), y).score(xt.flatten(1), yt)
    assert score > 0.85  # chance is 0.1
