"""``benchmarks/gpu.py`` on a CPU: nothing of it is run for the first time on the day a GPU is at hand."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu", FILE)
gpu = importlib.util.module_from_spec(spec)
sys.modules["gpu"] = gpu  # dataclasses look their module up
spec.loader.exec_module(gpu)


def part(name, code, budget=60.0, group=""):
    """A part that runs some Python."""
    return gpu.Part(
        name,
        budget,
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FILE.parent)!r})\n{code}"],
        group,
    )


def ran(parts, tmp_path, **options):
    """The JSON that these parts leave."""
    gpu.run(parts, gpu.Report(tmp_path / "gpu.json"), **{"minutes": 5.0, **options})
    return json.loads((tmp_path / "gpu.json").read_text())["parts"]


def test_every_part_in_small_on_the_cpu(tmp_path):
    path = tmp_path / "gpu.json"
    command = [
        sys.executable,
        str(FILE),
        "--device",
        "cpu",
        "--quick",
        "--minutes",
        "60",
        "--json",
        str(path),
    ]
    environment = {**os.environ, "SPIKEDISTILL_EAGER": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--at-once", "1"], env=environment, capture_output=True, text=True)
    found = json.loads(path.read_text())
    wrong = {
        name: {k: v for k, v in p["rows"].items() if not v.get("ok", True)}
        for name, p in found["parts"].items()
    }
    assert {name: p.get("error", rows) for (name, p), rows in zip(found["parts"].items(), wrong.values())
            if p["status"] != "passed"} == {}, done.stdout  # fmt: skip
    assert done.returncode == 0
    assert [*found["parts"]] == [name for name, *_ in gpu.PARTS if name not in gpu.NOT_REHEARSED]
    correct = {k: v["rows"] for k, v in found["parts"].items() if k.startswith("correctness")}
    assert len(correct["correctness float32"]) > 30
    assert all(r["spikes_differ"] == 0 and r["fired"] > 0.01 for r in correct["correctness float32"].values())
    assert correct["correctness float64"]["gradcheck PLIF"] == {"ok": True}
    assert {"integer network, channels_last", "memory lean"} <= set(correct["correctness networks"])
    steps = [row for k, v in found["parts"].items() if k.startswith("step") for row in v["rows"].items()]
    losses = [row["first_loss"] for label, row in steps if "twin" not in label]
    assert max(losses) - min(losses) < 1e-4  # all do the same work
    assert {"teacher", "student", "quantized", "integer network"} <= set(found["parts"]["throughput"]["rows"])


def test_budgets_are_eight_minutes():
    groups = {}
    for _, group, seconds, *_ in gpu.PARTS:
        groups[group] = max(seconds, groups.get(group, 0))
    assert sum(groups.values()) - groups["throughput"] < 8 * 60 * 1.5  # each may be late, not all
    order = [name.split()[0] for name, *_ in gpu.PARTS]
    assert sorted(order, key=["machine", "correctness", "step", "memory", "throughput"].index) == order


def test_whatever_becomes_of_a_part_the_next_one_runs(tmp_path):
    found = ran(
        [
            part(
                "fails",
                "import gpu; gpu.row('first', ok=True); gpu.attempt('second', lambda: 1 / 0); "
                "gpu.row('third', ok=True)",
            ),
            part("exits", "import gpu; gpu.row('first', ok=True); sys.exit('device-side assert')"),
            part("dies", "import os; os.abort()"),
            part("hangs", "import gpu, time; gpu.row('first', ok=True); time.sleep(600)", budget=8),
            part(
                "torn",
                "import os; open(os.environ['GPU_ROWS'], 'w').write('{\"whole\": {\"ok\": true}}\\n{\"to')",
            ),
            part("last", "import gpu; gpu.row('one', ok=True, ms=3.5)"),
        ],
        tmp_path,
    )
    assert [p["status"] for p in found.values()] == [
        "failed",
        "crashed",
        "crashed",
        "late",
        "passed",
        "passed",
    ]
    assert found["fails"]["rows"]["second"]["error"] == "ZeroDivisionError: division by zero"
    assert found["fails"]["rows"]["third"] == {"ok": True}
    assert "device-side assert" in found["exits"]["error"]
    assert "SIGABRT" in found["dies"]["error"]
    assert found["exits"]["rows"] == found["hangs"]["rows"] == {"first": {"ok": True}}
    assert found["torn"]["rows"] == {"whole": {"ok": True}}
    assert found["last"]["rows"] == {"one": {"ok": True, "ms": 3.5}}


def test_parts_of_a_group_run_at_once_and_others_alone(tmp_path):
    code = "import gpu, time; s = time.time(); time.sleep(2); gpu.row('span', start=s, end=time.time())"
    parts = [part("a", code, group="x"), part("b", code, group="x"), part("c", code, group="y")]
    a, b, c = (p["rows"]["span"] for _, p in sorted(ran(parts, tmp_path, at_once=2).items()))
    assert max(a["start"], b["start"]) < min(a["end"], b["end"])
    assert c["start"] > max(a["end"], b["end"])


def test_without_time_left_a_part_is_said_to_be_skipped(tmp_path):
    found = ran([part("late", "pass")], tmp_path, minutes=0.01)
    assert found["late"]["status"] == "skipped"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_what_was_finished_and_no_process(how, tmp_path):
    path, pid = tmp_path / "gpu.json", tmp_path / "pid"
    sleeper = (
        f"import gpu, os, time; gpu.end_with_parent(); open({str(pid)!r}, "
        "'w').write(str(os.getpid())); time.sleep(600)"
    )
    code = "\n".join(
        [
            f"import sys, signal; from pathlib import Path; sys.path.insert(0, {str(FILE.parent)!r}); "
            "import gpu",
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))",
            f"head = 'import sys; sys.path.insert(0, ' + repr({str(FILE.parent)!r}) + ');'",
            "one = gpu.Part('one', 60, [sys.executable, '-c', head + 'import gpu; gpu.row(\"a\", ok=True)'])",
            f"two = gpu.Part('two', 600, [sys.executable, '-c', head + {sleeper!r}])",
            f"gpu.run([one, two], gpu.Report(Path({str(path)!r})), 20)",
        ]
    )
    runner = subprocess.Popen([sys.executable, "-c", code])
    wait(lambda: pid.exists() and pid.read_text())
    runner.send_signal(how)
    runner.wait()
    assert json.loads(path.read_text())["parts"]["one"]["rows"] == {"a": {"ok": True}}
    wait(lambda: not alive(int(pid.read_text())))


def wait(until, seconds=60):
    """Until something is so."""
    start = time.monotonic()
    while not until():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


def alive(pid):
    """Whether there is such a process, and not only its entry."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False
