"""What a newcomer sees: names, means, units, widths, JSON, and no wait for torch."""

import io
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import spikedistill as sd
from spikedistill import cli
from spikedistill.bibliography import keys_of
from spikedistill.errors import nearest
from spikedistill.recipe import load
from spikedistill.recipes import cited, shelf, shipped
from spikedistill.terminal import duration, energy, significant
from spikedistill.training.progress import Progress, bar

RECIPE = {
    "title": "two seeds",
    "data": {"name": "digits", "batch_size": 64},
    "time_steps": 2,
    "precision": "float32",
    "compile": False,
    "seeds": 2,
    "stages": [
        {"name": "teacher", "network": {"name": "conv6", "ann": True, "width": 0.125}, "epochs": 0},
        {"name": "student", "network": {"name": "conv6", "width": 0.125}, "epochs": 0},
    ],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sd.train(RECIPE, out=tmp_path_factory.mktemp("manners") / "run", quiet=True)


def out_of(capsys, *args):
    assert cli.main([str(a) for a in args]) == 0
    return capsys.readouterr().out


def test_a_run_says_in_one_line_what_it_is(run):
    text = repr(run)
    assert len(text) < 300
    for part in ("run'", "seeds 0, 1", "teacher", "student", "±", "%"):
        assert part in text


def test_evaluate_names_every_seed_and_gives_the_mean(run, capsys):
    lines = out_of(capsys, "evaluate", f"{run.folder}:student", "--time-steps", "1,2").splitlines()
    assert lines[0].endswith("stage student, 1,197 test images, seeds 0, 1")
    assert lines[1].split() == ["T", "seed", "accuracy"]
    assert [line.split()[:2] for line in lines[2:]] == [[T, s] for T in "12" for s in ("0", "1", "mean")]
    tree = json.loads(out_of(capsys, "evaluate", f"{run.folder}:student", "--json"))
    assert tree["seeds"] == [0, 1]
    spread = run.summary.stage("student").figures["accuracy"]
    assert tree["accuracy"]["accuracy"]["2"] == pytest.approx(spread.values)
    one = json.loads(out_of(capsys, "evaluate", f"{run.folder}/seed-1:student", "--json"))
    assert one["accuracy"]["accuracy"]["2"] == pytest.approx(spread.values[1:])


@pytest.mark.parametrize(
    "command",
    [
        ["recipes"],
        ["doctor"],
        ["data", "verify", "digits"],
        ["evaluate", "RUN"],
        ["hardware", "RUN"],
        ["report", "RUN"],
        ["resume", "RUN"],
    ],
)
def test_what_prints_a_table_gives_json(run, capsys, command):
    out = out_of(capsys, *[a.replace("RUN", str(run.folder)) for a in command], "--json")
    assert json.loads(out)


def test_the_reports_json_is_the_summary(run, capsys):
    tree = json.loads(out_of(capsys, "report", run.folder, "--json"))
    assert tree["report"] == str(run.folder / "report.html")
    assert tree["summaries"][str(run.folder)] == json.loads((run.folder / "summary.json").read_text())


def test_recipes_fit_80_columns(capsys):
    lines = out_of(capsys, "recipes").splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == set(shipped())


def test_the_shelf_says_what_the_recipes_say():
    for one in shelf():
        recipe = load(one["recipe"])
        assert (one["title"], one["paper"], one["data"]) == (recipe.title, recipe.paper, recipe.data.name)
        assert one["time_steps"] == recipe.time_steps


def test_papers_of_the_shelf_are_those_of_the_recipes():
    """`python -m spikedistill.recipes` writes them anew."""
    assert cited() == {name: keys_of(load(name)) for name in sorted(shipped())}


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["recipes"], ["cite", "digits"], ["train", "--help"]]
)
def test_no_wait_for_torch(command):
    code = (
        "import sys\nfrom spikedistill import cli\n"
        f"try:\n    cli.main({command!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_shell_completion_knows_the_commands():
    code = "import sys; sys.argv = ['spikedistill']; from spikedistill.cli import script; script()"
    asked = {"_SPIKEDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "spikedistill eva", "COMP_CWORD": "1"}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["evaluate"]


def test_progress_keeps_bar_and_time_left_at_80_columns():
    file = io.StringIO()
    progress = Progress()
    progress.bar = bar(Console(file=file, width=80, force_terminal=True))
    progress.begin("student-with-a-long-name", 12345)
    progress.step(64)
    progress.bar.update(progress.task, completed=5000)
    progress.epoch("epoch 12/15, loss 0.1234, train 95.1 %, validation 96.2 %")
    progress.bar.start()
    progress.bar.stop()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "").splitlines()
    line = next(line for line in lines if "student" in line)
    assert len(line) <= 80
    assert "━━━━━" in line
    assert "5000/12345" in line
    assert len(re.findall(r"\d:\d\d:\d\d|-:--:--", line)) == 2
    assert any("validation 96.2 %" in line for line in lines)


def test_a_run_without_a_stage_to_train_draws_no_frames(monkeypatch):
    monkeypatch.setattr("sys.stderr", file := io.StringIO())
    file.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as progress:
        time.sleep(0.3)
        progress.note("teacher: taken over")
    assert file.getvalue() == "teacher: taken over\n"
    with Progress() as progress:
        progress.begin("student", 10)
        progress.step(1)
    assert "student" in file.getvalue()


def test_energies_and_times_have_units_and_few_digits():
    assert [energy(x) for x in (15906934.02624, 1234.5, 12.34, 0.0, None)] == [
        "15.91 µJ", "1.234 nJ", "12.34 pJ", "0 pJ", "-",
    ]  # fmt: skip
    assert [duration(x) for x in (62832640, 999.99, 12)] == ["62.83 ms", "1.000 µs", "12.00 ns"]
    assert [significant(x) for x in (123456.7, 0.00123, 48, 1.0, 3e-9)] == [
        "123,500",
        "0.001230",
        "48",
        "1.000",
        "3.000e-09",
    ]


def test_hardware_prints_no_long_figures(run, capsys):
    text = out_of(capsys, "hardware", f"{run.folder}:student")
    for figure in re.findall(r"[\d,]*\.\d+", text):
        assert len(figure.replace(",", "").replace(".", "").lstrip("0")) <= 4, figure
    assert "(least favourable)" in text
    assert "ANN twin, 2-bit activations" in text


class Functional(nn.Module):
    """Its classifier is a function, so that `before_head` has no module to stand at."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 16))

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.weight)


def test_a_name_that_is_not_there_is_never_suggested():
    from spikedistill.taps import resolve

    with pytest.raises(sd.SpikedistillError, match="no linear layer that is a module") as found:
        resolve(Functional(), "before_head", torch.zeros(2, 1, 4, 4))
    assert "did you mean" not in str(found.value)
    assert nearest("before_head", ["before_head", "stage1"]) == "known: stage1"


def test_the_packages_digits_are_scikit_learns():
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    from spikedistill.data.images import DIGITS

    ours = np.load(DIGITS)
    assert (ours["images"] == theirs.images).all()
    assert (ours["labels"] == theirs.target).all()


def test_the_digits_are_what_runs_were_trained_on():
    info = sd.data.open(sd.data.DataConfig(), [4]).info
    assert info.hash == "d6fc75882d799438aa5ef820cea68fd1a4ffe28ba743fac0b70b28e1f6dbd9ed"
    assert info.split_hash == "3277feef12359baeed199f5b25787bfa6871d50ab9c26b3462234580a9d44ddf"
