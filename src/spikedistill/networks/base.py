"""What all networks share: normalisation, the entrance of time, the head, prediction, streaming."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor, nn

from .. import simulation
from ..drawn import drawn
from ..errors import SpikedistillError, nearest
from ..neurons import compilation
from ..signatures import tell_whole
from ..simulation import Simulation
from .balanced import check_options
from .encoding import ENCODINGS, encode

Input = Literal["image", "frames"]
Initialisation = Literal["balanced", "plain"]
NeuronChoice = nn.Module | Mapping[str, Any] | None  # copied per site, a recipe's mapping, the family's own
State = dict[str, Any]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Common(TypedDict, total=False):
    """What every network takes; :class:`Network` has the defaults."""

    num_classes: int
    in_channels: int
    input: Input
    time_steps: int | None
    encoding: str
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    initialisation: Initialisation
    firing_rate: float | None


EVENT_FRAMES: Common = {"in_channels": 2, "input": "frames"}  # ON and OFF polarities


class Quantized(Protocol):
    """What a network and its taps ask quantization, which stands above them and knows them."""

    def requantize(self) -> None:
        """See :meth:`Network.requantize`."""

    def bits(self, path: str | None, what: str) -> int | None:
        """Bits of a layer's weights, or of what the network has one number for."""

    def value(self, node: str) -> Tensor | None:
        """What a float 1 on the output of a graph's node is worth; None: 1."""


