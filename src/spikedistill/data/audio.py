"""Sound as log-mel bands or MFCC, by torch.stft alone."""

import math

import torch
from torch import Tensor

from ..errors import SpikedistillError
from .config import AudioAugmentConfig, AudioConfig
from .draws import drawn

FLOOR = 1e-6  # power below which the logarithm is cut: silence stays finite
LEVELS = 127  # frames carry integers, as event counts do; a quantized network's input codes end here


def mel(hertz: Tensor) -> Tensor:
    """The mel scale ``2595 log10(1 + f / 700)`` (O'Shaughnessy, "Speech communication", 1987; HTK's)."""
    return 2595 * torch.log10(1 + hertz / 700)


def mel_filters(bands: int, bins: int, rate: int, low: float, high: float) -> Tensor:
    """Triangles of height 1, equally spaced and half overlapping on the mel scale.

    Filter k rises from edge k to edge k+1 and falls to edge k+2; the edges are ``bands + 2`` points from
    ``low`` to ``high`` Hz; the bins stand at 0 .. rate/2.

    Shape: -> (bands, bins).
    """
    ends = mel(torch.tensor([low, high], dtype=torch.float64))
    steps = torch.linspace(0, 1, bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** ((ends[0] + steps * (ends[1] - ends[0])) / 2595) - 1)
    at = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    rise = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp_min(0).float()


def cosine_transform(bands: int, coefficients: int) -> Tensor:
    """The orthonormal DCT-II matrix, ``D[k, n] = s_k cos(pi k (n + 1/2) / bands)``.

    ``s_0 = sqrt(1 / bands)``, all other ``s_k = sqrt(2 / bands)``.

    Shape: -> (coefficients, bands).
    """
    k = torch.arange(coefficients, dtype=torch.float64)[:, None]
    n = torch.arange(bands, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (n + 0.5) / bands) * math.sqrt(2 / bands)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class Features:
    """Waves to features; holds the tables so that they are made once a device.

    ``columns``: ``1 + (samples - window) // hop`` windows, none padded (1 s, 40 ms every 20 ms: 49).
    """

    def __init__(self, config: AudioConfig, rate: int, multiple: int = 1) -> None:
        self.config, self.rate = config, rate
        self.samples = round(config.seconds * rate)
        self.window, self.hop = round(config.window_ms * rate / 1000), round(config.hop_ms * rate / 1000)
        self.columns = 1 + (self.samples - self.window) // self.hop if self.samples >= self.window else 0
        # Frames are equal pieces: columns that do not fill one more step are left out.
        self.columns -= self.columns % multiple
        high = config.high_hz or rate / 2
        if self.columns < 1 or self.hop < 1:
            raise SpikedistillError(
                f"data.audio: {config.seconds} s in windows of {config.window_ms} ms every {config.hop_ms} "
                f"ms do not give {multiple} columns at {rate} Hz; take more seconds or a smaller hop_ms"
            )
        if not config.low_hz < high <= rate / 2:
            raise SpikedistillError(
                f"data.audio: bands from {config.low_hz} to {high} Hz; at {rate} Hz allowed are 0 to "
                f"{rate / 2:g}"
            )
        if config.feature == "mfcc" and config.coefficients > config.mels:
            raise SpikedistillError(
                f"data.audio: {config.coefficients} coefficients of {config.mels} mels; at most as many"
            )
        # The next power of two, for a fast transform.
        self.fft = 1 << (self.window - 1).bit_length()
        self.filters = mel_filters(config.mels, self.fft // 2 + 1, rate, config.low_hz, high)
        self.transform = (
            cosine_transform(config.mels, config.coefficients) if config.feature == "mfcc" else None
        )
        self.hann = torch.hann_window(self.window)

    @property
    def rows(self) -> int:
        """Bands or coefficients."""
        return self.config.mels if self.transform is None else self.config.coefficients

    def __call__(self, wave: Tensor) -> Tensor:
        """Natural logarithm of the power in each mel band, or its cosine transform.

        Shape: (N, samples) in -1..1 -> (N, rows, columns).
        """
        device = wave.device
        # A process may have no row of a small batch, and torch transforms no empty one.
        if not len(wave):
            return wave.new_zeros(0, self.rows, self.columns)
        # Moved once: `ranges` ran on the CPU, batches come on one device from then on.
        if self.filters.device != device:
            self.filters, self.hann = self.filters.to(device), self.hann.to(device)
            self.transform = None if self.transform is None else self.transform.to(device)
        pad = self.fft - self.window  # torch centres a short window in its frame
        wave = torch.nn.functional.pad(wave, (pad // 2, pad - pad // 2))
        spectrum = torch.stft(
            wave, self.fft, self.hop, self.window, window=self.hann, center=False, return_complex=True
        )
        power = spectrum[..., : self.columns].abs().square()
        bands = torch.einsum("mb,nbt->nmt", self.filters, power).clamp_min(FLOOR).log()
        return bands if self.transform is None else torch.einsum("cm,nmt->nct", self.transform, bands)


def ranges(features: Features, waves: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each row over recordings, without the outer 1 % on either side.

    Log-mel has one pair for all bands, whose differences carry the sound; each coefficient of MFCC has its
    own.

    Shape: (N, samples) -> (rows, 1), (rows, 1).
    """
    rows = torch.cat([features(part) for part in waves.split(chunk)]).transpose(0, 1).flatten(1)
    if features.transform is None:
        rows = rows.reshape(1, -1)
    ordered = rows.sort(1).values
    last = ordered.shape[1] - 1
    low, high = ordered[:, round(0.01 * last), None], ordered[:, round(0.99 * last), None]
    # A row that never changes, such as silence, must not divide by 0.
    high = torch.maximum(high, low + 1e-3)
    return low.expand(features.rows, 1).clone(), high.expand(features.rows, 1).clone()


def disturb(wave: Tensor, rate: int, config: AudioAugmentConfig) -> Tensor:
    """Sound moved in time by a draw from -shift_ms..shift_ms (silence enters), then white noise added.

    The noise's amplitude is drawn from 0..``noise`` times the largest sample of the recording.

    Shape: (N, samples) -> same.
    """
    n, samples = wave.shape
    limit = round(config.shift_ms * rate / 1000)
    if limit:
        # Drawn on the CPU, as all augmentation: the same sounds on every device.
        late = drawn(lambda n: torch.randint(-limit, limit + 1, (n, 1)), n).to(wave.device)
        source = torch.arange(samples, device=wave.device) - late
        inside = (source >= 0) & (source < samples)
        wave = wave.gather(1, source.clamp(0, samples - 1)) * inside
    if config.noise:
        part = (drawn(lambda n: torch.rand(n, 1), n) * config.noise).to(wave.device)
        white = drawn(lambda n: torch.randn(n, samples), n).to(wave.device)
        wave = wave + part * wave.abs().amax(1, keepdim=True) * white
    return wave
