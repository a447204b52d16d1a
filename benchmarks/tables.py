"""docs/performance_tables.md, and the README's table of speed, from the raw figures in results/performance.

    python benchmarks/tables.py [--check]  # exit code 1 where a page is not what the figures say

A section a file, by kind of processor: its command, date, firing rates, and medians with the least of the
runs in brackets. Nothing on the page is typed by hand but ``KINDS``, ``NOTES`` and the page's first lines.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from marked import between

ROOT = Path(__file__).parents[1]
FOLDER, PAGE = ROOT / "results" / "performance", ROOT / "docs" / "performance_tables.md"
README, IN_README = ROOT / "README.md", "step-conv6-N128"
TWIN, OURS = "ANN twin compiled at T*N", "ours fused, once"
Figures = dict[str, Any]  # a file of results/performance

HEAD = """# Performance: the tables

Made by `python benchmarks/tables.py` from the raw figures in `results/performance`;
[performance](performance.md) says what they mean, and how they were taken. Times are medians in milliseconds,
the least in brackets; ratios are of medians of one run.
"""
# By processor, in the page's order: what is added to the names of its tables, and its heading.
KINDS = {
    "AVX512-BF16": ("", "CPU with bf16 units", "an AMD EPYC, two virtual cores, AVX512-BF16, no AMX"),
    "AVX2": (", AVX2 only", "The same CPU, AVX2 only", "kept from using more than AVX2 (`--avx2`)"),
    "none": (", no bf16 units", "CPU without bf16 units", "an AMD EPYC, two virtual cores, AVX2"),
    "AMX": (", AMX", "CPU with AMX", "an Intel Xeon, two virtual cores"),
}
TAUGHT = "Taught: with a published ResNet-20's form and `evidence-unit`'s terms `features`."
NOTES = {
    "event_driven": "Events over dense, forward and backward of `conv6`'s five convolutions behind neurons.",
    "event_driven-shapes": "Events over dense, by layer: channels in, out, map, kernel, stride; 128 maps.",
    "pooling": "Native max pooling over torch's, forward and backward of 512 maps.",
    "single_step": "Forward and backward of norm and neuron at T = 1; maps as batch x channels x sides. "
    '"Single step" runs up to 131,072 values, "one operation" above.',
    "methods": "A step with each method: `conv6` at half width with a ResNet-20 as teacher.",
    "processes": "Images per second, a thread a process, medians (least to most).",
    "inference": "One image, or a batch.",
    "time-to-accuracy": "Training until 80 % of CIFAR-10's test images are known: epochs of one curve a way, "
    "times the steps of `step-conv6-N128`; seconds an epoch at one, two and four time steps.",
    "step-conv6-N128": TAUGHT,
    "step-conv6-N128-T1": TAUGHT,
    "step-conv6-N128-T2": TAUGHT,
}
ELSEWHERE = ("c_export",)  # on other pages
COMPARED = {  # of the README's table: row, variants of a step
    "the same network as an ANN, compiled, at T x N images": (TWIN,),
    "SpikingJelly, as users run it / channels last / compiled whole": (
        "SpikingJelly", "SpikingJelly, channels last", "SpikingJelly, compiled whole, once"
    ),
    "snnTorch, as users run it / channels last": ("snnTorch", "snnTorch, channels last"),
}  # fmt: skip
FIRST = (
    "step-conv6",
    "step-conv6-balanced",
    "step-conv6-N128",
    "step-conv6-rates",
    "step-conv6-wide",
)  # then by name


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def ms(row: dict[str, float]) -> str:
    return f"{row['median_ms']:.0f} ({row['least_ms']:.0f})"


def ratio(row: dict[str, float], base: dict[str, float]) -> str:
    return f"{row['median_ms'] / base['median_ms']:.2f}"


def step(found: Figures) -> str:
    """A training step of each variant, beside the compiled twin and ours, in one precision or two."""
    rows, lines = found["rows"], []
    for variant in dict.fromkeys(v.removesuffix(" bf16") for v in rows):
        line = [variant]
        for suffix in ("", " bf16"):
            row = rows.get(variant + suffix)
            line += ["-"] * 3 if row is None else [
                ms(row), ratio(row, rows[TWIN + suffix]), ratio(row, rows[OURS + suffix])
            ]  # fmt: skip
        lines.append(line)
    lines.sort(key=lambda line: float(line[2]) if line[2] != "-" else 99)
    each = ["ms (least)", "x twin", "x ours"]
    both = any(variant.endswith(" bf16") for variant in rows)
    out = (
        table(["float32, then bf16", *each, *each], lines)
        if both
        else table(["float32", *each], [line[:4] for line in lines])
    )
    for variant, error in found.get("errors", {}).items():
        out += f"\n{variant} does not run: {error}\n"
    return out


def first(found: Figures) -> str:
    """Seconds of the first steps of a process, and what they compile."""
    columns = found["rows"]
    lines = []
    for what in dict.fromkeys(what for rows in columns.values() for what in rows):
        cells = [rows.get(what) for rows in columns.values()]
        told = [f"{c['seconds']:.1f} s, {c['graphs']:.0f}" if isinstance(c, dict) else "-" for c in cells]
        lines.append([what, *told])
    return table(["seconds, graphs compiled", *columns], lines)


def memory(found: Figures) -> str:
    """Peak and kept memory of a step."""
    rows = found["rows"]
    base = rows["SpikingJelly"]
    lines = [
        [v, f"{r['peak_mb']:.0f}", f"{r['peak_mb'] / base['peak_mb']:.2f}", f"{r['saved_mb']:.0f}",
         f"{r['median_ms']:.0f}"] if "peak_mb" in r else [v, r["error"], "-", "-", "-"]
        for v, r in rows.items()
    ]  # fmt: skip
    return table(["", "peak MB", "x SpikingJelly", "saved MB", "step ms"], lines)


def events(found: Figures) -> str:
    """Event-driven convolutions over dense ones, by firing rate."""
    rows, shares = found["rows"], dict[str, dict[str, str]]()
    for name, row in rows.items():
        way, kind, rate = name.split()
        if way == "events":
            shares.setdefault(rate, {})[kind] = ratio(row, rows[f"dense {kind} {rate}"])
    kinds = list(next(iter(shares.values())))
    lines = [[f"{100 * float(rate):g} %", *[row[kind] for kind in kinds]] for rate, row in shares.items()]
    return table(["neurons that fire", *kinds], lines)


def shapes(found: Figures) -> str:
    """The same layer by layer."""
    rows, shares = found["rows"], dict[str, dict[str, dict[str, str]]]()
    for name, row in rows.items():
        way, kind, rate, shape = name.split()
        if way == "events":
            dense = rows[name.replace("events", "dense")]
            shares.setdefault(kind, {}).setdefault(shape, {})[rate] = ratio(row, dense)
    out = []
    for kind, by_shape in shares.items():
        heads = [f"{100 * float(rate):g} %" for rate in next(iter(by_shape.values()))]
        out.append(table([kind, *heads], [[shape, *row.values()] for shape, row in by_shape.items()]))
    return "\n".join(out)


def pools(found: Figures) -> str:
    """Native max pooling over torch's, by the size of its map."""
    rows, shares = found["rows"], dict[str, dict[str, str]]()
    for name, row in rows.items():
        way, kind, sizes = name.split(" ", 2)
        if way == "native":
            shares.setdefault(sizes, {})[kind] = ratio(row, rows[f"torch {kind} {sizes}"])
    kinds = list(next(iter(shares.values())))
    lines = [[sizes, *[row[kind] for kind in kinds]] for sizes, row in shares.items()]
    return table(["channels, size, kernel, stride, padding", *kinds], lines)


