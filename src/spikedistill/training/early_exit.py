"""Inference that stops when it is sure: time steps until the mean prediction is confident enough."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpikedistillError
from ..networks.base import Network
from .evaluate import evaluating


@dataclass(repr=False)
class Exit:
    """``logits`` (N, K): mean over the steps each sample ran; ``steps`` (N,): how many that were."""

    logits: Tensor
    steps: Tensor

    def __repr__(self) -> str:
        form = " x ".join(map(str, self.logits.shape))
        return f"Exit(logits: {form}, steps: {self.steps.float().mean().item():.4g} on average)"


def predict_early(network: Network, x: Tensor, confidence: float = 0.9) -> Exit:
    """Run step by step; a sample leaves when the softmax of its mean logits reaches ``confidence``.

    Samples that have left are taken out of the batch, so that the work shrinks with them. At ``confidence``
    of 1 or more all run the network's own T: the same logits as ``network.predict``.

    Shape: ``x`` as the network takes it, image input (N, C, H, W) or frames (N, F, C, H, W).
    Raises: SpikedistillError for an ANN, or an encoding that draws at random (its steps are not one image's).
    """
    if not network.spiking or network.time_steps is None:
        raise SpikedistillError("early exit needs a spiking network: an ANN has no time steps to leave early")
    if not confidence > 0:
        raise SpikedistillError(f"confidence must be more than 0, found {confidence}")
    from ..networks.base import frames

    T = network.time_steps
    steps_of = frames(x, T, T) if network.input == "frames" else None
    here = torch.arange(len(x), device=x.device)
    total: Tensor | None = None
    out: Tensor | None = None
    taken = torch.full((len(x),), T, device=x.device)
    state = None
    with evaluating(network):
        for t in range(T):
            now = steps_of[t][here] if steps_of is not None else x[here]
            logits, state = network.step(now, state)
            total = logits if total is None else total + logits
            mean = total / (t + 1)
            if out is None:
                out = torch.empty(len(x), mean.shape[-1], dtype=mean.dtype, device=x.device)
            out[here] = mean
            taken[here] = t + 1
            sure = mean.softmax(-1).amax(-1) >= confidence
            # From 1 on all steps are promised, and a softmax may be rounded to 1.
            if confidence >= 1 or not bool(sure.any()):
                continue
            stay = ~sure
            if not bool(stay.any()):
                break
            here, total = here[stay], total[stay]
            # What is no tensor is the number of the step, which all samples share.
            state = {k: v[stay] if isinstance(v, Tensor) else v for k, v in state.items()}
    assert out is not None
    return Exit(out, taken)
