"""How an image in [0, 1] becomes T frames, inside the network (the teacher needs the raw image)."""

import torch
from torch import Tensor

ENCODINGS = ("direct", "poisson", "latency")


def encode(x: Tensor, T: int, kind: str, offset: int = 0, period: int | None = None) -> Tensor:
    """Images (N, C, H, W) to spikes (T, N, C, H, W), steps ``offset`` .. ``offset + T - 1``.

    ``poisson``: each step, each pixel fires with probability x (Bernoulli draws from torch's generator).
    ``latency``: one spike a pixel within ``period`` steps (default T), the brighter the earlier: at step
    ``floor((1 - x) * (period - 1) + 1/2)``; a pixel of value 0 does not fire.
    """
    if kind == "poisson":
        # "<": the draws include 0, at which a black pixel must not fire, and never reach 1.
        return torch.stack([(torch.rand_like(x) < x).to(x.dtype) for _ in range(T)])
    if kind == "latency":
        at = ((1 - x.clamp(0, 1)) * ((period or T) - 1) + 0.5).floor()
        steps = torch.arange(offset, offset + T, device=x.device, dtype=x.dtype).view(T, *[1] * x.dim())
        return ((at == steps) & (x > 0)).to(x.dtype)
    raise ValueError(f"unknown encoding {kind!r}")
