"""The page's section on hardware: every estimate beside the others, never one number alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import plots
from .canvas import COLOURS, Colour, part
from .parts import Figure, Group, Section, Study, Table, colours
from .table import figure, number, percent

Tree = Mapping[str, Any]
Rows = Sequence[tuple[str, Mapping[str, float]]]
THIN = 0.005  # of the longest bar: a layer's below it cannot be seen


@dataclass(frozen=True)
class Price:
    """One network's price, means over seeds: SpikeSim dense and event, operations, memory-inclusive."""

    name: str
    colour: Colour
    dense: Tree | None
    event: Tree | None
    operations: Tree | None
    memory: Tree | None
    detail: str = ""
    chips: Tree = field(default_factory=dict)

    def reports(self) -> list[tuple[str, Tree]]:
        """The SpikeSim reports there are, named."""
        both = (("dense", self.dense), ("event", self.event))
        return [(f"{self.name}, {mode}", report) for mode, report in both if report]


def section(study: Study) -> Section | None:
    """Energy, latency and area of every priced stage and of its ANN twin; None when no stage was priced."""
    priced = {
        stage.name: tree for stage in study.summary.stages if (tree := _mean_hardware(study, stage.name))
    }
    if not priced:
        return None
    prices = [price for name, tree in priced.items() for price in _prices(name, study.colour(name), tree)]
    order = _order(prices)
    return Section(
        "hardware",
        "Hardware",
        "Estimates per image, none of them measured on a chip, each with its own assumptions: read them "
        "side by side. Dense charges every array position; event charges only what spikes touch, counted "
        "on real images.",
        tables=[_together(prices), *_break_even(priced, study)],
        groups=[
            group
            for group in (_pareto(study), _components(prices, order), *_layers(priced, order))
            if group.figures
        ],
        notes=_notes(priced),
    )


def frontier(points: Sequence[tuple[str, Colour, float, float]], what: str) -> Figure:
    """Accuracy against energy of (name, colour, energy in pJ, accuracy as a fraction)."""
    drawn = [(name, colour, energy / 1e6, 100 * accuracy) for name, colour, energy, accuracy in points]
    text = (
        f"Test accuracy in % against energy per image in µJ ({what}), means. Up and left is better; the "
        "dashed line joins what nothing beats."
    )
    svg = plots.pareto(drawn, "energy per image [µJ], logarithmic", text)
    rows = [("network", "energy [µJ]", "accuracy [%]"), *((name, x, y) for name, _, x, y in drawn)]
    return Figure(svg, text, (), rows, f"accuracy-energy-{what.replace(', ', '-').replace(' ', '-')}")


def energy_points(study: Study, path: str = "energy_pj") -> list[tuple[str, Colour, float, float]]:
    """(name, colour, energy in pJ, accuracy) of the stages that have the figure ``path``."""
    return [
        (stage.name, study.colour(stage.name), energy.mean, accuracy.mean)
        for stage in study.summary.stages
        if (energy := figure(stage, path)) and energy.mean > 0 and (accuracy := figure(stage, "accuracy"))
    ]


def mean_tree(trees: Sequence[Any]) -> Any:
    """Numbers averaged over equal trees of mappings and lists; anything else as in the first."""
    first = trees[0]
    if isinstance(first, dict):
        return {
            key: mean_tree([tree[key] for tree in trees if isinstance(tree, dict) and key in tree])
            for key in first
        }
    if isinstance(first, list) and all(isinstance(tree, list) and len(tree) == len(first) for tree in trees):
        return [mean_tree(parts) for parts in zip(*trees)]
    # In python a bool is an int; the mean of a setting would be no setting.
    if isinstance(first, int | float) and not isinstance(first, bool):
        numbers = [tree for tree in trees if isinstance(tree, int | float)]
        return sum(numbers) / len(numbers)
    return first


def _mean_hardware(study: Study, name: str) -> Tree | None:
    trees = [stage.hardware for stage in study.stages(name) if stage.hardware]
    return mean_tree(trees) if trees else None


def _prices(name: str, colour: Colour, tree: Tree) -> list[Price]:
    twin = tree.get("ann_twin")
    bits = twin.get("activation_bits") if twin else None
    bits = f" ({bits:g} bit)" if bits else ""
    return [_price(name, colour, tree)] + ([_price(f"{name}, ANN twin", colour, twin, bits)] if twin else [])


def _price(name: str, colour: Colour, tree: Tree, detail: str = "") -> Price:
    chip = tree.get("spikesim") or {}
    beside = (tree.get("operations"), tree.get("memory"), detail, tree.get("chips") or {})
    return Price(name, colour, chip.get("dense"), chip.get("event"), *beside)


