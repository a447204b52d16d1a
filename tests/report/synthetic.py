"""Made-up run folders whose every number is a known function of the seed."""

import json
from pathlib import Path
from typing import Any

from spikedistill.training import metrics, observations, summary
from spikedistill.training.summary import (
    Best,
    Bits,
    IntegerSummary,
    LayerSummary,
    MembraneSummary,
    RunSummary,
    StageSummary,
    StepTime,
)

LAYERS = ["features.0.neuron", "features.3.neuron", "features.6.neuron", "features.9.neuron", "head.neuron"]
CLASSES = [str(digit) for digit in range(10)]
RECIPE = (
    "title: Digits\ndata: {name: digits, batch_size: 128}\ntime_steps: 4\nseeds: 3\nstages:\n- name: "
    "teacher\n"
)


def confusion(wrong: int) -> list[list[int]]:
    """Ten classes, 30 images each, of which ``wrong`` images go to the next class."""
    return [
        [30 - wrong if j == i else wrong if j == (i + 1) % 10 else 0 for j in range(10)] for i in range(10)
    ]


def chip(scale: float) -> dict[str, Any]:
    """A price in the form that the run folder's page describes."""

    def report(event: float) -> dict[str, Any]:
        energy = {"crossbar": 4.1e5, "adc": 9.2e5, "buffer": 2.6e5, "h-tree": 1.1e5, "neuron": 1.9e5}
        layers = [
            {
                "name": name.removesuffix(".neuron"),
                "pes": 2 + index,
                "energy_pj": sum(energy.values()) * scale * event * share,
                "latency_ns": 2e4 * share,
                "components": {key: value * scale * event * share for key, value in energy.items()},
            }
            for index, (name, share) in enumerate(zip(LAYERS, (0.1, 0.3, 0.35, 0.2, 0.05)))
        ]
        return {
            "pes": 20,
            "tiles": 3,
            "energy_pj": sum(energy.values()) * scale * event,
            "latency_ns": 2e4,
            "area_um2": 2.4e6 * scale,
            "edap": 3.1 * scale * event,
            "tops": 0.12,
            "tops_per_w": 31.0 / scale / event,
            "tops_per_mm2": 0.05 / scale,
            "components": {key: value * scale * event for key, value in energy.items()},
            "area": {
                "crossbar": 2e5 * scale,
                "adc": 8e5 * scale,
                "buffer": 6e5 * scale,
                "neuron": 8e5 * scale,
            },
            "layers": layers,
            "unpriced": [{"name": "head.pool", "kind": "pool", "reason": "an uneven size"}],
            "notes": ["a note of the chip model"],
        }

    return {
        "spikesim": {"mode": "corrected", "dense": report(1.0), "event": report(0.3)},
        "operations": {"macs": 1.2e5, "acs": 3.4e5 * scale, "energy_pj": 8.6e5 * scale},
        "memory": {
            "total_pj": 5.2e6 * scale,
            "memory_pj": 5e6 * scale,
            "operations_pj": 2e5 * scale,
            "parameters_pj": 3e6 * scale,
            "potentials_pj": 2e6 * scale,
        },
        "ann_twin": {
            "activation_bits": 3,
            "spikesim": {"mode": "corrected", "dense": report(1.6)},
            "operations": {"macs": 1.4e6, "energy_pj": 6.4e6},
            "memory": {"total_pj": 7.5e6},
        },
        "break_even": {"spikesim": 0.21, "operations": 0.4, "memory": 1.0},
    }


def stage(name: str, seed: int, accuracy: float, kind: str = "snn", **more: Any) -> StageSummary:
    rates = [0.21, 0.16, 0.11 + 0.002 * seed, 0.06, 0.0004]
    spiking: dict[str, Any] = {
        "time_steps": 4,
        "accuracy_at": {t: accuracy - 0.08 * (4 - t) / 3 for t in (1, 2, 4)},
        "firing_rate": 0.12 + 0.001 * seed,
        "layers": [
            LayerSummary(path=path, firing_rate=rate, neurons=1000, warning="dead" if rate < 0.001 else None)
            for path, rate in zip(LAYERS, rates)
        ],
        "synaptic_operations": 3.4e5 + 1e3 * seed,
        "energy_pj": 8.6e5 + 1e3 * seed,
        "hardware": chip(0.4 if "quantized" in name else 1.0),
        "warnings": ["head.neuron is dead: 0.04 % firing"],
    }
    values = {"macs": 1.4e6, "energy_pj": 6.4e6} if kind == "ann" else spiking
    return StageSummary.model_validate(
        {
            "name": name,
            "kind": kind,
            "network": {"name": "vgg9", "width": 0.25, "pools": 2},
            "parameters": 123456,
            "epochs": 12,
            "seconds": 31.0,
            "accuracy": accuracy,
            "validation_accuracy": accuracy - 0.01,
            "best": Best(epoch=11, validation_accuracy=accuracy),
            "confusion": confusion(round(30 * (1 - accuracy))),
            "peak_memory_mb": 412.0,
            "images_per_second": 2100.0,
            "step_time": StepTime(data=0.002, teacher=0.004, forward=0.011, backward=0.021, optimizer=0.003),
            **values,
            **more,
        }
    )


