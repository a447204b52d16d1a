"""What a recipe may say about data: typed, unknown keys refused."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from ..typed import Strict


def _pair(value: Any) -> Any:
    """``48`` means ``(48, 48)``."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _odd(value: int) -> int:
    """0, or the side of a square that has a middle."""
    if value and value % 2 == 0:
        raise ValueError(f"must be odd (or 0: none), found {value}")
    return value


Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]
Probability = Annotated[float, Field(ge=0, le=1)]
Polarity = Literal["two", "merged"]


class FramesConfig(Strict):
    """How events become frames.

    ``number`` frames a sample (default: the least common multiple of all time steps of the recipe). They are
    cut at equal times between the first and the last event (``split_by: time``), at equal numbers of events
    (``number``), or every ``duration`` microseconds from the first event (later events are dropped, missing
    frames stay empty). ``size`` (H, W): ``resize: sum`` moves every event to its place on the smaller sensor,
    so that none is lost; ``nearest`` keeps one pixel of each cell, as interpolating a frame does. ``polarity:
    merged`` makes one channel. ``limit``: the largest count of a pixel in one of these frames; what is above
    is cut (pixels and recordings with far more events than others).
    """

    number: PositiveInt | None = None
    split_by: Literal["time", "number"] = "time"
    duration: PositiveInt | None = None
    size: Size | None = None
    resize: Literal["sum", "nearest"] = "sum"
    polarity: Polarity = "two"
    limit: PositiveInt | None = None
    cache: Path | None = None


class AudioConfig(Strict):
    """How a recording becomes an image ``(N, 1, mels or coefficients, columns)`` or frames.

    ``seconds`` of sound at ``rate`` Hz (default: the rate of the data), windows of ``window_ms`` every
    ``hop_ms``. ``feature: mfcc`` keeps the first ``coefficients`` of the cosine transform of the ``mels`` log
    bands. ``output: frames`` cuts the columns into as many steps as the recipe asks, as integer levels
    0..127.
    """

    feature: Literal["logmel", "mfcc"] = "logmel"
    rate: PositiveInt | None = None
    seconds: Annotated[float, Field(gt=0)] = 1.0
    mels: PositiveInt = 32
    coefficients: PositiveInt = 10
    window_ms: Annotated[float, Field(gt=0)] = 32.0
    hop_ms: Annotated[float, Field(gt=0)] = 16.0
    low_hz: NonNegativeFloat = 20.0
    high_hz: Annotated[float, Field(gt=0)] | None = None
    output: Literal["image", "frames"] = "image"


class RandAugmentConfig(Strict):
    """torchvision's RandAugment: ``n`` operations of magnitude ``m`` (of 30)."""

    n: PositiveInt = 2
    m: NonNegativeInt = 9


class EventAugmentConfig(Strict):
    """Augmentations of event frames, one draw per sample, the same for all of its frames.

    Each is drawn uniformly from -value..value: ``roll`` pixels in both directions, ``rotate`` degrees,
    ``shear`` degrees along x; ``cutout`` is the largest side of an empty square; ``flip`` is horizontal,
    probability 1/2. ``pick: one`` applies one of those given (flip always has its own coin); ``all`` applies
    each.
    """

    roll: NonNegativeInt = 0
    rotate: NonNegativeFloat = 0.0
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    cutout: NonNegativeInt = 0
    flip: bool = False
    pick: Literal["one", "all"] = "one"
    nda: bool = False


class AudioAugmentConfig(Strict):
    """Augmentations of sound: ``shift_ms`` either way; ``noise``: largest amplitude, of the largest value."""

    shift_ms: NonNegativeFloat = 0.0
    noise: NonNegativeFloat = 0.0


