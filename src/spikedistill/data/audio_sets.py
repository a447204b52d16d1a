"""Sets of recordings: our .npz, a folder of WAV files per class, Speech Commands."""

import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SpikedistillError
from ..reading import read_text
from . import arrays, splits
from .audio import LEVELS, Features, disturb, ranges
from .config import AudioAugmentConfig, AudioConfig, DataConfig, augmentation
from .stores import Labels, Memory, Part, Source

RANGE_SAMPLES = 2000


@dataclass
class Waves:
    """Recordings of one length in memory as 16-bit samples; features are made by batch, on the device.

    Features become whole steps of 1/255 in [0, 1], as an image's, or integers 0..127 in frames.
    """

    memory: Memory
    features: Features
    low: Tensor
    high: Tensor
    frames: int | None = None
    disturbance: AudioAugmentConfig = field(default_factory=AudioAugmentConfig)
    streams: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, rows, columns), or (F, 1, rows, columns / F)."""
        rows, columns = self.features.rows, self.features.columns
        return (self.frames, 1, rows, columns // self.frames) if self.frames else (1, rows, columns)

    def __len__(self) -> int:
        return len(self.memory)

    def take(self, index: Tensor, device: torch.device, train: bool = False) -> Tensor:
        """Features of the recordings; ``train`` shifts them and adds noise first."""
        sound = self.memory.take(index, device).float().div_(32768)
        if train:
            sound = disturb(sound, self.features.rate, self.disturbance)
        low, high = self.low.to(device), self.high.to(device)
        # Clamped: the range leaves the outer 1 % out, and new recordings may be louder.
        part = ((self.features(sound) - low) / (high - low)).clamp_(0, 1)
        if self.frames is None:
            # The 256 levels in which a quantized network reads images: a float one is to see the same.
            return (part * 255).round().div(255)[:, None]
        n, rows, columns = part.shape
        steps = (part * LEVELS).round().view(n, rows, self.frames, columns // self.frames)
        return steps.transpose(1, 2)[:, :, None]

    def digest(self) -> str:
        """sha256 of the samples."""
        return self.memory.digest()


def read_wav(path: Path) -> tuple[NDArray[np.int16], int]:
    """(samples, rate) of a WAV file of 8, 16, 24 or 32 bits; channels are averaged. A cut file is refused."""
    if not path.exists():
        raise SpikedistillError(f"no file {path}")
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate, promised = (
                file.getsampwidth(),
                file.getnchannels(),
                file.getframerate(),
                file.getnframes(),
            )
            body = file.readframes(promised)
    except Exception as error:  # the wave module raises whatever a forged header leads it to
        raise SpikedistillError(
            f"cannot read {path}: cut short or no PCM WAV file ({arrays.short(error)})"
        ) from error
    if width > 4:
        raise SpikedistillError(f"{path}: samples of {8 * width} bits; 8, 16, 24 and 32 are read")
    _rate(rate, str(path))
    # readframes gives what there is of a cut file, without a word.
    if promised == 0 or len(body) != promised * width * channels:
        raise SpikedistillError(
            f"{path}: {len(body)} of {promised * width * channels} bytes of sound: empty or cut short"
        )
    if width == 1:
        # In WAV files 8 bits alone have no sign.
        samples = (np.frombuffer(body, np.uint8).astype(np.int32) - 128) << 8
    elif width == 3:  # the two upper bytes of three
        samples = np.frombuffer(np.frombuffer(body, np.uint8).reshape(-1, 3)[:, 1:].tobytes(), "<i2").astype(
            np.int32
        )
    else:
        samples = np.frombuffer(body, f"<i{width}").astype(np.int64) >> (8 * (width - 2))
    # Summed wider than 16 bits: two loud channels would wrap around.
    return (samples.reshape(-1, channels).sum(1) // channels).astype(np.int16), rate


def _rate(rate: int, where: str) -> int:
    """A rate in Hz that sound can have: a forged one would ask for gigabytes of silence."""
    if not 100 <= rate <= 1_000_000:
        raise SpikedistillError(f"{where}: a rate of {rate} Hz; allowed are 100 to 1000000")
    return rate


def fit(samples: NDArray[Any], length: int) -> NDArray[np.int16]:
    """The recording in ``length`` samples: silence is added at both ends, or both ends are cut."""
    out = np.zeros(length, np.int16)
    n = len(samples)
    if n >= length:
        return np.ascontiguousarray(samples[(n - length) // 2 :][:length], dtype=np.int16)
    out[(length - n) // 2 :][:n] = samples
    return out


def source(
    name: str,
    parts: dict[str, tuple[Sequence[NDArray[np.int16]], Labels, Any]],
    rate: int,
    class_names: tuple[str, ...],
    config: DataConfig,
    steps: int,
) -> Source:
    """A data set from recordings of one rate; the features' range is that of training recordings."""
    audio = config.audio or AudioConfig()
    if audio.rate is not None and audio.rate != rate:
        raise SpikedistillError(
            f"data.audio.rate: {audio.rate}, but the recordings have {rate} Hz; resample them first"
        )
    frames = steps if audio.output == "frames" else None
    features = Features(audio, rate, frames or 1)
    disturbance = augmentation(config).audio
    packed = {
        role: torch.from_numpy(np.stack([fit(samples, features.samples) for samples in recordings]))
        for role, (recordings, _, _) in parts.items()
    }
    # Mixed: the first recordings of a sorted set would be those of few classes.
    some = torch.from_numpy(splits.order(len(packed["train"]), 3)[:RANGE_SAMPLES])
    low, high = ranges(features, packed["train"][some].float() / 32768)
    made = {
        role: Part(
            Waves(Memory(data), features, low, high, frames, disturbance), parts[role][1], parts[role][2]
        )
        for role, data in packed.items()
    }
    kind = "frames" if frames else "image"
    return Source(name, made["train"], made["test"], class_names, kind, made.get("validation"))


