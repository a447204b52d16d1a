"""The evidence of docs/results.md: reduced records of runs in results/evidence, and the page made of them.

    python benchmarks/evidence.py keep RUN [RUN ...]  # finished stages of runs, a file of at most 5 kB a seed
    python benchmarks/evidence.py page                # docs/results.md, the README's table, from the records
    python benchmarks/evidence.py page --check        # exit code 1 where they are not what the records say

A record names recipe, seed, versions, hashes of recipe and data, kind of CPU and threads, and of each stage
its accuracies, rate, operations, bits and seconds. Nothing on the page is typed by hand but the words in
``TITLES``.
"""

import argparse
import hashlib
import json
import platform
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import from_scratch
import yaml

from spikedistill.report import page as report_page
from spikedistill.report import plots
from spikedistill.report.table import count, estimates, microjoule, number
from spikedistill.training.summary import RunSummary, StageSummary, paired_interval

ROOT = Path(__file__).parents[1]
DRAWINGS = ROOT / "docs" / "plots"
RECORDS, PAGE, README = ROOT / "results" / "evidence", ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
COLUMNS = (
    "stage", "network", "T", "bits", "test accuracy [%]", "against `alone` [points]", "firing rate [%]",
    "operations",
    "energy [µJ]", "equal-bit ANN [µJ]", "least ratio", "seconds", "seeds",
)  # fmt: skip
LARGEST = 5000  # bytes of a seed's record
BASELINE = "alone"  # stages are compared with this one, seed by seed, but for those named here
PLAIN = re.compile(r"(logits|membranes|both)-(\d-\d-\d)$")  # few bits: with the plain one of as many bits
IN_README = "digits"
TITLES = {
    "digits": "8x8 digits, 540 training images: the demo",
    "evidence-unit": "10,000 images of CIFAR-10, 12 epochs, conv6 at half width: methods at equal budget",
    "evidence-few": "2,500 images of CIFAR-10, 40 epochs",
    "evidence-cifar10": "All images of CIFAR-10, 8 epochs",
    "spoken-digits": "Spoken digits: other takes in the test",
    "evidence-nmnist": "N-MNIST: a teacher of frames, a student of events",
    "evidence-cifar100": "All images of CIFAR-100, 8 epochs",
    "dvs128-objects": "Objects before a DVS128: other recording sessions in the test",
    "pneumonia": "PneumoniaMNIST: a teacher of four times the width",
    "compare-digits": "8x8 digits: methods at equal budget",
    "compare-digits-vgg9": "8x8 digits: methods that compare features, equal networks on both sides",
    "digits-operations": "8x8 digits: what spikes buy",
    "evidence-mdsnn": "Few bits: what the full-precision SNN gives back",
}

COMPARED = {  # a student with a teacher, a record and its stage, and the same network alone
    "CIFAR-10, all images": ("evidence-cifar10", "student"),
    "CIFAR-10, 10,000 images": ("evidence-unit", "logits"),
    "CIFAR-10, 2,500 images": ("evidence-few", "student"),
    "CIFAR-100": ("evidence-cifar100", "student"),
    "spoken digits": ("spoken-digits", "student"),
    "N-MNIST": ("evidence-nmnist", "student"),
    "objects before a DVS128": ("dvs128-objects", "student"),
    "PneumoniaMNIST": ("pneumonia", "student"),
}
DRAWN = {  # accuracy against operations, the spiking stages: what the drawing shows
    "digits-operations": "What spikes buy: accuracy against synaptic operations, means of all seeds",
    "compare-digits": "Methods at equal budget: accuracy against synaptic operations, means of all seeds",
}
COMMANDS = {  # where it is not "train RECORD"
    "compare-digits": "compare --methods all --on digits",
    "compare-digits-vgg9": "compare --methods bkdsnn,kdsnn,lasnn,sakd,logits,ckdsnn,sastc --on digits-kdsnn",
}

# Measured while norm statistics came from plain training images, and augmented in training: to be repeated.
EARLIER = ("evidence-cifar100",)
STATISTICS = (
    "Norm statistics are of plain training images here, as all networks had them once; those of augmented "
    "images, as in training, gave 1 to 6 points more on CIFAR, students more than `alone`."
)

