"""One accelerator a run, with the experiment trackers that accelerate knows.

Such as TensorBoard, Weights & Biases and MLflow.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..devices import checked
from ..errors import SpikedistillError, nearest
from ..processes import started


@contextmanager
def accelerator(device: str | None, track: Any, folder: Path) -> Iterator[Any]:
    """accelerate's engine; after :func:`begin` its ``log`` reaches ``track``, files in ``folder/tracking``.

    ``track``: a name of accelerate's, a ``GeneralTracker`` of your own, or None. Raises
    :class:`SpikedistillError` for a name that is unknown or not installed.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    if isinstance(track, str):
        _check(track)
    places = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "tracking"))
    asked = checked(device)
    if asked is not None and asked.index is not None:
        # accelerate is told of the CPU or not of it: of several devices it takes the current one.
        torch.accelerator.set_device_index(asked.index)
    # Said too where there is nothing else: left to itself accelerate joins no processes there.
    bare = asked is None and started() > 1 and not torch.accelerator.is_available()
    on_cpu = bare or (asked is not None and asked.type == "cpu")
    made = Accelerator(
        # The loop casts by itself; left open, accelerate's environment would decide.
        mixed_precision="no",
        cpu=on_cpu,
        log_with=track,
        project_config=places,
    )
    if made.num_processes != started():
        raise SpikedistillError(
            f"{started()} processes were started together, and on {made.device.type} each would train by "
            "itself; start one, or give --device cpu"
        )
    try:
        yield made
    finally:
        # After a failure too: trackers write behind the scenes, and the last epochs would be missing.
        for tracker in made.trackers:
            tracker.finish()


def begin(accelerator: Any, name: str, recipe: dict[str, Any]) -> None:
    """Start the trackers that were asked for."""
    if accelerator.log_with:
        # As one text: trackers take flat values, TensorBoard refuses a mapping in a mapping.
        accelerator.init_trackers(name, config={"recipe": json.dumps(recipe)})


def _check(track: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if track not in LOGGER_TYPE_TO_CLASS:
        raise SpikedistillError(f"unknown tracker {track!r}: {nearest(track, LOGGER_TYPE_TO_CLASS)}")
    if track not in map(str, get_available_trackers()):
        raise SpikedistillError(
            f"the tracker {track!r} is not installed: pip install {track}, or 'spikedistill[track]'"
        )


def scalars(stage: str, line: dict[str, Any]) -> dict[str, float]:
    """What a tracker is told of an epoch, by "stage/what"."""
    told = {"loss": line["train"]["loss"], "accuracy": line["train"]["accuracy"], "lr": line["lr"]}
    told |= {f"loss_{part}": value for part, value in line["train"]["parts"].items()}
    told |= {f"validation_{what}": value for what, value in line.get("validation", {}).items()}
    return {f"{stage}/{what}": float(value) for what, value in told.items()}
