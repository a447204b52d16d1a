"""Time inheritance: the first part of a training simulates fewer time steps, and takes less time for it.

Deng et al., ICLR 2022 (with TET): weights trained at a small T are a start for a larger one. The paper trains
at one T, then for few epochs at another; shares of one training under one schedule are our reading.
"""

from collections.abc import Mapping

from .distiller import Distiller
from .errors import SpikedistillError
from .networks import Network


def check_shares(shares: Mapping[int, float], time_steps: int) -> None:
    """Raise unless ``shares`` are time steps below ``time_steps``, rising, each with a part of the training.

    ``{1: 0.25, 2: 0.4}``: one time step for the first quarter of a training, two for the next two fifths, all
    for the rest.
    """
    steps = list(shares)
    if steps != sorted(steps) or not all(1 <= each < time_steps for each in steps):
        raise SpikedistillError(
            f"found the time steps {steps}: give whole numbers from 1, rising and below T = {time_steps}"
        )
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise SpikedistillError(
            f"found the shares {list(shares.values())}: each is a part of the training, and together they "
            f"leave some of it to T = {time_steps}; give numbers above 0 whose sum is below 1"
        )


class TimeInheritance:
    """Sets the time steps of a distiller's networks by how far the training is.

    Spiking teachers of the student's own T simulate as many steps as it does, so that what is compared step
    by step fits; a teacher of another T keeps it. ``shares``: see :func:`check_shares`; none: nothing is
    done. Raises for a student that is no SNN, or takes frames, whose number is that of its steps.
    """

    def __init__(self, distiller: Distiller, shares: Mapping[int, float]) -> None:
        self.shares = dict(shares)
        self.networks: list[Network] = []
        self.own = self.steps = 0  # nobody's, while there are no networks
        if not shares:
            return
        student = distiller.student
        if not isinstance(student, Network) or student.time_steps is None:
            raise SpikedistillError("time_inheritance: only a spiking network has time steps to begin with")
        if student.input == "frames":
            raise SpikedistillError(
                "time_inheritance: the network takes frames, one for each of its time steps"
            )
        self.own = student.time_steps
        check_shares(shares, self.own)
        self.networks = [
            network
            for network in (student, *distiller.teachers.values())
            if isinstance(network, Network) and network.time_steps == self.own
        ]

    def begin(self, progress: float) -> int | None:
        """Before a step of training: ``progress`` of it, 0..1, is done. Returns the time steps, where new."""
        before, until = self.steps, 0.0
        self.steps = self.own
        for steps, share in self.shares.items():
            until += share
            # Sums of shares such as 0.1 are off by a rounding; a step belongs to the later part.
            if progress < until - 1e-9:
                self.steps = steps
                break
        self._set(self.steps)
        return self.steps if self.steps != before else None

    def end(self) -> None:
        """Before anything is measured or saved: every network has its own T again."""
        self._set(self.own)

    def _set(self, steps: int) -> None:
        for network in self.networks:
            network.time_steps = steps
