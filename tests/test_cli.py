import json
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import yaml

import spikedistill
from spikedistill import cli

RECIPE = """
title: tiny
data: {name: arrays, root: ROOT, batch_size: 16}
time_steps: 2
precision: float32
compile: false
stages:
  - {name: teacher, network: {name: conv6, ann: true, width: 0.125}, epochs: 1}
  - name: student
    network: {name: conv6, width: 0.125, neuron: {type: lif, decay: 0.5, threshold: 0.5}}
    init: {from: teacher}
    teacher: teacher
    epochs: 1
    objectives: [{type: cross_entropy}, {type: logit_distillation, temperature: 2.0}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, made by the command line in this process."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (80, 8, 8, 3)).astype(np.uint8)
    y = np.arange(80) % 4
    np.savez(folder / "arrays.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    (folder / "tiny.yaml").write_text(RECIPE.replace("ROOT", str(folder)))
    assert cli.main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_train_prints_the_table_and_the_page(run, capsys):
    assert cli.main(["train", str(run.parent / "tiny.yaml"), "--out", str(run)]) == 0
    out = capsys.readouterr().out
    assert "teacher" in out
    assert "student" in out
    assert str(run / "report.html") in out
    assert (run / "report.html").stat().st_size > 10_000
    assert "Student and teacher" in (run / "report.html").read_text()
    assert (run / "stages" / "student" / "observations.json").is_file()


def test_overrides_reach_the_run(run, tmp_path, capsys):
    args = [
        "train",
        str(run.parent / "tiny.yaml"),
        "student.epochs=2",
        "--out",
        str(tmp_path / "r"),
        "--seeds",
        "2",
    ]
    assert cli.main(args) == 0
    lines = [
        json.loads(line) for line in (tmp_path / "r" / "seed-1" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in lines if line["event"] == "epoch" and line["stage"] == "student"] == [
        1,
        2,
    ]
    assert "±" in capsys.readouterr().out


def test_finished_stages_of_another_run_are_taken_over(run, tmp_path, capsys):
    recipe = str(run.parent / "tiny.yaml")
    assert (
        cli.main(["train", recipe, "student.epochs=2", "--out", str(tmp_path / "r"), "--reuse", str(run)])
        == 0
    )
    said = capsys.readouterr()
    assert f"teacher: taken over from {run}" in said.out + said.err
    weights = [place / "stages" / "teacher" / "model.safetensors" for place in (run, tmp_path / "r")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "student: taken over" not in said.out + said.err


def test_evaluate_at_other_time_steps(run, capsys):
    assert cli.main(["evaluate", str(run), "--time-steps", "1,2,4", "--recalibrate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "40 test images" in lines[0]
    assert lines[1].split() == ["T", "accuracy", "recalibrated"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "digit"], "did you mean 'digits'"),
        (["train", "digits", "student.epoch=1"], "unknown key 'epoch'"),
        (["evaluate", "RUN:studnet"], "no finished stage 'studnet'"),
        (["evaluate", "RUN:teacher", "--time-steps", "2"], "is an ANN"),
        (["evaluate", "RUN", "--time-steps", "0"], "whole numbers from 1"),
        (["evaluate", "RUN", "--integer"], "is not quantized"),
        (["evaluate", "nowhere"], "no run at nowhere"),
        (["resume", "nowhere"], "no run folder"),
        (["export", "RUN", "--to", "tflite", "--out", "x"], "nir, onnx, integer or c"),
        (["hardware"], "give a RUN or --layers FILE"),
        (["hardware", "RUN", "--iso-accuracy"], "give some with --against RUN"),
        (["hardware", "RUN", "--layers-out", "no/where.yaml"], "there is no folder no"),
        (["train", "digits", "--reuse", "nowhere"], "--reuse nowhere: no run here"),
        (["train"], "Missing argument"),
        (["trian", "digits"], "No such command"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line_and_status_2(run, capsys, args, words):
    assert cli.main([a.replace("RUN", str(run)) for a in args]) == 2
    err = capsys.readouterr().err
    assert words in err, err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_resume_of_a_finished_run_shows_it_again(run, capsys):
    assert cli.main(["resume", str(run)]) == 0
    assert "student" in capsys.readouterr().out


def test_hardware_as_json(run, capsys, tmp_path):
    assert cli.main(["hardware", str(run), "--json", "--layers-out", str(tmp_path / "layers.yaml")]) == 0
    tree = json.loads(capsys.readouterr().out)
    keys = "pes tiles area_um2 energy_pj latency_ns edap tops tops_per_w tops_per_mm2 layers"
    assert {*keys.split()} <= tree.keys()
    assert all({"name", "pes", "energy_pj", "latency_ns"} <= layer.keys() for layer in tree["layers"])
    assert cli.main(["hardware", "--layers", str(tmp_path / "layers.yaml"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["energy_pj"] == pytest.approx(tree["energy_pj"], rel=1e-9)
    assert again["pes"] == tree["pes"]


def test_hardware_of_spikesims_own_example(tmp_path, capsys):
    rows = zip(
        [3, 64, 64, 128, 128, 256, 256],
        [64, 64, 128, 128, 256, 256, 256],
        [32, 32, 16, 16, 8, 8, 8],
        [32, 16, 16, 8, 8, 8, 4],
    )
    layers = "\n".join(
        f"  - {{name: c{i}, kind: conv, in_channels: {a}, out_channels: {b}, kernel_size: 3, in_size: {c}, "
        f"out_size: {d}}}"
        for i, (a, b, c, d) in enumerate(rows)
    )
    chip = (
        "time_steps: 5\nspikesim: {mode: released, crossbar_size: 64, pe_per_tile: 8, clock_mhz: 250, "
        "device: rram}\n"
    )
    (tmp_path / "vgg9.yaml").write_text(f"layers:\n{layers}\n{chip}")
    assert cli.main(["hardware", "--layers", str(tmp_path / "vgg9.yaml"), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["pes"] == 48
    assert tree["tiles"] == 6
    assert tree["area_um2"] == pytest.approx(8425528.755833998, rel=1e-9)
    assert tree["energy_pj"] == pytest.approx(15906934.02624, rel=1e-9)
    assert tree["latency_ns"] == pytest.approx(62832640, rel=1e-9)
    assert tree["edap"] == pytest.approx(8421.1, abs=0.05)


def test_doctor_schema_recipes(capsys):
    assert cli.main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"
    assert cli.main(["recipes"]) == 0
    assert "digits" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["nir", "onnx"])
def test_export_of_a_trained_student(run, tmp_path, capsys, to):
    pytest.importorskip("nir" if to == "nir" else "onnxruntime")
    out = tmp_path / f"student.{to}"
    assert cli.main(["export", str(run), "--to", to, "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    assert cli.main(["export", f"{run}:teacher", "--to", "integer", "--out", str(tmp_path / "t")]) == 2
    assert "error" in capsys.readouterr().err


def test_export_of_a_quantized_student_as_c(run, tmp_path, capsys):
    stage = "  - {name: few, from: student, epochs: 1, quantize: {}}\n"
    (tmp_path / "few.yaml").write_text(RECIPE.replace("ROOT", str(run.parent)) + stage)
    assert cli.main(["train", str(tmp_path / "few.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["export", f"{tmp_path / 'run'}:few", "--to", "c", "--out", str(tmp_path / "c")]) == 0
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["network.c", "network.h", "network_main.c"]
    assert cli.main(["export", f"{tmp_path / 'run'}:few", "--to", "c", "--out", str(tmp_path / "own.c")]) == 0
    assert "own.h: stage few" in capsys.readouterr().out
    assert (tmp_path / "own.c").read_text().count("own_step(") == 2
    if shutil.which("gcc"):
        subprocess.run(["gcc", "-std=c99", "-c", tmp_path / "own.c", "-o", tmp_path / "own.o"], check=True)


def test_data_that_moved_are_named_on_the_command_line(run, tmp_path, capsys):
    """A run on arrays that Python gave has none that the command line could open."""
    with np.load(run.parent / "arrays.npz") as held:
        data = {key: held[key] for key in held}
    recipe = yaml.safe_load(
        RECIPE.replace("ROOT", str(run.parent)) + "  - {name: few, from: student, epochs: 1, quantize: {}}\n"
    )
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key not in ("name", "root")}
    spikedistill.train(recipe, data=data, out=tmp_path / "run")
    stage, moved = f"{tmp_path / 'run'}:few", tmp_path / "moved.npz"
    np.savez(moved, **data)
    capsys.readouterr()
    for to in ("c", "integer"):  # which need no data
        assert cli.main(["export", stage, "--to", to, "--out", str(tmp_path / f"few.{to}")]) == 0
    for command in (
        ["evaluate", stage],
        ["hardware", stage],
        ["export", stage, "--to", "onnx", "--out", str(tmp_path / "a")],
    ):
        assert cli.main(command) == 2
        assert "--data FILE.npz" in capsys.readouterr().err
        assert cli.main([*command, "--data", str(moved)]) == 0
    assert cli.main(["evaluate", stage, "--data", str(tmp_path / "none.npz")]) == 2
    assert "none.npz does not exist" in capsys.readouterr().err


def test_exports_that_are_refused_write_nothing(run, tmp_path, capsys):
    missing, option = (
        str(tmp_path / "no" / "a"),
        ["--allow-lossy", "--to", "onnx", "--out", str(tmp_path / "a")],
    )
    for args, words in (
        (["--to", "integer", "--out", missing], "there is no folder"),
        (["--to", "integer", "--out", str(tmp_path)], "it is a folder"),
        (option, "--allow-lossy belongs to --to nir"),
        (["--to", "nir", "--per-step", "--out", str(tmp_path / "a")], "--per-step belongs to --to onnx"),
        (["--to", "integer", "--out", str(tmp_path / "a")], "to_integer takes a quantized network"),
        (["--to", "c", "--out", missing], "there is no folder"),
        (["--to", "c", "--out", str(tmp_path / "2nd.c")], "'2nd' is no name in C"),
        (["--to", "c", "--out", str(tmp_path / "a")], "to_integer takes a quantized network"),
    ):
        assert cli.main(["export", str(run), *args]) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_one_line(run, tmp_path, capsys):
    pytest.importorskip("nir")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        args = ["export", str(run), "--to", "nir", "--weight-bits", "4", "--out", str(tmp_path / "a")]
        assert cli.main(args) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'a'}: ")
    assert "weights rounded to 4 bits" in line


def test_one_seed_answers_to_its_own_name(run, capsys):
    assert cli.main(["evaluate", f"{run}/seed-0:student"]) == 0
    assert "stage student" in capsys.readouterr().out
    assert cli.main(["evaluate", f"{run}/seed-1:student"]) == 2
    assert "no run at" in capsys.readouterr().err
    assert cli.main(["evaluate", f"{run}:studnet"]) == 2
    assert "it has teacher, student" in capsys.readouterr().err


def test_a_group_without_a_command_prints_its_help(capsys):
    assert cli.main(["data"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Usage: ")
    assert "verify" in err
