"""Killed before any change of the file system, a run goes on and ends with the same bits."""

import random
import shutil
from pathlib import Path

import pytest

from .conftest import child, outcome, run, watch

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def kill_and_resume(small, images, folder: Path, points: list[int]) -> None:
    """One run, killed at each of ``points`` in turn (counted anew by each process), then left alone."""
    shutil.rmtree(folder, ignore_errors=True)
    for point in points:

        def killed(point: int = point) -> None:
            watch(folder, point)
            run(small, images, folder)

        status = child(killed)
        assert status in (-9, 0), f"killed at {points}: exit {status}"
    assert child(lambda: run(small, images, folder)) == 0, f"killed at {points}"


@pytest.fixture
def whole(small, images, tmp_path, imported):
    """The uninterrupted run's outcome, and how often it changes the file system."""

    def counted() -> None:
        watch(tmp_path / "whole", 0, tmp_path / "count")
        run(small, images, tmp_path / "whole")

    assert child(counted) == 0
    return outcome(tmp_path / "whole"), (tmp_path / "count").stat().st_size


def test_killed_at_some_places(small, images, tmp_path, whole):
    expected, changes = whole
    assert changes > 60
    assert expected["left"] == []
    draw = random.Random(1)
    for point in [1, 3, *sorted(draw.sample(range(5, changes + 1), 3))]:
        kill_and_resume(small, images, tmp_path / "run", [point])
        assert outcome(tmp_path / "run") == expected, point


@pytest.mark.slow
def test_killed_before_each_change_of_the_file_system(small, images, tmp_path, whole):
    expected, changes = whole
    for point in range(1, changes + 1):
        kill_and_resume(small, images, tmp_path / "run", [point])
        assert outcome(tmp_path / "run") == expected, point


@pytest.mark.slow
def test_killed_several_times(small, images, tmp_path, whole):
    expected, changes = whole
    for seed in range(40):
        draw = random.Random(seed)
        points = [draw.randint(1, changes // 2) for _ in range(draw.randint(2, 4))]
        kill_and_resume(small, images, tmp_path / "run", points)
        assert outcome(tmp_path / "run") == expected, points
