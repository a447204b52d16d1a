"""Rate-based backpropagation: a pass of spikes without a graph, then one of rates, which is learned from.

The first pass runs all T steps and leaves on a :class:`Tape`, call by call, what the second needs: of a
neuron its firing rate and the rate's derivative by a constant current, of a norm the statistics of all steps,
of a max pooling its average. The second has no time: it takes these values and differentiates through them.
Backward keeps nothing of single steps.

C. Yu, L. Liu, G. Wang, E. Li, A. Wang, "Advancing training efficiency of deep spiking neural networks through
rate-based backpropagation", NeurIPS 2024. There a neuron's derivative is an eligibility trace,
``mean_t sigma'(H_t - threshold) e_t`` with ``e_1 = 1``, ``e_t+1 = 1 + decay e_t`` (soft reset, detached).
That is the derivative of the rate by a current added at every step, and is computed as such here, by the
neuron's own backward pass, for every reset and surrogate.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import simulation
from ..errors import SpikedistillError
from ..numerics import at_least_float32
from .shared_norms import shares
from .sync import shared_moments, summed

Values = tuple[Tensor, ...]
# Not linear, but of one tensor and without weights: the rate is known, the derivative is that at the rates.
POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)


class _Known(torch.autograd.Function):
    """A known value, with a derivative: ``value`` forward, ``g * slope`` backward (no slope: 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor | None) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] if slope is None else grads[0] * slope, None, None


class _Normalised(torch.autograd.Function):
    """A norm by known statistics whose backward is a batch norm's: through mean and variance of the rates.

    The mean over all steps is that of the rates; their variance is less than that of the steps, whose value
    is taken (as in the official code).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        eps: float,
        shared: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps, ctx.shared = eps, shared
        return F.batch_norm(x, mean, rstd**-2, weight, bias, False, 0.0, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        if ctx.shared:
            return *_through_shared(grads[0], x, weight, mean, rstd), None, None, None, None
        gx, g_weight, g_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, rstd, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return gx, g_weight, g_bias, None, None, None, None


def _through_shared(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch norm's backward where its statistics are those of all processes."""
    channel, dims = (-1, *[1] * (x.dim() - 2)), [d for d in range(x.dim()) if d != 1]
    wide = at_least_float32(g)
    normal = (at_least_float32(x) - mean.view(channel)) * rstd.view(channel)
    s, q = wide.sum(dims), (wide * normal).sum(dims)
    # Weight and bias keep the sums of this process; x is also in the statistics that all others use.
    all_s, all_q, n = summed(torch.stack([s, q, torch.full_like(s, x.numel() / x.shape[1])]))
    centred = wide - (all_s / n).view(channel) - normal * (all_q / n).view(channel)
    return ((weight * rstd).view(channel) * centred).to(x.dtype), q, s


class Tape:
    """What a pass of spikes leaves for the pass of rates, in the order of the calls."""

    finished = 0  # second passes of this process

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._kept: list[tuple[nn.Module, Values]] = []
        self.recording = True
        self.logits: Tensor | None = None  # of the first pass, averaged

    def keep(self, module: nn.Module, *values: Tensor) -> None:
        """In the first pass: what the same call finds in the second."""
        self._kept.append((module, tuple(v.detach() for v in values)))

    def take(self, module: nn.Module) -> Values:
        """In the second pass: what this call left; raises where another module's call is due."""
        owner, values = self._kept.pop(0) if self._kept else (None, ())
        if owner is not module:
            raise _other_way(module)
        return values

    def finish(self, logits: Tensor) -> None:
        """Behind the second pass: raises where it went another way than the first, or ends elsewhere."""
        if self._kept:
            raise _other_way(self._kept[0][0])
        # To look makes a GPU wait, so there it is done now and then.
        Tape.finished += 1
        if self.logits is None or (logits.device.type != "cpu" and Tape.finished % 100 != 1):
            return
        found, known = (at_least_float32(v.detach()).flatten(0, -2) for v in (logits, self.logits))
        size = float(known.abs().max())
        rounding = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 0.1
        # Where numbers are not finite the training's own guard says of what.
        if float((found - known).abs().max()) > rounding * max(size, 1.0):
            raise SpikedistillError(
                "rate-based backpropagation: the pass of rates ends at other logits than the average of the "
                "spikes' pass: some layer draws at random in training (DropPath, noise), or is not linear; "
                "leave it out, or leave out backpropagation: rate_based"
            )

    def average(self, x: Tensor) -> Tensor:
        """Over the steps of (T*N, ...); before the first neuron an image (N, ...) passes once."""
        return x.unflatten(0, (-1, self.samples)).mean(0)

    def rate(self, owner: nn.Module, current: Tensor) -> Tensor:
        """In the second pass: a neuron's rate (N, ...), differentiable in its averaged current."""
        known: Tensor = _Known.apply(current, *self.take(owner))
        return known

    def normalised(self, norm: Any, x: Tensor) -> Tensor:
        """In the second pass: a norm in training mode, by the statistics of all steps."""
        mean, rstd = self.take(norm)
        weight, bias = norm.weight, norm.bias
        if weight is None:  # a norm without an affine map
            weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
        return _Normalised.apply(x, weight, bias, mean, rstd, norm.eps, shares(norm))