NOTES = {  # what the numbers do not say
    "spoken-digits": (
        "No difference: both start from the teacher's weights and end within two points of it, so that "
        "little is left to add. Settings are those of the shipped recipe, fixed on a fifth of the training "
        "part. On whole recordings held out, one or two seeds, other forms gained nothing either (TET alone "
        "94.4 and 95.6, with teachers 91.2 to 95.8; norm statistics of plain sound then)."
    ),
    "evidence-nmnist": (
        "A gain on eight of ten seeds. Settings were fixed on 210 of the 700 training samples, one seed, "
        "three a side, before the test part was read (with norm statistics of plain samples): `alone` with "
        "cross-entropy (91.9 there, taken), smoothed labels (0.1; 91.9) and TET (79.5 after 20 epochs, "
        "cross-entropy 83.3); `student` with logits at temperature 2 and weight 1 (93.8, taken), weighted "
        "soft labels (92.9), and temperature 4 at 0.9 against 0.1 of cross-entropy (79.0 after 20 epochs, "
        "temperature 2 84.8). The test part: 300 samples held out of the training file, and the 100 of the "
        "test file."
    ),
    "pneumonia": (
        "No difference of the student; its four-bit copy, which learns from it, is 1.4 points ahead of "
        "`alone`. Settings were fixed on the official validation part, four seeds, three a side, before the "
        "test part was read (with norm statistics of plain images): `alone` with cross-entropy (89.7 "
        "there), smoothed labels (0.1; 87.1) and TET (86.8); `student` with logits at temperature 2 and "
        "weight 1 (90.9) or 0.25 (91.4, taken), and weighted soft labels (91.2). In training 9 of 10 and in "
        "validation 3 of 4 images are pneumonia, in test 6 of 10. With statistics of plain images the "
        "deviations between seeds were 4 to 6 points, and the four-bit copy had 76.3."
    ),
    "evidence-cifar10": (
        "Settings are those of CIFAR-100 below; none was chosen for this budget, and `alone` has one. Two "
        "forms were tried before, with a published ResNet-20 as teacher, which knows 99.6 % of the training "
        "images: logits at temperature 4, 0.9 against 0.1 of cross-entropy, and weighted soft labels. All "
        "three seemed to add little or nothing (-0.65 to +3.1 points, one or two seeds) while norm "
        "statistics came from plain training images: measured on augmented ones, as in training, the "
        "teacher knows 2.6 points more (seed 0: 81.5), and the same trained weights give 73.1 in place of "
        "71.9 (`alone`) and 74.1 in place of 71.3 (`student`), before a student has learned from the better "
        "teacher."
    ),
    "evidence-cifar100": (
        "The student's form was fixed on validation images, one seed, before the test part was read: logits "
        "at temperature 4, 0.9 against 0.1 of cross-entropy, were tried to the fifth epoch (25.5 there, "
        "`alone` 26.0), then weighted soft labels taken; `alone` has one setting."
    ),
    "dvs128-objects": (
        "Settings were fixed on whole training sessions held out in turn (two folds, two seeds), three a "
        "side, before the test sessions were read: `alone` with cross-entropy (46.5 there), smoothed labels "
        "(0.1; 38.0) and TET (47.0, taken); `student` of three teachers with logits at temperature 2 and "
        "weight 1 (58.8) or 0.25 (48.4), and weighted soft labels (59.2, taken). The same recipe once showed "
        "no difference (72.9 and 68.5 with deviations of 3 and 14): a few recordings have far more events "
        "than others, the statistics of batches differ widely, and their average, with which the networks "
        "were measured, is of no network that was trained. Measured on all batches together the same trained "
        "weights gain up to 42 points (seed 8), the narrow teacher 9 on average."
    ),
    "compare-digits": (
        "The weights of each method are those of its shipped recipe, tuned for none of this. On the 60 "
        "validation images, corrected for 17 comparisons, `entropy` (+4.3 [+1.7, +7.0]) and `logits` are "
        "shown to be better than `alone`; intervals in the table are of the test part and not corrected. "
        "Methods without a teacher make little difference here; all those with one gain 1.5 points or "
        "more. `activity` (which has a teacher's logits too) needs less than half the operations. "
        "Left out, since the student's two stages do not fit the teacher's three or the network has not what "
        "the method looks at: attention-maps, bkdsnn, hdkd, kdsnn, lasnn, mdsnn, sakd, spike-count."
    ),
    "digits-operations": (
        "`aim-...`: a stage's `operations`, which its training aims at; reached are the operations of the "
        "table. A fifth of the operations of the free network costs half a point. `plain`: an ANN's initial "
        "weights and the atan surrogate."
    ),
    "evidence-few": "No setting was chosen for these data: they are those of the unit below.",
    "evidence-unit": "One setting a method, none chosen on these data. The recipe's other arms: not run.",
}