def _together(prices: Sequence[Price]) -> Table:
    chips = list(dict.fromkeys(name for price in prices for name in price.chips))
    headings = (
        "Network",
        "SpikeSim dense [µJ]",
        "SpikeSim event [µJ]",
        "MAC/AC [µJ]",
        "With memory [µJ]",
        *(f"{name} [µJ]" for name in chips),
        "Latency [µs]",
        "Area [mm²]",
        "EDAP [µJ·ms·mm²]",
        "TOPS/W",
        "TOPS/mm²",
    )
    rows = [
        (
            price.name + price.detail,
            _of(price.dense, "energy_pj", 1e-6),
            _of(price.event, "energy_pj", 1e-6),
            _of(price.operations, "energy_pj", 1e-6),
            _of(price.memory, "total_pj", 1e-6),
            *(_of(price.chips.get(name), "energy_pj", 1e-6) for name in chips),
            _of(price.dense or price.event, "latency_ns", 1e-3),
            _of(price.dense or price.event, "area_um2", 1e-6),
            _of(price.dense or price.event, "edap"),
            _of(price.dense or price.event, "tops_per_w"),
            _of(price.dense or price.event, "tops_per_mm2"),
        )
        for price in prices
    ]
    caption = (
        "Energy per image four ways: SpikeSim (crossbar arrays) dense and event, multiplications and "
        "additions alone (MAC/AC, 45 nm), and with memory accesses. Latency, area, EDAP (energy · delay · "
        "area) and TOPS (dense operations) are SpikeSim's dense figures. ANN twin: the same network with "
        "ReLU, its activations of so many bits fed bit by bit."
    )
    return Table(headings, rows, caption, [price.colour for price in prices], title="All estimates together")


def _of(tree: Tree | None, key: str, scale: float = 1.0) -> str:
    value = (tree or {}).get(key)
    return number(value * scale) if isinstance(value, int | float) else "–"


def _pareto(study: Study) -> Group:
    for mode in ("event", "dense"):
        # One kind for all points: dense and event figures in one plot would not compare.
        points = energy_points(study, f"hardware.spikesim.{mode}.energy_pj")
        if len(points) > 1:
            return Group([frontier(points, f"SpikeSim, {mode}")], "Accuracy and energy")
    return Group([])


def _components(prices: Sequence[Price], order: Sequence[str]) -> Group:
    energy = [
        (name, _scaled(report.get("components"), 1e-6))
        for price in prices
        for name, report in price.reports()
    ]
    area = [
        (p.name, _scaled((p.dense or p.event or {}).get("area"), 1e-6)) for p in prices if p.dense or p.event
    ]
    memory = [(price.name, _terms(price.memory)) for price in prices if _terms(price.memory)]
    drawn = [
        _bars(rows, unit, caption, names, name)
        for rows, unit, caption, names, name in (
            (
                energy,
                "energy per image [µJ]",
                "SpikeSim energy per image by component, in µJ; the total stands behind the bar.",
                order,
                "components",
            ),
            (area, "area [mm²]", "Chip area by component, in mm².", order, "area"),
            (
                memory,
                "energy per image [µJ]",
                "Memory-inclusive energy per image by term, in µJ.",
                _by_size(memory),
                "memory",
            ),
        )
        if any(parts for _, parts in rows)
    ]
    return Group(drawn, "By component")


def _order(prices: Sequence[Price]) -> list[str]:
    """All components of energy and area, the largest first: each has one colour in every chart."""
    energy = [(name, report.get("components") or {}) for price in prices for name, report in price.reports()]
    area = [(price.name, (price.dense or price.event or {}).get("area") or {}) for price in prices]
    return list(dict.fromkeys([*_by_size(energy), *_by_size(area)]))


def _terms(memory: Tree | None) -> dict[str, float]:
    """The memory-inclusive estimate's terms in µJ: every ``<term>_pj`` that is no sum of others."""
    terms = {key.removesuffix("_pj"): value for key, value in (memory or {}).items() if key.endswith("_pj")}
    return _scaled({name: value for name, value in terms.items() if name not in ("total", "memory")}, 1e-6)


