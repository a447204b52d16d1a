"""Louis et al.: regularisation of spiking activity and of logits."""

from typing import Literal

from torch import Tensor

from .base import Objective, Setup, View, Weight, refuse

Norm = Literal["l1", "l2"]


def rate_penalty(rate: Tensor, norm: str = "l1") -> Tensor:
    """The mean firing rate ("l1"), the mean square of neurons' rates over T ("l2"). Shape: rate (N, ...)."""
    return rate.abs().mean() if norm == "l1" else (rate**2).mean()


def logit_penalty(logits: Tensor, norm: str = "l2") -> Tensor:
    """``mean |z|`` or ``mean z^2``. Shape: (N, K)."""
    return logits.abs().mean() if norm == "l1" else (logits**2).mean()


class ActivityRegularization(Objective):
    """``sum_l w_l P(r_l)``, P the mean ("l1") or mean square ("l2") of firing rates r of layer l's neurons.

    A neuron's rate is its spikes per time step. ``per: layer``: every layer weighs 1/L; ``per: fan_out``: a
    layer weighs the share of all connections that its spikes meet, so that l1 is the share of synaptic
    operations that happen. ``layers``: paths of neuron layers; None: all.

    After T. Louis, B. Miramond, A. Pegatoquet, A. Girard, "On reducing activity with distillation and
    regularization for energy efficient spiking neural networks", 2024; the form of its activations term and
    its weights are not public: form, norm l1 and the mean over layers are our reading; weights from 1e-4 to
    1e-1 are worth a try.

    Shape: spikes (T, N, ...). Units: spikes per neuron and step.

    Raises: SpikedistillError for a network without spiking layers.

    YAML: ``{type: activity_regularization, norm: l1, per: fan_out, weight: 0.01}``
    """

    cites = ("louis2024reducing",)
    of_rates = True

    def __init__(
        self,
        norm: Norm = "l1",
        per: Literal["layer", "fan_out"] = "layer",
        layers: list[str] | None = None,
        weight: Weight = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.norm, self.per = norm, per
        self.student_taps = tuple(f"{path}@spikes" for path in layers) if layers else ("*@spikes",)
        self.shares: dict[str, float] = {}

    def setup(self, setup: Setup) -> None:
        """Weigh the layers."""
        names = [name for tap in self.student_taps for name in setup.student.all(tap)]
        if self.per == "layer":
            self.shares = dict.fromkeys(names, 1 / len(names))
            return
        from .energy import connections

        found = connections(setup.student_network, setup.x)
        # A layer that feeds no weights, such as a spiking head's, causes no operations: 0.
        fans = {name: found.get(name.removesuffix("@spikes"), 0) for name in names}
        total = sum(fans.values())
        if not total:
            raise refuse(self, "none of the layers feeds a convolution or linear layer; use per: layer")
        self.shares = {name: fan / total for name, fan in fans.items()}

    def forward(self, view: View) -> Tensor:
        total = view.logits.new_zeros(())
        for tap in self.student_taps:
            for name, rate in view.student.means(tap).items():
                total = total + self.shares[name] * rate_penalty(rate, self.norm)
        return total


class LogitsRegularization(Objective):
    """``mean_nk |z|^2`` ("l2") or ``mean_nk |z|`` ("l1") of the time-averaged logits.

    After T. Louis et al. (as ``activity_regularization``), who report that small logits lower the activity of
    all layers. That l2 is their main form is second hand, "lambda001" in their published configuration may
    mean 0.01 or 0.001; dividing by N*K is our reading.

    Shape: logits (T, N, K).

    YAML: ``{type: logits_regularization, norm: l2, weight: 0.01}``
    """

    cites = ("louis2024reducing",)
    of_rates = True

    def __init__(self, norm: Norm = "l2", weight: Weight = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.norm = norm

    def forward(self, view: View) -> Tensor:
        return logit_penalty(view.mean_logits, self.norm)
