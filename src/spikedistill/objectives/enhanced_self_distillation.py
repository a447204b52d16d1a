"""Enhanced self-distillation: ANN branches on the firing rates of stages, taught by what is right in all."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .divergence import divergences
from .logits import checked_temperature
from .pairs import as_map


def right_on_average(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of those outputs (B, N, K) whose decision is the target's, (N, K); and for whom there is one.

    ``target``: class numbers (N,). Of samples that no output decides rightly the mean is 0.
    """
    right = outputs.argmax(-1) == target  # (B, N)
    count = right.sum(0)
    mean = (outputs * right.unsqueeze(-1)).sum(0) / count.clamp(min=1).unsqueeze(-1)
    return mean, count > 0


class SeparableBlock(nn.Module):
    """Two depthwise separable convolutions, the first with a stride, and a residual; batch norms, ReLUs."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()

        def separable(to: int, step: int) -> list[nn.Module]:
            return [
                nn.Conv2d(channels, channels, 3, step, 1, groups=channels, bias=False),
                nn.Conv2d(channels, to, 1, bias=False),
                nn.BatchNorm2d(to),
                nn.ReLU(),
            ]

        self.way = nn.Sequential(*separable(channels, stride), *separable(out, 1))
        self.residual = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H/stride, W/stride)."""
        return F.relu(self.residual(x) + self.way(x))


class EnhancedSelfDistillation(Objective):
    """``sum_b CE(o_b, y) + soft tau^2 sum_o KL(softmax(r/tau) || softmax(o/tau))``: branches and network.

    o_b are the logits of small ANN branches, one on the firing rates of each stage but the last: a
    depthwise separable residual block for each stage that follows, with its channels and stride, average
    pooling, a linear layer. The second sum is over the branches and the network's own averaged logits. r,
    without gradient, is for each sample the mean of those of them that decide rightly; a sample that none
    decides rightly is left out. The branches train with the student and are gone at inference. Beside it goes
    ``cross_entropy``, of the network's own logits.

    X. Zhao, C. Yu, K. Yu, L. Liu, A. Wang, "Enhanced self-distillation framework for efficient spiking neural
    network training", NeurIPS 2025, as in the official code: tau = 3; soft 0.3 beside weight 1 on CIFAR, 0.1
    on CIFAR10-DVS, 0.3 beside 0.7 on ImageNet. There it goes with ``backpropagation: rate_based``, and the
    whole loss is divided by T, which only scales the learning rate. Where no sample of a batch is decided
    rightly the code's loss is NaN, here its second sum is 0.

    Shape: student stages (T, N, C, H, W), logits (T, N, K); target (N,) or (N, K), then its largest.

    Raises: SpikedistillError for a network of a single stage.

    YAML: ``{type: enhanced_self_distillation, soft: 0.3, temperature: 3.0}``
    """

    cites = ("zhao2025enhanced",)
    of_rates = True
    student_taps = ("stages",)

    def __init__(
        self, soft: float = 0.3, temperature: float = 3.0, weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if soft < 0:
            raise refuse(self, f"soft must be at least 0, found {soft}")
        self.soft, self.temperature = soft, checked_temperature(self, temperature)
        self.branches = nn.ModuleList()

    def setup(self, setup: Setup) -> None:
        """Build a branch on each stage but the last."""
        maps = [as_map(self, x) for x in setup.student.means("stages").values()]
        if len(maps) < 2:
            raise refuse(self, "the network has one stage; branches stand on those before the last")
        classes = setup.logits.shape[-1]
        self.branches = nn.ModuleList(branch(maps[i:], classes) for i in range(len(maps) - 1))

    def forward(self, view: View) -> Tensor:
        rates = [as_map(self, x) for x in view.student.means("stages").values()]
        made = [view.adapted(branch, x) for branch, x in zip(self.branches, rates)]
        hard = torch.stack([F.cross_entropy(z, view.target) for z in made]).sum()
        outputs = torch.stack([*made, view.mean_logits])
        target = view.target if view.target.dim() == 1 else view.target.argmax(-1)
        teacher, taught = right_on_average(outputs.detach(), target)
        # A product and not a selection: its size would depend on the data, and a GPU would have to wait.
        each = divergences(outputs, teacher, self.temperature).sum(0) * taught
        return hard + self.soft * self.temperature**2 * each.sum() / taught.sum().clamp(min=1)


def branch(maps: list[Tensor], classes: int) -> nn.Sequential:
    """From the first of several maps (N, C, H, W), through a block for each that follows, to logits."""
    blocks = [
        SeparableBlock(a.shape[1], b.shape[1], max(1, round(a.shape[-1] / b.shape[-1])))
        for a, b in pairwise(maps)
    ]
    return nn.Sequential(
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps[-1].shape[1], classes)
    )
