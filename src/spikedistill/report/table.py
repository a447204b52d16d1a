"""The results of a run as one table in the terminal: a row per stage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..conversion import time_steps_to_match
from ..own_code import is_address
from ..terminal import Table, energy, show
from ..training.summary import (
    BASELINE,
    Bits,
    Spread,
    StageSpread,
    StageSummary,
    Summary,
    figures,
    spread,
)

if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = (
    "Stage", "Test accuracy [%]", "T", "Firing rate [%]", "Operations / image", "Bits w/m/n", "Energy [µJ]",
    "Equal-bit ANN [µJ]", "Least ratio",
)  # fmt: skip
MOST_IN_A_LINE = 5
# Each estimate, where it stands in ``hardware`` and where its ANN twin's does (SpikeSim prices an ANN's dense
# figures).
ESTIMATES = (
    ("operations", ("operations.energy_pj",), ("ann_twin.operations.energy_pj",)),
    ("with memory", ("memory.total_pj",), ("ann_twin.memory.total_pj",)),
    ("SpikeSim dense", ("spikesim.dense.energy_pj",), ("ann_twin.spikesim.dense.energy_pj",)),
    (
        "SpikeSim event",
        ("spikesim.event.energy_pj",),
        ("ann_twin.spikesim.event.energy_pj", "ann_twin.spikesim.dense.energy_pj"),
    ),
)


@dataclass(frozen=True)
class Row:
    """One stage: the text of each column of :data:`HEADINGS`."""

    stage: str
    accuracy: str
    time_steps: str
    firing_rate: str
    operations: str
    bits: str
    energy: str
    twin: str = "–"
    least: str = "–"

    def cells(self) -> tuple[str, ...]:
        """The columns in order."""
        work = (self.operations, self.bits, self.energy, self.twin, self.least)
        return (self.stage, self.accuracy, self.time_steps, self.firing_rate, *work)


def rows(summary: Summary) -> list[Row]:
    """The table's rows; ``±`` is one sample standard deviation over seeds."""
    return [_row(stage) for stage in summary.stages]


def render(summary: Summary, console: "Console | None" = None) -> None:
    """Print the table: with colours and lines in a terminal, aligned plain text elsewhere (file, pipe)."""
    show(shown(summary), *lines_below(summary), console=console)


def plain(summary: Summary) -> str:
    """The table as aligned text of any width, title above, caption and warnings below."""
    return "\n".join([shown(summary).aligned(), *lines_below(summary)])


def shown(summary: Summary) -> Table:
    """The table for the terminal."""
    return Table(HEADINGS, [row.cells() for row in rows(summary)], summary.title, caption(summary))


def lines_below(summary: Summary) -> list[str]:
    """What a teacher adds, what favours each SNN least, how conversions compare, and warnings."""
    return [
        *against_alone(summary),
        *least_favourable(summary),
        *conversions(summary),
        *(f"warning: {warning}" for warning in all_warnings(summary)),
    ]


def against_alone(summary: Summary) -> list[str]:
    """Accuracy beside that of the stage that learned alone, where there is one and several seeds."""
    found = [
        f"{one.stage} {100 * one.mean:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]"
        for one in getattr(summary, "differences", [])
        if one.figure == "accuracy" and one.baseline == BASELINE
        if one.low is not None and one.high is not None
    ]
    # Of more the page has a drawing, and a comparison its own table.
    if not found or len(found) > MOST_IN_A_LINE:
        return []
    return [f"points against {BASELINE}, paired by seed, with the 95 % interval: {', '.join(found)}"]


def caption(summary: Summary) -> str:
    """What the columns mean, and over what the spread is."""
    seeds = (
        f"Mean ± sample standard deviation over {len(summary.seeds)} seeds "
        f"({', '.join(map(str, summary.seeds))})"
        if len(summary.seeds) > 1
        else f"One seed ({summary.seeds[0]})"
    )
    return (
        f"{seeds}; last checkpoint of each stage, test set. Operations: synaptic operations of an SNN, "
        "multiply-accumulates (MACs) of an ANN. Energy: estimated from the operation counts; beside it "
        "that of the ANN twin at equal bits, and the twin's energy over the SNN's in the estimate that "
        "favours the SNN least: below 1 the twin is cheaper."
    )


def all_warnings(summary: Summary) -> list[str]:
    """The run's warnings and its stages', each named."""
    return summary.warnings + [
        f"{stage.name}: {warning}" for stage in summary.stages for warning in stage.warnings
    ]


@dataclass(frozen=True)
class Estimate:
    """One model's energy of an SNN and of its ANN twin at equal bits, in pJ."""

    model: str
    network: float
    twin: float

    @property
    def ratio(self) -> float:
        """The twin's over the network's: how many times less the network needs; below 1 it needs more."""
        return self.twin / self.network


def estimates(stage: StageSummary | StageSpread) -> list[Estimate]:
    """Every estimate that a stage has both for itself and for its ANN twin, means over seeds."""
    found = []
    chips = [
        (name, (f"chips.{name}.energy_pj",), (f"ann_twin.chips.{name}.energy_pj",))
        for name in chip_names(stage)
    ]
    for model, *keys in (*ESTIMATES, *chips):
        mine, theirs = (
            next((value.mean for key in choice if (value := figure(stage, f"hardware.{key}"))), None)
            for choice in keys
        )
        # A network that needs nothing (0) has no ratio.
        if mine and theirs is not None:
            found.append(Estimate(model, mine, theirs))
    return found


