import json
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from synthetic import LAYERS, RECIPE, folder, run, study

from spikedistill.errors import SpikedistillError
from spikedistill.report import plots
from spikedistill.report.chip import mean_tree
from spikedistill.report.confusion import confusion
from spikedistill.report.page import write_report
from spikedistill.training import metrics, summary

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Sections, table rows, ids and texts of a page; fails on elements that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag == "section":
            self.section = found["id"] or ""
            self.sections.append(self.section)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        self.text[self.section] = self.text.get(self.section, "") + data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of three seeds, and two such runs side by side."""
    base = tmp_path_factory.mktemp("runs")
    one, other = study(base / "one"), study(base / "two", title="Wider", shift=0.02)
    return {"one": write_report(one), "both": write_report([one, other])}


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_is_there(pages: dict[str, Path]) -> None:
    assert pages["one"].name == "report.html"
    assert read(pages["one"]).sections == [
        "results",
        "training",
        "activity",
        "membranes",
        "confusion",
        "hardware",
        "run",
    ]


def test_the_page_is_offline_and_unscripted(pages: dict[str, Path]) -> None:
    for path in pages.values():
        html = path.read_text(encoding="utf-8")
        assert "http" not in html
        assert "@import" not in html
        assert not re.search(r"url\((?!#)", html)
        page = Page(html)
        names = {tag for tag, _ in page.tags}
        assert not names & {"script", "iframe", "img", "object", "embed"}
        loads = [
            value
            for _, attrs in page.tags
            for key, value in attrs.items()
            if key in ("src", "href", "xlink:href")
        ]
        assert all(value and value.startswith(("#", "data:")) for value in loads)
        assert all(value[1:] in page.ids for value in loads if value and value.startswith("#"))


def test_every_plot_has_words_for_those_who_cannot_see_it(pages: dict[str, Path]) -> None:
    page = read(pages["one"])
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    figures = [attrs for tag, attrs in page.tags if tag == "figure"]
    assert len(drawings) == len(figures) > 20
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    html = pages["one"].read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert len(captions) == len(figures)
    assert all(captions)
    assert "features.3.neuron</text>" in html  # text is text, not outlines


def test_no_colour_is_left_that_the_page_does_not_know(pages: dict[str, Path]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", pages["one"].read_text(encoding="utf-8"), flags=re.S)
    assert set(re.findall(r"#[0-9a-f]{6}\b", "".join(drawings))) == set()


def test_numbers_are_those_of_the_summary(pages: dict[str, Path]) -> None:
    merged = summary.read(pages["one"].parent)
    assert isinstance(merged, summary.MultiSummary)
    page = read(pages["one"])
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 9}
    for stage in merged.stages:
        accuracy = stage.figures["accuracy"]
        assert accuracy.std is not None
        assert rows[stage.name][0] == f"{100 * accuracy.mean:.2f} ± {100 * accuracy.std:.2f}"
        assert float(rows[stage.name][5]) == pytest.approx(stage.figures["energy_pj"].mean / 1e6, rel=5e-3)
    assert rows["quantized"][4] == "4/4/8"
    prices = {row[0]: row[1:] for row in page.rows if len(row) == 10}
    figures = merged.stage("student").figures
    for column, (path, scale) in enumerate(
        [
            ("spikesim.dense.energy_pj", 1e-6),
            ("spikesim.event.energy_pj", 1e-6),
            ("operations.energy_pj", 1e-6),
            ("memory.total_pj", 1e-6),
            ("spikesim.dense.latency_ns", 1e-3),
            ("spikesim.dense.area_um2", 1e-6),
            ("spikesim.dense.edap", 1),
            ("spikesim.dense.tops_per_w", 1),
            ("spikesim.dense.tops_per_mm2", 1),
        ]
    ):
        assert float(prices["student"][column]) == pytest.approx(
            scale * figures[f"hardware.{path}"].mean, rel=5e-3
        )
    assert ["student", "12.10 ± 0.10", "21.0", "40.0", "100.0"] in page.rows
    assert float(prices["student, ANN twin (3 bit)"][2]) == pytest.approx(6.4)


def test_what_was_run_is_told(pages: dict[str, Path]) -> None:
    text = read(pages["one"]).text["run"]
    for word in (
        "sha256:aaaabbbb",
        "sha256:ccccdddd",
        "0, 1, 2",
        "2.14.1",
        "Hinton, Vinyals, Dean",
        RECIPE.strip(),
        "0123abc",
    ):
        assert word in text
    assert (
        "alone, student, quantized: not priced: head.pool: an uneven size"
        in read(pages["one"]).text["hardware"]
    )


def test_confusion_is_summed_over_seeds(pages: dict[str, Path]) -> None:
    cells = re.findall(
        r"<title>0 taken for 0: (\d+) of (\d+)</title>", pages["one"].read_text(encoding="utf-8")
    )
    expected = [
        sum(run(s).stage(n).confusion[0][0] for s in range(3))
        for n in ("teacher", "alone", "student", "quantized")
    ]  # type: ignore[index]
    assert [int(right) for right, _ in cells] == expected
    assert {int(total) for _, total in cells} == {90}


def test_runs_stand_side_by_side_paired_by_stage(pages: dict[str, Path]) -> None:
    assert pages["both"].name == "comparison.html"
    page = read(pages["both"])
    assert page.sections[0] == "comparison"
    assert page.sections.count("r0-results") == page.sections.count("r1-results") == 1
    rows = [row for row in page.rows if len(row) == 11]
    assert [row[:2] for row in rows[1:5]] == [
        ["teacher", "one"],
        ["teacher", "two"],
        ["alone", "one"],
        ["alone", "two"],
    ]
    assert rows[4][3] == "+2.00 [+2.00, +2.00]"
    assert rows[3][3] == "–"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [folder(tmp_path / part / "digits", run(0)) for part in "ab"]
    page = read(write_report(paths, tmp_path / "out.html"))
    assert {row[1] for row in page.rows if len(row) == 11} >= {str(path) for path in paths}


def test_sections_without_data_are_absent(tmp_path: Path) -> None:
    bare = run(0)
    bare.stages = [
        stage.model_copy(
            update={
                "membranes": None,
                "confusion": None,
                "hardware": None,
                "layers": [],
                "accuracy_at": {},
                "energy_pj": None,
            }
        )
        for stage in bare.stages
    ]
    summary.write(tmp_path, bare)
    page = read(write_report(tmp_path))
    assert page.sections == ["results", "run"]
    assert "sample standard deviation" not in page.text["results"]


def test_a_run_without_a_finished_stage_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    empty = run(0)
    empty.stages = []
    summary.write(tmp_path, empty)
    assert read(write_report(tmp_path)).sections == ["results", "run"]


def test_a_torn_log_is_said(tmp_path: Path) -> None:
    folder(tmp_path, run(4))
    with open(tmp_path / metrics.FILE, "a") as file:
        file.write('{"event": "epo')
    assert "Seed 4: the log's last line is torn" in read(write_report(tmp_path)).text["training"]


def test_what_users_write_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'$x_{$ _y"
    bad = run(0, title=evil)
    bad.data["class_names"] = [f"<b>{index}</b>" for index in range(10)]
    bad.citations = [evil]
    for stage in bad.stages:
        stage.name = f"_{stage.name}<i>"
        stage.warnings = [evil]
        for layer in stage.layers:
            layer.path = f"数_{layer.path}<u>$"
    folder(tmp_path, bad)
    (tmp_path / "recipe.yaml").write_text(f"title: {evil}\n")
    path = write_report(tmp_path)
    page = read(path)
    assert not {tag for tag, _ in page.tags} & {"script", "b", "u"}
    assert [attrs for tag, attrs in page.tags if tag == "i" and not attrs] == []
    assert "数_features.3.neuron&lt;u&gt;$" in path.read_text(encoding="utf-8")
    assert evil in page.text[""]
    assert evil in page.text["run"]


def test_the_same_run_gives_the_same_bytes_whatever_the_user_s_matplotlib_settings(tmp_path: Path) -> None:
    folder(tmp_path, run(0))
    first = write_report(tmp_path, tmp_path / "a.html").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert write_report(tmp_path, tmp_path / "b.html").read_bytes() == first
    script = (
        f"from spikedistill.report.page import write_report; write_report({str(tmp_path)!r}, "
        f"{str(tmp_path / 'c.html')!r})"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert (tmp_path / "c.html").read_bytes() == first


def test_seeds_are_reported_without_a_common_summary(tmp_path: Path) -> None:
    whole = study(tmp_path / "run")
    (whole / "summary.json").unlink()
    assert "3 seeds" in write_report(whole).read_text(encoding="utf-8")


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpikedistillError, match=r"no summary\.json"):
        write_report(tmp_path)
    with pytest.raises(SpikedistillError, match="at least one"):
        write_report([])
    summary.write(tmp_path, summary.merge([run(0), run(1)]))
    with pytest.raises(SpikedistillError, match="no seed-N folder"):
        write_report(tmp_path)


def test_importing_the_page_does_not_import_matplotlib() -> None:
    script = (
        "import sys, spikedistill.report.page; sys.exit('matplotlib' in sys.modules or 'jinja2' in "
        "sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_the_price_s_names_are_those_that_the_page_reads() -> None:
    """The page reads JSON by name; these are the classes that the JSON is made of."""
    from spikedistill.hardware.ann import BreakEven
    from spikedistill.hardware.memory import MemoryEstimate
    from spikedistill.hardware.operations import Operations
    from spikedistill.hardware.spikesim_report import HardwareReport, LayerPrice

    def names(kind: type) -> set[str]:
        return {field.name for field in fields(kind)}

    figures = {
        "energy_pj",
        "latency_ns",
        "area_um2",
        "edap",
        "tops_per_w",
        "tops_per_mm2",
        "components",
        "area",
        "layers",
    }
    assert names(HardwareReport) >= figures | {"unpriced", "notes"}
    assert names(LayerPrice) >= {"name", "energy_pj", "components"}
    assert "energy_pj" in names(Operations)
    assert names(MemoryEstimate) >= {"total_pj", "notes"}
    assert names(BreakEven) == {"spikesim", "operations", "memory"}


def test_frontier_keeps_what_nothing_beats() -> None:
    assert plots.frontier([(2, 5), (1, 3), (3, 4), (2, 6), (4, 6)]) == [(1, 3), (2, 6)]


def test_parts_beyond_the_palette_become_one(tmp_path: Path) -> None:
    wide = run(0)
    parts = {f"part{index}": float(10 - index) * 1e6 for index in range(10)}
    hardware = {"spikesim": {"dense": {"energy_pj": sum(parts.values()), "components": parts}}}
    wide.stages = [wide.stages[1].model_copy(update={"hardware": hardware})]
    summary.write(tmp_path, wide)
    legend = re.findall(
        r'<i class="box"[^>]*></i>([^<]*)',
        write_report(tmp_path).read_text(encoding="utf-8").split("By component")[1],
    )
    assert legend == [f"part{index}" for index in range(7)] + ["other"]


def test_means_of_trees_are_taken_leaf_by_leaf() -> None:
    trees = [
        {"a": 1, "b": [{"c": 2.0, "n": "x"}], "f": True, "d": [1]},
        {"a": 3, "b": [{"c": 4.0, "n": "x"}], "f": True, "d": [1, 2]},
    ]
    assert mean_tree(trees) == {"a": 2, "b": [{"c": 3.0, "n": "x"}], "f": True, "d": [1]}


@pytest.mark.parametrize("classes", [2, 13, 101])
def test_confusion_draws_only_cells_with_images(classes: int) -> None:
    matrix = [[5 if i == j else 0 for j in range(classes)] for i in range(classes)]
    svg = confusion(matrix, [], 0, "alt")
    assert svg.count("<title>") == classes
    assert len(re.findall(r'dy=".35em" text-anchor="middle"[^>]*>5<', svg)) == (
        classes if classes <= 12 else 0
    )


def test_layers_keep_the_network_s_order(pages: dict[str, Path]) -> None:
    html = pages["one"].read_text(encoding="utf-8")
    places = [html.index(f"{name}</text>") for name in LAYERS]
    assert places == sorted(places)


def test_the_environment_file_is_not_needed(tmp_path: Path) -> None:
    folder(tmp_path, run(0))
    assert json.loads((tmp_path / "environment.json").read_text()) == run(0).environment
    (tmp_path / "environment.json").unlink()
    (tmp_path / "recipe.yaml").unlink()
    assert "Recipe</h3>" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_recipe_without_a_name_of_its_own_is_not_named(tmp_path: Path) -> None:
    for place, name, named in (("a", "recipe", False), ("b", "Digits", False), ("c", "small", True)):
        one = run(0)
        one.recipe = name
        html = write_report(folder(tmp_path / place, one)).read_text(encoding="utf-8")
        assert (f"Recipe {name}" in html) is named