def npz_audio(config: DataConfig, steps: int) -> Source:
    """``train`` and ``test`` .npz (or ``NAME_*.npz`` in ``root``): audio, off, label, rate."""
    train, test = config.train, config.test
    if config.root is not None and train is None:
        train, test = (config.root / f"{config.name}_{role}.npz" for role in ("train", "test"))
    if train is None or test is None:
        raise SpikedistillError(f"data set {config.name!r} needs data.train and data.test, two .npz files")
    parts: dict[str, tuple[Sequence[NDArray[np.int16]], Labels, Any]] = {}
    rates, words = set(), None
    for role, path in (("train", train), ("test", test)):
        z = arrays.read_npz(path)
        missing = [key for key in ("audio", "off", "label", "rate") if key not in z]
        if missing:
            raise SpikedistillError(f"{path}: no {', '.join(missing)} in it; found {sorted(z)}")
        sound = arrays.whole(z["audio"], f"{path}, audio", -(1 << 15), (1 << 15) - 1).astype(np.int16)
        off = arrays.whole(z["off"], f"{path}, off")
        # Strictly: an empty recording would pass for silence.
        if len(off) < 2 or off[0] != 0 or off[-1] != len(sound) or (np.diff(off) <= 0).any():
            raise SpikedistillError(f"{path}: off must rise from 0 to the number of samples, {len(sound)}")
        recordings = [sound[a:b] for a, b in pairwise(off)]
        groups = None
        if config.group is not None and role == "train":
            if config.group not in z or z[config.group].shape != (len(recordings),):
                raise SpikedistillError(
                    f"data.group: no {config.group!r} with one entry a recording in {path}"
                )
            groups = arrays.grouped(z[config.group], f"{path}, {config.group}")
        parts[role] = (recordings, arrays.labels(z["label"], len(recordings), f"{path}, label"), groups)
        rate = arrays.whole(z["rate"].reshape(-1), f"{path}, rate")
        if len(rate) != 1:
            raise SpikedistillError(f"{path}, rate: one number in Hz is needed, found {len(rate)}")
        rates.add(_rate(int(rate[0]), f"{path}, rate"))
        words = z.get("names") if words is None else words
    if len(rates) > 1:
        raise SpikedistillError(f"{train} and {test} differ in rate: {sorted(rates)}")
    class_names = arrays.names(words, [p[1] for p in parts.values()], str(train))
    return source(config.name, parts, rates.pop(), class_names, config, steps)


NEEDS = {
    "wavfolder": "give .wav files of the training classes there; without folders train and test give 6 files "
    "or more, of which a tenth is the test part",
    "speechcommands": "testing_list.txt and validation_list.txt have to name some each, and leave some",
}


def _recordings(paths: Sequence[Path], role: str, config: DataConfig) -> tuple[list[NDArray[np.int16]], int]:
    if not paths:
        raise SpikedistillError(
            f"{config.root}: no recordings in the {role} part of {config.name!r}; {NEEDS[config.name]}"
        )
    found = [read_wav(path) for path in paths]
    rates = {rate for _, rate in found}
    if len(rates) > 1:
        odd = next(path for path, (_, rate) in zip(paths, found) if rate != found[0][1])
        raise SpikedistillError(
            f"{odd}: rate differs from {paths[0]}: {sorted(rates)} Hz; resample them first"
        )
    return [samples for samples, _ in found], rates.pop()


def wav_folder(config: DataConfig, steps: int) -> Source:
    """``root``/train/CLASS/*.wav and ``root``/test/CLASS/*.wav, or ``root``/CLASS/*.wav, 10 % for test."""
    if config.root is None:
        raise SpikedistillError(
            "data set 'wavfolder' needs data.root, a folder with one folder of WAV files per class"
        )
    root = config.root
    split = (root / "train").is_dir() and (root / "test").is_dir()
    top = root / "train" if split else root
    words = sorted(sub.name for sub in top.iterdir() if sub.is_dir() and any(sub.glob("*.wav")))
    if not words:
        raise SpikedistillError(f"{top}: no folders of .wav files, one a class")

    def listed(folder: Path) -> tuple[list[Path], Labels]:
        pairs = [(path, k) for k, word in enumerate(words) for path in sorted((folder / word).glob("*.wav"))]
        return [path for path, _ in pairs], np.asarray([k for _, k in pairs], np.int64)

    paths, labels = listed(top)
    if split:
        other, other_labels = listed(root / "test")
        roles = {"train": (paths, labels), "test": (other, other_labels)}
    else:
        # A salt of its own, as every choice has: validation is cut from the rest with salt 0.
        kept, out = splits.hold_out(labels, 0.1, salt=4)
        roles = {
            "train": ([paths[i] for i in kept], labels[kept]),
            "test": ([paths[i] for i in out], labels[out]),
        }
    return _from_wavs(config, steps, roles, tuple(words))


