"""Each shipped recipe is built and trained two steps on generated arrays of its shape: none is dead YAML."""

import re

import numpy as np
import pytest

import spikedistill as sd
from spikedistill import data as datasets
from spikedistill.bibliography import citations, entries
from spikedistill.recipe import load, shipped
from spikedistill.training import metrics

# Part of a name: (image shape (H, W, C) or frame shape (C, H, W), classes).
SHAPES = {
    "cifar10dvs": ((2, 128, 128), 10),
    "ncaltech101": ((2, 48, 48), 101),
    "dvsgesture": ((2, 128, 128), 11),
    "dvs128-objects": ((2, 128, 128), 6),
    "nmnist": ((2, 34, 34), 10),
    "pneumonia": ((28, 28), 2),
    "spoken-digits": ((1, 32, 61), 10),
    "tinyimagenet": ((64, 64, 3), 200),
    "imagenet": ((224, 224, 3), 1000),
    "cifar100": ((32, 32, 3), 100),
    "cifar10": ((32, 32, 3), 10),
    "evidence": ((32, 32, 3), 10),
    "mnist": ((28, 28), 10),
    "speechcommands": ((1, 10, 49), 35),
    "medical2": ((224, 224, 3), 2),
    "medical7": ((224, 224, 3), 7),
    "digits": ((8, 8), 10),
}
LARGE = (
    "imagenet-",
    "medical",
    "bkdsnn-cifar",
    "tssd-imagenet",
    "lasnn-",
    "tssd-c",
    "tssd-d",
    "mdsnn-",
    "activity-",
)
SETS = {
    "bkdsnn": (
        "imagenet-sew18", "imagenet-sew34", "imagenet-sew50", "imagenet-spikingformer-8-384",
        "imagenet-spikingformer-8-512", "imagenet-spikingformer-8-768", "cifar10", "cifar100", "cifar10dvs",
    ),
    "lasnn": ("cifar10", "cifar100", "tinyimagenet"),
    "mdsnn": ("cifar10", "cifar100", "ncaltech101", "tinyimagenet"),
    "tssd": ("cifar10", "cifar100", "imagenet", "cifar10dvs", "dvsgesture"),
    "activity": ("mnist", "cifar10", "speechcommands"),
    "hdkd": ("medical2", "medical7"),
}  # fmt: skip


def generated(recipe, name, batch):
    """Two batches to train on, one to validate, one to test."""
    shape, classes = next(value for key, value in SHAPES.items() if key in name)
    size = recipe.data.size or (recipe.data.frames and recipe.data.frames.size)
    rng = np.random.default_rng(0)
    steps = recipe.all_time_steps()
    frames = int(np.lcm.reduce(steps)) if shape[0] == 2 else 0
    if size is not None:
        shape = (2, *size) if frames else (*size, *shape[2:])

    def part(n):
        y = np.arange(n) % classes
        if frames:
            return rng.poisson(0.3, (n, frames, *shape)).astype(np.uint8), y
        if shape[0] == 1:
            return rng.random((n, *shape), dtype=np.float32), y
        return rng.integers(0, 256, (n, *shape), dtype=np.uint8), y

    parts = {"train": 2 * batch, "validation": batch, "test": batch}
    arrays = {f"{k}_{s}": v for s, n in parts.items() for k, v in zip("xy", part(n))}
    config = datasets.DataConfig(name="arrays", mean=recipe.data.mean, std=recipe.data.std)
    arrays["class_names"] = [str(i) for i in range(classes)]
    return datasets.from_arrays(arrays, config, steps)


