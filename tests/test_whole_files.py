"""What is written stands whole or not at all, and nothing is left beside it."""

import os
from pathlib import Path

import pytest

from spikedistill import SpikedistillError, files


def full(fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_text_is_replaced_or_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    files.write_text(file, "old µJ\n")
    assert file.read_bytes() == "old µJ\n".encode()
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            files.write_text(file, "new")
    assert os.listdir(tmp_path) == ["summary.json"]
    assert file.read_text(encoding="utf-8") == "old µJ\n"


@pytest.mark.parametrize("writer", [files.written_whole, files.exported])
def test_a_file_appears_when_its_block_ends_well(tmp_path, writer):
    with writer(tmp_path / "a.onnx") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.onnx").exists()
    with pytest.raises(KeyError), writer(tmp_path / "a.onnx") as temporary:
        {}[temporary.write_text("half")]
    assert os.listdir(tmp_path) == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "whole"


def test_a_users_file_that_cannot_be_written_is_named(tmp_path):
    said = r"cannot write .*a\.nir: No space left on device; nothing was changed"
    with pytest.raises(SpikedistillError, match=said), files.exported(tmp_path / "a.nir"):
        full(0)
    with pytest.raises(SpikedistillError, match=r"there is no folder .*; create it first"):
        files.destination(tmp_path / "no" / "a.nir")
    with pytest.raises(SpikedistillError, match="it is a folder; give a file's name"):
        files.destination(tmp_path)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with files.written_whole(tmp_path / "a") as first, files.written_whole(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
        assert first != second
    assert (tmp_path / "a").read_text() == "1"  # the one that ended last
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_kill_left_of_a_folder_is_put_back(tmp_path):
    folder, before = tmp_path / "last", tmp_path / "before"
    files.replace_folder(folder, {"a": b"1"}, before)
    files.replace_folder(folder, {"a": b"2"}, before)
    assert (before / "a").read_bytes() == b"1"
    folder.rename(tmp_path / ".last.old-1")
    before.rename(tmp_path / ".last.new-1")
    files.recover(folder, before)
    assert os.listdir(tmp_path) == ["last"]
    assert (folder / "a").read_bytes() == b"2"


def test_one_cache_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEDISTILL_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
    assert files.cache_folder(tmp_path / "chosen") == tmp_path / "chosen"
    # set to nothing is not set, for data and compiled code alike
    monkeypatch.setenv("SPIKEDISTILL_CACHE", "")
    assert files.cache_folder() == Path.home() / ".cache" / "spikedistill"