def processor() -> str:
    """The kind of CPU, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def reduced(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name of the recipe, and record of one seed's run folder (unfinished: of the stages that are done)."""
    run = RunSummary.model_validate_json((folder / "summary.json").read_text())
    # of several seeds there is one recipe
    place = folder if (folder / "recipe.yaml").exists() else folder.parent
    claimed = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe = claimed["recipe"]
    recipe["data"]["root"] = None  # where the data lie on a machine says nothing
    for stage in recipe["stages"]:
        if (stage.get("network") or {}).get("weights"):
            stage["network"]["weights"] = Path(stage["network"]["weights"]).name
    environment, data = run.environment, run.data
    return claimed["name"], {
        "recipe": claimed["name"],
        "seed": run.seed,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "data": {key: data.get(key) for key in ("name", "sizes", "hash", "split_hash")},
        "spikedistill": environment.get("spikedistill"),
        "commit": environment.get("commit"),
        "torch": (environment.get("packages") or {}).get("torch"),
        "cpu": processor(),
        "threads": (environment.get("machine") or {}).get("threads"),
        "precision": (environment.get("resolved") or {}).get("precision"),
        "stages": [_stage(stage) for stage in run.stages],
    }


def _stage(stage: StageSummary) -> dict[str, Any]:
    return {
        "name": stage.name,
        "network": stage.network.get("name"),
        "T": stage.time_steps,
        "epochs": stage.epochs,
        "accuracy": stage.accuracy,
        "validation": stage.validation_accuracy,
        "accuracy_at": stage.accuracy_at,
        "firing_rate": None if stage.firing_rate is None else round(stage.firing_rate, 5),
        "operations": stage.synaptic_operations if stage.time_steps else stage.macs,
        "energy_pj": stage.energy_pj,
        "twins_pj": {one.model: [round(one.network, 1), round(one.twin, 1)] for one in estimates(stage)},
        "bits": list(stage.bits.model_dump().values()) if stage.bits else None,
        "seconds": round(stage.seconds, 1),
    }


def _short(stage: dict[str, Any]) -> dict[str, Any]:
    left = ("twins_pj", "accuracy_at")
    kept = {key: value for key, value in stage.items() if value is not None and key not in left}
    kept |= {key: round(kept[key], 6) for key in ("accuracy", "validation") if key in kept}
    return kept | {key: round(kept[key]) for key in ("operations", "energy_pj") if key in kept}


def keep(folders: Iterable[Path]) -> None:
    """Write the records of run folders; a folder of several seeds is read seed by seed."""
    for folder in folders:
        for place in sorted(folder.glob("seed-*")) or [folder]:
            name, record = reduced(place)
            out = RECORDS / name / f"seed-{record['seed']}.json"
            out.parent.mkdir(parents=True, exist_ok=True)
            # Of many stages only what the page shows.
            short = record | {"stages": [_short(stage) for stage in record["stages"]]}
            texts = [json.dumps(r, separators=(",", ":")) + "\n" for r in (record, short)]
            text = next((text for text in texts if len(text) <= LARGEST), None)
            assert text, f"{out}: {len(texts[-1])} bytes"
            out.write_text(text)
            print(f"{out.relative_to(ROOT)}: {len(record['stages'])} stages")


