"""The evidence of docs/results.md: reduced records of runs in results/evidence, and the page made of them.

    python benchmarks/evidence.py keep RUN [RUN ...]  # finished stages of runs, a file of at most 5 kB a seed
    python benchmarks/evidence.py page                # docs/results.md, tables of README and docs/methods.md
    python benchmarks/evidence.py page --check        # exit code 1 where they are not what the records say

A record names recipe, seed, versions, hashes of recipe and data, kind of CPU and threads, and of each stage
its accuracies, rate, operations, bits and seconds. Nothing on the page is typed by hand but the words in
``evidence_words.py``.
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
from statistics import fmean
from typing import Any

import from_scratch
import yaml
from evidence_methods import measured
from evidence_records import (
    BASELINE,
    RECORDS,
    ROOT,
    Seeds,
    by_stage,
    difference,
    paired,
    reading,
    recorded,
    spread,
)
from evidence_words import COMMANDS, COMPARED, DRAWN, NOTES, TITLES
from marked import between

from spikedistill.conversion import time_steps_to_match
from spikedistill.report import page as report_page
from spikedistill.report import plots
from spikedistill.report.table import count, estimates, microjoule, number
from spikedistill.training.summary import RunSummary, StageSummary

DRAWINGS = ROOT / "docs" / "plots"
PAGE, METHODS, README = ROOT / "docs" / "results.md", ROOT / "docs" / "methods.md", ROOT / "README.md"
COLUMNS = (
    "stage", "network", "T", "bits", "test accuracy [%]", "against `alone` [points]", "firing rate [%]",
    "operations",
    "energy [µJ]", "equal-bit ANN [µJ]", "least ratio", "seconds", "seeds",
)  # fmt: skip
CONVERTED = "conversion"  # the stage that a recipe names so
LARGEST = 5000  # bytes of a seed's record
PLAIN = re.compile(r"(logits|membranes|both)-(\d-\d-\d)$")  # few bits: with the plain one of as many bits
IN_README = "digits"


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


def comparisons() -> list[tuple[str, str, str, dict[str, Seeds]]]:
    """Those that have been measured: the data, the record's name, the student, and the record by stage."""
    each = [
        (data, name, student, by_stage(recorded(RECORDS / name)))
        for data, (name, student) in COMPARED.items()
    ]
    return [one for one in each if one[2] in one[3]]


def compared() -> list[str]:
    """A row a data set: what a teacher adds, whether that is shown, and what it costs in operations."""
    lines = [
        "| data | recipe | T | alone [%] | student [%] | difference [points] | operations | seeds | shown |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data, name, student, stages in comparisons():
        alone, taught = (
            {s: 100 * one["accuracy"] for s, one in stages[n].items()} for n in (BASELINE, student)
        )
        costs = " / ".join(
            count(fmean(one["operations"] for one in stages[n].values())) for n in (BASELINE, student)
        )
        lines.append(
            f"| {data} | `{name}` | {next(iter(stages[student].values()))['T']} "
            f"| {spread([*alone.values()], 1)} | {spread([*taught.values()], 1)} "
            f"| {difference(stages[student], stages[BASELINE])} | {costs} | {len(taught)} "
            f"| {reading(stages, student)} |"
        )
    return lines


def summed_up() -> str:
    """How many of the comparisons are won and lost, in words."""
    each = [(stages, student) for _, _, student, stages in comparisons()]
    read = [reading(stages, student) for stages, student in each]
    lost = read.count("loss")
    most = max(fmean(paired(stages[student], stages[BASELINE])) for stages, student in each)
    return (
        f"More accuracy with a teacher in {read.count('gain')} of {len(read)} comparisons on real data, by "
        f"up to {most:.1f} points, less in {lost or 'none'}: [docs/results.md](docs/results.md)."
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
            spread([100 * s["accuracy"] for s in seeds.values()], 2),
            _against(name, stages) if T else "–",
            spread([100 * s["firing_rate"] for s in seeds.values()], 1)
            if stage.get("firing_rate") is not None
            else "–",
            count(fmean(s["operations"] for s in seeds.values())) if stage.get("operations") else "–",
            *_energies(list(seeds.values())),
            f"{fmean(s['seconds'] for s in seeds.values()):.0f}",
            ", ".join(map(str, sorted(seeds))),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def conversions(records: list[dict[str, Any]]) -> list[str]:
    """Accuracy of a conversion after T steps, and the T it needs for that of each trained SNN, by seed."""
    stages = by_stage(records)
    curves = {seed: one["accuracy_at"] for seed, one in stages.get(CONVERTED, {}).items()}
    if not curves:
        return []
    steps = list(next(iter(curves.values())))
    lines = [
        "",
        f"| `{CONVERTED}`, T | " + " | ".join(steps) + " |",
        "| --- |" + " --- |" * len(steps),
        "| test accuracy [%] | "
        + " | ".join(spread([100 * curve[T] for curve in curves.values()], 1) for T in steps)
        + " |",
    ]
    for name, seeds in stages.items():
        T = next(iter(seeds.values()))["T"]
        if name == CONVERTED or not T:
            continue
        found = [
            time_steps_to_match({int(t): a for t, a in curves[s].items()}, seeds[s]["accuracy"])
            for s in sorted(seeds.keys() & curves.keys())
        ]
        needed = ", ".join(f"{t} ({t / T:g} times its T)" if t else f"more than {steps[-1]}" for t in found)
        lines += ["", f"Steps until the conversion knows as much as `{name}`, seed by seed: {needed}."]
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
    return difference(stages[name], stages[baseline]) + (f", against `{baseline}`" if few else "")


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
            *conversions(records),
        ]
        if folder.name in DRAWN:
            out += ["", f"![{DRAWN[folder.name]}](plots/{folder.name}.svg)"]
        if said := NOTES.get(folder.name):
            out += ["", *textwrap.wrap(said, 110)]
    out += ["", "## From scratch: what was tried", "", *from_scratch.tried()]
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
    demo = [*table(recorded(RECORDS / IN_README)), "", summed_up()]
    wanted = {
        PAGE: page(),
        README: between(README.read_text(), "evidence", demo),
        METHODS: between(METHODS.read_text(), "evidence", measured()),
    }
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
