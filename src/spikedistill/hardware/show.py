"""The price of a network in the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import terminal
from ..terminal import Table
from .pricing import DEFINITIONS, FIGURES

if TYPE_CHECKING:
    from rich.console import Console


def _number(value: Any, exact: bool = False) -> str:
    if value is None:
        return "-"
    if exact:
        return f"{value:.16g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def figures_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """SpikeSim's figures, one column per report."""
    rows = []
    for key in FIGURES:
        # The published code's figures are there to be compared digit by digit.
        values = (_number(report.get(key), exact=report["mode"] == "released") for report in columns.values())
        rows.append([key, *values, DEFINITIONS.get(key, "-")])
    return Table(["figure", *columns, "unit"], rows, "SpikeSim", left=(0, len(columns) + 1))


def layers_table(report: Mapping[str, Any]) -> Table:
    """PEs, energy and latency by layer; layers without arrays are added up by kind."""
    total = report["energy_pj"] or 1.0
    other: dict[str, float] = {}
    rows = []

    def row(name: str, pes: str, energy: float, latency: str) -> None:
        rows.append([name, pes, _number(energy), f"{100 * energy / total:.1f} %", latency])

    for layer in report["layers"]:
        if layer["pes"]:
            row(layer["name"], str(layer["pes"]), layer["energy_pj"], _number(layer["latency_ns"]))
        else:
            other[layer["kind"]] = other.get(layer["kind"], 0.0) + layer["energy_pj"]
    for kind, energy in other.items():
        row(f"all {kind} layers", "", energy, "")
    return Table(["layer", "PEs", "energy (pJ)", "share", "latency (ns)"], rows, f"By layer ({report['activity']})")


def beside_table(tree: Mapping[str, Any]) -> Table:
    """The other estimates, for the network and its ANN twin."""
    rows = []
    twin, rates = tree.get("ann_twin") or {}, tree.get("break_even") or {}

    def row(title: str, group: str, key: str, rate: str | None = None) -> None:
        there = (twin.get(group) or {}).get(key)
        point = f"{100 * rates[rate]:.1f} %" if rate and rate in rates else ""
        rows.append([title, _number(tree[group][key]), _number(there), point])

    row("multiply-accumulates", "operations", "macs")
    row("accumulates", "operations", "acs")
    row("membrane updates", "operations", "membrane_updates")
    row("MAC/AC energy, 45 nm (pJ)", "operations", "energy_pj")
    row("  with neurons, norms, additions (pJ)", "operations", "total_pj", "operations")
    row("footprint (bytes)", "operations", "footprint_bytes")
    row("energy with memory (Lemaire) (pJ)", "memory", "total_pj", "memory")
    for activity in ("dense", "event"):
        mine = tree["spikesim"].get(activity)
        theirs = (twin.get("spikesim") or {}).get(activity) or (twin.get("spikesim") or {}).get("dense") or {}
        if mine:
            rate = f"{100 * rates['spikesim']:.1f} %" if activity == "event" and rates else ""
            figures = _number(mine["energy_pj"]), _number(theirs.get("energy_pj"))
            rows.append([f"SpikeSim, {activity} (pJ)", *figures, rate])
    return Table(["estimate", "network", "ANN twin", "break-even firing rate"], rows, "Beside it, per inference")


def floorline_table(found: Mapping[str, Any]) -> Table:
    """Loads of the busiest core of each layer, and what a step waits for where times are known."""
    title = f"Floorline, busiest core of each layer in a step ({found['cores']} cores)"
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
        rows.append([key, *("-" if value is None else f"{value:.4g}" for value in values)])
    return Table(["figure", *ratios], rows, "Ratios, this run / the other")


def show(tree: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a `price` (or `headline`) in full: figures, layers, the other estimates, what has no price, and notes."""
    reports = {name: report for name, report in tree["spikesim"].items() if report}
    mode = next(iter(reports.values()))["mode"]
    tables = [figures_table({f"{mode}, {name}": report for name, report in reports.items()})]
    tables += [layers_table(reports.get("event") or reports["dense"]), beside_table(tree)]
    if "floorline" in tree:
        tables.append(floorline_table(tree["floorline"]))
    seen = list(reports.values())
    lines = [f"no {figure}: {reason}" for figure, reason in seen[0]["reasons"].items()]
    lines += [f"not priced: {item['name']}: {item['reason']}" for item in seen[0]["unpriced"]]
    lines += list(dict.fromkeys(note for report in seen for note in report["notes"]))
    if dense := [item["name"] for item in tree["operations"]["layers"] if not item["measured"]]:
        lines.append(f"operations: spikes not measured, every input counts as active: {', '.join(dense)}")
    lines += [f"memory: {note}" for note in tree["memory"]["notes"]]
    lines += [f"floorline: {note}" for note in (tree.get("floorline") or {}).get("notes", [])]
    terminal.show(*tables, *lines, console=console)