def by_stage(records: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Stage, then seed: its record."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        for stage in record["stages"]:
            found.setdefault(stage["name"], {})[record["seed"]] = stage
    return found


def reading(stages: dict[str, dict[int, dict[str, Any]]], student: str) -> str:
    """What the paired interval of ``student`` and ``alone`` shows; a dash for a single seed."""
    taught, alone = stages[student], stages[BASELINE]
    interval = paired_interval([100 * (taught[s]["accuracy"] - alone[s]["accuracy"]) for s in sorted(taught)])
    if not interval:
        return "–"
    return "gain" if interval[0] > 0 else "loss" if interval[1] < 0 else "no difference"


def compared() -> list[str]:
    """A row a data set: what a teacher adds, whether that is shown, and what it costs in operations."""
    lines = [
        "| data | recipe | T | alone [%] | student [%] | difference [points] | operations | seeds | shown |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data, (name, student) in COMPARED.items():
        stages = by_stage(recorded(RECORDS / name))
        if not stages:
            continue
        alone, taught = (
            {s: 100 * one["accuracy"] for s, one in stages[n].items()} for n in (BASELINE, student)
        )
        costs = " / ".join(
            count(fmean(one["operations"] for one in stages[n].values())) for n in (BASELINE, student)
        )
        mark = r" \*" if name in EARLIER else ""
        lines.append(
            f"| {data} | `{name}`{mark} | {next(iter(stages[student].values()))['T']} "
            f"| {_spread([*alone.values()], 1)} | {_spread([*taught.values()], 1)} "
            f"| {_difference(stages[student], stages[BASELINE])} | {costs} | {len(taught)} "
            f"| {reading(stages, student)} |"
        )
    return lines


def summed_up() -> str:
    """How many of the comparisons are won and lost, in words."""
    each = [(by_stage(recorded(RECORDS / name)), student) for name, student in COMPARED.values()]
    read = [reading(stages, student) for stages, student in each if stages]
    lost = read.count("loss")
    return (
        f"More accuracy with a teacher in {read.count('gain')} of {len(read)} comparisons on real data, less "
        f"in {lost or 'none'}: [docs/results.md](docs/results.md)."
    )


def table(records: list[dict[str, Any]]) -> list[str]:
    """One row a stage: mean ± deviation over seeds, paired difference to ``alone`` with its 95 % interval."""
    stages = by_stage(records)
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    for name, seeds in stages.items():
        stage = next(iter(seeds.values()))
        bits, T = stage.get("bits"), stage.get("T")
        cells = [
            name,
            str(stage["network"]),
            str(T or "ANN"),
            "/".join(map(str, bits)) if bits else "float",
            _spread([100 * s["accuracy"] for s in seeds.values()], 2),
            _against(name, stages) if T else "–",
            _spread([100 * s["firing_rate"] for s in seeds.values()], 1)
            if stage.get("firing_rate") is not None
            else "–",
            count(fmean(s["operations"] for s in seeds.values())) if stage.get("operations") else "–",
            *_energies(list(seeds.values())),
            f"{fmean(s['seconds'] for s in seeds.values()):.0f}",
            ", ".join(map(str, sorted(seeds))),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _energies(seeds: list[dict[str, Any]]) -> list[str]:
    """By operations: the network, its ANN twin at equal bits, the estimates' least ratio; – where unknown."""
    if any(stage.get("energy_pj") is None for stage in seeds):
        return ["–", "–", "–"]
    cells = [microjoule(fmean(stage["energy_pj"] for stage in seeds)), "–", "–"]
    models = [model for model in seeds[0].get("twins_pj") or {} if all(model in s["twins_pj"] for s in seeds)]
    means = {m: [fmean(s["twins_pj"][m][i] for s in seeds) for i in (0, 1)] for m in models}
    if "operations" in means:
        cells[1] = microjoule(means["operations"][1])
    if means:
        ratios = {model: twin / network for model, (network, twin) in means.items()}
        least = min(ratios, key=ratios.__getitem__)
        cells[2] = f"{number(ratios[least])} ({least})"
    return cells


def _against(name: str, stages: dict[str, dict[int, dict[str, Any]]]) -> str:
    few = PLAIN.match(name)
    baseline = f"plain-{few[2]}" if few else BASELINE
    if name == baseline or baseline not in stages:
        return "–"
    return _difference(stages[name], stages[baseline]) + (f", against `{baseline}`" if few else "")


def _spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def _difference(mine: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> str:
    values = [
        100 * (mine[s]["accuracy"] - theirs[s]["accuracy"]) for s in sorted(mine.keys() & theirs.keys())
    ]
    if not values:
        return "–"
    interval = paired_interval(values)
    return f"{fmean(values):+.2f}" + (
        f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else " (one seed)"
    )


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The records of one recipe, a seed each."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]


def page() -> str:
    """docs/results.md."""
    out = [
        "# Results",
        "",
        "Made by `python benchmarks/evidence.py page` from the records in `results/evidence`; "
        "nothing here is typed by hand.",
        "Accuracies are those of the last checkpoint on the test part, mean ± sample standard deviation over "
        "seeds;",
        "differences are paired seed by seed, with their 95 % interval (Student's t). "
        "Operations are synaptic operations of",
        "an SNN (all T steps), multiply-accumulates of an ANN, per image. Energy: of these operations; "
        "beside it that of the",
        "ANN twin at equal bits, and the twin's energy over the SNN's in the estimate that favours the SNN "
        "least (below 1 the",
        "twin is cheaper; – where a record is older than this column). On the same kind of CPU and number of "
        "threads a row",
        "repeats bit for bit where its stages compile alike (`compile: auto` goes by the processor's time of "
        "a step;",
        "`resolved.json` of a run says what it chose), else within half a point.",
    ]
    out += [
        "",
        "## What a teacher adds",
        "",
        "A student with a teacher, and the same network trained alone, with equal start, epochs and "
        "augmentation.",
        "Differences are paired, with their 95 % interval; a gain is one whose interval lies above 0. "
        "Operations: alone,",
        "then student. Tables and what was tried are below, by recipe.",
        "",
        *compared(),
        "",
        "\\* With norm statistics of plain training images, as all networks had them once (see below); to be "
        "repeated.",
        "",
        "## From scratch, beside the ANN twin",
        "",
        *from_scratch.page(),
    ]
    for folder in sorted(RECORDS.iterdir()):
        records = recorded(folder)
        first = records[0]
        sizes = first["data"]["sizes"]
        # seeds may come from machines of different kinds
        cpu, precision = (
            " and ".join(dict.fromkeys(r[key] for r in records)) for key in ("cpu", "precision")
        )
        out += [
            "",
            f"## {TITLES.get(folder.name, folder.name)}",
            "",
            f"`spikedistill {COMMANDS.get(folder.name, f'train {folder.name}')} data.root=FOLDER "
            f"--seeds {len(records)}`; "
            f"{first['data']['name']}, "
            f"{sizes['train']:,} training and {sizes['test']:,} test samples; {cpu}, "
            f"{first['threads']} thread, "
            f"torch {first['torch']}, {precision}.",
            "",
            *table(records),
        ]
        if folder.name in DRAWN:
            out += ["", f"![{DRAWN[folder.name]}](plots/{folder.name}.svg)"]
        said = [NOTES.get(folder.name, ""), STATISTICS if folder.name in EARLIER else ""]
        if any(said):
            out += ["", *textwrap.wrap(" ".join(filter(None, said)), 110)]
    return "\n".join(out) + "\n"


def drawing(records: list[dict[str, Any]], alt: str) -> str:
    """A file of its own: the report's plot with the report's colours, light and dark."""
    means: dict[str, list[tuple[float, float]]] = {}
    for stage in (stage for record in records for stage in record["stages"]):
        if stage.get("T"):
            means.setdefault(stage["name"], []).append((stage["operations"], 100 * stage["accuracy"]))
    points: list[tuple[str, plots.Colour, float, float]] = [
        (name, 0 if name == BASELINE else 1, fmean(x for x, _ in seeds), fmean(y for _, y in seeds))
        for name, seeds in means.items()
    ]
    svg = plots.pareto(points, "synaptic operations an image", alt)
    css = (Path(report_page.__file__).parent / "page.css").read_text()
    colours, _ = css.split("* {", 1)
    halo = next(line for line in css.splitlines() if line.startswith(".halo "))
    style = (
        f"{colours}{halo}\nsvg {{ color: var(--ink); background: var(--paper); font-family: sans-serif; }}"
    )
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="640" ', 1).replace(
        ">", f"><style>\n{style}\n</style>", 1
    )


def readme(text: str) -> str:
    """The README with its table and its sentence made anew, where it has the place for them."""
    if BEGIN not in text or not (RECORDS / IN_README).is_dir():
        return text
    records = recorded(RECORDS / IN_README)
    before, rest = text.split(BEGIN, 1)
    block = "\n".join([*table(records), "", summed_up()])
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keep").add_argument("runs", nargs="+", type=Path)
    commands.add_parser("page").add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.command == "keep":
        keep(given.runs)
        return 0
    wanted = {PAGE: page(), README: readme(README.read_text())}
    for name, alt in DRAWN.items():
        if (RECORDS / name).is_dir():
            wanted[DRAWINGS / f"{name}.svg"] = drawing(recorded(RECORDS / name), alt)
    if given.check:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(
                f"{path.relative_to(ROOT)} is not what the records say; run `python benchmarks/evidence.py "
                "page`"
            )
        return bool(stale)
    DRAWINGS.mkdir(exist_ok=True)
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
