"""Methods on one data set: one teacher, equal budget, and an honest sentence.

Taken over where finished, resumed where killed.
"""

import json
import math
import shutil
from statistics import stdev

import pytest
import yaml

import spikedistill as sd
from spikedistill import cli
from spikedistill.methods import catalogue, chosen
from spikedistill.recipe import load
from spikedistill.training import comparison, cost, metrics
from spikedistill.training.checkpoint import read_json
from spikedistill.training.comparison import duration_seconds
from spikedistill.training.contest import base, generated
from spikedistill.training.one_seed import OneSeed
from spikedistill.training.reuse import finished, stage_keys
from spikedistill.training.run import opened
from spikedistill.training.verdict import judge, sentence

KD = [{"type": "logit_distillation"}]
STUDENT = {"name": "conv6", "width": 0.125}
RECIPE = {
    "title": "mine",
    "data": {"name": "digits", "batch_size": 128, "train_samples": 128},
    "time_steps": 2,
    "precision": "float32",
    "compile": False,
    "seeds": 2,
    "stages": [
        {"name": "grown-up", "network": {**STUDENT, "ann": True}, "epochs": 1},
        {"name": "student", "network": STUDENT, "teacher": "grown-up", "epochs": 1, "objectives": KD},
    ],
}


def t_of_one(p: float) -> float:
    """Student's t with one degree of freedom is Cauchy's distribution."""
    return math.tan(math.pi * (p - 0.5))


def t_of_two(p: float) -> float:
    return (2 * p - 1) / math.sqrt(2 * p * (1 - p))


def test_intervals_are_bonferronis_in_closed_form():
    found = judge({"a": [0.91, 0.93], "b": [0.90, 0.96]}, [0.90, 0.90], images=10**9)
    assert [v.method for v in found] == ["b", "a"]
    for verdict, differences in zip(found, ([0.0, 0.06], [0.01, 0.03])):
        mean = sum(differences) / 2
        half = t_of_one(1 - 0.05 / 2 / 2) * stdev(differences) / math.sqrt(2)
        assert verdict.mean == pytest.approx(mean)
        assert (verdict.low, verdict.high) == pytest.approx((mean - half, mean + half))
        assert not verdict.better
    (one,) = judge({"a": [0.91, 0.93, 0.92]}, [0.90] * 3, images=10**9)
    assert one.high - one.mean == pytest.approx(t_of_two(0.975) * 0.01 / math.sqrt(3))
    assert one.better == (one.mean > t_of_two(0.975) * 0.01 / math.sqrt(3))


def test_an_image_is_the_finest_difference():
    """All seeds won the same image of 50: without a floor the interval would have no width."""
    (one,) = judge({"a": [0.92, 0.92, 0.92]}, [0.90] * 3, images=50)
    assert (one.low, one.high) == pytest.approx((0.0, 0.04))
    assert judge({"a": [0.94, 0.94, 0.94]}, [0.90] * 3, images=50)[0].better


def test_the_sentence():
    two = judge(
        {"a": [0.950, 0.951, 0.949], "b": [0.96, 0.961, 0.959], "c": [0.5, 0.9, 0.7]}, [0.9] * 3, 1000
    )
    text = sentence(two, 3)
    assert text.startswith("Take b: +6.00 [")
    assert "corrected for 3 methods, over 3 seeds" in text
    assert text.endswith("Shown to be better than alone too: a.")
    none = sentence(judge({"a": [0.95, 0.85, 0.93]}, [0.9] * 3, 1000), 3)
    assert none.startswith(
        "No difference shown: no method beats alone on the validation part (nearest: a, +1.00 ["
    )
    assert "take alone" in none
    assert "one seed has no interval" in sentence(judge({"a": [0.95]}, [0.9], 1000), 1)


def test_the_catalogue_is_the_recipes():
    methods = catalogue()
    assert {"kdsnn", "tet", "bkdsnn", "tssd", "seal-kd", "logits"} <= set(methods)
    assert list(methods["logits"].objectives) == [
        {"type": "cross_entropy"}, {"type": "logit_distillation", "temperature": 4.0},
    ]  # fmt: skip
    assert methods["tssd"].at(2)[1]["time_steps"] == 4
    assert [m.name for m in chosen("tet, logits")] == ["tet", "logits"]
    with pytest.raises(sd.SpikedistillError, match="did you mean 'kdsnn'"):
        chosen("kdsn")


