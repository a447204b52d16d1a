"""QCFS, the quantized activation that makes an ANN convertible, and the signed multi-spike neuron like it.

Bu, Fang, Ding, Dai, Yu, Huang, "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking
neural networks", ICLR 2022: quantization clip-floor-shift.
"""

import torch
from torch import Tensor, nn

from .. import simulation
from ..errors import SpikedistillError
from ..numerics import at_least_float32
from .dynamics import floor_ste, saturate_ste
from .modules import Neuron


def qcfs(x: Tensor, threshold: Tensor | float, levels: int) -> Tensor:
    """``threshold * clip(floor(x * L / threshold + 1/2) / L, 0, 1)``; any shape.

    The gradient goes straight through the floor: to x it is 1 where 0 <= x <= threshold, else 0.
    """
    # Clipped before the floor: behind it the gradient would reach half a level beyond both ends.
    return threshold * floor_ste(saturate_ste(x / threshold, 0, 1) * levels + 0.5) / levels


class QCFS(nn.Module):
    """Activation of an ANN to convert: ``theta * clip(floor(x L / theta + 1/2) / L, 0, 1)``, theta learned.

    ``levels``: L (8 here; the paper tries 2 to 32). ``init_threshold``: theta at the start (8, the public
    code's). The average output of an IF neuron with threshold theta, V_0 = theta/2 and soft reset is this
    with L = T, when its current is constant. Shape: any, kept. Recipe: ``network: {name: vgg16, ann: true,
    neuron: {type: qcfs, levels: 4}}``.
    """

    def __init__(self, levels: int = 8, init_threshold: float = 8.0) -> None:
        super().__init__()
        if levels < 1:
            raise SpikedistillError(f"qcfs: levels must be at least 1, found {levels}")
        if not init_threshold > 0:
            raise SpikedistillError(f"qcfs: init_threshold must be more than 0, found {init_threshold}")
        self.levels, self.init_threshold = levels, init_threshold
        self.threshold = nn.Parameter(torch.tensor(float(init_threshold)))

    def spec(self) -> dict[str, float | int | str]:
        """The activation as a recipe's mapping."""
        return {"type": "qcfs", "levels": self.levels, "init_threshold": self.init_threshold}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return qcfs(x, self.threshold, self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, threshold={self.threshold.item():.4g}"


class SignedIF(Neuron):
    """Integrate and fire with several spikes a step, negative ones to take back: at T = 1 it is QCFS itself.

        V_t = V_{t-1} + I_t                                   nothing is reset; V is the sum of currents
        E_t = clip(floor(V_t L / threshold + 1/2), 0, L t)    spikes due until step t
        S_t = E_t - E_{t-1}                                   spikes of this step, an integer of either sign

    A spike is worth ``threshold / L``, so that after t steps their mean is QCFS with L t levels of the mean
    current. Our reading of Zhang, Li, Yu, "Quantization meets spikes: lossless conversion in the first
    timestep via polarity multi-spike mapping", arXiv 2508.14520 (its equations are not public).
    Shape: (T*N, ...) to (T*N, ...); with ``encode`` (N, ...) to (T*N, ...).
    """

    def __init__(
        self, levels: int = 8, threshold: float = 1.0, time_steps: int = 1, encode: bool = False
    ) -> None:
        super().__init__(threshold, None, time_steps=time_steps, encode=encode)
        if levels < 1:
            raise SpikedistillError(f"signed_if: levels must be at least 1, found {levels}")
        self.levels = levels

    def spec(self) -> dict[str, object]:
        return {"type": "signed_if", "levels": self.levels, "threshold": self.threshold}

    @property
    def priced(self) -> bool:
        return True

    def due(self, v: Tensor, t: int) -> Tensor:
        """E_t from the sum of currents."""
        return saturate_ste(floor_ste(v * self.levels / self.threshold + 0.5), 0, self.levels * t)

    def simulate(
        self, current: Tensor, state: Tensor | None, T: int, membrane: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        wide = at_least_float32(current)
        sim = simulation.current()
        # E_t is bounded by L t, so that a stream has to count from its own start.
        t = sim.step if sim is not None else 0
        v = torch.zeros_like(wide if self.encode else wide[0]) if state is None else state
        before, spikes, charged = self.due(v, t), [], []
        for i in range(T):
            # The membrane proper, what is left after the spikes so far, is what a tap sees.
            residue = v - before * (self.threshold / self.levels)
            step = wide if self.encode else wide[i]
            charged.append(residue + step)
            v = v + step
            after = self.due(v, t + i + 1)
            spikes.append(after - before)
            before = after
        return torch.stack(spikes).to(current.dtype), torch.stack(charged) if membrane else None, v
