"""A stage that converts another stage's ANN: the baseline in a recipe."""

import pytest
import torch

import spikedistill as sd
from spikedistill.conversion import accuracy_over_time
from spikedistill.data import from_arrays
from spikedistill.errors import SpikedistillError
from spikedistill.report import table
from spikedistill.training.calibration import calibration_batches
from spikedistill.training.run import train

STEPS = [1, 2, 4, 32]


@pytest.fixture
def converting(recipe):
    teacher, student = recipe["stages"]
    stage = {"name": "conversion", "convert": {"from": "teacher", "percentile": 99}, "accuracy_at": STEPS}
    return {**recipe, "stages": [teacher, stage, student]}


def test_a_converted_stage_is_what_convert_gives(tmp_path, converting, arrays):
    run = train(converting, data=arrays, out=tmp_path / "run", quiet=True)
    row = run.summary.stage("conversion")
    assert (row.epochs, row.time_steps, row.convert["percentile"]) == (0, 2, 99)
    data = from_arrays(arrays, sd.data.DataConfig(name="arrays", batch_size=16, validation=0.1))
    teacher = sd.load(run.folder, "teacher")
    own = sd.convert(teacher, calibration_batches(data, 16, 1024, "cpu"), time_steps=2, percentile=99)
    curve = accuracy_over_time(own, data.batches("test", 80), STEPS)
    assert row.accuracy_at == pytest.approx(curve)
    assert row.accuracy == pytest.approx(curve[2])
    x, _ = next(data.batches("test", 80))
    assert torch.equal(sd.load(run.folder, "conversion").predict(x), own.predict(x))


def test_the_table_says_how_many_steps_conversion_needs(tmp_path, converting, arrays):
    summary = train(converting, data=arrays, out=tmp_path / "run", quiet=True).summary
    stages = {stage.name: stage for stage in summary.stages}
    for accuracy, words in (
        (0.9, "needs T = 32"),
        (0.99, "has not reached, at T = 32,"),
        (0.3, "needs T = 1"),
    ):
        stages["conversion"].accuracy_at = {1: 0.3, 4: 0.5, 32: 0.95}
        stages["student"].accuracy = accuracy
        (line,) = table.conversions(summary)
        assert line.startswith(f"conversion {words}")
        assert "student (T = 2" in line
    assert "0.5 times" in line
    assert line in table.plain(summary)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init": {"from": "teacher"}}, "stages.conversion.init"),
        ({"network": {"name": "conv6"}}, "exactly one of `network`, `from` and `convert`"),
        (
            {"convert": {"from": "techer"}},
            "stages.conversion.convert.from: no earlier stage 'techer'.*teacher",
        ),
        (
            {"convert": {"from": "teacher", "method": "magic"}},
            "stages.conversion.convert.method: found 'magic'",
        ),
        ({"convert": {"from": "teacher", "percentil": 9}}, "unknown key 'percentil'.*percentile"),
    ],
)
def test_wrong_conversions_are_refused(converting, arrays, tmp_path, change, words):
    converting["stages"][1] |= change
    with pytest.raises(SpikedistillError, match=words):
        train(converting, data=arrays, out=tmp_path / "run", quiet=True)
