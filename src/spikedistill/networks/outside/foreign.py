"""``foreign``: somebody else's SNN or ANN joins as teacher or student."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import simulation
from ...errors import SpikedistillError, nearest
from ..base import Input, Network, State
from .adapter import Wrapped, first_tensor, input_channels, statistics
from .peers import spikes

LAYOUTS = ("TNCHW", "NTCHW", "folded", "step", "NCHW")
Reset = Callable[..., Any] | str | None


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Whatever the function gives."""
        return self.function(x)


class Foreign(Wrapped):
    """Somebody else's network behind our interface; made by :func:`foreign`."""

    layout: str = "TNCHW"
    output: int | str | None = None
    reset_model: Callable[[], Any] | None = None
    checked = False  # whether it was run twice
    checking = False  # it is being run twice: what happens inside is nobody's capture

    def spiking_layers(self) -> list[str]:
        """Paths of the neurons of SpikingJelly, snnTorch and Norse in it; their outputs are its spikes."""
        return [f"model.{path}" for path, m in self.model.named_modules() if path and spikes(m)]

    def timed(self, calls: list[Tensor], N: int, T: int | None) -> Tensor:
        """What a module gave in all calls of one pass, as (T, N, ...); raises if the layout is unclear."""
        if T is None:
            return calls[0].unflatten(0, (-1, N))
        if len(calls) == T > 1:
            return torch.stack(calls)
        x = calls[0]
        if self.layout == "NTCHW":
            if x.shape[:2] == (N, T):
                return x.transpose(0, 1)
            if x.shape[0] == N * T:
                return x.unflatten(0, (N, T)).transpose(0, 1)
        elif x.shape[:2] == (T, N):
            return x
        if x.shape[0] == T * N and self.layout != "NTCHW":
            return x.unflatten(0, (T, N))
        if x.shape[0] == N and len(calls) == 1:  # once for all steps
            return x.unsqueeze(0).expand(T, *x.shape)
        raise SpikedistillError(
            f"a module of the foreign network was called {len(calls)} times and gave {tuple(x.shape)} for T "
            f"= {T}, N = {N} with layout {self.layout!r}; a tap needs (T, N, ...), (T*N, ...), or one call a "
            "step"
        )

    def _check(self, x: Tensor) -> None:
        """Once: what is left of a pass, or of another image, does not change the logits."""
        # Not under a mode (a trace, a capture) and not while compiling: the extra passes would be in it.
        if self.checked or torch._C._len_torch_function_stack() or torch.compiler.is_compiling():
            return
        self.checked, self.checking = True, True
        training = {m: m.training for m in self.modules()}
        self.eval()
        try:
            outs = []
            # The last image, which stands elsewhere alone than in its batch: time and batch exchanged show.
            for given in (x, x, x[-1:]):
                # Each pass begins with the same random state, the device's too.
                with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.no_grad():
                    try:
                        outs.append(super().forward(given))
                    except Exception:
                        if given is x:
                            raise
                        outs.append(outs[0][..., -1:, :])  # a batch size of its own: nothing to compare
        finally:
            self.checking = False
            for module, flag in training.items():
                module.training = flag
        if not _near(outs[0], outs[1]):
            # The next pass is checked anew, and raises again.
            self.checked = False
            raise SpikedistillError(
                "the foreign network gives something else when it runs a second time on the same input: its "
                "neurons keep their state; give reset= what makes it new (for SpikingJelly "
                "spikingjelly.activation_based.functional.reset_net)"
            )
        if len(x) > 1 and not _near(outs[0][..., -1:, :], outs[2]):
            self.checked = False
            raise SpikedistillError(
                f"an image's logits change with the other images of its batch: layout {self.layout!r} is not "
                "what the foreign network takes (time and batch exchanged?), or its reset is missing"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (T, N, K); ANN (N, K). The first pass also runs twice and on one image: :func:`foreign`."""
        self._check(x)
        return super().forward(x)

    def body(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or, from frames, (T*N, C, H, W) to folded logits (T*N, K)."""
        x = self.resize(x)
        sim = simulation.current()
        T = (sim.time_steps if sim else self.time_steps) or 1
        if self.reset_model is not None:
            self.reset_model()
        if self.layout == "NCHW":
            return self._folded(self._pick(self.model(x)), T, x.shape[0])
        frames = x.unflatten(0, (T, -1)) if self.input == "frames" else x.unsqueeze(0).expand(T, *x.shape)
        N = frames.shape[1]
        if self.layout == "step":
            return torch.cat([self._pick(self.model(frame)) for frame in frames])
        if self.layout == "folded":
            return self._folded(self._pick(self.model(frames.flatten(0, 1))), T, N)
        if self.layout == "NTCHW":
            out = self._pick(self.model(frames.transpose(0, 1)))
            return self._folded(out.transpose(0, 1) if out.dim() == 3 else out, T, N)
        return self._folded(self._pick(self.model(frames)), T, N)

    def _pick(self, out: Any) -> Tensor:
        return first_tensor(out) if self.output is None else out[self.output]

    def _folded(self, out: Tensor, T: int, N: int) -> Tensor:
        if not self.spiking:
            T = 1
        if out.dim() == 3 and out.shape[:2] == (T, N):
            return out.flatten(0, 1)
        if out.dim() == 2 and out.shape[0] == T * N:
            return out
        if out.dim() == 2 and out.shape[0] == N:  # averaged by the model itself: the same at each step
            return out.repeat(T, 1)
        raise SpikedistillError(
            f"the foreign network gave {tuple(out.shape)} for T = {T}, N = {N} with layout {self.layout!r}; "
            f"logits must be ({T}, {N}, K) in the layout's order of time and batch, ({T * N}, K), or ({N}, "
            "K); set layout, time_steps or output"
        )

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Foreign state is not ours to stream."""
        raise SpikedistillError(
            "a foreign network keeps its state itself and cannot be streamed; call it on whole simulations"
        )


def foreign(
    model: nn.Module | Callable[[Tensor], Any],
    layout: str = "TNCHW",
    reset: Reset = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    time_steps: int | None = 4,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input: Input = "image",
    input_size: int | Sequence[int] | None = None,
    interpolation: str = "bilinear",
    output: int | str | None = None,
) -> Network:
    """Somebody else's network, SNN or ANN, as one of ours: it normalises, takes [0, 1], gives (T, N, K).

    ``layout`` is what the model takes: "TNCHW" (SpikingJelly's multi-step mode), "NTCHW", "folded" (T*N, C,
    H, W), "step" (called once per time step on (N, C, H, W)), "NCHW" (called once; an ANN, or an SNN that
    loops over time by itself, as in snnTorch's examples, and gives (T, N, K)). Still images are repeated over
    time where the layout has time. ``reset`` is called before every forward pass: a function of the model
    (``spikingjelly...functional.reset_net``) or of nothing, or the name of a method of the model.
    ``time_steps=None``: an ANN. ``output``: index or key of the logits where the model gives several things
    (None: the first tensor). ``num_classes``, ``in_channels``: None reads them off the last linear layer and
    the first convolution. mean, std: None takes timm's if the model has them, else 0 and 1.

    At its first pass the network runs a second time on the same input, and on one image alone: a missing
    reset and a wrong layout are errors. Taps take the outputs of its modules as (T, N, ...), as the layout
    says; spikes are the outputs of SpikingJelly's, snnTorch's and Norse's neurons. For membranes,
    quantization and a price take :func:`.adopt`.

    Shape: (N, C, H, W), or frames (N, F, C, H, W), to (T, N, K); an ANN to (N, K). Raises for logits of
    another shape.
    """
    if layout not in LAYOUTS:
        raise SpikedistillError(f"unknown layout {layout!r}: {nearest(layout, LAYOUTS)}")
    if time_steps is None and layout not in ("NCHW",):
        raise SpikedistillError(f"an ANN (time_steps=None) has layout 'NCHW', found {layout!r}")
    if layout == "NCHW" and time_steps is not None and input == "frames":
        raise SpikedistillError(
            "layout 'NCHW' takes still images; an SNN on frames needs 'TNCHW', 'NTCHW', 'folded' or 'step'"
        )
    module = model if isinstance(model, nn.Module) else _Function(model)
    if num_classes is None:
        linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise SpikedistillError(
                "the foreign network shows no nn.Linear to read the number of classes off; give num_classes="
            )
        num_classes = linear[-1].out_features
    channels = in_channels or input_channels(module)
    mean, std = statistics(module, channels, mean, std)
    network = Foreign(module, num_classes, channels, input, time_steps, mean, std, input_size, interpolation)
    network.to(next((p.device for p in module.parameters()), network.mean.device))
    network.layout, network.output = layout, output
    network.reset_model = _resetter(reset, model)
    return network


def _resetter(reset: Reset, model: Any) -> Callable[[], Any] | None:
    if reset is None:
        return None
    if isinstance(reset, str):
        if not callable(getattr(model, reset, None)):
            raise SpikedistillError(f"reset={reset!r}: {type(model).__name__} has no method of that name")
        return _Bound(model, reset)
    try:
        parameters = inspect.signature(reset).parameters.values()
    except (TypeError, ValueError):  # builtins
        return reset
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return _Bound(model, reset) if needed else reset


class _Bound:
    """``reset`` on a model; a deep copy of the network resets its own copy of the model."""

    def __init__(self, model: Any, reset: Callable[[Any], Any] | str) -> None:
        self.model, self.reset = model, reset

    def __call__(self) -> None:
        if isinstance(self.reset, str):
            getattr(self.model, self.reset)()
        else:
            self.reset(self.model)


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for sums in another order; NaN is for others to name."""
    bound = 1e-3 * float(a.abs().amax().nan_to_num()) + 1e-6
    return bool(((a - b).abs() <= bound).logical_or(a.isnan()).all())
