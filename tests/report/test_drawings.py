import csv
import io
import re
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from synthetic import LAYERS, folder, observed, run, seen

from spikedistill.report import closeups, confusion, plots, scales
from spikedistill.report.canvas import ending
from spikedistill.report.page import write_report
from spikedistill.report.scales import Scale
from spikedistill.training import metrics, summary
from spikedistill.training.observations import Activity
from spikedistill.training.summary import Spread

COMPONENTS = {"crossbar", "adc", "buffer", "h-tree", "neuron"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one seed with observations."""
    return write_report(observed(folder(tmp_path_factory.mktemp("runs") / "digits", run(0))))


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def table(html: str, name: str) -> list[dict[str, str]]:
    """The CSV file of that name beside its figure."""
    (found,) = re.findall(
        rf'download="{re.escape(name)}\.csv" href="data:text/csv;charset=utf-8,([^"]*)"', html
    )
    return list(csv.DictReader(io.StringIO(unquote(found))))


def svg_of(html: str, name: str) -> str:
    """The drawing beside the CSV file of that name."""
    (found,) = [f for f in re.findall(r"<figure>.*?</figure>", html, re.S) if f'download="{name}.csv"' in f]
    return found[found.index("<svg") : found.index("</svg>")]


# Ticks


RANGES = [(0, 1), (0.97, 0.985), (-4, 2), (12, 1250), (0, 3e-5), (1e5, 4.2e6), (-0.03, 0.031)]


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("length", [90, 158, 342])
@pytest.mark.parametrize("upright", [False, True])
def test_ticks_are_within_and_do_not_touch(low: float, high: float, length: float, upright: bool) -> None:
    check_ticks(Scale(low, high, 44, 44 + length), upright)


@pytest.mark.parametrize(("low", "high"), [(0.9, 280), (1e-4, 3), (7e-3, 9e-3), (1, 1e9)])
@pytest.mark.parametrize("length", [90, 342])
def test_ticks_of_a_logarithmic_scale_do_not_touch(low: float, high: float, length: float) -> None:
    check_ticks(Scale(low, high, 44, 44 + length, True), False)


def check_ticks(scale: Scale, upright: bool) -> None:
    found = scale.ticks(upright)
    assert found or scale.logarithmic
    assert all(scale.low <= value <= scale.high for value, _ in found)
    shown = [float(label.replace("−", "-")) for _, label in found]
    assert shown == pytest.approx([value for value, _ in found], rel=1e-4, abs=1e-12)
    sizes = [scales.SIZE if upright else scales.width(label) for _, label in found]
    boxes = sorted((scale(v) - size / 2, scale(v) + size / 2) for (v, _), size in zip(found, sizes))
    assert all(end < start for (_, end), (start, _) in pairwise(boxes))


def test_of_many_time_steps_those_that_have_room_are_named() -> None:
    at = {2**k: Spread(mean=50 + 5 * k, values=[50 + 5 * k]) for k in range(9)} | {
        T: Spread(mean=91, values=[91]) for T in (250, 255)
    }
    svg = plots.against_time([(0, "-", at)], [], "alt")
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*class="tick"[^>]*middle[^>]*>(\d+)<', svg)
    named = sorted((float(x), text) for x, _, text in ticks)
    assert {"1", "8", "64", "256"} <= {text for _, text in named}
    assert not {"250", "255"} & {text for _, text in named}
    halves = [(x, scales.width(text) / 2) for x, text in named]
    assert all(x + half < other - half2 for (x, half), (other, half2) in pairwise(halves))


def texts(svg: str) -> list[tuple[float, float, str]]:
    """Left end, right end and words of each line of text, as wide as a text may be."""
    found = []
    for head, words in re.findall(r"<text ([^>]*)>([^<]*)<", svg):
        said = dict(re.findall(r'([\w-]+)="([^"]*)"', head))
        room = scales.width(words, float(said.get("font-size", scales.SIZE)))
        left = float(said["x"]) - room * {"end": 1, "middle": 0.5}.get(said.get("text-anchor", ""), 0)
        found.append((left, left + room, words))
    return found


@pytest.mark.parametrize("path", ["stem.2", "blocks.11.attention.projection.relu"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("like", [0.93, -0.02])
def test_a_teacher_s_layer_s_name_stands_left_of_the_likeness(path: str, share: float, like: float) -> None:
    mine = [Activity(path=f"student.{path}.{k}", share=0.1 * k) for k in range(3)]
    theirs = [(Activity(path=path, share=share), like), (Activity(path="b", share=0.2), like), (mine[2], 0.5)]
    svg = closeups.layers(mine, theirs, (0, 1), "alt")
    found = texts(svg)
    numbers = [left for left, _, words in found if re.fullmatch(r"-?0\.\d\d", words)]
    names = [right for _, right, words in found if words in (ending(path, 16), "b")]
    assert len(numbers) == 3
    assert len(names) == 2
    assert max(names) < min(numbers)
    bars = [
        float(x) + float(w) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    ]
    assert len(bars) == 6
    assert max(bars) < min(numbers)


@pytest.mark.parametrize("epochs", [[1.0], [1.0, 2.0], [3.0, 4.0, 5.0]])
def test_ticks_of_few_epochs_are_within_the_plot(epochs: list[float]) -> None:
    svg = plots.curves([("red", "", [(epochs, [0.5] * len(epochs))])], "epoch", "loss", "alt")
    ticks = re.findall(r'<text x="([\d.-]+)" y="190"[^>]*class="tick"[^>]*middle[^>]*>([^<]+)<', svg)
    assert [float(words) for _, words in ticks] == epochs
    assert all(44 <= float(x) <= 386 for x, _ in ticks)


# Scales tell the truth


def test_a_first_time_step_far_below_does_not_flatten_the_curve() -> None:
    line = [10.0, 91.0, 93.0, 94.0]
    low, high = plots.floor_of([line])
    assert low > 85
    assert (94 - 91) / (high - low) > 0.5
    at = {T: Spread(mean=value, values=[value]) for T, value in zip((1, 2, 4, 8), line)}
    svg = plots.against_time([(0, "-", at)], [], "alt")
    assert "↓ 10.0</text>" in svg
    assert svg.count("<circle") == 3


def test_an_axis_holds_every_value_where_none_is_far_away() -> None:
    for lines in ([[90.0, 91.0, 93.0]], [[10.0]], [[50.0, 70.0, 90.0], [90.0, 91.0]]):
        low, high = plots.floor_of(lines)
        assert all(low <= value <= high for line in lines for value in line)


def test_a_curve_goes_through_its_numbers(html: str, page: Path) -> None:
    epochs = metrics.read(page.parent).epochs("student")
    svg = svg_of(html, "accuracy-student")
    (path,) = re.findall(r'<path d="M([^"]*)"[^>]*stroke="var\(--s2\)"', svg)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    expected = [(line["epoch"], 100 * line["validation"]["accuracy"]) for line in epochs]
    for axis in (0, 1):  # places are a straight line of values
        (v0, v1), (p0, p1) = [(values[0][axis], values[-1][axis]) for values in (expected, points)]
        back = [v0 + (point[axis] - p0) * (v1 - v0) / (p1 - p0) for point in points]
        assert back == pytest.approx([value[axis] for value in expected], abs=0.06)


def test_bars_are_as_long_as_their_numbers(html: str) -> None:
    svg = svg_of(html, "components")
    lengths: dict[str, list[float]] = {}
    for width, name in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*><title>([\w-]+):', svg):
        lengths.setdefault(name, []).append(float(width))
    rows = table(html, "components")
    assert lengths.keys() == COMPONENTS
    for name in COMPONENTS:
        values = [float(row[name]) for row in rows if float(row["total"])]
        ratio = [length / value for length, value in zip(lengths[name], values)]
        assert ratio == pytest.approx([ratio[0]] * len(ratio), rel=0.05)


def test_no_bar_is_empty(tmp_path: Path) -> None:
    made = run(0)
    layers = [
        {"name": name, "energy_pj": value, "components": {"adc": value}}
        for name, value in (("first", 4e6), ("pool", 0.0), ("neuron", 1e3), ("head", 1e6))
    ]
    hardware = {"spikesim": {"dense": {"energy_pj": 5e6, "components": {"adc": 5e6}, "layers": layers}}}
    made.stages = [made.stages[1].model_copy(update={"hardware": hardware})]
    summary.write(tmp_path, made)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    svg = svg_of(html, "energy-alone")
    assert len(re.findall("<rect", svg)) == 2
    assert all(float(width) > 1 for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg))
    assert "Under 0.5 % of the longest, not drawn: pool, neuron." in html
    assert [row["name"] for row in table(html, "energy-alone")] == ["first", "pool", "neuron", "head"]


# Colours


def palettes() -> dict[str, dict[str, str]]:
    css = files("spikedistill.report").joinpath("page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    found = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in blocks]
    return dict(zip(("light", "dark", "print"), found, strict=True))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    full = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mixed(over: str, under: str, share: float) -> str:
    pairs = [(int(over[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_texts_and_lines_stand_out_from_paper_and_cards(mode: str) -> None:
    found = palettes()[mode]
    names = ["ink", "muted", "accent", *(f"{kind}{k}" for kind in "sp" for k in range(8))]
    ratios = {(name, on): contrast(found[name], found[on]) for name in names for on in ("paper", "card")}
    assert min(ratios.values()) >= 4.5, min(ratios, key=ratios.__getitem__)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_counts_can_be_read_on_every_shade_of_a_confusion_matrix(mode: str) -> None:
    found = palettes()[mode]
    for colour in (found[f"s{k}"] for k in range(8)):
        assert contrast(found["on"], colour) >= 4.5
        for share in (0.0, 0.25, confusion.FULL):
            cell = mixed(colour, found["paper"], confusion.opacity(share))
            assert contrast(found["ink"], cell) >= 4.5


def test_one_thing_has_one_colour_in_all_charts(html: str) -> None:
    legends = re.findall(r'<i class="\w+" style="--c: ([^"]*)"></i>([^<]*)</li>', html)
    found: dict[str, set[str]] = {}
    for colour, name in legends:
        found.setdefault(name.removeprefix("teacher: ").removesuffix(" (ANN)"), set()).add(colour)
    stages = {"teacher": "var(--s0)", "alone": "var(--s1)", "student": "var(--s2)", "quantized": "var(--s3)"}
    assert {name: found[name] for name in stages} == {name: {colour} for name, colour in stages.items()}
    assert all(len(found[name]) == 1 for name in COMPONENTS)
    assert {
        name: colours for name, colours in found.items() if name != "validation" and len(colours) > 1
    } == {}
    assert len({min(found[name]) for name in COMPONENTS}) == len(COMPONENTS)
    rows = re.findall(r'style="--c: (var[^"]*)"></i>([\w]+)</th>', html)
    assert {(name, colour) for colour, name in rows} == set(stages.items())


def test_layers_with_other_orders_of_components_keep_their_colours(html: str) -> None:
    assert set(re.findall(r"var\(--p\d\)", svg_of(html, "energy-student"))) == set(
        re.findall(r"var\(--p\d\)", svg_of(html, "components"))
    )


# Files beside the figures


def test_every_figure_has_its_numbers_beside_it(html: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", html, re.S)
    names = [re.findall(r'download="([^"]*)"', figure) for figure in figures]
    assert all(len(found) == 1 for found in names)
    assert len(figures) > 20
    assert all(table(html, name.removesuffix(".csv")) for (name,) in names)


def test_loss_parts_are_drawn_and_are_the_log_s(html: str, page: Path) -> None:
    epochs = metrics.read(page.parent).epochs("student")
    rows = table(html, "loss-parts-student")
    for term in ("cross_entropy", "logit_distillation"):
        values = [float(row["value"]) for row in rows if row["curve"] == term]
        assert values == pytest.approx([line["train"]["parts"][term] for line in epochs], rel=1e-6)
    assert svg_of(html, "loss-parts-student").count("<path") > 2
    assert 'download="loss-parts-alone.csv"' not in html  # one term alone is the loss


def test_student_and_teacher_stand_side_by_side(html: str) -> None:
    found = seen(run(0).stage("student"))
    rows = table(html, "layers-student")
    assert [row["layer"] for row in rows] == LAYERS
    assert [row["teacher layer"] for row in rows] == ["stage3", "stage5", "stage7", "stage3", "stage5"]
    assert [float(row["CKA"]) for row in rows] == pytest.approx([0.9] * 5)
    assert [float(row["share"]) for row in rows] == pytest.approx([one.share for one in found.layers])
    svg = svg_of(html, "layers-student")
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[0::2] == pytest.approx([widths[1] * one.share / 0.3 for one in found.layers], abs=1.1)
    assert set(re.findall(r'<rect [^>]*fill="([^"]*)"', svg)) == {"var(--s2)", "var(--s0)"}


def test_agreement_and_calibration_are_the_observations(html: str) -> None:
    right = run(0).stage("student").accuracy
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", html[html.index('id="teacher"') :])
    assert f"{100 * right:.2f}" in cells
    assert "0.125" in cells
    bins = [row for row in table(html, "calibration") if row["stage"] == "student"]
    assert [int(row["images"]) for row in bins] == [10 * k for k in range(1, 10)]
    accuracies = [float(row["accuracy"]) / float(row["confidence"]) for row in bins]
    assert accuracies == pytest.approx([right] * 9, rel=1e-5)


def test_a_mark_for_each_spike_and_a_dot_for_each_of_the_traced(html: str) -> None:
    rows = table(html, "spikes-student")
    assert len(rows) == 3 * len(LAYERS) * 3 * 4
    assert sum(int(row["spike"]) for row in rows) == 3 * len(LAYERS) * 6
    svg = svg_of(html, "spikes-student")
    assert (
        len(re.findall(r"h[\d.]+", "".join(re.findall(r'<path d="(M[^"]*h[^"]*)"', svg))))
        == 3 * len(LAYERS) * 6
    )
    assert "class 0 → 7</text>" in svg
    traced = table(html, "membranes-student")
    assert {row["image"] for row in traced} == {"0"}
    shown = svg_of(html, "membranes-student")
    assert shown.count("<circle") == 4 * 6  # four layers of five


def test_a_logarithmic_scale_within_one_decade_has_ticks() -> None:
    for low, high in ((6.1e6, 6.9e6), (1.2e-5, 1.9e-5), (101.0, 180.0)):
        assert len(Scale(low, high, 44, 400, True).ticks()) >= 2, (low, high)


def test_a_label_is_the_number() -> None:
    """A million and a half is not two million."""
    told = {
        1.5e6: "1.5e6",
        -2.5e7: "−2.5e7",
        1e12: "1e12",
        2.5e-5: "2.5e−5",
        1e-10: "1e−10",
        0: "0",
        0.25: "0.25",
    }
    assert {value: scales.label(value) for value in told} == told


def test_the_last_label_stays_on_the_paper() -> None:
    points: list[tuple[str, plots.Colour, float, float]] = [("a", 0, 73_200, 97), ("b", 1, 160_000, 95)]
    found = texts(plots.pareto(points, "operations", "alt"))
    assert "200000" in [words for *_, words in found]
    assert max(right for _, right, _ in found) <= plots.WIDTH + 0.1  # places are rounded