def two_steps(name, folder):
    recipe = load(name)
    batch = 1 if "imagenet-spikingformer" in name else 2 if any(part in name for part in LARGE) else 4
    overrides = [f"data.batch_size={batch}", "seeds=1", "precision=float32", "compile=false"]
    overrides += ["data.train_samples=null"] if recipe.data.train_samples else []
    for stage in recipe.stages:
        if stage.epochs:
            overrides.append(f"{stage.name}.epochs=1")
        if stage.network and stage.network.get("pretrained"):
            overrides.append(f"{stage.name}.network.pretrained=false")
        if stage.network and stage.network.get("weights"):  # published ones, a file of the user's
            overrides.append(f"{stage.name}.network.weights=null")
    run = sd.train(
        name, data=generated(recipe, name, batch), out=folder / name, overrides=overrides, quiet=True
    )
    assert [row.name for row in run.summary.stages] == [stage.name for stage in recipe.stages]
    for stage in recipe.stages:
        lines = metrics.read(run.folder).epochs(stage.name)
        assert len(lines) == (1 if stage.epochs else 0)
        for line in lines:
            losses = line["train"]["parts"] | {"loss": line["train"]["loss"]}
            for term in (o.get("name", o["type"]) for o in stage.objectives):
                # Of several teachers each has its own part, with its name behind.
                assert any(part == term or part.startswith(f"{term}_") for part in losses), line
            assert all(np.isfinite(value) for value in losses.values()), line


@pytest.mark.parametrize("name", sorted(n for n in shipped() if not any(part in n for part in LARGE)))
def test_small_recipes_train(name, tmp_path):
    two_steps(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(n for n in shipped() if any(part in n for part in LARGE)))
def test_large_recipes_train(name, tmp_path):
    two_steps(name, tmp_path)


@pytest.mark.parametrize("paper", SETS)
def test_a_recipe_for_each_data_set_of_the_papers_abstract(paper):
    assert {f"{paper}-{part}" for part in SETS[paper]} <= set(shipped())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_titled_and_cited(name):
    assert load(name).title
    found = [re.match(r"@\w+\{([^,]+),", entry)[1] for entry in citations(name)]
    assert found
    assert set(found) <= set(entries())


def test_the_papers_own_recipes_cite_them():
    for paper, key in (
        ("bkdsnn-cifar10", "xu2024bkdsnn"), ("lasnn-cifar10", "hong2023lasnn"),
        ("mdsnn-cifar10", "lee2026mdsnn"),
        ("tssd-cifar10", "zuo2024self"), ("activity-mnist", "louis2024reducing"),
        ("hdkd-medical2", "elassiouti2024hdkd"),
    ):  # fmt: skip
        assert any(key in entry for entry in citations(paper)), paper


@pytest.mark.parametrize("name, own", [("mdsnn-cifar10", 4), ("mdsnn-cifar100", 4), ("mdsnn-ncaltech101", 6)])
def test_one_teacher_serves_students_of_all_bits_and_steps(name, own):
    recipe = load(name)
    assert recipe.stages[0].network["name"] == "ms_resnet18"
    assert recipe.stages[0].quantize is None
    students = [s for s in recipe.stages if s.teacher == "teacher"]
    assert all(s.from_ == "teacher" and s.objectives == students[0].objectives for s in students)
    steps = {s.time_steps or recipe.time_steps for s in students if s.quantize["weight_bits"] == 4}
    bits = {s.quantize["weight_bits"] for s in students if (s.time_steps or recipe.time_steps) == own}
    assert steps == {1, 2, 3, 4, own}
    assert bits == {2, 3, 4, 8}
    changed = load(
        name, ["student-t2.quantize.weight_bits=2", "student-t2.objectives.logit_distillation.weight=0.5"]
    )
    assert [a.name for a, b in zip(changed.stages, recipe.stages) if a != b] == ["student-t2"]


def options_of(name, stage, kind):
    stages = {s.name: s for s in load(name).stages}
    return next(o for o in stages[stage].objectives if o["type"] == kind)


def test_settings_of_official_code_that_once_differed():
    assert options_of("bkdsnn-cifar10dvs", "student", "blurred_feature")["tap"] == "stage5.up"
    sizes = ("8-384", "8-512", "8-768")
    for name in (
        "bkdsnn-cifar10",
        "bkdsnn-cifar100",
        *(f"bkdsnn-imagenet-spikingformer-{size}" for size in sizes),
    ):
        smoothing = [
            options_of(name, "student", kind).get("label_smoothing")
            for kind in ("cross_entropy", "weighted_soft_labels")
        ]
        assert smoothing == [0.1, 0.1], name
    assert load("bkdsnn-cifar100").stages[0].network["interpolation"] == "bilinear"
    assert load("bkdsnn-cifar10").stages[0].network["interpolation"] == "bicubic"
    assert load("digits-sakd").optimizer.nesterov
    assert options_of("digits-sakd", "student", "feature_distillation")["weight"] == 100.0
