"""Write examples/digits.ipynb with outputs: `python examples/make_notebook.py`, half a minute on one core.

No Jupyter is needed: the cells run here, one after the other, and what a notebook would show is kept.
"""

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("digits.ipynb")
CELLS = [
    ("markdown", """\
# From digits to a priced spiking network

A teacher with ReLUs, a spiking student that learns from it, the student at 4 bits, and what it would cost on
a chip. Everything runs on one CPU core; the 8x8 digits come with the package."""),
    ("code", """\
import torch

import spikedistill as sd

vgg = {"name": "vgg5", "pools": 1}
distil = [{"type": "cross_entropy"}, {"type": "logit_distillation", "temperature": 2.0}]
four_bits = {"weight_bits": 4, "membrane_bits": 4, "norm_bits": 8}
recipe = {
    "title": "Digits in a notebook",
    "data": {"name": "digits", "batch_size": 64},
    "time_steps": 4,
    "precision": "float32",
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "schedule": "one_cycle"},
    "stages": [
        {"name": "teacher", "network": {**vgg, "ann": True, "width": 0.5}, "epochs": 6},
        {
            "name": "student",
            "network": {**vgg, "width": 0.25},
            "teacher": "teacher",
            "epochs": 6,
            "objectives": distil,
        },
        {"name": "quantized", "from": "student", "teacher": "student", "epochs": 2, "objectives": distil},
    ],
}
recipe["stages"][-1]["quantize"] = four_bits
run = sd.train(recipe, out="runs/notebook", quiet=True)
run"""),
    ("markdown", "A run knows its networks. Each layer of neurons is a norm and its neuron."),
    ("code", """\
student = run.network("student")
student"""),
    ("markdown", "How often do its neurons fire? Spikes are what costs energy."),
    ("code", """\
from spikedistill.training.evaluate import evaluate

data = sd.data.open(sd.data.DataConfig(name="digits"))
evaluate(student, data.batches("test", 128), data.info.num_classes)"""),
    ("markdown", "One step of distillation by hand: the parts of the loss, before weighting."),
    ("code", """\
images, labels = next(iter(data.batches("train", 64)))
distiller = sd.Distiller(student, run.network("teacher"), distil).setup(images)
distiller(images, labels)"""),
    ("markdown", "The integer network gives the prediction of the quantized one, image by image."),
    ("code", """\
quantized = run.network("quantized")
integer = sd.to_integer(quantized)
images, labels = next(iter(data.batches("test", 128)))
with torch.no_grad():
    same = integer.predict(images).argmax(1) == quantized.predict(images).argmax(1)
f"{int(same.sum())} of {len(same)} predictions are equal\""""),
    ("markdown", "Its price: several models side by side, beside the ANN twin at equal bits, "
"and never one number alone."),
    ("code", """\
price = sd.hardware.price(sd.hardware.layers(quantized, images))
price"""),
]  # fmt: skip


def made() -> dict[str, Any]:
    """The notebook, its cells run in a folder of their own."""
    names: dict[str, Any] = {}
    cells, count, before = [], 0, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for index, (kind, source) in enumerate(CELLS):
                cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{index}", "metadata": {}}
                cell["source"] = source.splitlines(keepends=True)
                if kind == "code":
                    count += 1
                    cell |= {"execution_count": count, "outputs": outputs(source, names, count)}
                cells.append(cell)
        finally:
            os.chdir(before)
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def outputs(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run a cell; what it prints, and what its last line is."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        found.append(
            {"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)}
        )
    if value is not None:
        data = {"text/plain": text(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(keepends=True)
        found.append(
            {"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}
        )
    return found


def text(value: Any) -> str:
    """What is shown where there is no HTML; a price is long."""
    whole = repr(value)
    return whole if len(whole) < 4000 else f"{whole[:200]} ..."


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(made(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size:,} bytes")