class Network(nn.Module):
    """A network that owns its normalisation and its time steps.

    Subclasses build their layers with :class:`.builder.Builder` and define ``body(x)``: from the normalised
    input, ``(N, C, H, W)`` where the stem runs once (``once``) and else ``(T*N, C, H, W)``, to folded logits
    ``(T*N, K)``. A constructor that ends in ``**common: Unpack[Common]`` hands on what every network takes;
    the class's signature names it all.

    ``initialisation``: "balanced" (:mod:`.balanced`) or "plain"; ``firing_rate``: what a balanced start aims
    at (None: the family's, mostly 0.16).

    Shape: image input (N, C, H, W), real or uint8 (levels, divided by 255); frames input (N, F, C, H, W) with
    F a multiple of T (consecutive groups are summed). ``forward`` gives (T, N, K), the ANN twin
    (``time_steps=None``) (N, K), averaged over frames where it sees frames.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        input: Input = "image",
        time_steps: int | None = 4,
        encoding: str = "direct",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        initialisation: Initialisation = "balanced",
        firing_rate: float | None = None,
    ) -> None:
        super().__init__()
        check_options(initialisation, firing_rate)
        self.initialisation, self.firing_rate = initialisation, firing_rate
        if input not in ("image", "frames"):
            raise SpikedistillError(f"input must be 'image' or 'frames', found {input!r}")
        if encoding not in ENCODINGS:
            raise SpikedistillError(f"unknown encoding {encoding!r}: {nearest(encoding, ENCODINGS)}")
        if encoding != "direct" and input == "frames":
            raise SpikedistillError(
                f"encoding {encoding!r} turns images into frames; the input already is frames"
            )
        self.num_classes, self.in_channels, self.input = num_classes, in_channels, input
        self.encoding = encoding
        self._time_steps: int | None = _checked_steps(time_steps)
        self.register_buffer("mean", _per_channel(mean, 0.0, in_channels, "mean"))
        self.register_buffer("std", _per_channel(std, 1.0, in_channels, "std"))
        if encoding != "direct" and not (bool((self.mean == 0).all()) and bool((self.std == 1).all())):
            raise SpikedistillError(f"encoding {encoding!r} needs images in [0, 1]: leave mean 0 and std 1")
        self.config: dict[str, Any] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # ``create`` and recipes read options off a class's signature, where ``**common`` hides these.
        tell_whole(cls, Network, Common.__annotations__)

    mean: Tensor
    std: Tensor
    neuron_spec: dict[str, Any] | None = None  # of the neuron the layers were made with, where it can be said
    input_codes: Any = None  # set by quantization: x -> integer codes, in place of the normalisation
    quantization: Quantized | None = None  # of a quantized network: a quantization.quantized.Quantization
    balanced_by: Literal["form", "data"] = "form"  # "data": a balanced start wants a look at some
    widths_fit = False  # whether rectangular surrogates' widths are the balance's, not the user's
    dims = 2  # spatial dimensions of the input; 1 for sequences (N, C, L)
    head_path = "head"  # the classifier's module

    _repr_html_ = drawn("network")

    def stage_paths(self) -> list[str]:
        """Paths of modules whose outputs are the taps ``stage1``, ``stage2`` ..., from input to output."""
        return [name for name, _ in self.named_children() if re.fullmatch(r"(stage|layer)\d+", name)]

    @property
    def time_steps(self) -> int | None:
        """T of the network's simulations; None for an ANN. Setting it is allowed at any time."""
        return self._time_steps

    @time_steps.setter
    def time_steps(self, value: int | None) -> None:
        if (value is None) != (self._time_steps is None):
            raise SpikedistillError(
                "an SNN does not become an ANN (or the reverse) by setting time_steps; create it anew"
            )
        self._time_steps = _checked_steps(value)

    @property
    def spiking(self) -> bool:
        """Whether this is an SNN."""
        return self.time_steps is not None

    @property
    def once(self) -> bool:
        """Whether the layers before the first neuron see each image once (constant current)."""
        return self.spiking and self.input == "image" and self.encoding == "direct"

    def body(self, x: Tensor) -> Tensor:
        """Normalised, folded input to folded logits."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (T, N, K); ANN (N, K)."""
        sim = simulation.current()
        # Another network's simulation may be running around this one: its steps and states are not ours.
        if sim is not None and sim.network is self:
            return self._run(x, sim)
        with Simulation(self, simulation.steps_for(self, self.time_steps)) as sim:
            return self._run(x, sim)

    def _run(self, x: Tensor, sim: Simulation) -> Tensor:
        self.check(x, sim)
        out = self.body(self._entering(x, sim))
        if self.spiking:
            self._check_time(out, x.shape[0], sim)
            return out.unflatten(0, (sim.time_steps, -1))
        if self.input == "frames":
            return out.unflatten(0, (x.shape[1], -1)).mean(0)
        return out

    def _entering(self, x: Tensor, sim: Simulation) -> Tensor:
        if sim.tape is None:
            return self.fold(x, sim)
        # Spikes of an encoding are drawn once: the pass of rates takes what the first saw, on average.
        if not sim.tape.recording:
            return sim.tape.take(self)[0]
        folded = self.fold(x, sim)
        sim.tape.keep(self, sim.tape.average(folded))
        return folded

    def check(self, x: Tensor, sim: Simulation) -> None:
        """Refuse an input of the wrong form, in words."""
        single = self.input == "image" or sim.streaming
        space = "H, W" if self.dims == 2 else "L"
        form = f"(N, C, {space})" if single else f"(N, F, C, {space})"
        if x.dim() != self.dims + (2 if single else 3) or x.shape[-1 - self.dims] != self.in_channels:
            raise SpikedistillError(
                f"{type(self).__name__} takes {self.input} input {form} with C = {self.in_channels}, found "
                f"{tuple(x.shape)}; set in_channels and input='image'|'frames' when creating the network"
            )

    def _check_time(self, out: Tensor, images: int, sim: Simulation) -> None:
        """Refuse a body that gave images no time steps: its neurons took images for steps of one another."""
        if self.once and out.shape[0] == images < (sim.time_steps or 1) * images:
            raise SpikedistillError(
                f"{type(self).__name__}: its body gives {images} rows for {images} images at T = "
                f"{sim.time_steps}; images enter it once: its first neuron has to encode (encode=True), or a "
                "Repeat to stand before that neuron"
            )

    def fold(self, x: Tensor, sim: Simulation) -> Tensor:
        """Bring time into the batch and normalise: (N or T*N, C, H, W)."""
        T = sim.time_steps
        if self.input == "frames" and not sim.streaming:
            x = frames(x, self.time_steps, T).flatten(0, 1)
        if x.dtype == torch.uint8 and self.input == "image" and self.input_codes is None:
            x = x.float() / 255  # levels, as quantized networks and the data readers take them
        if self.input_codes is not None:
            x = self.input_codes(x)
        else:
            # Counts: mean and standard deviation would lose what is behind the point.
            x = self.normalise(x if x.is_floating_point() else x.to(self.mean.dtype))
        if self.input == "image" and self.spiking and self.encoding != "direct":
            assert T is not None
            # The period stays the own T: a stream's steps and shorter runs get the spikes of the whole.
            x = encode(x, T, self.encoding, sim.step, self.time_steps).flatten(0, 1)
        if self.spiking and self.dims == 2 and x.device.type == "cpu" and compilation.mode() == "compiled":
            return x.contiguous(memory_format=torch.channels_last)  # event-driven convolutions ask for it
        return x

    def normalise(self, x: Tensor) -> Tensor:
        """``(x - mean) / std`` per channel, (M, C, ...)."""
        # In the input's dtype: float32 statistics would make float32 of half-precision input.
        per_channel = (1, -1) + (1,) * self.dims
        return (x - self.mean.view(per_channel).to(x.dtype)) / self.std.view(per_channel).to(x.dtype)

    def predict(self, x: Tensor) -> Tensor:
        """Logits averaged over T: (N, K)."""
        out = self(x)
        return out.mean(0) if out.dim() == 3 else out

    def requantize(self) -> None:
        """Between epochs: a quantized network chooses anew what stands still in them (the binary shifts)."""
        if self.quantization is not None:
            self.quantization.requantize()

    @torch.no_grad()
    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step of a stream, in eval mode only: ``out, state = network.step(x, state)``.

        ``x`` (N, C, H, W): the image, the same at each step, or one step's frame. ``state`` is None at the
        start, then what the last step gave: ``{"step": t, "path#k": V}``. Returns logits (N, K). T chained
        steps equal one forward.
        """
        if not self.spiking:
            raise SpikedistillError("an ANN has no time steps to stream")
        # A norm's batch statistics are of all T steps together, which a stream never sees.
        if self.training:
            raise SpikedistillError("streaming is for eval mode: call network.eval() first")
        with Simulation(self, 1, state=dict(state) if state else {"step": 0}) as sim:
            out = self._run(x, sim)[0]
        return out, {"step": sim.step + 1, **sim.state_out}


def frames(x: Tensor, own: int | None, T: int | None) -> Tensor:
    """Event frames (N, F, C, H, W) to (T, N, C, H, W): F/own consecutive ones summed, then the first T.

    Beyond the last, the first follow again.
    """
    x = x.transpose(0, 1)
    if own is None or T is None:
        return x
    F = x.shape[0]
    if F % own:
        raise SpikedistillError(
            f"{F} frames cannot be summed in equal groups to T = {own} steps; give a multiple of {own} "
            "frames (data.frames bins at the least common multiple of all T in a recipe)"
        )
    if own != F:
        x = x.unflatten(0, (own, F // own)).sum(1)
    if own >= T:
        return x[:T]
    return x[torch.arange(T, device=x.device) % own]


def _checked_steps(value: int | None) -> int | None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise SpikedistillError(
            f"time_steps must be a whole number from 1, or None for an ANN; found {value!r}"
        )
    return value


def _per_channel(value: float | Sequence[float] | None, default: float, channels: int, name: str) -> Tensor:
    if value is None:
        value = default
    # values are looked at: not on "meta"
    out = torch.as_tensor(value, dtype=torch.float32, device="cpu").flatten()
    if out.numel() == 1:
        out = out.expand(channels).clone()
    if out.numel() != channels:
        raise SpikedistillError(
            f"{name} has {out.numel()} values for {channels} input channels; give one per channel"
        )
    if not bool(out.isfinite().all()):
        raise SpikedistillError(f"{name} must be finite, found {out.tolist()}")
    if name == "std" and not bool((out > 0).all()):
        raise SpikedistillError(f"std must be more than 0, found {out.tolist()}")
    return out.to(torch.get_default_device())
