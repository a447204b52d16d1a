"""What went wrong: a training that forgets; a step not finite, run again and looked at part by part.

Nothing was applied since (:mod:`.guard`), so the weights are those of the step itself. So are the batches and
the draws: each pass asks for the batches anew, and draws on from where that leaves the generators.
"""

import torch
from torch import nn

from .. import finite
from ..errors import SpikedistillError
from .machine import autocast, saving
from .training_state import TrainingState

DIVERGED = 1e6  # weights or logits of this size are a training that ran away, whatever broke first
LOWER = (
    "Lower the learning rate, add a warm-up or clip the gradient "
    "(optimizer: {lr: ..., warm_up: ..., clip: 1.0}), then resume"
)
FALLEN = (
    "training forgot what it had learned: its accuracy fell by more than a quarter. The learning rate is too "
    "high for the sum of the objectives; lower it, or clip gradients (optimizer: {lr: ..., clip: 1.0})"
)


def has_fallen(peak: float, accuracy: float) -> bool:
    """Whether an epoch's training accuracy lies far below the best epoch's, by more than chance does."""
    return accuracy < 0.75 * peak and peak - accuracy > 0.1


def explain(training: TrainingState, step: int) -> SpikedistillError:
    """The error for ``step`` (from 0), naming data, tensor and layer, or objective."""
    s = training.settings
    kept = f"; the last checkpoint is in {s.folder}" if s.folder else ""
    try:
        words, advice = _cause(training, step)
    except SpikedistillError as error:
        words, advice = str(error), "mend that, then resume"
    return SpikedistillError(f"stage {s.name!r}: {words}{kept}. {advice}")


def _cause(training: TrainingState, step: int) -> tuple[str, str]:
    distiller = training.distiller
    batch = (step % training.per_epoch) * training.micro
    # From cause to effect: one NaN in the data makes everything behind it NaN too.
    for k, (x, _) in enumerate(training.micro_batches(step, batch)):
        rows = torch.isfinite(x.flatten(1)).all(1)
        if not bool(rows.all()):
            row = int((~rows).nonzero()[0])
            return (
                f"the data: batch {batch + k + 1} of epoch {step // training.per_epoch + 1} holds NaN or "
                f"infinity in its image {row + 1} (step {step})",
                "Mend the data or its augmentation, then resume",
            )
    broken = finite.faulty(distiller.named_parameters())
    if broken:
        return (
            f"{finite.words(broken)} holds NaN or infinity before step {step}, though no gradient did: the "
            "optimizer's state or a change of the weights from outside",
            "Resume from the last checkpoint",
        )
    if training.world > 1:  # what follows runs the network, and the processes might part ways in it
        return f"the loss or a gradient is not finite at step {step}", LOWER
    far = _diverged(training, step, batch)
    for x, y in training.micro_batches(step, batch):
        losses = _losses(training, step, x, y)
        values = {name: float(value) for name, value in losses.parts.items()}
        # Infinity less itself is NaN as well: one test finds both.
        bad = [name for name, value in values.items() if value - value != 0]
        if bad or not bool(torch.isfinite(losses.total)):
            total = float(losses.total.detach())
            if far or not bad:
                return f"the loss is {total} at step {step} ({', '.join(bad) or 'total'})", LOWER
            return (
                f"objective {bad[0]!r} is {values[bad[0]]} at step {step}, though weights, "
                "batch and logits are finite",
                "Mend the objective or its settings, then resume",
            )
    # Over a list: looking at one objective takes the others out of the mapping meanwhile.
    for term in list(distiller.objectives):
        tensors = _gradient_of(training, step, batch, term)
        if tensors:
            words = (
                f"the gradient of objective {term!r} at step {step} is not finite in {finite.words(tensors)}"
            )
            return (
                (words, LOWER)
                if far
                else (f"{words}, though its value is", "Mend the objective, then resume")
            )
    return f"the sum of the objectives' gradients is not finite at step {step}", LOWER


def _losses(training: TrainingState, step: int, x: torch.Tensor, y: torch.Tensor):  # type: ignore[no-untyped-def]
    """Of a batch that has just been asked for: whatever is drawn in between would change the draws."""
    with (
        autocast(training.settings.precision, training.settings.device),
        saving(training.settings.memory, training.student),
    ):
        return training.distiller(x, y, step / max(1, training.steps))


@torch.no_grad()
def _diverged(training: TrainingState, step: int, batch: int) -> bool:
    """Whether weights or logits have run away."""
    sizes = [p.detach().abs().max() for p in training.distiller.parameters() if p.numel()]
    for x, y in training.micro_batches(step, batch):
        sizes.append(_losses(training, step, x, y).logits.abs().max())
    return any(not float(size) < DIVERGED for size in sizes)  # NaN is not less


def _gradient_of(training: TrainingState, step: int, batch: int, term: str) -> list[str]:
    """Parameters whose gradient by this objective alone is not finite."""
    distiller = training.distiller
    whole = distiller.objectives
    distiller.objectives = nn.ModuleDict({term: whole[term]})
    try:
        for x, y in training.micro_batches(step, batch):
            distiller.zero_grad(set_to_none=True)
            _losses(training, step, x, y).total.backward()
            found = finite.faulty((n, p.grad) for n, p in distiller.named_parameters() if p.grad is not None)
            if found:
                return found
    finally:
        distiller.objectives = whole
    return []
