from pathlib import Path
from typing import Any

import pytest

import spikedistill as sd
from spikedistill import cli
from spikedistill.training import metrics
from spikedistill.training.run import train


def short(recipe: dict) -> dict:
    for stage in recipe["stages"]:
        stage["epochs"] = 2
    return recipe


def test_a_tracker_hears_every_epoch_of_every_seed(tmp_path: Path, recipe: dict, arrays: dict) -> None:
    from accelerate.tracking import GeneralTracker

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "mine", False, None
        heard: list[tuple[int, dict]] = []
        finished = 0

        def store_init_configuration(self, values: dict) -> None: ...

        def log(self, values: dict, step: int | None, **_: Any) -> None:
            self.heard.append((step or 0, values))

        def finish(self) -> None:
            self.finished += 1

    tracker = Tracker()
    run = train(short(recipe), data=arrays, out=tmp_path / "run", seeds=2, quiet=True, track=tracker)
    assert [step for step, _ in tracker.heard] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tracker.finished == 1
    values = tracker.heard[7][1]
    line = metrics.read(run.folder / "seed-1").epochs("student")[-1]
    assert values["seed-1/student/loss"] == line["train"]["loss"]
    assert values["seed-1/student/validation_accuracy"] == line["validation"]["accuracy"]
    assert "seed-1/student/loss_logit_distillation" in values
    assert any("seed-0/teacher/lr" in told for _, told in tracker.heard)


def test_tensorboard_files_lie_in_the_run(tmp_path: Path, recipe: dict, arrays: dict) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(short(recipe), data=arrays, out=tmp_path / "run", quiet=True, track="tensorboard")
    found = EventAccumulator(str(run.folder / "tracking" / "tiny"))
    found.Reload()
    line = metrics.read(run.folder).epochs("student")[-1]
    last = found.Scalars("student/loss")[-1]
    assert (last.step, last.value) == (4, pytest.approx(line["train"]["loss"], rel=1e-6))


def test_trackers_that_are_not_there(tmp_path: Path, recipe: dict, arrays: dict, capsys: Any) -> None:
    with pytest.raises(
        sd.SpikedistillError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"
    ):
        train(recipe, data=arrays, out=tmp_path / "run", quiet=True, track="tensorbord")
    assert cli.main(["train", "digits", "--track", "wand", "--out", str(tmp_path / "d")]) == 2
    assert "did you mean 'wandb'" in capsys.readouterr().err