def single(found: Figures) -> str:
    """A layer at T = 1 by the size of its map."""
    rows = found["rows"]
    maps = list(dict.fromkeys(name.split()[-1] for name in rows))
    ways = [name.removesuffix(f" {maps[0]}") for name in rows if name.endswith(maps[0])]
    lines = [[m, *[f"{rows[f'{way} {m}']['median_ms']:.2f}" for way in ways]] for m in maps]
    return table(["ms", *ways], lines)


def profile(found: Figures) -> str:
    """Shares of our step."""
    rows = found["rows"]
    whole = rows["a step"]["median_ms"]
    lines = [
        [part, f"{r['median_ms']:.0f}", f"{100 * r['median_ms'] / whole:.0f}"] for part, r in rows.items()
    ]
    return table(["part of a step", f"{found['precision']} ms", "%"], lines)


def plain(base: str) -> Callable[[Figures], str]:
    """Each variant and its ratio to one of them."""

    def told(found: Figures) -> str:
        rows = found["rows"]
        return table(
            ["", "ms (least)", f"x {base}"], [[v, ms(r), ratio(r, rows[base])] for v, r in rows.items()]
        )

    return told


def inference(found: Figures) -> str:
    """Milliseconds of a call, a column for each T and batch."""
    rows = found["rows"]
    names = list(next(iter(rows.values())))
    lines = [[name, *(f"{part[name]['median_ms']:.3g}" for part in rows.values())] for name in names]
    return table(["ms", *rows], lines)


