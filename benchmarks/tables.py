"""The tables of ``docs/performance.md`` from the raw figures.

    python benchmarks/tables.py [results/performance]

Ratios of medians of one run, milliseconds beside them.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "results/performance")
TWIN, OURS = "ANN twin compiled at T*N", "ours fused, once"


def load(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def table(head: list[str], rows: list[list[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
    print()


def ms(row: dict[str, float]) -> str:
    return f"{row['median_ms']:.0f} ({row['least_ms']:.0f})"


def step(name: str) -> None:
    found = load(name)
    if not found:
        return
    rows = found["rows"]
    print(f"### {name}\n\n`{found['command']}`\n")
    lines = []
    for variant in dict.fromkeys(v.removesuffix(" bf16") for v in rows):
        line = [variant]
        for suffix in ("", " bf16"):
            if variant + suffix in rows:
                row = rows[variant + suffix]
                line += [ms(row), f"{row['median_ms'] / rows[TWIN + suffix]['median_ms']:.2f}"]
                line += [f"{row['median_ms'] / rows[OURS + suffix]['median_ms']:.2f}"]
            else:
                line += ["-", "-", "-"]
        lines.append(line)
    lines.sort(key=lambda line: float(line[2]) if line[2] != "-" else 99)
    each = ["ms (least)", "x twin", "x ours"]
    if any(variant.endswith(" bf16") for variant in rows):
        table(["float32, then bf16", *each, *each], lines)
    else:
        table(["float32", *each], [line[:4] for line in lines])
    for variant, error in found.get("errors", {}).items():
        print(f"{variant} does not run: {error}\n")


def scaling() -> None:
    lines = []
    for T in (1, 2, 4, 8, 16):
        found = load("step-conv6" if T == 4 else f"step-conv6-T{T}")
        if not found:
            continue
        rows, line = found["rows"], [str(T)]
        kinds = {"float32": "", "bf16": " bf16"} if OURS + " bf16" in found["rows"] else {"float32": ""}
        for suffix in kinds.values():
            mine = rows[OURS + suffix]["median_ms"]
            line += [f"{mine:.0f}", f"{mine / rows[TWIN + suffix]['median_ms']:.2f}"]
            line += [f"{rows[f'SpikingJelly{suffix}']['median_ms'] / mine:.1f}"]
        lines.append(line)
    if not lines:
        return
    print("### T\n")
    table(["T", *[f"{kind} {e}" for kind in kinds for e in ("ms", "x twin", "SpikingJelly / ours")]], lines)


def first() -> None:
    columns, whats = {}, []
    for precision in ("float32", "bfloat16"):
        for name, rows in load(f"first-{precision}").get("rows", {}).items():
            columns[f"{name}, {precision}"] = rows
            whats += [w for w in rows if w not in whats]
    if not columns:
        return
    print("### First step\n")
    lines = []
    for what in whats:
        cells = [c.get(what) for c in columns.values()]
        lines.append(
            [
                what,
                *[f"{c['seconds']:.1f} s, {c['graphs']:.0f}" if isinstance(c, dict) else "-" for c in cells],
            ]
        )
    table(["seconds, graphs compiled", *columns], lines)


def memory() -> None:
    print("### Memory\n")
    for path in sorted(FOLDER.glob("memory-*.json")):
        name = path.stem.removeprefix("memory-")
        rows = load(path.stem)["rows"]
        base = rows["SpikingJelly"]
        lines = [
            [
                v,
                f"{r['peak_mb']:.0f}",
                f"{r['peak_mb'] / base['peak_mb']:.2f}",
                f"{r['saved_mb']:.0f}",
                f"{r['median_ms']:.0f}",
            ]
            if "peak_mb" in r
            else [v, r["error"], "-", "-", "-"]
            for v, r in rows.items()
        ]
        table([name, "peak MB", "x SpikingJelly", "saved MB", "step ms"], lines)


def events() -> None:
    """Event-driven convolutions over dense ones, by firing rate."""
    rows = load("event_driven").get("rows", {})
    found: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        way, kind, rate = name.split()
        if way == "events":
            found.setdefault(rate, {})[kind] = row["median_ms"] / rows[f"dense {kind} {rate}"]["median_ms"]
    if found:
        print("### Event-driven convolutions over dense ones, forward and backward\n")
        kinds = list(next(iter(found.values())))
        lines = [
            [f"{100 * float(rate):g} %", *[f"{found[rate][kind]:.2f}" for kind in kinds]] for rate in found
        ]
        table(["neurons that fire", *kinds], lines)


def shapes() -> None:
    """The same layer by layer."""
    rows = load("event_driven-shapes").get("rows", {})
    for kind in ("float32", "bfloat16"):
        found: dict[str, dict[str, float]] = {}
        for name, row in rows.items():
            way, of, rate, shape = name.split()
            if (way, of) == ("events", kind):
                dense = rows[name.replace("events", "dense")]
                found.setdefault(shape, {})[rate] = row["median_ms"] / dense["median_ms"]
        if found:
            print(f"### Event-driven convolutions layer by layer, {kind}\n")
            rates = list(next(iter(found.values())))
            lines = [[shape, *[f"{row[rate]:.2f}" for rate in rates]] for shape, row in found.items()]
            heads = [f"{100 * float(rate):g} %" for rate in rates]
            table(["channels in, out, map, kernel, stride", *heads], lines)


def pools() -> None:
    """Native max pooling over torch's, by the size of its map."""
    rows = load("pooling").get("rows", {})
    found: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        way, kind, sizes = name.split(" ", 2)
        if way == "native":
            found.setdefault(sizes, {})[kind] = row["median_ms"] / rows[f"torch {kind} {sizes}"]["median_ms"]
    if found:
        print("### Native max pooling over torch's, forward and backward\n")
        kinds = list(next(iter(found.values())))
        lines = [[sizes, *[f"{found[sizes][kind]:.2f}" for kind in kinds]] for sizes in found]
        table(["channels, size, kernel, stride, padding", *kinds], lines)


