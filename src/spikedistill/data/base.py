"""Data in batches: the one interface that training, calibration and evaluation read."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import SpikedistillError, nearest
from . import augment
from .config import AugmentConfig
from .distort import distort
from .draws import share
from .events_augment import augment_events
from .splits import key, order, scramble
from .stores import Split

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataInfo:
    """What a network, a report and a cache need to know of a data set.

    ``mean``, ``std``: per channel, of the training images in [0, 1] (frames: 0 and 1). ``sizes``: samples per
    split. ``hash``: sha256 of the contents; ``split_hash``: of which sample stands in which split;
    ``split_file``: the shipped list of test files, with its sha256, of a set without an official split.
    """

    name: str
    num_classes: int
    in_channels: int
    size: tuple[int, int]
    input: str
    frames: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    sizes: dict[str, int]
    hash: str
    split_hash: str
    split_file: str | None = None


@dataclass
class Data:
    """A data set with its splits; :func:`spikedistill.data.open` and ``from_arrays`` make it."""

    info: DataInfo
    splits: dict[str, Split]
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = 0

    def labels(self, split: str) -> Tensor:
        """Labels of a split (N,), in the order in which evaluation reads it."""
        return self._split(split).labels

    def num_batches(self, split: str, batch_size: int, train: bool = False) -> int:
        """Batches of one pass; in training the last, partial one is dropped unless it is the only one."""
        n = len(self._split(split))
        return max(n // batch_size, min(n, 1)) if train else -(-n // batch_size)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        epoch: int = 0,
        seed: int = 0,
        train: bool = False,
        scattered: bool = False,
        device: str | torch.device = "cpu",
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over a split, from batch ``start`` on (the earlier ones cost nothing).

        ``train``: shuffled, the order a pure function of (seed, epoch), and augmented; augmentation of whole
        batches draws from torch's global generator when the batch is asked for, what workers do is seeded by
        (seed, epoch, sample). ``scattered``: in one fixed mixed order, for measuring on a few batches: files
        often come sorted by class; with ``train`` augmented as well. ``shard`` (rank, world): every world-th
        sample of each batch, as it is in the whole one: draws are made for all and sliced; no other sample is
        read but partners to mix with.

        Shape: x (N, C, H, W) in [0, 1], or frames (N, F, C, H, W) of counts; y (N,) int64, or (N, K) float
        where mixup or cutmix is on.
        """
        source, where = self._split(split), torch.device(device)
        n = len(source)
        sequence = torch.arange(n)
        if train or scattered:
            sequence = torch.from_numpy(order(n, salt=6) if scattered else shuffle(n, seed, epoch))
        rank, world = shard
        whole = [
            sequence[i * batch_size : (i + 1) * batch_size]
            for i in range(start, self.num_batches(split, batch_size, train and not scattered))
        ]
        # Strided, not in blocks: `draws.share` is told the same rows.
        plan = [(batch, torch.arange(len(batch))[rank::world]) for batch in whole]
        labels, reads = source.labels, self._read(source, plan, where, train, key(seed, epoch))
        for batch, rows in plan:
            # Before the samples are read: sound draws there, and partners to mix with have to draw alike.
            begin, x = torch.get_rng_state(), next(reads)
            y = labels[batch[rows]].to(where)
            if train and world > 1:
                x, y = self._share(source, batch, rows, x, y, epoch, key(seed, epoch), begin)
            elif train:
                x, y = self._augment(x, y, epoch, source.streams)
            elif x.dtype == torch.uint8:
                # Counts that fit bytes are bytes too: only images are scaled.
                x = x.float() if self.info.input == "frames" else x.float().div_(255)
            yield x, y

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            raise SpikedistillError(
                f"no split {name!r} in data set {self.info.name!r}; {nearest(name, self.splits)}"
            )
        return self.splits[name]

    def _read(
        self,
        source: Split,
        plan: list[tuple[Tensor, Tensor]],
        device: torch.device,
        train: bool,
        seed: int,
        workers: int | None = None,
    ) -> Iterator[Tensor]:
        """The samples of each batch (positions) that stand in its rows (int64)."""
        single = train and self.info.input == "image" and _has_policy(self.augment)
        if not (single or source.streams):
            for batch, rows in plan:
                with share(rows, len(batch)):
                    x = source.take(batch[rows], device, train)
                yield x
            return
        samples = _Samples(source, self.augment, train, single, seed)
        own = [batch[rows] for batch, rows in plan]
        loader = torch.utils.data.DataLoader(
            samples,
            batch_sampler=own,  # type: ignore[arg-type]
            num_workers=min(self.workers if workers is None else workers, len(plan)),
            pin_memory=device.type == "cuda",
            # the loader must not draw its workers' seed from the global generator
            generator=torch.Generator(),
        )
        for x in loader:
            yield x.to(device, non_blocking=True)

    def _share(
        self,
        source: Split,
        batch: Tensor,
        rows: Tensor,
        x: Tensor,
        y: Tensor,
        epoch: int,
        seed: int,
        begin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """A process's ``rows`` of an augmented ``batch`` (positions), as they are in the whole one.

        ``begin``: the generator's state before they were read.
        """
        n, config = len(batch), self.augment
        with share(rows, n):
            x = self._alter(x, source.streams)
        if not self._mixes(epoch):
            return x, y
        target = torch.nn.functional.one_hot(y, self.info.num_classes).float()
        size = (x.shape[-2], x.shape[-1])
        # Outside of `share`: the box and the order of partners are one draw for the whole batch.
        plan = augment.mixing(n, size, config.mixup, config.cutmix, config.mix_probability)
        if plan is None:
            return x, target
        partners, end = plan.other[rows], torch.get_rng_state()
        # Partners are read and augmented as their own process does it: the same draws, other rows.
        torch.set_rng_state(begin)
        # No workers: they would be started anew for each batch.
        other = next(self._read(source, [(batch, partners)], x.device, True, seed, workers=0))
        with share(partners, n):
            other = self._alter(other, source.streams)
        # As if the partners had drawn nothing: a single process draws for each sample once.
        torch.set_rng_state(end)
        others = torch.nn.functional.one_hot(
            source.labels[batch[partners]].to(y.device), self.info.num_classes
        ).float()
        return plan(x, other, target, others)

    def _mixes(self, epoch: int) -> bool:
        config = self.augment
        on = config.mix_until is None or epoch < config.mix_until
        return on and bool(config.mixup or config.cutmix)

    def _augment(self, x: Tensor, y: Tensor, epoch: int, streams: bool) -> tuple[Tensor, Tensor]:
        config, x = self.augment, self._alter(x, streams)
        if self._mixes(epoch):
            return augment.mix(
                x, y, self.info.num_classes, config.mixup, config.cutmix, config.mix_probability
            )
        return x, y

    def _alter(self, x: Tensor, streams: bool) -> Tensor:
        """Each image by itself."""
        config = self.augment
        if self.info.input == "frames":
            x = augment_events(x.float(), config.events)
        else:
            # With a policy, samples were moved one by one where they were read, before it.
            if not _has_policy(config):
                x = _move(x, config, streams)
            x = x.float().div_(255) if x.dtype == torch.uint8 else x
            # In [0, 1] from here: distortions are cut to it, and `mean` fills with a colour of it.
            x = distort(x, config)
            if config.cutout:
                x = augment.cutout(x, config.cutout)
            if config.erasing:
                fill = x.new_tensor(self.info.mean) if config.erasing_fill == "mean" else None
                x = augment.erase(x, config.erasing, fill)
        return x


def _has_policy(config: AugmentConfig) -> bool:
    return bool(config.autoaugment or config.randaugment)


def _move(x: Tensor, config: AugmentConfig, streams: bool) -> Tensor:
    if config.resized_crop and not streams:  # files are cropped where they are read, at their full size
        x = augment.resized_crop(x, config.resized_crop)
    if config.crop:
        x = augment.crop(x, config.crop, config.crop_fill)
    return augment.flip(x) if config.flip else x


def shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..n-1 that depends on nothing but (seed, epoch)."""
    positions = np.arange(n, dtype=np.uint64)
    # The 1 keeps the order apart from the draws of samples, which start at key(seed, epoch).
    return np.argsort(scramble(positions ^ np.uint64(key(seed, epoch, 1))), kind="stable").astype(np.int64)


class _Samples(torch.utils.data.Dataset[Tensor]):
    """One sample at a time, for loader workers; each seeds its own draws, so their number changes nothing."""

    def __init__(self, source: Split, config: AugmentConfig, train: bool, single: bool, seed: int) -> None:
        self.source, self.config, self.train, self.seed = source, config, train, seed
        self.policy = augment.policy(config) if single else None

    def __getitem__(self, position: Tensor | int) -> Tensor:
        index = torch.as_tensor([int(position)])
        if not self.train:
            return self.source.take(index, torch.device("cpu"), False)[0]
        with augment.seeded(key(self.seed, int(position))):
            image = self.source.take(index, torch.device("cpu"), True)
            if self.policy is None:
                return image[0]
            image = _move(image, self.config, self.source.streams)
            if image.dtype != torch.uint8:
                # Policies are defined on bytes.
                image = (image * 255).round().clamp(0, 255).to(torch.uint8)
            return self.policy(image[0])

    def __len__(self) -> int:
        return len(self.source)