def early_exit(found: Figures) -> str:
    """What stopping as soon as a sample is sure saves."""
    told = found["early_exit"]
    return (
        f"{told['mean_steps']:.2f} of {told['time_steps']} steps and {told['time']:.2f} of the time of one "
        f"image at confidence {told['confidence']:g}; accuracy {100 * told['accuracy_early']:.1f} %, with "
        f"all steps {100 * told['accuracy']:.1f} %.\n"
    )


def processes(found: Figures) -> str:
    """Images per second by number of processes."""
    spread = [
        f"{median(each):.0f} ({min(each):.0f} to {max(each):.0f})"
        for each in found["images_per_second"].values()
    ]
    heads = [f"{n} process{'' if n == '1' else 'es'}" for n in found["images_per_second"]]
    return table(
        ["images a process and step", *heads, "ratio"],
        [[str(found["batch"]), *spread, f"{found['ratio']:.2f}"]],
    )


def to_accuracy(_: Figures) -> str:
    """Minutes until 80 %, from curves and the steps above."""
    import time_to_accuracy  # torch and all: of this table alone

    return time_to_accuracy.table() + "\n"


SHOWN: dict[str, Callable[[Figures], str]] = {  # by the beginning of the file's name, the longest first
    "step-": step, "first-": first, "memory-": memory, "profile-": profile, "distill-": plain("plain"),
    "methods": plain("plain"), "loader": plain("training step (conv6)"), "event_driven-shapes": shapes,
    "event_driven": events, "pooling": pools, "single_step": single, "inference": inference,
    "early-exit": early_exit, "processes": processes, "time-to-accuracy": to_accuracy,
}  # fmt: skip


def kind(found: Figures) -> str:
    machine = found["machine"]
    return machine.get("limited_to") or machine.get("bf16_units") or "none"


def rates(found: Figures) -> str:
    """What share of each layer's neurons fires."""
    fired = [100 * rate for rate in (found.get("firing_rates") or {}).values()]
    return f"; {min(fired):.0f} to {max(fired):.0f} % of each layer's neurons fire" if fired else ""


def section(name: str, suffix: str, found: Figures) -> str:
    show = next(SHOWN[start] for start in sorted(SHOWN, key=len, reverse=True) if name.startswith(start))
    on = date.fromisoformat(found["date"])
    note = f"{NOTES[name]}\n\n" if name in NOTES else ""
    about = f"`{found['command']}`; {on.day} {on:%B %Y}{rates(found)}."
    return f"### {name}{suffix}\n\n{note}{about}\n\n{show(found)}"


