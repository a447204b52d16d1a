"""The README of a stage: what it says, and that its example runs."""

import json
import re

import pytest
import torch

from spikedistill.data.base import Data, DataInfo
from spikedistill.training import card
from spikedistill.training.run import train
from spikedistill.training.summary import StageSummary

DATA = {"name": "shapes", "in_channels": 1, "size": (16, 16), "input": "image", "num_classes": 2}


def code_of(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


def test_a_stage_s_readme_says_what_goes_in_and_out_and_its_example_runs(tmp_path, recipe, arrays, capsys):
    given = {**recipe, "title": "Small <b>things</b>", "stages": [{**recipe["stages"][0], "epochs": 1}]}
    run = train(given, data=arrays, out=tmp_path / "run", quiet=True)
    (place,) = (run.folder / "stages").iterdir()
    text = (place / "README.md").read_text()
    classes = json.loads((place / "config.json").read_text())["class_names"]
    images = torch.as_tensor(arrays["x_test"]).permute(0, 3, 1, 2)[:3] / 255
    shape = ", ".join(map(str, images.shape[1:]))
    assert f"# Small &lt;b>things&lt;/b>: {place.name}\n" in text
    assert f"Images in [0, 1], (N, {shape}), in; logits of {len(classes)} classes out" in text
    assert "for 1 epoch;" in text
    capsys.readouterr()
    found = {"images": images}
    exec(code_of(text).replace(card.HERE, str(place)), found)
    assert found["logits"].is_inference()
    assert found["logits"].numpy().shape == (3, len(classes))
    assert capsys.readouterr().out.strip() == str(found["logits"].argmax(1))


@pytest.mark.parametrize(
    "names", [("circle", 'a "square" `'), [f"word{k}" for k in range(200)], ("0", "1"), None]
)
def test_names_of_classes_are_said_where_there_are_some(names) -> None:
    data = {**DATA, "class_names": names, "num_classes": 2 if names is None else len(names)}
    said, code = card.form(data), code_of(card.usage("hf://a/b", data))
    assert "(N, 1, 16, 16)" in said
    assert "(N, 1, 16, 16)" in code
    assert f"logits of {data['num_classes']} classes" in said
    compile(code, "README.md", "exec")
    if names and len(names) == 2 and names[0] == "circle":
        assert 'circle, a "square" \'' in said
        assert 'classes = ["circle", "a \\"square\\" `"]' in code
        assert "print([classes[k] for k in logits.argmax(1)])" in code
    else:
        assert "print(logits.argmax(1))" in code
        assert "word1" not in said + code


def test_frames_and_what_is_unknown() -> None:
    frames = {**DATA, "input": "frames", "frames": 6, "in_channels": 2, "size": [128, 96]}
    assert card.form(frames) == "Frames, (N, 6, 2, 128, 96), in; logits of 2 classes out."
    assert card.form({}) == "Images in [0, 1], (N, C, H, W), in; logits out."


def test_one_epoch_is_no_epochs() -> None:
    row = StageSummary(
        name="a", kind="ann", network={}, parameters=1, time_steps=None, epochs=1, seconds=1.0, accuracy=0.5
    )
    info = DataInfo(
        "shapes", 2, 1, (8, 8), "image", None, (0.0,), (1.0,), ("a", "b"), {"train": 1}, "hash", "split"
    )

    class Stage:
        name = "a"

    assert "for 1 epoch; 50.00 %" in card.card("Title", Stage(), row, Data(info, {}))
