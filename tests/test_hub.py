"""Networks elsewhere: a folder, a hub on this machine, and no hub at all."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

import spikedistill as sd
from hub_server import Hub, serving
from spikedistill import hub
from spikedistill.cli import main
from spikedistill.training.store import save_network
from spikedistill.training.summary import RunSummary, StageSummary, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of one stage, as training writes it."""
    folder = tmp_path / "run"
    network = sd.networks.create("vgg5", in_channels=1, time_steps=2, width=0.125, pools=1)
    row = StageSummary(
        name="student", kind="snn", network={"name": "vgg5"}, parameters=4321, time_steps=2, epochs=3,
        seconds=5.0,
        accuracy=0.875, objectives=[{"type": "cross_entropy"}], teacher="teacher", warnings=["a <b>dead</b> "
"| layer"],
    )  # fmt: skip
    data = {
        "name": "digits", "hash": "abc", "in_channels": 1, "size": [8, 8], "class_names": ["zero", "one"],
    }  # fmt: skip
    whole = RunSummary(
        title="Title", recipe="digits", seed=0, data=data, citations=["Hinton 2015"], stages=[row]
    )
    extra = {"summary.json": row.model_dump_json()}
    save_network(folder / "stages" / "student", network, {}, "old card", dict(network.state_dict()), extra)
    write(folder, whole)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a_token")
    with serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x = torch.rand(2, 1, 8, 8)
    return torch.equal(a(x), b(x))


def test_a_folder_takes_and_gives_a_network(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shelf" / "digits"
    assert main(["push", f"{run}:student", str(target)]) == 0
    assert same(sd.load(f"file://{target}"), sd.load(run))
    assert main(["pull", f"file://{target}", "--out", str(tmp_path / "copy")]) == 0
    assert same(sd.load(tmp_path / "copy"), sd.load(run))
    assert {p.name for p in target.iterdir()} == {*hub.FILES} - {"graph.json"}
    said = capsys.readouterr().out
    size = sum(p.stat().st_size for p in target.iterdir())
    assert said.startswith(f"{target}: stage student, {size:,} bytes\n")
    assert str(tmp_path / "copy") in said
    assert main(["push", f"{run}:student", str(target)]) == 0  # again, over itself
    # what was pulled, with its card
    assert main(["push", str(tmp_path / "copy"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "README.md").read_text() == (target / "README.md").read_text()


def test_the_card_says_what_the_run_says(run: Path, tmp_path: Path) -> None:
    assert main(["push", str(run), str(tmp_path / "digits-snn")]) == 0
    text = (tmp_path / "digits-snn" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    (entry,) = yaml.safe_load(head)["model-index"]
    assert entry["name"] == "digits-snn"
    assert entry["results"][0]["metrics"][0]["value"] == 0.875
    assert entry["results"][0]["dataset"]["name"] == "digits"
    for words in (
        "T = 2", "4,321 parameters", "87.50 % of the test images of digits", "| student | "
"87.50 |", "3 epochs", "Hinton 2015",
        "teacher: teacher", "objectives: cross_entropy", "sha256 abc", "a &lt;b>dead&lt;/b> | "
"layer", "No code", "(N, 1, 8, 8), in; logits of 2 classes out: zero, one.",
        'classes = ["zero", "one"]',
    ):  # fmt: skip
        assert words in body, words
    assert str(tmp_path) not in text
    assert "sd.load('this folder')   # the folder where this file lies\n" in body
    assert "<b>" not in text


def test_a_hub_takes_and_gives_a_network(run: Path, server: Hub, tmp_path: Path) -> None:
    assert main(["push", f"{run}:student", "somebody/digits"]) == 0
    files = server.repositories["somebody/digits"]
    assert set(files) == {*hub.FILES} - {"graph.json"}
    assert b"sd.load('hf://somebody/digits')" in files["README.md"]
    files["evil.py"] = b"raise SystemExit"
    files["pytorch_model.bin"] = b"pickle"
    assert same(sd.load("hf://somebody/digits"), sd.load(run))
    assert same(sd.load("hf://somebody/digits@main", best=True), sd.load(run, best=True))
    assert not [line for line in server.asked if "evil" in line or "pytorch_model" in line]
    assert main(["pull", "somebody/digits", "--out", str(tmp_path / "copy")]) == 0
    assert same(sd.load(tmp_path / "copy"), sd.load(run))
    assert not list((tmp_path / "cache").rglob("*.py"))


def test_what_is_cached_needs_no_hub(run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["push", str(run), "somebody/digits"])
    before = sd.load("hf://somebody/digits")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert same(sd.load("hf://somebody/digits"), before)


def test_a_damaged_file_is_refused(run: Path, server: Hub, tmp_path: Path) -> None:
    main(["push", str(run), "somebody/digits"])
    files = server.repositories["somebody/digits"]
    *data, last = files["model.safetensors"]
    files["model.safetensors"] = bytes([*data, last ^ 1])
    with pytest.raises(sd.SpikedistillError, match=r"model\.safetensors is damaged"):
        sd.load("hf://somebody/digits")
    with pytest.raises(sd.SpikedistillError, match=r"model\.safetensors is damaged, or missing"):
        hub.pull("somebody/digits", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_no_such_repository_and_none_of_ours(server: Hub) -> None:
    with pytest.raises(
        sd.SpikedistillError, match=r"hf://some/body cannot be fetched: .* has no such repository"
    ):
        sd.load("hf://some/body")
    server.repositories["some/body"] = {"README.md": b"hello"}
    with pytest.raises(sd.SpikedistillError, match=r"hf://some/body holds no network of spikedistill"):
        sd.load("hf://some/body")


def test_offline_is_one_clear_error(run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    words = (
        r"cannot be {}: the hub at http://127.0.0.1:9 cannot be reached \(.+\); "
        r"connect .* or use a folder: file://FOLDER"
    )
    with pytest.raises(sd.SpikedistillError, match="hf://some/body " + words.format("fetched")):
        sd.load("hf://some/body")
    assert main(["push", str(run), "some/body"]) == 2
    said = capsys.readouterr().err.strip()
    assert "hf://some/body cannot be written: the hub at http://127.0.0.1:9 cannot be reached" in " ".join(
        said.split()
    )
    assert "Traceback" not in said


def test_a_full_disk_is_not_called_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(
        sd.SpikedistillError, match=r"hf://some/body cannot be fetched: .*No space left on device$"
    ):
        sd.load("hf://some/body")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(sd.SpikedistillError, match=r"pip install 'spikedistill\[hub\]'"):
        sd.load("hf://some/body")


def test_a_folder_with_other_things_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    for words in (["push", str(run)], ["pull", str(run / "stages" / "student"), "--out"]):
        assert main([*words, str(tmp_path / "home")]) == 2
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("text", ["digits", "a/b/c", "hf://digits", "http://x/y", "", "a b/c"])
def test_what_names_no_place(text: str) -> None:
    with pytest.raises(sd.SpikedistillError, match="names no place: give owner/name"):
        hub.place(text)


def test_what_names_one(tmp_path: Path) -> None:
    assert hub.place("hf://a/b@v1.0") == hub.Repository("a/b", "v1.0")
    assert hub.place(str(Path("hf://a/b"))) == hub.Repository("a/b")
    assert hub.place("file:///x/a%20b") == Path("/x/a b")
    assert hub.place("./x") == Path("x")
    assert json.dumps(str(hub.place("a/b"))) == '"hf://a/b"'
    with pytest.raises(sd.SpikedistillError, match="a push goes to the main branch"):
        hub.upload({}, "a/b@v1")
