"""The price of a network in the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spikedistill.hardware.pricing import DEFINITIONS, FIGURES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def _number(value: Any, exact: bool = False) -> str:
    if value is None:
        return "-"
    if exact:
        return f"{value:.16g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def figures_table(columns: Mapping[str, Mapping[str, Any]]) -> "Table":
    """SpikeSim's figures, one column per report."""
    from rich.table import Table

    table = Table(title="SpikeSim")
    table.add_column("figure")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("unit", style="dim")
    for key in FIGURES:
        # The published code's figures are there to be compared digit by digit.
        values = (_number(report.get(key), exact=report["mode"] == "released") for report in columns.values())
        table.add_row(key, *values, DEFINITIONS.get(key, ""))
    return table


def layers_table(report: Mapping[str, Any]) -> "Table":
    """PEs, energy and latency by layer; layers without arrays are added up by kind."""
    from rich.table import Table

    table = Table("layer", "PEs", "energy (pJ)", "share", "latency (ns)", title=f"By layer ({report['activity']})")
    for column in table.columns[1:]:
        column.justify = "right"
    total = report["energy_pj"] or 1.0
    other: dict[str, float] = {}
    for layer in report["layers"]:
        if layer["pes"]:
            share = f"{100 * layer['energy_pj'] / total:.1f} %"
            table.add_row(
                layer["name"], str(layer["pes"]), _number(layer["energy_pj"]), share, _number(layer["latency_ns"])
            )
        else:
            other[layer["kind"]] = other.get(layer["kind"], 0.0) + layer["energy_pj"]
    for kind, energy in other.items():
        table.add_row(f"all {kind} layers", "", _number(energy), f"{100 * energy / total:.1f} %", "")
    return table


def beside_table(tree: Mapping[str, Any]) -> "Table":
    """The other estimates, for the network and its ANN twin."""
    from rich.table import Table

    table = Table(title="Beside it, per inference")
    table.add_column("estimate")
    for name in ("network", "ANN twin"):
        table.add_column(name, justify="right")
    table.add_column("break-even firing rate", justify="right")
    twin, rates = tree.get("ann_twin") or {}, tree.get("break_even") or {}

    def row(title: str, group: str, key: str, rate: str | None = None) -> None:
        there = (twin.get(group) or {}).get(key)
        point = f"{100 * rates[rate]:.1f} %" if rate and rate in rates else ""
        table.add_row(title, _number(tree[group][key]), _number(there), point)

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
            table.add_row(
                f"SpikeSim, {activity} (pJ)", _number(mine["energy_pj"]), _number(theirs.get("energy_pj")), rate
            )
    return table


def floorline_table(found: Mapping[str, Any]) -> "Table":
    """Loads of the busiest core of each layer, and what a step waits for where times are known."""
    from rich.table import Table

    title = f"Floorline, busiest core of each layer in a step ({found['cores']} cores)"
    table = Table("layer", "cores", "synops", "updates", "messages", "time (ns)", "bound by", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["layers"]:
        loads = (_number(row[key]) for key in ("synops", "updates", "messages", "time_ns"))
        table.add_row(row["name"], str(row["cores"]), *loads, row["bound"] or "-")
    return table


def ratios_table(ratios: Mapping[str, Mapping[str, float | None]]) -> "Table":
    """A / B for each figure and each B."""
    from rich.table import Table

    table = Table(title="Ratios, this run / the other")
    table.add_column("figure")
    for name in ratios:
        table.add_column(name, justify="right")
    for key in FIGURES:
        values = [column.get(key) for column in ratios.values()]
        table.add_row(key, *("-" if value is None else f"{value:.4g}" for value in values))
    return table


def show(tree: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a `price` (or `headline`) in full: figures, layers, the other estimates, what has no price, and notes."""
    from rich.console import Console

    out = console or Console()
    reports = {name: report for name, report in tree["spikesim"].items() if report}
    mode = next(iter(reports.values()))["mode"]
    out.print(figures_table({f"{mode}, {name}": report for name, report in reports.items()}))
    out.print(layers_table(reports.get("event") or reports["dense"]))
    out.print(beside_table(tree))
    if "floorline" in tree:
        out.print(floorline_table(tree["floorline"]))
    seen = list(reports.values())
    lines = [f"no {figure}: {reason}" for figure, reason in seen[0]["reasons"].items()]
    lines += [f"not priced: {item['name']}: {item['reason']}" for item in seen[0]["unpriced"]]
    lines += list(dict.fromkeys(note for report in seen for note in report["notes"]))
    if dense := [item["name"] for item in tree["operations"]["layers"] if not item["measured"]]:
        lines.append(f"operations: spikes not measured, every input counts as active: {', '.join(dense)}")
    lines += [f"memory: {note}" for note in tree["memory"]["notes"]]
    lines += [f"floorline: {note}" for note in (tree.get("floorline") or {}).get("notes", [])]
    for line in lines:
        out.print(line, markup=False, highlight=False)
