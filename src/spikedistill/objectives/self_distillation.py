"""TSSD: a spiking network as its own teacher, in time and in depth."""

from torch import Tensor, nn

from .base import Objective, Setup, View, Weight, refuse
from .divergence import divergence
from .logits import checked_temperature
from .pairs import as_map


class TemporalSelfDistillation(Objective):
    """``KL(softmax(z_long/tau) || softmax(z_short/tau))``: the network run longer teaches its first steps.

    One simulation of ``time_steps`` steps, more than the network's own T; z_long is the mean of all its
    logits, without gradient, z_short the mean of the first T. All other objectives, the prediction and the
    cross-entropy see only the first T. Norm statistics see all steps in training and are recalibrated at T
    before evaluation; inference has no trace of this.

    After L. Zuo, Y. Ding, M. Jing, K. Yang, Y. Yu, "Self-distillation learning based on temporal-spatial
    consistency for spiking neural networks", 2024. Its weights, temperature and pairs of T are not public:
    temperature 2 and weight 1 without the factor tau^2 are those of the same group's later paper (see
    ``strong_weak_distillation``); that the short output is the first steps of the same pass is our reading.

    Shape: logits (time_steps, N, K).

    Raises: SpikedistillError unless ``time_steps`` is more than the network's own.

    YAML: ``{type: temporal_self_distillation, time_steps: 8, temperature: 2.0}``
    """

    cites = ("zuo2024self",)

    def __init__(
        self, time_steps: int, temperature: float = 2.0, weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if time_steps < 2:
            raise refuse(self, f"time_steps must be at least 2, found {time_steps}")
        self.time_steps = time_steps
        self.temperature = checked_temperature(self, temperature)

    def setup(self, setup: Setup) -> None:
        """Refuse a simulation that is not longer than the network's own."""
        assert self.time_steps is not None
        if setup.time_steps >= self.time_steps or setup.logits.shape[0] != self.time_steps:
            raise refuse(
                self,
                f"time_steps is {self.time_steps} and the student's own T {setup.time_steps} (its logits "
                f"have {setup.logits.shape[0]} steps); give more than its own T, to one of our spiking "
                "networks",
            )

    def forward(self, view: View) -> Tensor:
        short = view.logits[: view.time_steps].mean(0)
        return divergence(short, view.logits.mean(0).detach(), self.temperature)


class SpatialSelfDistillation(Objective):
    """``KL(softmax(z/tau) || softmax(z_weak/tau))``: the output teaches a weak classifier on a stage.

    z is the time-averaged output, without gradient; z_weak = a linear layer on the stage's feature averaged
    over time and space. The weak classifier trains with the student and is gone at inference.

    After L. Zuo et al. (as ``temporal_self_distillation``). Which stage carries the weak classifier, its
    layers and its weight are not public: the second stage, pooling and one linear layer are our choice.

    Shape: stage capture (T, N, C, H, W) or tokens (T, N, L, D).

    YAML: ``{type: spatial_self_distillation, tap: stage2, temperature: 2.0}``
    """

    cites = ("zuo2024self",)
    of_rates = True

    def __init__(
        self, tap: str = "stage2", temperature: float = 2.0, weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        self.tap, self.student_taps = tap, (tap,)
        self.temperature = checked_temperature(self, temperature)
        self.classifier: nn.Module = nn.Identity()

    def setup(self, setup: Setup) -> None:
        """Build the weak classifier."""
        channels = as_map(self, setup.student.mean(self.tap)).shape[1]
        self.classifier = nn.Linear(channels, setup.logits.shape[-1])

    def forward(self, view: View) -> Tensor:
        weak = self.classifier(as_map(self, view.student.mean(self.tap)).mean((2, 3)))
        return divergence(weak, view.mean_logits.detach(), self.temperature)
