"""CKDSNN: saliency-scaled activation maps (SAMD) and noise-smoothed logits (NLD)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Objective, Setup, View, Weight, refuse
from .divergence import soft_divergence
from .heads import check_reads, classifier
from .logits import check_classes, check_logits, checked_temperature
from .pairs import as_map


def class_activation_map(feature: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    """``relu(sum_c w_kc F_c)``, k the teacher's class: (N, C, H, W), (K, C), (N, K) to (N, H, W)."""
    rows = weight[logits.argmax(-1)]
    return (feature * rows[:, :, None, None]).sum(1).relu()


def scaled(maps: Tensor, scaling: str) -> Tensor:
    """Maps (N, H, W) brought to [0, 1] by least and largest value, of batch or sample; or left alone."""
    if scaling == "none":
        return maps
    dims = (0, 1, 2) if scaling == "batch" else (1, 2)
    maps = maps - maps.amin(dims, keepdim=True)
    return maps / (maps.amax(dims, keepdim=True) + 1e-3)


class ActivationMapDistillation(Objective):
    """``tau^2 KL(softmax(CAM/tau) || softmax(SAM/tau))`` over positions: where spikes are, where they count.

    ``SAM = sum_t sum_c S`` of the student's last stage; ``CAM = relu(sum_c w_kc F_c)`` of the teacher's, w
    the weights of the class k that it predicts. Where sizes differ, the larger map is average-pooled (ours).

    X. Liu, N. Xia, J. Zhou, J. Xu, D. Guo, "A closer look at knowledge distillation in spiking neural network
    training" (CKDSNN), AAAI 2026, its SAMD; tau = 2 and weight 1 are the paper's. Paper and code differ: the
    paper's equation has the bare maps (``scaling: none``), the code brings both to [0, 1] by the least and
    largest value of the batch plus 1e-3 (``batch``, the default: bare sums of spikes make the softmax a
    maximum); ``sample`` is ours. The function that the code calls for the divergence is not in its
    repository; that it runs over a sample's positions is the paper's.

    Shape: student (T, N, C, H, W), teacher (T', N, C', H', W'), teacher logits (T', N, K), those of its own
    classifier also where another learns in its place (``teacher_heads``).

    Raises: SpikedistillError for a teacher whose classifier does not read its ``teacher_tap``'s channels.

    YAML: ``{type: activation_map_distillation, temperature: 2.0, scaling: batch}``
    """

    cites = ("liu2026closer",)
    needs_teacher = True

    def __init__(
        self,
        temperature: float = 2.0,
        scaling: Literal["batch", "sample", "none"] = "batch",
        tap: str = "before_head",
        teacher_tap: str | None = None,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.temperature = checked_temperature(self, temperature)
        self.scaling, self.tap, self.teacher_tap = scaling, tap, teacher_tap or tap
        # The logits too: a head that learns in the classifier's place may know other classes than its rows.
        self.student_taps, self.teacher_taps = (self.tap,), (self.teacher_tap, "logits")
        self._head: list[nn.Linear] = []  # in a list: the teacher's, not this objective's

    def setup(self, setup: Setup) -> None:
        """Find the teacher's classifier."""
        assert setup.teacher is not None
        head = classifier(self, setup.teacher_network)
        channels = as_map(self, setup.teacher.mean(self.teacher_tap)).shape[1]
        as_map(self, setup.student.mean(self.tap))
        if channels != head.in_features:
            raise refuse(
                self,
                f"the teacher's {self.teacher_tap!r} has {channels} channels and its classifier reads "
                f"{head.in_features} features; name the map before its head in teacher_tap",
            )
        self._head = [head]
        feature = as_map(self, setup.teacher.mean(self.teacher_tap)).mean((2, 3))
        bias = None if head.bias is None else head.bias.to(feature.dtype)
        made = F.linear(feature, head.weight.to(feature.dtype), bias)
        logits = setup.teacher.mean("logits").to(feature.dtype)
        check_reads(self, setup.teacher_network, self.teacher_tap, made, logits)

    def forward(self, view: View) -> Tensor:
        assert view.teacher is not None
        spikes = view.student[self.tap]
        student = as_map(self, spikes.sum(0)).sum(1)
        feature = as_map(self, view.teacher.mean(self.teacher_tap))
        weight = self._head[0].weight.detach().to(feature.dtype)
        teacher = class_activation_map(feature, weight, view.teacher.mean("logits"))
        size = min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1])
        maps = [
            F.adaptive_avg_pool2d(x, size) if tuple(x.shape[-2:]) != size else x for x in (student, teacher)
        ]
        student, teacher = (scaled(x, self.scaling).flatten(1) for x in maps)
        return soft_divergence(student, teacher, self.temperature)


class NoiseSmoothedDistillation(Objective):
    """``tau^2 KL(softmax(z_teacher/tau) || softmax((z + l e)/tau))``, e ~ N(mean_k z, std_k z), by sample.

    z are the time-averaged logits. e is drawn anew at each step (torch's generator) and has no gradient (our
    reading).

    NLD of CKDSNN (as ``activation_map_distillation``); tau = 2, l = 0.1 and weight 1 are the paper's. The
    official code mixes probabilities instead (``reading: code``): ``(1 - l) softmax(z/tau) + l
    softmax(n/tau)`` with n = mean z + e (std z)^2, the variance where the deviation is meant, and a gradient
    through both.

    Shape: logits (T, N, K), teacher (T', N, K).

    Raises: SpikedistillError when the numbers of classes differ.

    YAML: ``{type: noise_smoothed_distillation, temperature: 2.0, noise: 0.1}``
    """

    cites = ("liu2026closer",)
    needs_teacher = True
    of_rates = True

    def __init__(
        self,
        temperature: float = 2.0,
        noise: float = 0.1,
        reading: Literal["paper", "code"] = "paper",
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not 0 <= noise <= 1:
            raise refuse(self, f"noise must be in [0, 1], found {noise}")
        self.temperature = checked_temperature(self, temperature)
        self.noise, self.reading = noise, reading

    def setup(self, setup: Setup) -> None:
        """Check that both have the same classes, and more than one."""
        check_logits(self, setup)
        check_classes(self, setup)

    def forward(self, view: View) -> Tensor:
        z, teacher, tau = view.mean_logits, view.teacher_mean_logits, self.temperature
        mean, deviation, e = z.mean(-1, keepdim=True), z.std(-1, keepdim=True), torch.randn_like(z)
        if self.reading == "paper":
            noisy = z + self.noise * (mean + deviation * e).detach()
            return soft_divergence(noisy, teacher, tau)
        # The variance and the gradient through it are the official code's, not slips of this one.
        n = mean + e * deviation**2
        p = (1 - self.noise) * F.softmax(z / tau, -1) + self.noise * F.softmax(n / tau, -1)
        target = F.log_softmax(teacher / tau, -1)
        return tau**2 * (target.exp() * (target - p.log())).sum(-1).mean()
