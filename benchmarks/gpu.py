"""All that is to be known of one GPU, in one command of at most eight minutes, nobody at hand.

    python benchmarks/gpu.py [--json results/gpu.json] [--minutes 8] [--only step memory]
    python benchmarks/gpu.py --device cpu --quick      # the rehearsal: every line of it but the device

In this order: what the machine is; correctness (``gpu_correctness.py``); step times and memory beside
SpikingJelly's implementations and the compiled ANN twin (``gpu_step.py``); the recipe ``recommended-
cifar10``, trained on generated images (``gpu_recipe.py``). Needs torch, numpy, pydantic, PyYAML and
safetensors; peers are measured where they are installed.

Each part is a process of its own with a budget of seconds: a device assert, a crash or a hang ends that part
alone. A part writes its rows one by one and the JSON is written after each part, so whatever ends, what was
finished stays. Parts of the correctness time nothing and run at once where there are cores for it. The exit
code is 1 where a part did not pass.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LEAST = 5.0  # seconds left below which no part begins


@dataclass(frozen=True)
class Part:
    """A process: name, most seconds that it may take, command. Parts of one ``group`` may run at once."""

    name: str
    budget: float
    command: Sequence[str]
    group: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


# Name, group (parts of correctness run at once), seconds on a GPU, file, environment.
# SpikingJelly 2 reads its LIF neuron's implementation from the environment; "cuda" was called cupy before.
PARTS: tuple[tuple[str, str, float, str, dict[str, str]], ...] = (
    ("machine", "machine", 40, "gpu_machine", {}),
    ("correctness float64", "correctness", 150, "gpu_correctness", {}),
    ("correctness float32", "correctness", 150, "gpu_correctness", {}),
    ("correctness bfloat16", "correctness", 150, "gpu_correctness", {}),
    ("correctness networks", "correctness", 120, "gpu_correctness", {}),
    ("correctness compile counts", "correctness", 120, "gpu_correctness", {}),
    ("step ours", "step ours", 100, "gpu_step", {}),
    ("step CUDA graphs", "step CUDA graphs", 60, "gpu_step", {}),
    (
        "step SpikingJelly torch",
        "step SpikingJelly torch",
        30,
        "gpu_step",
        {"SJ_LIF_CUDA_IMPLEMENTATION": "torch"},
    ),
    (
        "step SpikingJelly cuda",
        "step SpikingJelly cuda",
        45,
        "gpu_step",
        {"SJ_LIF_CUDA_IMPLEMENTATION": "cuda"},
    ),
    (
        "step SpikingJelly triton",
        "step SpikingJelly triton",
        45,
        "gpu_step",
        {"SJ_LIF_CUDA_IMPLEMENTATION": "triton"},
    ),
    ("memory ours", "memory ours", 60, "gpu_step", {}),
    ("memory SpikingJelly", "memory SpikingJelly", 45, "gpu_step", {}),
    ("throughput", "throughput", 120, "gpu_recipe", {}),
)
# What a CPU would only do again: SpikingJelly has one implementation there, and nothing compiles.
NOT_REHEARSED = (
    "correctness compile counts",
    "step SpikingJelly cuda",
    "step SpikingJelly triton",
    "memory SpikingJelly",
)


def parts(device: str, quick: bool) -> list[Part]:
    """All parts in order. Budgets are a GPU's: a CPU, which may be a busy one, has ten times as long."""
    say = ["--device", device, *(["--quick"] if quick else [])]
    path = os.pathsep.join([str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [
        Part(
            name, seconds * (10 if device == "cpu" else 1),
            [sys.executable, str(HERE / "gpu.py"), "--part", name, *say],
            group, {**environment, "PYTHONPATH": path},
        )
        for name, group, seconds, _, environment in PARTS
        if not quick or name not in NOT_REHEARSED
    ]  # fmt: skip


class Report:
    """What is known so far, as JSON on the disk."""

    def __init__(self, path: Path, **about: Any) -> None:
        self.path, self.content = path, {**about, "parts": {}}

    def add(self, name: str, found: dict[str, Any]) -> None:
        """A part is over; the file is exchanged in one move."""
        self.content["parts"][name] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(self.path.name + ".part")
        aside.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(aside, self.path)
        print(
            f"{name:28} {found['status']:9} {found['seconds']:6.1f} s  {found.get('error', '')}"[:200],
            flush=True,
        )
        for row, values in found["rows"].items():
            if not values.get("ok", True):
                print(f"    {row}: {values}"[:200], flush=True)

    @property
    def passed(self) -> bool:
        """Whether every part did."""
        return all(found["status"] == "passed" for found in self.content["parts"].values())


class Running:
    """A part at work: its process, what it has written."""

    def __init__(self, part: Part, seconds: float, folder: Path) -> None:
        self.part, self.start, self.seconds = part, time.monotonic(), seconds
        place = folder / part.name.replace(" ", "_")
        self.rows, self.said = place.with_suffix(".jsonl"), place.with_suffix(".txt")
        environment = {**os.environ, **part.environment, "GPU_ROWS": str(self.rows)}
        with self.said.open("wb") as said:
            # Its own group, so that its children end with it; it ends itself when its standard input closes.
            self.process = subprocess.Popen(
                part.command, env=environment, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def over(self) -> bool:
        """Whether it has ended or has to."""
        return self.process.poll() is not None or time.monotonic() - self.start > self.seconds

    def end(self) -> dict[str, Any]:
        """What came of it; ends it where it still runs."""
        code = self.process.poll()
        self.kill()
        spent = time.monotonic() - self.start
        rows = self.written()
        found: dict[str, Any] = {
            "status": "passed",
            "seconds": round(spent, 1),
            "budget": self.seconds,
            "rows": rows,
        }
        if code is None:
            found |= {
                "status": "late",
                "error": f"ended after {self.seconds:.0f} s; its rows until then are kept",
            }
        elif code:
            last = [line for line in self.said.read_text(errors="replace").splitlines() if line.strip()][-3:]
            word = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            found |= {"status": "crashed", "error": f"{word}: " + " | ".join(last)[-1000:]}
        elif not all(row.get("ok", True) for row in rows.values()):
            found["status"] = "failed"
        return found

    def written(self) -> dict[str, Any]:
        """Its rows; a line that was torn off by its end is left out."""
        rows: dict[str, Any] = {}
        for line in self.rows.read_text().splitlines() if self.rows.exists() else []:
            try:
                rows.update(json.loads(line))
            except ValueError:
                break
        return rows

    def kill(self) -> None:
        """End what is left of its group, itself or children that it left behind."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def run(todo: Sequence[Part], report: Report, minutes: float, at_once: int = 1) -> None:
    """Every part in order, whatever becomes of those before it; one that would begin too late is skipped."""
    deadline = time.monotonic() + 60 * minutes
    waiting, working = list(todo), list[Running]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or working:
                for one in [one for one in working if one.over]:
                    working.remove(one)
                    report.add(one.part.name, one.end())
                same = not working or (waiting and waiting[0].group == working[0].part.group)
                if waiting and same and len(working) < at_once:
                    part, left = waiting.pop(0), deadline - time.monotonic()
                    if left < LEAST:
                        report.add(
                            part.name,
                            {"status": "skipped", "seconds": 0.0, "rows": {}, "error": "no time left"},
                        )
                    else:
                        working.append(Running(part, min(part.budget, left), Path(folder)))
                else:
                    time.sleep(0.05)
        finally:
            for one in working:
                one.kill()


def row(name: str, **values: Any) -> None:
    """In a part's process: one row is known."""
    with open(os.environ["GPU_ROWS"], "a") as file:
        file.write(json.dumps({name: values}) + "\n")


def attempt(name: str, function: Any, *args: Any) -> None:
    """A row by ``function(*args)``; an error is the row's, and the rows behind it are still tried."""
    try:
        values = function(*args)
    except Exception as error:
        values = {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}
    row(name, **values)


def end_with_parent() -> None:
    """End this process when the one that started it ends, in whatever way: our standard input then closes."""

    def wait() -> None:
        try:
            while os.read(0, 1):
                pass
        except OSError:
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def part_of(name: str, device: str, quick: bool) -> None:
    """Run one part in this process."""
    import importlib

    end_with_parent()
    file = next(file for known, _, _, file, _ in PARTS if known == name)
    importlib.import_module(file).run(name, device, quick)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("--quick", action="store_true", help="the smallest sizes, nothing compiled: a rehearsal")
    p.add_argument("--minutes", type=float, default=8.0)
    p.add_argument("--only", nargs="*", help="parts whose name contains one of these")
    p.add_argument("--at-once", type=int, default=0, help="parts of correctness (0: by the cores)")
    p.add_argument("--json", type=Path, default=Path("results/gpu.json"))
    p.add_argument("--part", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.part:
        sys.path.insert(0, str(HERE))
        part_of(a.part, a.device, a.quick)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = {
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
    }
    report = Report(a.json, **about, device=a.device, quick=a.quick)
    chosen = [x for x in parts(a.device, a.quick) if not a.only or any(word in x.name for word in a.only)]
    run(chosen, report, a.minutes, a.at_once or max(1, min(6, (os.cpu_count() or 1) // 2)))
    print(a.json)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