def scaling(files: dict[str, Figures]) -> str:
    """A step by T, from the files of several T that began alike."""
    lines, kinds = [], dict[str, str]()
    for T in (1, 2, 4, 8, 16):
        found = files.get("step-conv6" if T == 4 else f"step-conv6-T{T}")
        if found is None:
            continue
        rows, line = found["rows"], [str(T)]
        kinds = {"float32": "", "bf16": " bf16"} if OURS + " bf16" in rows else {"float32": ""}
        for suffix in kinds.values():
            mine = rows[OURS + suffix]
            line += [f"{mine['median_ms']:.0f}", ratio(mine, rows[TWIN + suffix])]
            line += [ratio(rows[f"SpikingJelly{suffix}"], mine)]
        lines.append(line)
    if len(lines) < 2:
        return ""
    heads = [f"{word} {e}" for word in kinds for e in ("ms", "x twin", "SpikingJelly / ours")]
    return table(["T", *heads], lines)


def sections() -> Iterator[str]:
    yield HEAD
    by_kind: dict[str, dict[str, Figures]] = {}
    for path in sorted(FOLDER.glob("**/*.json")):
        if path.stem not in ELSEWHERE:
            found = json.loads(path.read_text())
            by_kind.setdefault(kind(found), {})[path.stem] = found
    for which, (suffix, heading, what) in KINDS.items():
        files = by_kind.get(which, {})
        if not files:
            continue
        yield f"## {heading}\n\n{what[0].upper()}{what[1:]}.\n"
        names = [*[name for name in FIRST if name in files], *sorted(files.keys() - {*FIRST})]
        for name in names:
            yield section(name, suffix, files[name])
        if by_T := scaling(files):
            yield f"### T{suffix}\n\nThe same step by number of time steps.\n\n{by_T}"


def page() -> str:
    return "\n".join(sections())


def readme() -> list[str]:
    """A step beside the twin and the peers that researchers use, and peak memory, as multiples of ours."""
    found = json.loads((FOLDER / f"{IN_README}.json").read_text())
    rows, fired, on = found["rows"], sorted(found["firing_rates"].values()), date.fromisoformat(found["date"])
    ours = {suffix: rows[OURS + suffix] for suffix in ("", " bf16")}
    lines = [
        ["ours ({} ms, {} ms)".format(*(f"{row['median_ms']:.0f}" for row in ours.values())), "1.00", "1.00"]
    ]
    for what, variants in COMPARED.items():
        cells = [
            " / ".join(ratio(rows[v + end], mine) if v + end in rows else "–" for v in variants)
            for end, mine in ours.items()
        ]
        lines.append([what, *cells])
    kept = [
        json.loads((FOLDER / f"memory-conv6-{precision}.json").read_text())["rows"]
        for precision in ("float32", "bfloat16")
    ]
    peaks = [f"{row['SpikingJelly']['peak_mb'] / row['ours default']['peak_mb']:.1f}" for row in kept]
    batch, rates = found["settings"]["batch"], f"{100 * fired[0]:.0f} to {100 * fired[-1]:.0f}"
    text = (
        f"One training step of `conv6` (T = 4, batch {batch}, 32x32 images, {rates} % of neurons firing), "
        f"medians of interleaved runs on two threads of {KINDS[kind(found)][2].partition(',')[0]} with bf16 "
        f"units, {on:%B %Y}, times of ours; [docs/performance.md](docs/performance.md) has all of them, what "
        "was not reached, and the commands:"
    )
    lines.append(["SpikingJelly's peak training memory at T = 8", *peaks])
    return [*textwrap.wrap(text, 110), "", *table(["", "float32", "bf16"], lines).splitlines()]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true")
    given = p.parse_args()
    wanted = {PAGE: page(), README: between(README.read_text(encoding="utf-8"), "speed", readme())}
    for path, text in wanted.items():
        if not given.check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what the figures say: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
