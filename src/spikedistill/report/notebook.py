"""What a notebook shows of runs, losses, networks, evaluations and prices: tables and small plots as HTML.

The colours are the notebook's own (``currentColor``; marks are of middle brightness), so it reads in light
and dark. Styles stand on the elements: nothing is loaded from anywhere, and nothing of the page around is
touched. Whatever is shown is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .. import terminal
from ..hardware.show import beside_table, figures_table, layers_table
from ..neurons import NormNeuron, layers, neuron_of
from ..training.summary import MultiSummary, Spread, StageSpread, StageSummary, spread
from . import plots, table

if TYPE_CHECKING:
    from ..distiller import Losses
    from ..training.evaluate import Evaluation
    from ..training.run import Run

SHOWN = 24  # rows; more are folded away
# Between 3:1 and 6:1 in contrast on white as on black; texts have the notebook's own colour.
_SERIES = ("#3b82c4", "#cf6a24", "#1f9a73", "#b85f9c", "#a07d14", "#5f95c8", "#8477cc", "#7d8794")
_MARKS = ";".join(
    [
        "--muted:currentColor",
        "--grid:#80808066",
        *(f"--s{i}:{c}" for i, c in enumerate(_SERIES)),
    ]
)
_BOX = f"color:inherit;font-size:13px;line-height:1.4;max-width:60rem;{_MARKS}"
_CELL = "padding:.25em .7em;border:0;border-bottom:1px solid #80808066;background:none;color:inherit"


def run(found: "Run") -> str:
    """Results of a run: a row a stage, its warnings, and a plot of accuracies."""
    summary = found.summary
    stages: Sequence[StageSummary | StageSpread] = summary.stages
    rows = [
        (stage.name, i, _percent(value))
        for i, stage in enumerate(stages)
        if (value := table.figure(stage, "accuracy")) is not None
    ]
    text = "Test accuracy in % of each stage" + (
        ", a dot a seed" if isinstance(summary, MultiSummary) else ""
    )
    plot = _plot(plots.dots(rows, "test accuracy [%]", text)) if rows else ""
    below = "".join(f"<p style='margin:.2em 0'>{escape(line)}</p>" for line in table.lines_below(summary))
    where = f"<p style='margin:.2em 0'><code>{escape(str(found.folder))}</code></p>"
    return _box(_table(table.shown(summary)), plot, below, where)


def losses(found: "Losses") -> str:
    """The weighted sum, its parts before weighting, and the form of the logits."""
    rows = [[name, _scalar(value)] for name, value in found.parts.items()]
    shown = terminal.Table(["part", "loss"], [*rows, ["total, weighted", _scalar(found.total)]], "Losses")
    return _box(_table(shown), f"<p style='margin:.2em 0'>logits {_shape(found.logits)}</p>")


def network(found: nn.Module) -> str:
    """Layers with their weights, parameters and neurons; weight bits where it is quantized."""
    quantized = getattr(found, "quantization", None)
    rows = []
    for path, module in found.named_modules():
        neuron = neuron_of(module)
        # A norm and its neuron are one row, so the norm's counts what its neuron learns.
        own = sum(p.numel() for p in module.parameters(recurse=isinstance(module, NormNeuron)))
        inside = path.endswith(".neuron") and isinstance(
            found.get_submodule(path.rpartition(".")[0]), NormNeuron
        )
        if inside or not (own or neuron is not None):
            continue
        weight = getattr(module, "weight", None)
        form = " x ".join(map(str, weight.shape)) if isinstance(weight, Tensor) else ""
        cells = [
            path or "(itself)",
            type(module).__name__,
            form,
            f"{own:,}" if own else "",
            str(neuron or ""),
        ]
        rows.append([*cells, *([_bits(quantized, path)] if quantized is not None else [])])
    total = sum(p.numel() for p in found.parameters())
    steps = getattr(found, "time_steps", None)
    kind = f"SNN, T = {steps}" if steps else "ANN"
    name = str(getattr(found, "config", {}).get("name") or type(found).__name__)
    title = f"{name}: {kind}, {terminal.amount(total, 'parameter')}, "
    title += terminal.amount(len(layers(found)), "layer of neurons", "layers of neurons")
    headings = [
        "layer",
        "kind",
        "weight",
        "parameters",
        "neuron",
        *(["weight bits"] if quantized is not None else []),
    ]
    return _box(_table(terminal.Table(headings, rows, title, left=(0, 1, 2, 4))))


def evaluation(found: "Evaluation") -> str:
    """Accuracy, and the firing rate of each layer as a table and a plot."""
    title = f"{100 * found.accuracy:.2f} % of {terminal.amount(found.images, 'image')}"
    rates = found.layers()
    if not rates:
        return _box(
            _table(terminal.Table(["test", "accuracy [%]"], [["all", f"{100 * found.accuracy:.2f}"]], title))
        )
    rows = [
        [one.path, f"{100 * one.firing_rate:.2f}", f"{one.neurons:,}", one.warning or ""] for one in rates
    ]
    shown = terminal.Table(["layer", "firing rate [%]", "neurons", "warning"], rows, title, left=(0, 3))
    return _box(_table(shown), _plot(plots.firing([(0, [rates])], "Firing rate of each layer in %")))


def price(tree: Mapping[str, Any]) -> str:
    """A network's price: the other estimates and the ANN twin beside SpikeSim's figures, then its layers."""
    reports = {name: report for name, report in tree["spikesim"].items() if isinstance(report, Mapping)}
    shown = [
        beside_table(tree),
        figures_table(reports),
        layers_table(reports.get("event") or reports["dense"]),
    ]
    said = dict.fromkeys(note for report in reports.values() for note in report.get("notes", ()))
    notes = "".join(f"<p style='margin:.2em 0'>{escape(str(note))}</p>" for note in said)
    warning = "<p style='margin:.2em 0'>Estimates of models, none measured on a chip.</p>"
    return _box(*map(_table, shown), warning, _folded("notes", notes) if notes else "")


def _table(shown: terminal.Table) -> str:
    """A table of the terminal as HTML, its last rows folded away where there are many."""

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ("left" if i in shown.left else "right" for i in range(len(cells)))
        return "".join(
            f"<{tag} style='{_CELL};text-align:{side}'>{escape(text)}</{tag}>"
            for text, side in zip(cells, sides)
        )

    def whole(rows: Sequence[Sequence[str]]) -> str:
        body = "".join(f"<tr style='background:none'>{row(cells, 'td')}</tr>" for cells in rows)
        head = f"<thead><tr>{row(shown.headings, 'th')}</tr></thead>"
        return (
            f"<div style='overflow-x:auto'><table style='{_GRID}'>{head}<tbody>{body}</tbody></table></div>"
        )

    cells = shown.cells
    # For a few rows more a fold is not worth its line.
    cut = SHOWN if len(cells) > SHOWN + 4 else len(cells)
    rest = _folded(f"{len(cells) - cut} more rows", whole(cells[cut:])) if cut < len(cells) else ""
    title = f"<p style='margin:.6em 0 .2em;font-weight:600'>{escape(shown.title)}</p>" if shown.title else ""
    caption = f"<p style='margin:.3em 0'>{escape(shown.caption)}</p>" if shown.caption else ""
    return title + whole(cells[:cut]) + rest + caption


_GRID = (
    "border-collapse:collapse;border:0;margin:.2em "
    "0;font-variant-numeric:tabular-nums;color:inherit;background:none"
)


def _box(*parts: str) -> str:
    return f"<div class='spikedistill' style='{_BOX}'>{''.join(parts)}</div>"


def _folded(title: str, inside: str) -> str:
    return f"<details><summary style='cursor:pointer'>{escape(title)}</summary>{inside}</details>"


def _plot(svg: str) -> str:
    return f"<div style='max-width:30rem'>{svg}</div>"


def _percent(value: Spread) -> Spread:
    return spread([100 * v for v in value.values])


def _scalar(value: Tensor) -> str:
    return f"{float(value.detach()):.4g}"


def _shape(value: Tensor) -> str:
    return escape(str(tuple(value.shape)))


def _bits(quantized: Any, path: str) -> str:
    found = quantized.bits(path, "weight_bits")
    return "" if found is None else str(found)


__all__ = ["evaluation", "losses", "network", "price", "run"]