def _break_even(priced: Mapping[str, Tree], study: Study) -> list[Table]:
    rows = []
    for stage in study.summary.stages:
        limits = priced.get(stage.name, {}).get("break_even")
        if limits:
            rates = [
                f"{100 * limits[key]:.1f}" if key in limits else "–"
                for key in ("spikesim", "operations", "memory")
            ]
            rows.append((stage.name, percent(figure(stage, "firing_rate")), *rates))
    headings = ("Network", "Firing rate [%]", "SpikeSim event [%]", "Operations [%]", "With memory [%]")
    caption = (
        "The SNN needs less energy than its ANN twin while its mean firing rate is below this one. 0: "
        "never, 100: always."
    )
    table = Table(headings, rows, caption, [study.colour(row[0]) for row in rows], title="Where the SNN wins")
    return [table] if rows else []


def _layers(priced: Mapping[str, Tree], order: Sequence[str]) -> list[Group]:
    figures = []
    for name, tree in priced.items():
        for mode in ("event", "dense"):
            report = (tree.get("spikesim") or {}).get(mode) or {}
            rows = [
                (str(layer["name"]), _scaled(layer.get("components") or {"energy": layer["energy_pj"]}, 1e-6))
                for layer in report.get("layers") or []
            ]
            if rows:
                caption = f"{name}: SpikeSim energy by layer ({mode}), in µJ per image."
                # The order of all charts: it gives a component the same colour on the whole page.
                names = order or _by_size(rows)
                figures.append(_bars(rows, "energy per image [µJ]", caption, names, f"energy-{name}", THIN))
                break
    return [Group(figures, "Energy by layer", folded=True)]


def _by_size(rows: Rows) -> list[str]:
    """Names of the parts, the largest sum first."""
    names = dict.fromkeys(name for _, parts in rows for name in parts)
    return sorted(names, key=lambda name: -sum(parts.get(name, 0.0) for _, parts in rows))


def _bars(rows: Rows, unit: str, caption: str, order: Sequence[str], name: str, least: float = 0.0) -> Figure:
    """Stacked bars; parts beyond the palette are one part, ``other``.

    Rows of nothing, or of less than ``least`` of the longest, would be empty bars: they are named instead.
    """
    # The last colour is for `other`.
    kept = order if len(order) <= COLOURS else order[: COLOURS - 1]
    sums = {row: sum(parts.values()) for row, parts in rows}
    empty = [row for row, total in sums.items() if total <= least * max(sums.values())]
    if empty:
        shown = ", ".join(empty) if len(empty) <= 6 else f"{', '.join(empty[:5])} and {len(empty) - 5} more"
        caption += (
            f" Under {100 * least:g} % of the longest, not drawn: {shown}." if least else f" None: {shown}."
        )
    folded = [
        (
            row,
            {one: parts[one] for one in kept if parts.get(one)}
            | ({"other": rest} if (rest := _rest(parts, kept)) else {}),
        )
        for row, parts in rows
        if row not in empty
    ]
    names = colours([*kept, "other"])
    found = [one for one in names if any(one in parts for _, parts in folded)]
    svg = plots.stacked(folded, names, unit, caption)
    table: list[Sequence[Any]] = [("name", *order, "total")]
    table += [(row, *(parts.get(one, 0.0) for one in order), sum(parts.values())) for row, parts in rows]
    legend = [(one.replace("_", " "), part(names[one]), "box") for one in found]
    return Figure(svg, caption, legend, table, name)


def _rest(parts: Mapping[str, float], kept: Sequence[str]) -> float:
    return sum(value for name, value in parts.items() if name not in kept)


def _scaled(parts: Any, scale: float) -> dict[str, float]:
    return {name: value * scale for name, value in (parts or {}).items()}


def _notes(priced: Mapping[str, Tree]) -> list[str]:
    """What the models say beside their figures, each once with the stages it is said of."""
    said: dict[str, list[str]] = {}
    for name, tree in priced.items():
        reports = [
            report for mode in ("dense", "event") if (report := (tree.get("spikesim") or {}).get(mode))
        ]
        unpriced = {
            item["name"]: item["reason"] for report in reports for item in report.get("unpriced") or []
        }
        notes = [f"not priced: {layer}: {reason}" for layer, reason in unpriced.items()]
        notes += [
            note for report in [*reports, tree.get("memory") or {}] for note in report.get("notes") or []
        ]
        if (bars := tree.get("crossbar")) is not None:
            notes.append(
                f"with ADCs of {bars['adc_bits']:.0f} bits ({bars['lossless_adc_bits']:.0f} would lose "
                f"nothing) its test accuracy is {100 * bars['accuracy']:.2f} %: the price above is that "
                "network's"
            )
        for note in dict.fromkeys(notes):
            said.setdefault(note, []).append(name)
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]