def chip_names(stage: StageSummary | StageSpread) -> list[str]:
    """Chip models of one's own that priced a stage (a dot is of an address, else of a part in a model)."""
    before, after = "hardware.chips.", ".energy_pj"
    keys = stage.figures if isinstance(stage, StageSpread) else figures(stage)
    names = [key[len(before) : -len(after)] for key in keys if key.startswith(before) and key.endswith(after)]
    return [name for name in names if "." not in name or is_address(name)]


def twin_cells(stage: StageSummary | StageSpread) -> tuple[str, str]:
    """Beside an energy by operations: the ANN twin's at equal bits in µJ, and the estimates' least ratio."""
    found = estimates(stage)
    twin = next((microjoule(one.twin) for one in found if one.model == "operations"), "–")
    return twin, number(min(one.ratio for one in found)) if found else "–"


def least_favourable(summary: Summary) -> list[str]:
    """For each priced SNN the estimate that favours it least, in figures."""
    lines = []
    for stage in summary.stages:
        if found := estimates(stage):
            least = min(found, key=lambda one: one.ratio)
            lines.append(
                f"{stage.name}: least favourable is {least.model}: {energy(least.network)}, its ANN twin at "
                f"equal bits {energy(least.twin)}"
            )
    return lines


def conversions(summary: Summary) -> list[str]:
    """For each converted network, how many time steps it needs for the accuracy of each trained one."""
    lines = []
    for stage in summary.stages:
        if stage.convert is None:
            continue
        curve = {T: found.mean for T, found in by_time_steps(stage, "accuracy_at").items()}
        for other in summary.stages:
            if other.convert is not None or other.time_steps is None or not curve:
                continue
            reached = figure(other, "accuracy")
            assert reached is not None
            T = time_steps_to_match(curve, reached.mean)
            found = f"needs T = {T} for" if T else f"has not reached, at T = {max(curve)},"
            times = f", {T / other.time_steps:.3g} times as many" if T else ""
            lines.append(
                f"{stage.name} {found} the {percent(reached)} % of {other.name} (T = "
                f"{other.time_steps}{times})"
            )
    return lines


def by_time_steps(stage: StageSummary | StageSpread, name: str) -> dict[int, Spread]:
    """``accuracy_at`` or ``recalibrated_at`` of a stage: test accuracy by T, where evaluated at several."""
    names = stage.figures if isinstance(stage, StageSpread) else figures(stage)
    steps = sorted(int(key.split(".")[1]) for key in names if key.startswith(f"{name}."))
    return {T: found for T in steps if (found := figure(stage, f"{name}.{T}"))}


def figure(stage: StageSummary | StageSpread, name: str) -> Spread | None:
    """One figure of a stage with its spread; None when the stage does not have it."""
    if isinstance(stage, StageSpread):
        return stage.figures.get(name)
    found = figures(stage)
    return spread([found[name]]) if name in found else None


def percent(value: Spread | None) -> str:
    """A fraction as ``93.12 ± 0.20``."""
    if value is None:
        return "–"
    return f"{100 * value.mean:.2f}" + (f" ± {100 * value.std:.2f}" if value.std is not None else "")


def count(value: float) -> str:
    """A count with three significant digits and k, M, G or T: 1234567 -> ``1.23 M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What three digits round up to the next unit belongs there: 1.00 M, not 1000 k.
        if abs(value) >= 0.9995 * limit:
            return f"{_digits(value / limit)} {unit}"
    return _digits(value)


def number(value: float) -> str:
    """Three significant digits."""
    return _digits(value)


def microjoule(picojoule: float) -> str:
    """Energy in microjoule with three significant digits."""
    return _digits(picojoule / 1e6)


def bits_text(bits: Bits | None) -> str:
    """``4/4/8``: weights, stored membranes, norms; ``float`` when nothing is quantized."""
    return f"{bits.weight}/{bits.membrane}/{bits.norm}" if bits else "float"


def operations(stage: StageSummary | StageSpread) -> Spread | None:
    """Synaptic operations per image for an SNN, multiply-accumulates for an ANN."""
    return figure(stage, "synaptic_operations" if stage.kind == "snn" else "macs")


def _row(stage: StageSummary | StageSpread) -> Row:
    work = operations(stage)
    joules = figure(stage, "energy_pj")
    twin, least = twin_cells(stage)
    return Row(
        stage=stage.name,
        accuracy=percent(figure(stage, "accuracy")),
        time_steps="–" if stage.time_steps is None else str(stage.time_steps),
        firing_rate=percent(figure(stage, "firing_rate")) if stage.kind == "snn" else "–",
        operations="–"
        if work is None
        # Two spaces: the column is set right, so figures of both units end at one place.
        else f"{count(work.mean)} {'SynOps' if stage.kind == 'snn' else '  MACs'}",
        bits=bits_text(stage.bits),
        energy="–" if joules is None else microjoule(joules.mean),
        twin=twin,
        least=least,
    )


def _digits(value: float) -> str:
    """Three significant digits without an exponent where that is readable."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e5:
        return f"{value:.2e}"
    # 99.95 is the first that three digits round to 100, which `#` would write with a point.
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
