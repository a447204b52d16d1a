"""What the README of a network says: what it is, what it takes and gives, and how it is used."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..data import Data
from ..recipe import Stage
from ..terminal import amount
from .summary import StageSummary

HERE = "this folder"  # stands for a path, which is another wherever the folder is copied to
LISTED = 20  # names of classes; of more there is their number


def card(title: str, stage: Stage, row: StageSummary, data: Data) -> str:
    """The README of a stage's folder; ``title``: of the recipe."""
    kind = "ANN" if row.kind == "ann" else f"SNN, T = {row.time_steps}"
    bits = (
        f", {row.bits.weight}-bit weights, {row.bits.membrane}-bit membranes, {row.bits.norm}-bit norms"
        if row.bits
        else ""
    )
    about = asdict(data.info)
    return (
        "---\nlibrary_name: spikedistill\ntags: [spiking-neural-network, knowledge-distillation]\n---\n"
        f"# {one_line(title)}: {stage.name}\n\n"
        f"{kind}{bits}, {amount(row.parameters, 'parameter')}, trained on {one_line(data.info.name)} for "
        f"{amount(row.epochs, 'epoch')}; {100 * row.accuracy:.2f} % on its test set.\n\n"
        f"{form(about)}\n\n{usage(HERE, about)}\n"
    )


def form(data: Mapping[str, Any]) -> str:
    """What goes in and what comes out, in a sentence; ``data``: of its training (:class:`DataInfo`)."""
    shape, names = shape_of(data), names_of(data)
    classes = len(names) or data.get("num_classes")
    what = "Frames" if data.get("input") == "frames" else "Images in [0, 1]"
    given = f" of {amount(classes, 'class', 'classes')}" if classes else ""
    said = f"{what}, {shape}, in; logits{given} out"
    listed = f": {', '.join(map(one_line, names))}" if 0 < len(names) <= LISTED else ""
    return f"{said}{listed}."


def usage(address: str, data: Mapping[str, Any], own: bool = False) -> str:
    """Code from loading to the classes predicted; ``own``: the network needs its author's code."""
    names = names_of(data)
    listed = 0 < len(names) <= LISTED
    takes = "frames" if data.get("input") == "frames" else "images in [0, 1]"
    lines = [
        "import torch",
        "import spikedistill as sd",
        "",
        f"network = sd.load({address!r}{', network=your_module' if own else ''})"
        + ("   # the folder where this file lies" if address == HERE else ""),
        *([f"classes = {json.dumps(names, ensure_ascii=False)}"] if listed else []),
        "with torch.inference_mode():",
        f"    logits = network.predict(images)   # {takes}, {shape_of(data)}",
        "print([classes[k] for k in logits.argmax(1)])" if listed else "print(logits.argmax(1))",
    ]
    if len(names) > LISTED:
        lines[-1] += "   # numbers of classes; config.json has their names"
    return "\n".join(["```python", *lines, "```"])


def shape_of(data: Mapping[str, Any]) -> str:
    """Of a batch, with numbers where they are known."""
    size = data.get("size") or ("H", "W")
    frames = [data.get("frames") or "T"] if data.get("input") == "frames" else []
    return "(" + ", ".join(str(n) for n in ("N", *frames, data.get("in_channels") or "C", *size)) + ")"


def names_of(data: Mapping[str, Any]) -> list[str]:
    """Names of the classes; none where they are but numbers."""
    names = [str(name) for name in data.get("class_names") or ()]
    return [] if names == [str(k) for k in range(len(names))] else names


def one_line(text: str) -> str:
    """One line that is no markup."""
    # Titles and names of classes come with recipes and data of anybody, and end on a page of the hub.
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")


__all__: Sequence[str] = ["HERE", "card", "form", "one_line", "usage"]
