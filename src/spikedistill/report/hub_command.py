"""What ``spikedistill push`` does: a finished stage to the hub, its card filled from the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .. import __version__, hub
from ..errors import SpikedistillError
from ..terminal import amount
from ..training import summary
from ..training.card import HERE, form, one_line, usage
from ..training.checkpoint import read_json
from ..training.reevaluate import split_run
from ..training.store import find_stage, split_best
from ..training.summary import StageSummary, Summary
from . import table


def push(run: str, target: str, private: bool = False) -> str:
    """Upload a stage's network (default: the last stage, of the first seed); returns a line that says so.

    ``target``: ``owner/name``, ``file://FOLDER`` or a folder. Raises: SpikedistillError.
    """
    folder, stage = split_run(run)
    stage, best = split_best(stage)
    if best:
        raise SpikedistillError(
            f"{run}: the best epoch's weights go along with the stage; push it whole and load it with "
            "best=True"
        )
    if not folder.exists():
        raise SpikedistillError(f"no run at {folder}; give the folder that `spikedistill train` wrote")
    place = find_stage(folder, stage)
    contents = hub.contents_of(place)
    found = hub.place(target)
    name = found.name.rpartition("/")[2] if isinstance(found, hub.Repository) else found.name
    if place.parent.name == "stages":  # else a network that was pulled: it has its card
        # No path of this machine: the folder may be copied, and the path may tell who its author is.
        text = f"hf://{found.name}" if isinstance(found, hub.Repository) else HERE
        contents["README.md"] = card(name, text, place).encode()
    stands = hub.upload(contents, target, private)
    pushed = read_json(place / "config.json").get("stage") or place.name
    return f"{stands}: stage {pushed}, {sum(map(len, contents.values())):,} bytes"


def card(name: str, address: str, place: Path) -> str:
    """A stage's model card: what it is, what was measured, beside what, on which data, by whose methods."""
    row = summary.read_stage(place)
    whole = _summary(place)
    data: dict[str, Any] = whole.data if whole is not None else {}
    kind = "ANN" if row.kind == "ann" else f"Spiking network, T = {row.time_steps}"
    bits = f", {table.bits_text(row.bits)} bits of weights, membranes and norms" if row.bits else ""
    config = read_json(place / "config.json")
    needed = (config.get("code") or {}).get("needed")
    about = {"class_names": config.get("class_names"), **data}
    parts = [
        f"# {one_line(name)}",
        f"{kind}{bits}; {amount(row.parameters, 'parameter')}; `{one_line(str(row.network.get('name')))}`. "
        f"{100 * row.accuracy:.2f} % of the test images of {one_line(str(data.get('name', 'its data')))}.",
        form(about),
        usage(address, about, own=bool(needed)),
        *([f"The network is code of its author's, and needs it: {one_line(needed)}"] if needed else []),
        "No code is in this repository, and none is run to load it.",
    ]
    if whole is not None:
        lines = [*table.least_favourable(whole), *table.all_warnings(whole)]
        parts += [
            "## Results of its run",
            _markdown(table.HEADINGS, [one.cells() for one in table.rows(whole)]),
        ]
        parts += [
            one_line(table.caption(whole)),
            "Hardware figures are estimates of models, none measured on a chip.",
        ]
        parts += ["\n".join(f"- {one_line(line)}" for line in lines)] if lines else []
    parts += ["## Training", "\n".join(f"- {one_line(line)}" for line in _training(row, data))]
    if whole is not None and whole.citations:
        parts += ["## Papers", "\n".join(f"- {one_line(one)}" for one in whole.citations)]
    return f"---\n{_metadata(name, row, data)}---\n" + "\n\n".join(parts) + "\n"


def _metadata(name: str, row: StageSummary, data: dict[str, Any]) -> str:
    """The card's head, which the hub reads."""
    tags = ["spiking-neural-network", "knowledge-distillation", *(["quantized"] if row.bits else [])]
    trained = str(data.get("name", "unknown"))
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": trained, "type": trained},
        "metrics": [{"type": "accuracy", "value": round(row.accuracy, 6), "name": "test accuracy"}],
    }
    head = {
        "library_name": "spikedistill",
        "tags": tags,
        "model-index": [{"name": name, "results": [result]}],
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _training(row: StageSummary, data: dict[str, Any]) -> list[str]:
    lines = [f"{amount(row.epochs, 'epoch')} in {row.seconds:.0f} s, with spikedistill {__version__}"]
    lines += [f"teacher: {row.teacher}"] if row.teacher else []
    lines += [f"from: {row.from_}"] if row.from_ else []
    objectives = [str(one.get("type")) for one in row.objectives]
    lines += [f"objectives: {', '.join(objectives)}"] if objectives else []
    lines += [f"data: {data['name']}, sha256 {data['hash']}"] if {"name", "hash"} <= data.keys() else []
    if row.accuracy_at:
        lines.append(
            "accuracy by T: " + ", ".join(f"{T}: {100 * a:.2f} %" for T, a in row.accuracy_at.items())
        )
    return lines


def _summary(place: Path) -> Summary | None:
    """Of all seeds where there are several, else of the run; None of a run that has none."""
    run = place.resolve().parents[1]
    seeds = run.parent if run.name.startswith("seed-") and (run.parent / "recipe.yaml").exists() else run
    found = next((folder for folder in (seeds, run) if (folder / summary.FILE).exists()), None)
    return None if found is None else summary.read(found)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


__all__ = ["card", "push"]
