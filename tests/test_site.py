"""The site's pages: code runs as is, every public name is in the reference, every page in the contents."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import spikedistill as sd
from spikedistill.cli import main

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)


def test_the_start_page_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spikingjelly")
    pytest.importorskip("snntorch")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, text in blocks("index.md"):
        if kind == "python":
            exec(text, names)
    assert names["logits"].shape == (4, 16, 10)
    assert (tmp_path / "network.safetensors").exists()
    assert any(p.grad is not None for p in names["student"].parameters())


def test_the_tutorial_from_its_first_line_to_its_last(tmp_path: Path, monkeypatch, capsys) -> None:
    """Blocks that name a file are written to it; `python FILE` and `spikedistill ...` run as in a shell."""
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, text in blocks("tutorial.md"):
        file = re.match(r"# file: (\S+)\n", text)
        if file:
            (tmp_path / file[1]).write_text(text)
        elif kind == "python":
            exec(text, names)
        else:
            for line in text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                if program == "python":
                    subprocess.run([sys.executable, *arguments], check=True)
                else:
                    assert (program, main(arguments)) == ("spikedistill", 0), line
    assert names["right"] > 0.8
    said = capsys.readouterr().out
    assert "500 of 500 predictions equal" in said
    assert re.search(r"[\d.]+% right in [\d,]+ bytes", said)
    made = {"run/report.html", "small.safetensors", "small.onnx", "small_c", "shelf/shapes/README.md"}
    assert all((tmp_path / name).exists() for name in made)


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    named = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)", text, re.M)}
    modules = {"data", "export", "hardware", "networks", "objectives"}
    assert set(sd.__all__) - modules <= named
    assert {name for name in sd.objectives.__all__ if isinstance(getattr(sd.objectives, name), type)} - {
        "ObjectiveOptions", "Schedule", "Setup",
    } <= named  # fmt: skip
    assert {*sd.export.__all__} <= named
    for path in re.findall(r"^::: (\S+)", text, re.M):
        module, _, name = path.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name), path


def test_every_page_is_in_the_contents() -> None:
    def pages(tree: object) -> list[str]:
        if isinstance(tree, str):
            return [tree]
        return [page for part in (tree if isinstance(tree, list) else tree.values()) for page in pages(part)]

    tree = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages(tree["nav"])) == sorted(page.name for page in DOCS.glob("*.md"))
    assert tree["theme"]["font"] is False
    assert not re.search(r"https?:", (DOCS.parent / "mkdocs.yml").read_text())