def single() -> None:
    """A layer at T = 1 by the size of its map."""
    rows = load("single_step").get("rows", {})
    if rows:
        print("### single step\n")
        maps = list(dict.fromkeys(name.split()[-1] for name in rows))
        ways = list(
            dict.fromkeys(name.removesuffix(f" {maps[0]}") for name in rows if name.endswith(maps[0]))
        )
        lines = [[m, *[f"{rows[f'{way} {m}']['median_ms']:.2f}" for way in ways]] for m in maps]
        table(["ms", *ways], lines)


def profile() -> None:
    """Shares of our step."""
    found = {p: load(f"profile-conv6-{p}").get("rows") for p in ("float32", "bfloat16")}
    found = {p: rows for p, rows in found.items() if rows}
    if found:
        print("### Profile\n")
        lines = []
        for part in next(iter(found.values())):
            line = [part]
            for rows in found.values():
                took = rows[part]["median_ms"]
                line += [f"{took:.0f}", f"{100 * took / rows['a step']['median_ms']:.0f}"]
            lines.append(line)
        table(["part of a step", *[word for p in found for word in (f"{p} ms", "%")]], lines)


def plain(name: str, base: str) -> None:
    rows = load(name).get("rows")
    if rows:
        print(f"### {name}\n")
        lines = [[v, ms(r), f"{r['median_ms'] / rows[base]['median_ms']:.3f}"] for v, r in rows.items()]
        table(["", "ms (least)", f"x {base}"], lines)


def inference() -> None:
    """Milliseconds of a call, a column for each T and batch; what early exit saves."""
    rows = load("inference").get("rows")
    if rows:
        print("### inference\n")
        names = list(next(iter(rows.values())))
        lines = [[name, *(f"{part[name]['median_ms']:.3g}" for part in rows.values())] for name in names]
        table(["ms", *rows], lines)
    told = load("early-exit").get("early_exit")
    if told:
        print(
            f"Early exit ({told['run']}): {told['mean_steps']:.2f} of {told['time_steps']} steps, "
            f"{told['time']:.2f} of the time, accuracy {100 * told['accuracy_early']:.1f} against "
            f"{100 * told['accuracy']:.1f} %"
        )


if __name__ == "__main__":
    for name in (
        "step-conv6",
        "step-conv6-rates",
        "step-conv6-wide",
        "step-ms_resnet18",
        "step-conv6-compiled",
    ):
        step(name)
    scaling()
    profile()
    first()
    memory()
    for precision in ("float32", "bfloat16"):
        plain(f"distill-{precision}", "plain")
    inference()
    plain("loader", "training step (conv6)")
    events()
    shapes()
    pools()
    single()