def _other_way(module: nn.Module) -> SpikedistillError:
    return SpikedistillError(
        "rate-based backpropagation: one of the passes, of spikes and of rates, calls a "
        f"{type(module).__name__} that the other does not; the network must take the same way in both"
    )


def tape() -> Tape | None:
    """That of the pass that is running, if it is one of the two."""
    sim = simulation.current()
    return None if sim is None else sim.tape


def differentiated(
    current: Tensor, spikes_of: Callable[[Tensor], Tensor], tape: Tape
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes (T*N, ...) of any neuron, their rate and its derivative (N, ...), by its own backward pass.

    Of a neuron that sees its own current alone.

    ``spikes_of``: differentiable, from the current (T*N, ...), or a constant one (N, ...), to (T*N, ...).
    """
    # Not what the training keeps for backward: gone when this call ends.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        leaf = current.detach().requires_grad_()
        spikes = spikes_of(leaf)
        share = torch.full_like(spikes, tape.samples / len(spikes))
        (slope,) = torch.autograd.grad(spikes, leaf, share)
    spikes = spikes.detach()
    return spikes, tape.average(spikes), slope.unflatten(0, (-1, tape.samples)).sum(0)


def spiking_pass(network: nn.Module, x: Tensor, time_steps: int | None) -> Tape:
    """The first pass, without a graph; running statistics follow here and not in the second."""
    kept = Tape(len(x))
    with torch.no_grad(), simulation.Simulation(network, time_steps, tape=kept), watched(network):
        logits: Tensor = network(x)
    kept.logits = kept.average(logits.flatten(0, -2))
    kept.recording = False
    return kept


@contextmanager
def watched(network: nn.Module) -> Iterator[None]:
    """Norms that stand alone and max poolings keep, or take, what the tape of the running pass says."""
    norms = nn.modules.batchnorm._BatchNorm
    changed = [m for m in network.modules() if isinstance(m, (norms, *POOLINGS))]
    before = [module.__dict__.get("forward") for module in changed]
    try:
        for module in changed:
            own: Any = module.forward
            make = _watched_norm if isinstance(module, norms) else _watched_pooling
            setattr(module, "forward", make(module, own))  # noqa: B010
        yield
    finally:
        for module, held in zip(changed, before, strict=True):
            if held is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = held


def _watched_norm(norm: Any, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        kept = tape()
        if kept is None or not norm.training:
            return own(x)
        if not kept.recording:
            return kept.normalised(norm, x)
        var, mean = torch.var_mean(at_least_float32(x), [d for d in range(x.dim()) if d != 1], unbiased=False)
        if shares(norm):
            mean, var, _ = shared_moments(mean, var, x.numel() // x.shape[1])
        kept.keep(norm, mean, torch.rsqrt(var + norm.eps))
        return own(x)

    return forward


def _watched_pooling(pooling: nn.Module, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        kept, out = tape(), own(x)
        if kept is None:
            return out
        if not kept.recording:
            return _Known.apply(out, *kept.take(pooling), None)
        kept.keep(pooling, kept.average(out))
        return out

    return forward
