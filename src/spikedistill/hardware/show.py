"""The price of a network in the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import terminal
from ..terminal import Table, duration, energy, significant
from .pricing import DEFINITIONS, FIGURES

if TYPE_CHECKING:
    from rich.console import Console

SCALED = {"energy_pj": energy, "latency_ns": duration}  # figures that are shown with their unit
NAMES = {
    "energy_pj": "energy",
    "latency_ns": "latency",
}  # of those, for their unit is another from row to row


def _number(value: Any, exact: bool = False) -> str:
    return f"{value:.16g}" if exact and value is not None else significant(value)


def figures_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """SpikeSim's figures, one column per report."""
    # The published code's figures are there to be compared digit by digit.
    exact = any(report["mode"] == "released" for report in columns.values())
    rows = []
    for key in FIGURES:
        unit = DEFINITIONS.get(key, "-")
        if key in SCALED and not exact:
            values, unit = (
                [SCALED[key](report.get(key)) for report in columns.values()],
                unit.split(" ", 1)[1],
            )
        else:
            values = [_number(report.get(key), exact) for report in columns.values()]
        rows.append([key if exact else NAMES.get(key, key), *values, unit])
    return Table(["figure", *columns, "unit"], rows, "SpikeSim", left=(0, len(columns) + 1))


def layers_table(report: Mapping[str, Any]) -> Table:
    """PEs, energy and latency by layer; layers without arrays are added up by kind."""
    total = report["energy_pj"] or 1.0
    other: dict[str, float] = {}
    rows = []

    def row(name: str, pes: str, picojoule: float, latency: str) -> None:
        rows.append([name, pes, energy(picojoule), f"{100 * picojoule / total:.1f} %", latency])

    for layer in report["layers"]:
        if layer["pes"]:
            row(layer["name"], str(layer["pes"]), layer["energy_pj"], duration(layer["latency_ns"]))
        else:
            other[layer["kind"]] = other.get(layer["kind"], 0.0) + layer["energy_pj"]
    for kind, picojoule in other.items():
        row(f"all {kind} layers", "", picojoule, "")
    return Table(["layer", "PEs", "energy", "share", "latency"], rows, f"By layer ({report['activity']})")


def beside_table(tree: Mapping[str, Any]) -> Table:
    """The other estimates, for the network and its ANN twin at equal bits; the least favourable is marked."""
    rows: list[list[str]] = []
    ratios: dict[int, float] = {}
    twin, rates = tree.get("ann_twin") or {}, tree.get("break_even") or {}

    def row(title: str, mine: Any, theirs: Any, rate: str | None = None, joule: bool = True) -> None:
        form = energy if joule else _number
        ratio = theirs / mine if joule and mine and theirs else None
        if ratio is not None:
            ratios[len(rows)] = ratio
        point = f"{100 * rates[rate]:.1f} %" if rate and rate in rates else ""
        rows.append([title, form(mine), form(theirs), "" if ratio is None else f"{ratio:.3g}", point])

    def of(group: str, key: str) -> tuple[Any, Any]:
        return tree[group][key], (twin.get(group) or {}).get(key)

    row("multiply-accumulates", *of("operations", "macs"), joule=False)
    row("accumulates", *of("operations", "acs"), joule=False)
    row("membrane updates", *of("operations", "membrane_updates"), joule=False)
    row("MAC/AC energy, 45 nm", *of("operations", "energy_pj"))
    row("  with neurons, norms, additions", *of("operations", "total_pj"), "operations")
    row("footprint (bytes)", *of("operations", "footprint_bytes"), joule=False)
    row("energy with memory (Lemaire)", *of("memory", "total_pj"), "memory")
    for activity in ("dense", "event"):
        mine = tree["spikesim"].get(activity)
        # the twin's inputs are real, so it may have no event figures: its dense ones stand beside both
        theirs = (twin.get("spikesim") or {}).get(activity) or (twin.get("spikesim") or {}).get("dense") or {}
        if mine:
            row(
                f"SpikeSim, {activity}", mine["energy_pj"], theirs.get("energy_pj"),
                "spikesim" if activity == "event" else None,
            )  # fmt: skip
    for name, figures in (tree.get("chips") or {}).items():
        row(name, figures["energy_pj"], ((twin.get("chips") or {}).get(name) or {}).get("energy_pj"))
    if ratios:
        rows[min(ratios, key=ratios.__getitem__)][0] += "  (least favourable)"
    bits = f", {twin['activation_bits']}-bit activations" if twin.get("activation_bits") else ""
    headings = ["estimate", "network", f"ANN twin{bits}", "twin / network", "break-even firing rate"]
    return Table(headings, rows, "Beside it, per inference")


def floorline_table(found: Mapping[str, Any]) -> Table:
    """Loads of the busiest core of each layer, and what a step waits for where times are known."""
    title = f"Floorline, busiest core of each layer in a step ({terminal.amount(found['cores'], 'core')})"
    rows = []
    for row in found["layers"]:
        loads = (_number(row[key]) for key in ("synops", "updates", "messages", "time_ns"))
        rows.append([row["name"], str(row["cores"]), *loads, row["bound"] or "-"])
    return Table(["layer", "cores", "synops", "updates", "messages", "time (ns)", "bound by"], rows, title)


def ratios_table(ratios: Mapping[str, Mapping[str, float | None]]) -> Table:
    """A / B for each figure and each B."""
    rows = []
    for key in FIGURES:
        values = [column.get(key) for column in ratios.values()]
        rows.append([NAMES.get(key, key), *("-" if value is None else f"{value:.4g}" for value in values)])
    return Table(["figure", *ratios], rows, "Ratios, this run / the other")


def show(tree: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a `price` (or `headline`) in full: figures, layers, other estimates, the unpriced, notes."""
    reports = {name: report for name, report in tree["spikesim"].items() if report}
    mode = next(iter(reports.values()))["mode"]
    tables = [figures_table({f"{mode}, {name}": report for name, report in reports.items()})]
    tables += [layers_table(reports.get("event") or reports["dense"]), beside_table(tree)]
    if "floorline" in tree:
        tables.append(floorline_table(tree["floorline"]))
    seen = list(reports.values())
    lines = [f"no {figure}: {reason}" for figure, reason in seen[0]["reasons"].items()]
    lines += [f"not priced: {item['name']}: {item['reason']}" for item in seen[0]["unpriced"]]
    # both activities say the same of the chip: each note once
    lines += list(dict.fromkeys(note for report in seen for note in report["notes"]))
    if dense := [item["name"] for item in tree["operations"]["layers"] if not item["measured"]]:
        lines.append(f"operations: spikes not measured, every input counts as active: {', '.join(dense)}")
    lines += [f"memory: {note}" for note in tree["memory"]["notes"]]
    lines += [
        f"{name}: {note}"
        for name, one in (tree.get("chips") or {}).items()
        for note in one.get("notes") or []
    ]
    lines += [f"floorline: {note}" for note in (tree.get("floorline") or {}).get("notes", [])]
    terminal.show(*tables, *lines, console=console)