def membranes(teacher: bool) -> list[MembraneSummary]:
    edges = [-2 + 0.25 * k for k in range(17)]
    bell = [round(1000 * 2.718 ** (-((edge - 0.2) ** 2))) for edge in edges[:-1]]
    wide = [round(900 * 2.718 ** (-((edge - 0.4) ** 2) / 1.5)) for edge in edges[:-1]]
    return [
        MembraneSummary(path=path, edges=edges, student=bell, teacher=wide if teacher else None)
        for path in LAYERS
    ]


def run(seed: int, title: str = "Digits", shift: float = 0.0) -> RunSummary:
    up = 0.004 * seed + shift
    return RunSummary(
        title=title,
        recipe="digits",
        seed=seed,
        environment={"python": "3.11.9", "torch": "2.14.1", "machine": "2 CPU cores", "commit": "0123abc"},
        data={
            "name": "digits",
            "hash": "sha256:aaaabbbb",
            "split_hash": "sha256:ccccdddd",
            "sizes": {"train": 900, "validation": 100, "test": 300},
            "num_classes": 10,
            "class_names": CLASSES,
        },
        citations=["Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015"],
        stages=[
            stage("teacher", seed, 0.97 + up / 4, "ann"),
            stage("alone", seed, 0.86 + up, init={"from": "teacher", "method": "copy"}),
            stage(
                "student",
                seed,
                0.90 + up,
                teacher="teacher",
                objectives=[{"type": "cross_entropy"}],
                membranes=membranes(False),
            ),
            stage(
                "quantized",
                seed,
                0.88 + up,
                from_="student",
                teacher="student",
                bits=Bits(weight=4, membrane=4, norm=8),
                membranes=membranes(True),
                integer=IntegerSummary(equal_predictions=True, images=300, bytes=51234),
            ),
        ],
    )


def folder(path: Path, summarized: RunSummary) -> Path:
    """A single-seed run folder."""
    summary.write(path, summarized)
    (path / "recipe.yaml").write_text(RECIPE)
    (path / "environment.json").write_text(json.dumps(summarized.environment))
    metrics.append(path, "start", time=0.0)
    for done in summarized.stages:
        for epoch in range(1, done.epochs + 1):
            share = 1 - 2.718 ** (-epoch / 4)
            reached = done.accuracy * share
            metrics.append(
                path,
                "epoch",
                stage=done.name,
                epoch=epoch,
                epochs=done.epochs,
                step=7 * epoch,
                train={
                    "loss": 2.3 * (1 - share),
                    "parts": loss_parts(done, 1 - share),
                    "accuracy": min(1.0, reached + 0.02),
                },
                validation={"loss": 2.4 * (1 - share) + 0.05, "accuracy": reached},
                lr=0.1 * (1 - epoch / done.epochs),
            )
    return path


def loss_parts(done: StageSummary, left: float) -> dict[str, float]:
    """The terms of a stage's loss; those of one with a teacher are two."""
    taught = {"logit_distillation": 9 * left**2} if done.teacher else {}
    return {"cross_entropy": 2.3 * left} | taught


def observed(path: Path) -> Path:
    """Observations beside every stage of a run of one seed."""
    for done in summary.read(path).stages:
        assert isinstance(done, StageSummary)
        place = path / "stages" / done.name
        place.mkdir(parents=True)
        (place / observations.FILE).write_text(observations.contents(seen(done)))
    return path


def seen(done: StageSummary) -> observations.Observations:
    """What might be seen of a stage: every number a known function of its accuracy."""
    right = done.accuracy
    bins = [
        observations.Bin(images=10 * k, confidence=(k + 0.5) / 10, accuracy=right * (k + 0.5) / 10)
        for k in range(10)
    ]
    predictions = observations.Predictions(images=450, accuracy=right, calibration=bins, error=1 - right)
    found = observations.Observations(student=predictions)
    found.layers = [observations.Activity(path=one.path, share=one.firing_rate) for one in done.layers]
    if done.layers:
        found.drawn = [drawn(n) for n in range(3)]
    if done.teacher:
        found.teacher = predictions
        shares = {"both": right - 0.02, "only_student": 0.02, "only_teacher": 0.03, "neither": 0.95 - right}
        found.agreement = observations.Agreement(equal=right, divergence=0.125, **shares)
        found.teacher_layers = [observations.Activity(path=f"stage{k}", share=k / 10) for k in (3, 5, 7)]
        found.likeness = [[0.2 * (k == row % 3) + 0.7 for k in range(3)] for row in range(len(done.layers))]
    return found


def drawn(image: int) -> observations.Drawn:
    """Three neurons of each layer over four steps."""
    layers = [
        observations.Trace(
            path=path,
            neurons=[0, 500, 999],
            spikes=["0101", "0000", "1111"],
            membranes=[[0.5, 1.25, 0.75, 1.5], [0.1, 0.2, -0.3, 0.4], [1.0, 2.0, 1.5, 1.125]],
        )
        for path in LAYERS
    ]
    return observations.Drawn(image=image, target=image, prediction=image or 7, layers=layers)


def study(path: Path, seeds: int = 3, title: str = "Digits", shift: float = 0.0) -> Path:
    """A run folder over seeds."""
    runs = [run(seed, title, shift) for seed in range(seeds)]
    for one in runs:
        folder(path / f"seed-{one.seed}", one)
    summary.write(path, summary.merge(runs))
    (path / "recipe.yaml").write_text(RECIPE)
    return path
