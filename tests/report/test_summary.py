import json
from math import sqrt
from pathlib import Path

import pytest
from pydantic import ValidationError
from synthetic import run

from spikedistill.errors import SpikedistillError
from spikedistill.training import metrics, summary
from spikedistill.training.summary import MembraneSummary, MultiSummary, RunSummary, StageSummary

FROZEN = Path(__file__).with_name("summary_schema.json")


def test_the_schema_is_frozen() -> None:
    """A change is a new format: raise FORMAT, change docs/run_folder.md, then write the new schema here."""
    assert summary.schema() == json.loads(FROZEN.read_text())


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run_folder.md").read_text()
    for name, part in summary.schema()["$defs"].items():
        missing = [key for key in part["properties"] if f"`{key}`" not in page]
        assert not missing, (name, missing)


@pytest.mark.parametrize("seeds", [1, 3])
def test_round_trip(tmp_path: Path, seeds: int) -> None:
    written = run(0) if seeds == 1 else summary.merge([run(seed) for seed in range(seeds)])
    summary.write(tmp_path, written)
    assert summary.read(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_keys_are_those_of_the_recipe(tmp_path: Path) -> None:
    summary.write(tmp_path, run(0))
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert stages[3]["from"] == "student"
    assert stages[1]["accuracy_at"]["4"] == stages[1]["accuracy"]


def test_a_failing_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary.write(tmp_path, run(0))

    def broken(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        summary.write(tmp_path, run(1))
    found = summary.read(tmp_path)
    assert isinstance(found, RunSummary)
    assert found.seed == 0


def test_accuracy_is_a_fraction() -> None:
    stage = run(0).stages[0].model_dump()
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        StageSummary.model_validate(stage | {"accuracy": 87.0})


def test_counts_fit_edges() -> None:
    with pytest.raises(ValidationError, match="3 edges need 2 counts, 3 given"):
        MembraneSummary(path="a", edges=[0, 1, 2], student=[1, 2, 3])


def test_nan_survives(tmp_path: Path) -> None:
    diverged = run(0)
    diverged.stages[1].synaptic_operations = float("nan")
    summary.write(tmp_path, diverged)
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    value = summary.read(tmp_path).stages[1].synaptic_operations  # type: ignore[union-attr]
    assert value != value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no summary.json"),
        ('{"format": 2}', "format 2; this version reads format 1"),
        ("{", "not a summary"),
        ("[]", "not a summary"),
        ('{"format": 1, "kind": "run", "title": "a", "recipe": "b", "seed": "x"}', "seed"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(SpikedistillError, match=message):
        summary.read(tmp_path)


def test_merge_against_figures_worked_out_by_hand() -> None:
    runs = [run(0), run(1), run(2)]
    for one, alone, student in zip(runs, (0.80, 0.84, 0.82), (0.90, 0.91, 0.95)):
        one.stage("alone").accuracy, one.stage("student").accuracy = alone, student
    merged = summary.merge(runs[::-1])
    assert merged.seeds == [0, 1, 2]
    spread = merged.stage("alone").figures["accuracy"]
    assert spread.values == [0.80, 0.84, 0.82]
    assert spread.mean == pytest.approx(0.82)
    assert spread.std == pytest.approx(0.02)  # sqrt((0.02^2 + 0.02^2 + 0) / 2)
    (difference,) = [
        d for d in merged.differences if (d.figure, d.stage, d.baseline) == ("accuracy", "student", "alone")
    ]
    assert difference.values == pytest.approx([0.10, 0.07, 0.13])
    assert difference.mean == pytest.approx(0.10)
    half = (
        4.302652729911275 * 0.03 / sqrt(3)
    )  # tables: t(0.975, 2) = 4.30265; std of (0.10, 0.07, 0.13) = 0.03
    assert (difference.low, difference.high) == pytest.approx((0.10 - half, 0.10 + half))


def test_merge_takes_figures_of_the_hardware_along() -> None:
    merged = summary.merge([run(0), run(1)])
    figures = merged.stage("quantized").figures
    assert figures["hardware.spikesim.dense.edap"].mean == pytest.approx(3.1 * 0.4)
    assert figures["accuracy_at.1"].values == [run(s).stage("quantized").accuracy_at[1] for s in (0, 1)]
    assert "synaptic_operations" not in merged.stage("teacher").figures


def test_one_seed_has_no_spread() -> None:
    merged = summary.merge([run(7)])
    assert merged.stages[0].figures["accuracy"].std is None
    assert merged.differences[0].low is None


def test_unfinished_stages_are_left_out_and_named() -> None:
    short = run(1)
    short.stages.pop()
    merged = summary.merge([run(0), short])
    assert [stage.name for stage in merged.stages] == ["teacher", "alone", "student"]
    assert "quantized: not finished by every seed, left out" in merged.warnings


def test_merge_refuses_what_does_not_belong_together() -> None:
    other = run(1)
    other.recipe = "cifar10-demo"
    for runs, message in (
        ([], "no runs"),
        ([run(0), run(0)], "same seed"),
        ([run(0), other], "different recipes"),
    ):
        with pytest.raises(SpikedistillError, match=message):
            summary.merge(runs)


def test_metrics_survive_a_killed_process(tmp_path: Path) -> None:
    metrics.append(tmp_path, "start", time=1.0)
    metrics.append(tmp_path, "epoch", stage="a", epoch=1, train={"loss": float("nan")})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "epoch", "stage": "a", "ep')
    torn = metrics.read(tmp_path)
    assert torn.torn
    assert [line["event"] for line in torn.events] == ["start", "epoch"]
    assert torn.events[1]["train"] == {"loss": None}

    metrics.append(tmp_path, "resume", step=3)
    metrics.append(tmp_path, "epoch", stage="a", epoch=1, train={"loss": 0.5})
    again = metrics.read(tmp_path)
    assert not again.torn
    assert path.read_bytes().startswith(whole)
    assert [line["event"] for line in again.events] == ["start", "epoch", "resume", "epoch"]
    assert [line["train"]["loss"] for line in again.epochs("a")] == [0.5]


@pytest.mark.parametrize("cut", range(1, 28, 4))
def test_metrics_of_any_length_are_read(tmp_path: Path, cut: int) -> None:
    for step in range(3):
        metrics.append(tmp_path, "step", step=step)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    found = metrics.read(tmp_path)
    assert found.torn
    assert [line["step"] for line in found.events] == [0, 1]


def test_a_line_broken_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "start"}\n{oops\n{"event": "stage"}\n')
    with pytest.raises(SpikedistillError, match="line 2"):
        metrics.read(tmp_path)


def test_no_metrics_are_no_events(tmp_path: Path) -> None:
    assert metrics.read(tmp_path) == metrics.Metrics([], torn=False)


def test_a_merged_summary_knows_its_kind() -> None:
    assert isinstance(summary.merge([run(0)]), MultiSummary)
