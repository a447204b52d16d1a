"""No shipped recipe is dead YAML: each is built and trained for two steps on generated arrays of its data's shape."""

import math

import numpy as np
import pytest

from spikedistill import recipe as recipes
from spikedistill.data.config import DataConfig
from spikedistill.training.run import train

# channels, height, width, classes; event frames have two channels
IMAGES = {
    "digits": (1, 8, 8, 10),
    "mnist": (1, 28, 28, 10),
    "cifar10": (3, 32, 32, 10),
    "cifar100": (3, 32, 32, 100),
    "tinyimagenet": (3, 64, 64, 200),
    "tinyimagenet10": (3, 64, 64, 10),
    "imagenet": (3, 224, 224, 1000),
    "folder": (3, 224, 224, 7),
    "pneumoniamnist": (1, 28, 28, 2),
}
EVENTS = {
    "nmnist": (34, 34, 10),
    "ncaltech101": (48, 48, 101),
    "cifar10dvs": (48, 48, 10),
    "dvsgesture": (128, 128, 11),
    "dvs128_objects": (128, 128, 6),
}
SOUND = {"speechcommands": 35, "fsdd": 10}
QUICK = 32 * 32  # recipes on larger images are slow


def shape(data: DataConfig) -> tuple[bool, int, int, int, int]:
    """Whether frames, channels, height, width, classes of what a recipe's data gives."""
    size = data.frames.size if data.frames and data.frames.size else data.size
    if data.name in EVENTS:
        h, w, classes = EVENTS[data.name]
        return True, 2, *(size or (h, w)), classes
    if data.name in SOUND:
        audio = data.audio
        classes = data.classes if data.name == "speechcommands" else SOUND[data.name]
        if audio is None:
            return False, 1, 32, 61, classes
        columns = 1 + math.floor((1000 * audio.seconds - audio.window_ms) / audio.hop_ms)
        return (
            audio.output == "frames",
            1,
            audio.coefficients if audio.feature == "mfcc" else audio.mels,
            columns,
            classes,
        )
    c, h, w, classes = IMAGES[data.name]
    return False, c, *(size or (h, w)), classes


def arrays(found: recipes.Recipe) -> dict[str, np.ndarray]:
    """Four training and two test samples of the recipe's shape."""
    frames, c, h, w, classes = shape(found.data)
    rng = np.random.default_rng(0)
    lead = (math.lcm(*found.all_time_steps()),) if frames else ()

    def x(n: int) -> np.ndarray:
        if frames:
            return rng.integers(0, 3, (n, *lead, c, h, w)).astype(np.uint8)
        return rng.integers(0, 256, (n, c, h, w)).astype(np.uint8)

    label = np.array([0, classes - 1])
    names = [str(k) for k in range(classes)]
    return {"x_train": x(4), "y_train": np.tile(label, 2), "x_test": x(2), "y_test": label, "class_names": names}


def offline(tree: dict) -> dict:
    """The recipe without files that only its user has, two steps a stage."""
    tree["data"] = {k: v for k, v in tree["data"].items() if k in ("frames", "audio")} | {
        "batch_size": 2,
        "validation": 0,
    }
    tree |= {"seeds": 1, "compile": False, "precision": "float32"}
    for stage in tree["stages"]:
        stage["epochs"] = min(1, stage["epochs"])
        stage.get("optimizer", {}).pop("accumulate", None)
        if stage.get("network"):
            stage["network"].pop("weights", None)
            if "pretrained" in stage["network"]:
                stage["network"]["pretrained"] = False
    tree.get("optimizer", {}).pop("accumulate", None)
    return tree


def cases() -> list:
    found = []
    for name in sorted(recipes.shipped()):
        frames, _, h, w, _ = shape(recipes.load(name).data)
        large = h * w > QUICK or frames or not name.startswith("digits")
        found.append(pytest.param(name, marks=[pytest.mark.slow] if large else []))
    return found


@pytest.mark.parametrize("name", cases())
@pytest.mark.filterwarnings("ignore")
def test_two_steps(name, tmp_path):
    found = recipes.load(name)
    generated = arrays(found)
    run = train(offline(found.plain()), data=generated, out=tmp_path / "run", quiet=True)
    assert [s.name for s in run.summary.stages] == [s.name for s in found.stages]
    assert all(s.parameters > 0 for s in run.summary.stages)