def _from_wavs(
    config: DataConfig, steps: int, roles: dict[str, tuple[list[Path], Labels]], words: tuple[str, ...]
) -> Source:
    parts: dict[str, tuple[Sequence[NDArray[np.int16]], Labels, Any]] = {}
    rate = 0
    for role, (paths, labels) in roles.items():
        empty = np.setdiff1d(np.arange(len(words)), labels)
        if role == "train" and len(paths) and len(empty):
            raise SpikedistillError(
                f"{config.root}: no training recordings of class {words[int(empty[0])]!r} ({len(empty)} such "
                "classes); give more, or take their folders away"
            )
        recordings, found = _recordings(paths, role, config)
        if rate not in (0, found):
            raise SpikedistillError(f"{paths[0]}: {found} Hz, but the training recordings have {rate} Hz")
        rate, parts[role] = found, (recordings, labels, None)
    return source(config.name, parts, rate, words, config, steps)


TWELVE = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


def speech_commands(config: DataConfig, steps: int) -> Source:
    """Speech Commands: WORD/*.wav, validation_list.txt, testing_list.txt; the rest trains.

    35 classes are the words in alphabetical order. 12 classes are ten commands, "unknown" (of the other words
    as many as a command has on average, a fixed choice) and "silence" (as many pieces of _background_noise_,
    where present). Warden, "Speech commands", 2018; the 12-class task from there, the fixed choices are ours.
    """
    root = config.root
    if (
        root is None
        or not (root / "testing_list.txt").exists()
        or not (root / "validation_list.txt").exists()
    ):
        raise SpikedistillError(
            "data set 'speechcommands' needs data.root, the folder with testing_list.txt, validation_list.txt"
        )
    lists = {
        role: set(read_text(root / f"{file}_list.txt").split())
        for role, file in (("validation", "validation"), ("test", "testing"))
    }
    words = sorted(sub.name for sub in root.iterdir() if sub.is_dir() and not sub.name.startswith("_"))
    found = {
        path.relative_to(root).as_posix(): path
        for word in words
        for path in sorted((root / word).glob("*.wav"))
    }
    for role, listed in lists.items():
        lost = sorted(listed - set(found))
        if lost:
            raise SpikedistillError(
                f"{root}: {lost[0]} stands in the {role} list but is no file ({len(lost)} such)"
            )
    members = {**lists, "train": set(found) - lists["validation"] - lists["test"]}
    if config.classes == 35:
        roles = {}
        for role in ("train", "validation", "test"):
            names = sorted(members[role])
            labels = np.asarray([words.index(name.split("/")[0]) for name in names], np.int64)
            roles[role] = ([found[name] for name in names], labels)
        return _from_wavs(config, steps, roles, tuple(words))
    return _twelve(config, steps, root, found, members)


def _twelve(
    config: DataConfig, steps: int, root: Path, found: dict[str, Path], members: dict[str, set[str]]
) -> Source:
    noises = [read_wav(path)[0] for path in sorted(root.glob("_background_noise_/*.wav"))]
    parts: dict[str, tuple[Sequence[NDArray[np.int16]], Labels, Any]] = {}
    rate = 0
    for salt, role in enumerate(("train", "validation", "test")):
        names = sorted(members[role])
        known = [name for name in names if name.split("/")[0] in TWELVE]
        others = [name for name in names if name.split("/")[0] not in TWELVE]
        each = max(round(len(known) / len(TWELVE)), 1)
        # As many as one command has on average: all the other words would outweigh the ten.
        others = [others[i] for i in sorted(splits.order(len(others), salt)[:each])]
        recordings, rate = _recordings([found[name] for name in (*known, *others)], role, config)
        labels = [TWELVE.index(name.split("/")[0]) for name in known] + [len(TWELVE)] * len(others)
        for i in range(each if noises else 0):
            noise = noises[splits.key(salt, i, 0) % len(noises)]
            # max: a noise of a second or less is taken from its start, and `fit` adds silence.
            start = splits.key(salt, i, 1) % max(len(noise) - rate, 1)
            recordings.append(noise[start : start + rate])
            labels.append(len(TWELVE) + 1)
        parts[role] = (recordings, np.asarray(labels, np.int64), None)
    class_names = (*TWELVE, "unknown", *(["silence"] if noises else []))
    return source(config.name, parts, rate, class_names, config, steps)


READERS = {
    "audio": npz_audio,
    "fsdd": npz_audio,
    "wavfolder": wav_folder,
    "speechcommands": speech_commands,
}