def test_stages_differ_in_their_objectives_alone():
    whole = generated(load(RECIPE), chosen("logits,tet"), 2).plain()
    teacher, alone, logits, tet = whole["stages"]
    assert (teacher["name"], alone["name"]) == ("grown-up", "alone")
    assert logits.pop("teacher") == "grown-up"
    for stage in (logits, tet):
        assert stage.pop("objectives")
        assert {**stage, "name": "alone"} == alone


def test_data_alone_are_enough():
    whole = generated(base("mnist", ["data.root=there"]), chosen("logits"), 3)
    assert [s.name for s in whole.stages] == ["teacher", "alone", "logits"]
    assert str(whole.data.root) == "there"
    bare = load(
        {"stages": [{"name": "student", "network": {"name": "vgg5", "neuron": {"type": "if"}}, "epochs": 3}]}
    )
    first = generated(bare, chosen("logits"), 1).stages[0]
    assert (first.name, dict(first.network), first.epochs) == ("teacher", {"name": "vgg5", "ann": True}, 3)


def test_keys_are_of_what_a_training_sees():
    data = {"hash": "a", "split_hash": "b", "input": "image"}

    def keys(change=None, seed=0):
        tree = json.loads(json.dumps(RECIPE))
        if change:
            change(tree)
        return list(stage_keys(load(tree), data, seed, "float32").values())

    first = keys()
    assert len(set(first)) == 2

    def renamed(tree):
        tree["stages"][0]["name"] = tree["stages"][1]["teacher"] = "other"
        tree["stages"][1]["name"] = "pupil"
        tree["data"]["workers"] = 2

    assert keys(renamed) == first
    longer = keys(lambda tree: tree["stages"][0].update(epochs=2))
    assert not set(longer) & set(first)  # the student's teacher is another
    assert keys(lambda tree: tree["stages"][1].update(epochs=2))[0] == first[0]
    assert not set(keys(seed=1)) & set(first)
    assert not set(keys(lambda tree: tree["data"].update(batch_size=64))) & set(first)
    before = stage_keys(load(RECIPE), data, 0, "float32", version=f"{sd.__version__}/1").values()
    assert not set(before) & set(first)  # statistics of plain images
    own = load({**RECIPE, "stages": [{**RECIPE["stages"][0], "network": {"name": "mine"}}]}, custom=["mine"])
    assert list(stage_keys(own, data, 0, "float32", ["mine"]).values()) == [None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    sd.train(RECIPE, out=folder / "mine", quiet=True)
    return folder


@pytest.fixture(scope="module")
def found(place):
    said: list[str] = []
    done = sd.compare(
        RECIPE, "logits,tet,attention-maps", seeds=2, out=place / "both", quiet=True, say=said.append
    )
    return done, said


def sums(folder):
    return {p.parent.name: read_json(p)["sha256"] for p in sorted(folder.glob("stages/*/config.json"))}


def test_two_methods_on_digits(found, place):
    done, said = found
    assert [s.name for s in done.run.summary.stages] == ["grown-up", "alone", "logits", "tet"]
    assert done.plan.methods == ["logits", "tet"]
    assert "has no attention" in done.plan.left_out["attention-maps"]
    names = ["grown-up", "alone", "logits", "tet", "attention-maps"]
    assert said[:5] == [f"trying {name} on 2 images ({k} of 5)" for k, name in enumerate(names, 1)]
    assert said[5:9] == [f"timing {name} on a few steps ({k} of 4)" for k, name in enumerate(names[:4], 1)]
    assert said[9].startswith("left out: attention-maps: ")
    assert said[10].startswith("about ")
    assert "2 methods and alone, 2 seeds" in said[10]
    assert done.sentence.startswith(("Take ", "No difference shown"))
    assert done.sentence in repr(done)
    validation = {s.name: s.figures["validation_accuracy"].values for s in done.run.summary.stages}
    images = done.run.summary.data["sizes"]["validation"]
    expected = judge({m: validation[m] for m in ("logits", "tet")}, validation["alone"], images)
    assert done.sentence == sentence(expected, 2)


def test_the_teacher_is_taken_over(found, place):
    for seed in (0, 1):
        here, there = place / "both" / f"seed-{seed}", place / "mine" / f"seed-{seed}"
        assert sums(here)["grown-up"] == sums(there)["grown-up"]
        ends = [e for e in metrics.read(here).events if e["event"] == "stage_end" and "taken" in e]
        assert [e["stage"] for e in ends] == ["grown-up"]
        assert len(metrics.read(here).epochs("grown-up")) == 1
        row = json.loads((here / "stages" / "grown-up" / "summary.json").read_text())
        assert row["name"] == "grown-up"
    assert sd.load(place / "both", "grown-up") is not None


def test_stages_that_would_now_train_to_other_numbers_are_not_taken(place, tmp_path):
    shutil.copytree(place / "mine", tmp_path / "old")
    now = finished([tmp_path / "old"])
    assert len(now) == 4  # two stages of two seeds
    for file in (tmp_path / "old").glob("seed-*/environment.json"):
        held = json.loads(file.read_text())
        del held["numbers"]  # as before it was recorded
        file.write_text(json.dumps(held))
    assert not set(finished([tmp_path / "old"])) & set(now)


def test_taken_over_under_another_name(place, tmp_path_factory):
    tree = json.loads(json.dumps({**RECIPE, "seeds": 1}))
    tree["stages"][0]["name"] = tree["stages"][1]["teacher"] = "old"
    tree["stages"][1]["name"] = "young"
    out = tmp_path_factory.mktemp("named") / "run"
    run = sd.train(tree, out=out, quiet=True, reuse=[place / "mine"])
    assert [s.name for s in run.summary.stages] == ["old", "young"]
    assert run.summary.stage("young").teacher == "old"
    assert list(sums(out).values()) == list(sums(place / "mine" / "seed-0").values())
    assert read_json(out / "stages" / "young" / "config.json")["stage"] == "young"


def test_killed_and_started_again_it_goes_on(found, place, monkeypatch):
    original, trained = OneSeed.train_stage, []

    def killed(self, stage, folder):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(f"{self.seed}/{stage.name}")
        return original(self, stage, folder)

    monkeypatch.setattr(OneSeed, "train_stage", killed)
    aside = place / "aside" / "both"  # nothing lies beside it that could be taken over
    with pytest.raises(KeyboardInterrupt):
        sd.compare(RECIPE, "logits,tet", seeds=2, out=aside, quiet=True)
    assert trained == ["0/grown-up", "0/alone", "0/logits"]
    first = comparison.read_plan(aside)
    assert first.methods == ["logits", "tet"]
    trained.clear()
    monkeypatch.setattr(
        OneSeed, "train_stage", lambda s, *a: trained.append(f"{s.seed}/{a[0].name}") or original(s, *a)
    )
    monkeypatch.setattr(comparison, "seconds_each", None)  # decided once
    done = sd.compare(RECIPE, "logits,tet", seeds=2, out=aside, quiet=True)
    assert trained == ["0/tet", "1/grown-up", "1/alone", "1/logits", "1/tet"]
    for seed in (0, 1):
        assert sums(aside / f"seed-{seed}") == sums(place / "both" / f"seed-{seed}")
    assert done.sentence == found[0].sentence


def test_another_question_needs_another_folder(found, place):
    with pytest.raises(sd.SpikedistillError, match="other methods, data, seeds or budget"):
        sd.compare(RECIPE, "logits", seeds=2, out=place / "both", quiet=True)


@pytest.mark.parametrize(("file", "words"), [("notes.txt", "holds no run"), ("recipe.yaml", "no comparison")])
def test_a_folder_of_something_else_stays_as_it_is(file, words, tmp_path):
    (tmp_path / file).write_text("mine\n")
    with pytest.raises(sd.SpikedistillError, match=f"{words}; choose another --out"):
        sd.compare(RECIPE, "logits", out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_what_does_not_fit_the_budget_is_left_out(monkeypatch, tmp_path):
    times = {"grown-up": 100.0, "alone": 100.0, "logits": 400.0, "tet": 200.0}
    monkeypatch.setattr(comparison, "seconds_each", lambda *_: times)
    monkeypatch.setattr(comparison, "rehearse", lambda *_: {})
    recipe = load(RECIPE)
    plan = comparison._plan({}, recipe, "logits,tet", 2, 1000.0, None, {}, None, [], print)
    assert plan.methods == ["tet"]
    assert plan.left_out == {"logits": "its 13 min would not fit the budget of 17 min"}
    with pytest.raises(sd.SpikedistillError, match="holds no method"):
        comparison._plan({}, recipe, "logits,tet", 2, 500.0, None, {}, None, [], print)
    assert [duration_seconds(x) for x in ("2h", "1.5h", "30m", "90s", 7)] == [7200, 5400, 1800, 90, 7]
    with pytest.raises(sd.SpikedistillError, match="2h, 30m"):
        duration_seconds("soon")


def test_without_a_validation_part_nothing_is_concluded(tmp_path):
    recipe = {**RECIPE, "data": {"name": "digits", "validation": 0}}
    with pytest.raises(sd.SpikedistillError, match=r"data\.validation above 0"):
        sd.compare(recipe, "logits", out=tmp_path / "x", quiet=True)


def test_the_command_and_the_page(found, place, capsys):
    (place / "mine.yaml").write_text(yaml.safe_dump(RECIPE))
    arguments = [
        "compare",
        "--methods",
        "logits,tet,attention-maps",
        "--on",
        str(place / "mine.yaml"),
        "--seeds",
        "2",
    ]
    assert cli.main([*arguments, "--out", str(place / "both")]) == 0
    out = capsys.readouterr().out
    assert found[0].sentence in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("grown-up", "alone", "logits",
    "tet"))] == [
        "grown-up", "alone", "logits", "tet",
    ]  # fmt: skip
    assert "left out: attention-maps" in out
    page = (place / "both" / "report.html").read_text()
    assert "Which method" in page
    assert page.index("Which method") < page.index("<h2>Results")
    assert "Left out: attention-maps" in page
    assert cli.main([*arguments, "--out", str(place / "both"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sentence"] == found[0].sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "compare takes recipes, or --methods"),
        (["--methods", "all"], "needs --on"),
        (["digits", "--methods", "all", "--on", "digits"], "only path=value"),
        (["--methods", "tett", "--on", "digits"], "did you mean 'tet'"),
        (["--methods", "tet", "--on", "digist"], "did you mean 'digits'"),
        (["--methods", "tet", "--on", "digits", "--budget", "never"], "2h, 30m or 90s"),
        (["digits", "--on", "digits"], "compare takes recipes, or --methods"),
    ],
)
def test_what_has_to_be_mended(arguments, words, capsys, tmp_path):
    assert cli.main(["compare", *arguments, "--out", str(tmp_path / "x")]) == 2
    assert words in capsys.readouterr().err


def test_recipes_side_by_side_train_an_equal_teacher_once(tmp_path, capsys):
    one = {**RECIPE, "stages": [{**stage, "epochs": 0} for stage in RECIPE["stages"]]}
    other = {
        **one,
        "stages": [one["stages"][0], {**one["stages"][1], "network": {**STUDENT, "neuron": {"type": "if"}}}],
    }
    for name, tree in (("one", one), ("other", other)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    files = [str(tmp_path / f"{name}.yaml") for name in ("one", "other")]
    assert cli.main(["compare", *files, "--seeds", "1", "--out", str(tmp_path / "runs")]) == 0
    events = metrics.read(tmp_path / "runs" / "other").events
    assert [e["stage"] for e in events if "taken" in e] == ["grown-up"]
    out = capsys.readouterr().out
    assert "Side by side" in out
    rows = out[out.index("Side by side") :].splitlines()
    assert [line.split()[:2] for line in rows if line.startswith("student")] == [
        ["student", "one"], ["student", "other"],
    ]  # fmt: skip


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_file_in_the_folders_place_is_named(inside, tmp_path):
    (tmp_path / "f.txt").write_text("mine\n")
    with pytest.raises(sd.SpikedistillError, match=r"f\.txt is a file; choose another --out"):
        sd.compare(RECIPE, "logits", out=tmp_path / "f.txt" / inside, quiet=True)
    with pytest.raises(sd.SpikedistillError, match=r"f\.txt is a file; choose another --out"):
        sd.train(RECIPE, out=tmp_path / "f.txt" / inside, quiet=True)
    assert (tmp_path / "f.txt").read_text() == "mine\n"


def test_a_stage_is_timed_as_it_would_run(monkeypatch):
    """Uncompiled steps took seven times as long as those of the run, and so did the estimate."""
    asked, ran, real = [], [], cost.compiling

    def worth(distiller, *_):
        asked.append(distiller.student)
        return any(isinstance(m, sd.neurons.Neuron) for m in distiller.student.modules())

    def compiling(on):
        ran.append(on)
        return real(False)

    monkeypatch.setattr(cost, "worth_compiling", worth)
    monkeypatch.setattr(cost, "compiling", compiling)
    stages = [*RECIPE["stages"], {**RECIPE["stages"][1], "name": "again"}]
    recipe = load({**RECIPE, "compile": "auto", "stages": stages})
    seconds = cost.seconds_each(recipe, opened(recipe, None), {})
    assert list(seconds) == ["grown-up", "student", "again"]
    assert min(seconds.values()) > 0
    # An ANN has nothing to compile; of two stages that train equal networks one is asked about.
    assert ran[1:] == [False, True, True]
    assert len(asked) == 2
    ran.clear()
    cost.seconds_each(load(RECIPE), opened(recipe, None), {})
    assert not any(ran)
    assert len(asked) == 2