class AugmentConfig(Strict):
    """Augmentations of training images (event frames: ``events``; sound: ``audio``).

    Nothing is on by itself, but what a data set's name brings (:func:`augmentation`).

    ``crop``: padding in pixels before a random crop of the old size; ``resized_crop``: smallest and largest
    part of the area; ``cutout``: side of the empty square; ``erasing``: probability of a rectangle of noise,
    or of the training images' mean colour (``erasing_fill: mean``); ``mixup``, ``cutmix``: alpha of the Beta
    distribution (both: one of them at random), with ``mix_probability`` a batch, until epoch ``mix_until``.
    ``randaugment``: ``rand-m9-mstd0.5-inc1`` (timm's words) or ``{n: 2, m: 9}`` (torchvision's).
    ``centre_crop``: part of the side that remains of a test image after resizing (folders of large images).
    ``rotate``: largest angle in degrees, either way; ``vertical_flip``: probability 1/2; ``brightness``,
    ``contrast``: b, for a factor from 1 - b to 1 + b; ``sharpness``: a factor (1: none), with probability
    1/2; ``blur``: side in pixels, odd, of a Gaussian whose deviation is 0.1 to 2 pixels.
    """

    crop: NonNegativeInt = 0
    crop_fill: Literal["zero", "reflect"] = "zero"
    flip: bool = False
    resized_crop: tuple[Probability, Probability] | None = None
    autoaugment: Literal["cifar10", "imagenet", "svhn"] | None = None
    randaugment: str | RandAugmentConfig | None = None
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    vertical_flip: bool = False
    brightness: Probability = 0.0
    contrast: Probability = 0.0
    sharpness: NonNegativeFloat = 1.0
    blur: Annotated[NonNegativeInt, AfterValidator(_odd)] = 0
    cutout: NonNegativeInt = 0
    erasing: Probability = 0.0
    erasing_fill: Literal["noise", "mean"] = "noise"
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    mix_probability: Probability = 1.0
    mix_until: PositiveInt | None = None
    centre_crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    events: EventAugmentConfig = EventAugmentConfig()
    audio: AudioAugmentConfig = AudioAugmentConfig()


class DataConfig(Strict):
    """The ``data`` part of a recipe.

    ``name``: one of :data:`spikedistill.data.NAMES`; ``root``: the data set's folder, or a folder that holds
    ``NAME.npz``; ``train``, ``test``: files instead. ``validation``: part of the training samples (or their
    number) set aside, the same for every seed, by whole ``group`` s where given; a set that brings its own
    validation part uses it. ``train_samples``: only so many of the remaining training samples (or such a part
    of them), stratified, the same for every seed: for work with few labels. ``test_from_train``: so many
    training samples join the test part. ``size``: images are resized to it. ``mean``, ``std``: instead of the
    training images' own, per channel, of values in [0, 1]. ``name`` may be ``module:function`` too, which
    ``options`` are given to.
    """

    name: str = "digits"
    options: dict[str, Any] = {}
    root: Path | None = None
    train: Path | None = None
    test: Path | None = None
    download: bool = False
    # 1 is one sample, never all of them: a part is below 1.
    validation: Annotated[float, Field(ge=0, lt=1)] | PositiveInt = 0.1
    group: str | None = None
    train_samples: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = None
    test_from_train: PositiveInt | None = None
    batch_size: PositiveInt = 128
    workers: NonNegativeInt = 0
    size: Size | None = None
    classes: Literal[12, 35] = 35
    frames: FramesConfig | None = None
    audio: AudioConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None


_CIFAR: dict[str, Any] = {"crop": 4, "flip": True}
_EVENTS: dict[str, Any] = {}
# Crop and flip: every paper on these sets has them, no set more by default. Digits, letters must not flip.
DEFAULT_AUGMENTATION: dict[str, dict[str, Any]] = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "tinyimagenet": {"crop": 8, "flip": True},
    "tinyimagenet10": {"crop": 8, "flip": True},
    "imagenet": {"resized_crop": (0.08, 1.0), "flip": True},
    "mnist": {"crop": 2},
    "fashion-mnist": {"crop": 2, "flip": True},
}


def augmentation(config: DataConfig) -> AugmentConfig:
    """The augmentation in force: what the data set's name brings, with the user's own words over it."""
    default = DEFAULT_AUGMENTATION.get(config.name, {})
    # Only what was written: other defaults of AugmentConfig would undo what the name brings.
    given = {key: getattr(config.augment, key) for key in config.augment.model_fields_set}
    return AugmentConfig(**{**default, **given})
