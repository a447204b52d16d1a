import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from synthetic import folder, run

from spikedistill import cli
from spikedistill.errors import SpikedistillError
from spikedistill.report import parts, watch
from spikedistill.training import lock, metrics, summary

REFRESH = '<meta http-equiv="refresh" content="3">'
RECIPE = {
    "title": "Tiny",
    "data": {"name": "digits"},
    "time_steps": 2,
    "stages": [{"name": "teacher", "network": {"name": "vgg5", "ann": True}, "epochs": 4}],
}


def begun(path: Path) -> Path:
    """A run that has written its recipe and nothing else."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny", "record": 2, "recipe": RECIPE}))
    return path


def epoch(path: Path, number: int) -> None:
    values = {
        "train": {"loss": 1 / number, "accuracy": 0.5},
        "validation": {"loss": 2 / number, "accuracy": 0.25},
        "step": 10 * number,
        "step_time": {"data": 1.0, "forward": 9.0},
    }
    metrics.append(path, "epoch", stage="teacher", epoch=number, epochs=4, **values)


class Going:
    """A run that goes for as many looks as it has steps: one is done while the watcher sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, page: Path, *steps: object) -> None:
        self.page, self.steps, self.seen = page, list(steps), []
        monkeypatch.setattr(lock, "held", lambda folder: bool(self.steps))
        monkeypatch.setattr(watch.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.seen.append(self.page.read_text(encoding="utf-8"))
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        if callable(step):
            step()


def test_the_page_follows_the_run_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = begun(tmp_path / "run")
    stage = lambda: metrics.append(place, "stage", stage="teacher", epochs=4)  # noqa: E731
    two = lambda: (epoch(place, 1), epoch(place, 2))  # noqa: E731
    done = run(0).model_copy(update={"stages": run(0).stages[:1]})
    going = Going(monkeypatch, place / "report.html", stage, two, None, lambda: summary.write(place, done))
    said: list[str] = []
    page = watch.watch(place, every=3, say=said.append)
    before, at_start, in_epoch, same = going.seen
    assert all(REFRESH in seen for seen in going.seen)
    assert "not begun" in before
    assert "<dd>0 of 4</dd>" in at_start
    assert "<dd>2 of 4</dd>" in in_epoch
    assert "about 3 min" in in_epoch  # two epochs of ten steps of ten seconds
    assert "accuracy-teacher.csv" in in_epoch  # its curves are there before it has finished
    assert 'id="results"' not in in_epoch
    assert same == in_epoch
    last = page.read_text(encoding="utf-8")
    assert "http" not in last
    assert 'id="results"' in last
    assert said[-1].endswith("the run has ended")


def test_nothing_new_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "run", run(0))
    Going(monkeypatch, place / "report.html", None, None, None)
    made: list[str] = []
    monkeypatch.setattr(watch, "write", lambda target, page: (made.append(page), target.write_text(page)))
    watch.watch(place, every=3, say=lambda text: None)
    assert len(made) == 2  # at the start and at the end


def test_ctrl_c_leaves_a_page_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = begun(tmp_path / "run")
    epoch(place, 1)
    going = Going(monkeypatch, place / "report.html", None, KeyboardInterrupt())
    assert cli.main(["report", str(place), "--watch"]) == 0
    assert 'http-equiv="refresh"' in going.seen[0]
    assert "http" not in (place / "report.html").read_text(encoding="utf-8")


def test_seeds_that_are_finished_are_shown_while_another_goes(tmp_path: Path) -> None:
    place = begun(tmp_path / "run")
    folder(place / "seed-0", run(0))
    folder(place / "seed-1", run(1))
    metrics.append(place / "seed-2", "stage", stage="teacher", epochs=12)
    epoch(place / "seed-2", 1)
    found = watch.live(place, 3)
    assert found.seeds == [0, 1]
    assert found.logged == [0, 1, 2]
    assert [stage.name for stage in found.summary.stages] == ["teacher", "alone", "student", "quantized"]
    assert found.live is not None
    assert found.live.lines[:3] == [("seed", "seed-2"), ("stage", "teacher"), ("epoch", "1 of 12")]


def test_no_run_and_several_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpikedistillError, match="no run in"):
        watch.watch(tmp_path)
    assert cli.main(["report", str(tmp_path), str(tmp_path), "--watch"]) == 2
    assert "--watch takes one run" in capsys.readouterr().err


def test_who_holds_a_folder_is_known_and_not_disturbed(tmp_path: Path) -> None:
    python = [sys.executable, "-S", "-c"]
    hold = f"import fcntl; f = open({str(tmp_path / lock.FILE)!r}, 'r+'); fcntl.lockf(f, fcntl.LOCK_EX"
    assert not lock.held(tmp_path)
    with lock.locked(tmp_path):
        assert lock.held(tmp_path)
        assert subprocess.run([*python, f"{hold} | fcntl.LOCK_NB)"], capture_output=True).returncode != 0
    assert not lock.held(tmp_path)
    wait = f"{hold}); print(1, flush=True); input()"
    with subprocess.Popen([*python, wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert lock.held(tmp_path)
        other.communicate(b"\n")
    assert not lock.held(tmp_path)


@pytest.mark.parametrize("name", ["tiny-3", "run-12", "seed-7"])
def test_a_run_of_one_seed_is_told_by_its_own_whatever_its_folder_is_called(
    tmp_path: Path, name: str
) -> None:
    place = begun(tmp_path / name)
    folder(place, run(5))
    epoch(place, 1)
    assert parts.load(place).logged == [5]
