"""What objectives share that teach every step twice: by the teacher and by the student's other steps."""

from .base import Objective, Setup, Weight, refuse
from .logits import check_logits, checked_temperature


class StepTargets(Objective):
    """``alpha`` weighs the teacher, ``beta`` the student's own steps; both softened by ``temperature``.

    Raises: SpikedistillError for a weight below 0, and where the numbers of classes differ.
    """

    def __init__(
        self, alpha: float, beta: float, temperature: float, weight: Weight = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if alpha < 0 or beta < 0:
            raise refuse(self, f"alpha and beta must be at least 0, found {alpha} and {beta}")
        self.alpha, self.beta = alpha, beta
        self.temperature = checked_temperature(self, temperature)
        # Of the instance: a distiller refuses an objective that needs a teacher where it has none.
        self.needs_teacher = alpha > 0

    def setup(self, setup: Setup) -> None:
        """Check that both have the same classes."""
        if self.needs_teacher:
            check_logits(self, setup)
