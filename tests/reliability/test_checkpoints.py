"""Two checkpoints are kept; damage is found, said, and lived with."""

import json
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill.data import from_arrays
from spikedistill.recipe import Optimizer
from spikedistill.training import checkpoint, loop, metrics
from spikedistill.training.progress import Progress
from spikedistill.training.run import train
from spikedistill.training.run_folder import clean
from spikedistill.training.settings import Settings
from spikedistill.training.training_state import TrainingState

from .conftest import child, outcome, run


class Stop(BaseException):
    pass


def stopped(small, images, folder, monkeypatch, after=5):
    """The run, left after so many updates of its first stage."""
    original = loop.Training.save

    def save(self):
        original(self)
        if self.position.step >= after:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", save)
        with pytest.raises(Stop):
            run(small, images, folder)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(small, images, tmp_path, monkeypatch, file, harm):
    small["stages"] = small["stages"][:1]
    small["stages"][0]["epochs"] = 3
    run(small, images, tmp_path / "whole")
    stopped(small, images, tmp_path / "run", monkeypatch)
    last = tmp_path / "run" / "checkpoints" / "teacher"
    assert (
        checkpoint.load(last)[1]["position"]["step"]
        > checkpoint.load(checkpoint.previous(last))[1]["position"]["step"]
    )
    content = (last / file).read_bytes()
    if harm == "gone":
        (last / file).unlink()
    else:
        where = content.index(b'"seconds": ') + 12 if file == "state.json" else len(content) - 9
        flipped = (
            content[:where] + (b"7" if content[where : where + 1] != b"7" else b"8") + content[where + 1 :]
        )
        (last / file).write_bytes(flipped if harm == "flip" else content[: len(content) // 2])
    run(small, images, tmp_path / "run")
    lines = [line for line in metrics.read(tmp_path / "run").events if line["event"] == "warning"]
    assert any(
        re.search(r"going on from the checkpoint before it, of step \d", line["text"]) for line in lines
    )
    whole = outcome_of_one(tmp_path / "whole")
    assert outcome_of_one(tmp_path / "run") == whole


def outcome_of_one(folder):
    return {k: v for k, v in outcome(folder).items() if k not in ("student",)}


def test_both_damaged_is_an_error_that_names_the_file(tmp_path):
    checkpoint.save(tmp_path / "a", {"w": torch.ones(2)}, {"position": {"step": 1}})
    checkpoint.save(tmp_path / "a", {"w": torch.ones(3)}, {"position": {"step": 2}})
    for place in (tmp_path / "a", tmp_path / "a.previous"):
        (place / "tensors.safetensors").write_bytes(b"x")
    with pytest.raises(sd.SpikedistillError, match=r"a/tensors\.safetensors is damaged"):
        checkpoint.load_latest(tmp_path / "a")


def test_a_changed_config_is_found(small, images, tmp_path):
    small["stages"] = small["stages"][:1]
    folder = run(small, images, tmp_path / "run").folder
    file = folder / "stages" / "teacher" / "config.json"
    config = json.loads(file.read_text())
    config["network"]["options"]["width"] = 0.125
    file.write_text(json.dumps(config))
    with pytest.raises(sd.SpikedistillError, match=r"config\.json is damaged: it is not what was written"):
        sd.load(folder)


def test_files_folders_and_parents_are_told_to_the_disk(tmp_path, monkeypatch):
    told = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (told.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    checkpoint.save(tmp_path / "new" / "inner" / "state", {"w": torch.ones(2)}, {})
    names = [os.path.relpath(path, tmp_path) for path in told]
    assert names[:2] == [".", "new"]
    assert sum(name.endswith((".safetensors", "state.json")) for name in names) == 2
    assert names[-1] == "new/inner"


def test_leftovers_of_dead_processes_are_cleaned(small, images, tmp_path):
    small["stages"] = small["stages"][:1]
    folder = run(small, images, tmp_path / "run").folder
    for left in (
        ".summary.json.77.tmp",
        "stages/.teacher.new-77/x",
        "checkpoints/.teacher.new-1/x",
        "seed-1/.a.9.tmp",
    ):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_text("half")
    clean(folder)
    assert [p for p in folder.rglob(".*") if p.name not in (".lock", ".recipe.json")] == []
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / ".recipe.yaml.12.tmp").write_text("name: half")
    run(small, images, tmp_path / "early")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_disk_that_takes_no_more_ends_in_one_line_and_loses_nothing(
    small, images, tmp_path, imported, capfd
):
    """The system itself refuses to write beyond a size: in the record, then in a checkpoint."""
    small["stages"] = small["stages"][:1]
    run(small, images, tmp_path / "whole")
    sizes = [(tmp_path / "whole" / "recipe.yaml").stat().st_size // 2, 20_000]
    for i, size in enumerate(sizes):
        folder = tmp_path / f"run-{i}"

        def work(folder: Path = folder, size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            run(small, images, folder)

        assert child(work) == 1
        last = capfd.readouterr().err.splitlines()[-1]
        assert "SpikedistillError: cannot write" in last or "OSError: [Errno 27]" in last
        run(small, images, folder)
        assert outcome_of_one(folder) == outcome_of_one(tmp_path / "whole")


def test_cadence_by_steps(small, images, tmp_path, monkeypatch):
    small["stages"] = small["stages"][:1]
    steps = []
    original = loop.Training.save
    monkeypatch.setattr(
        loop.Training, "save", lambda self: (steps.append(self.position.step), original(self))[1]
    )
    run(small, images, tmp_path / "a")
    assert steps == [2, 4, 6]
    steps.clear()
    small["checkpoint"] = {"seconds": 1000.0}
    run(small, images, tmp_path / "b")
    assert steps == [6]
    with pytest.raises(sd.SpikedistillError, match=r"checkpoint\.seconds"):
        run({**small, "checkpoint": {"seconds": 0}}, images, tmp_path / "c")


def test_damaged_side_files_end_in_words_or_harm_nothing(small, images, tmp_path):
    small["stages"] = small["stages"][:1]
    folder = run(small, images, tmp_path / "run").folder
    (folder / "environment.json").write_text("{not json")
    (folder / "summary.json").write_text("")
    run(small, images, folder)
    (folder / "stages" / "teacher" / "summary.json").write_text("{}")
    with pytest.raises(sd.SpikedistillError, match="is not a stage's summary"):
        run(small, images, folder)
    (folder / "resolved.json").write_text("[")
    with pytest.raises(sd.SpikedistillError, match=r"resolved\.json is damaged"):
        run(small, images, folder)


def together(images, folder: Path) -> list[TrainingState]:
    """The state of two processes of one training, here two threads; two checkpoints, of steps 1 and 2."""
    meeting = threading.Barrier(2, timeout=30)
    settings = ["student", 1, 8, 0, Optimizer(), torch.device("cpu"), "float32", folder]
    states = []
    for rank in (0, 1):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        place = SimpleNamespace(process_index=rank, num_processes=2, wait_for_everyone=meeting.wait)
        data = from_arrays(images)
        states.append(TrainingState(sd.Distiller(network), data, Settings(*settings), Progress(False), place))
    folder.mkdir()
    for step in (1, 2):
        states[0].position.step = step
        states[0].save()
    states[0].position.step = 0
    return states


def restored(states: list[TrainingState]) -> list[object]:
    """Both restore at once: the step each goes on from, or the error it meets."""
    found: list[object] = [None, None]

    def work(rank: int) -> None:
        try:
            states[rank].restore()
            found[rank] = states[rank].position.step
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=work, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("harm", ["damage", "kill"])
def test_of_several_processes_one_repairs_and_the_others_wait(images, tmp_path, monkeypatch, harm):
    states = together(images, tmp_path / "run")
    last = states[0].checkpoint_folder
    before, changed = checkpoint.previous(last), []
    if harm == "damage":
        (last / "state.json").write_bytes(b"x")
    else:
        shutil.rmtree(last)

    def slowly(change):
        def wrapped(*args, **keys):
            changed.append(threading.current_thread())
            time.sleep(0.2)
            change(*args, **keys)
            time.sleep(0.2)

        return wrapped

    monkeypatch.setattr(os, "rename", slowly(os.rename))
    monkeypatch.setattr(shutil, "rmtree", slowly(shutil.rmtree))
    assert restored(states) == [1, 1]
    assert len(set(changed)) == 1
    assert last.exists()
    assert not before.exists()


def test_where_none_is_whole_all_processes_say_so(images, tmp_path):
    states = together(images, tmp_path / "run")
    for place in (states[0].checkpoint_folder, checkpoint.previous(states[0].checkpoint_folder)):
        (place / "state.json").write_bytes(b"x")
    for error in restored(states):
        assert isinstance(error, sd.SpikedistillError)
        assert "state.json is damaged" in str(error)


def test_a_checkpoint_of_a_network_that_has_changed_is_refused_in_words(small, images, tmp_path, monkeypatch):
    small["stages"] = [{"name": "student", "network": {"name": "mine"}, "epochs": 2}]

    def trained(width):
        layers = nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3)
        train(
            small,
            {"mine": lambda: nn.Sequential(*layers)},
            images,
            out=tmp_path / "run",
            quiet=True,
            device="cpu",
        )

    original = loop.Training.save

    def save(self):
        original(self)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", save)
        with pytest.raises(Stop):
            trained(4)
    with pytest.raises(sd.SpikedistillError, match=r"has shape \(4, 64\), the network's is \(5, 64\)"):
        trained(5)
