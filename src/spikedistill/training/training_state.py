"""What a resumed stage needs, a checkpoint: weights, adapters, optimizer, average, best weights, position."""

from typing import TYPE_CHECKING

from .. import finite
from ..errors import SpikedistillError
from . import checkpoint, metrics
from .optim import restore_by_name, state_by_name
from .position import Position

if TYPE_CHECKING:
    from .loop import Training


def write(training: "Training") -> None:
    """Write the checkpoint, whole or not at all; raises for a network that holds NaN."""
    tensors = {f"model.{k}": v for k, v in training.distiller.state_dict().items()}
    tensors |= {f"optimizer.{k}": v for k, v in state_by_name(training.optimizer, training.distiller).items()}
    if training.average is not None:
        tensors |= {f"average.{k}": v for k, v in training.average.values.items()}
    if training.best is not None:
        tensors |= {f"best.{k}": v for k, v in training.best.items()}
    # Buffers may hold infinity on purpose (masks); a statistic that does is as broken as a NaN.
    wrong = [f"model.{k}" for k in finite.of(training.distiller)]
    wrong += finite.faulty((k, v) for k, v in tensors.items() if not k.startswith(("model.", "best.")))
    if wrong:
        raise SpikedistillError(
            f"stage {training.settings.name!r}, step {training.position.step}: {finite.words(wrong)} holds "
            "NaN or infinity; no checkpoint is written of it, the last good one is in "
            f"{training.checkpoint_folder}. Look for what gives such values (the data, a layer of your own), "
            "then resume"
        )
    state = {
        "warned": sorted(training.warned),
        "suspects": sorted(training.suspects),
        "steps": training.steps,
    }
    checkpoint.save(training.checkpoint_folder, tensors, {"position": training.position.__dict__, **state})


def read(training: "Training") -> None:
    """Set the training to its checkpoint, if there is one; raises for one of another length."""
    folder = training.settings.folder
    assert folder is not None
    found = checkpoint.load_latest(training.checkpoint_folder, training.note)
    if found is None:
        return
    tensors, state = found
    if state["steps"] != training.steps:
        raise SpikedistillError(
            f"{training.checkpoint_folder} is of a training of {state['steps']} steps, this one has "
            f"{training.steps}; the data or the number of processes changed: use the same, or another --out"
        )
    training.distiller.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    states = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    restore_by_name(training.optimizer, training.distiller, states)
    if training.average is not None:
        for k in training.average.values:
            training.average.values[k].copy_(tensors[f"average.{k}"])
    training.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")} or None
    training.position = Position(**state["position"])
    training.warned, training.suspects = set(state["warned"]), set(state.get("suspects", ()))
    training.saved_step = training.position.step
    at = training.position
    if at.last is None and at.epoch:  # a checkpoint from before the line was kept in it
        lines = metrics.read(folder).epochs(training.settings.name)
        at.last = lines[-1] if lines else None
    if training.rank == 0:
        metrics.append(folder, "resume", stage=training.settings.name, epoch=at.epoch, step=at.step)
