"""All measurements of ``docs/performance_tables.md``, one by one, each a process with a time limit.

    python benchmarks/all.py [--only NAME ...] [--avx2] [--again] [--tiny] [--out results/performance]

A piece whose JSON is already there is skipped, so that a stopped run is continued; ``--again`` measures it
anew. Run it on a machine that does nothing else: an hour on two cores. ``--tiny`` only tries that everything
runs. ``--avx2`` keeps torch, oneDNN and the compiler from using more than AVX2: what a CPU without bf16 units
does, in float32, in a folder of its own.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEP = "step.py --precision both"
# Name: command, limit in seconds. What the targets name comes first.
PIECES: dict[str, tuple[str, int]] = {
    "step-conv6": (f"{STEP} --peers best --whole SpikingJelly plain", 900),
    # What time_to_accuracy.py takes a step of each way to cost.
    "step-conv6-N128": (
        f"{STEP} --batch 128 --peers best --whole SpikingJelly --taught"
        " --only fused rate-based taught twin SpikingJelly snnTorch --runs 5",
        1200,
    ),
    **{
        f"step-conv6-N128-T{T}": (
            f"{STEP} --batch 128 --time-steps {T} --taught --only fused rate-based taught twin --runs 5",
            300,
        )
        for T in (1, 2)
    },
    "step-conv6-rate-based": (f"{STEP} --batch 128 --only fused rate-based twin --runs 7", 420),
    "step-conv6-rate-based-T16": (f"{STEP} --time-steps 16 --only fused rate-based twin --runs 7", 420),
    # 17 to 19 % fire, as in trained networks.
    "step-conv6-rates": (f"{STEP} --bias 0.1 --runs 7", 420),
    "step-conv6-wide": (f"{STEP} --width 2 --runs 7", 420),
    "memory-conv6-bfloat16": ("memory.py --precision bfloat16", 240),
    "memory-conv6-float32": ("memory.py", 240),
    "memory-conv6-T4": ("memory.py --time-steps 4 --precision bfloat16", 240),
    "memory-conv6-T16": ("memory.py --time-steps 16 --precision bfloat16", 240),
    "memory-conv6-T4-float32": ("memory.py --time-steps 4", 240),
    "memory-conv6-T16-float32": ("memory.py --time-steps 16", 300),
    "distill-bfloat16": ("distill.py --precision bfloat16 --runs 15", 240),
    "distill-float32": ("distill.py --runs 15", 300),
    "step-conv6-T16": (f"{STEP} --time-steps 16 --runs 5", 400),
    "step-ms_resnet18": (f"{STEP} --network ms_resnet18 --batch 16 --runs 7", 600),
    "first-bfloat16": ("first.py --precision bfloat16", 400),
    "first-float32": ("first.py", 400),
    "memory-ms_resnet18-bfloat16": ("memory.py --network ms_resnet18 --batch 16 --precision bfloat16", 300),
    "memory-ms_resnet18-float32": ("memory.py --network ms_resnet18 --batch 16", 300),
    "event_driven": ("event_driven.py", 300),
    "event_driven-shapes": ("event_driven.py --shapes --runs 5", 600),
    "pooling": ("pooling.py", 120),
    "single_step": ("single_step.py", 120),
    "loader": ("loader.py --runs 9", 180),
    "inference": ("inference.py", 900),
    "processes": ("processes.py", 600),
    **{f"step-conv6-T{T}": (f"{STEP} --time-steps {T} --runs 5", 300) for T in (8, 2, 1)},
    "profile-conv6-bfloat16": ("profile_step.py --precision bfloat16", 120),
    "profile-conv6-float32": ("profile_step.py", 120),
    "step-conv6-compiled": (f"{STEP} --peers best --only once twin --runs 7", 1800),
}
# For torch's own loops and the compiler's vectors, the compiler's code, oneDNN and MKL.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
TINY = {
    "step.py": "--width 0.5 --batch 4 --size 16 --runs 2", "memory.py": "--batch 4",
    "distill.py": "--batch 4 --runs 2",
    "loader.py": "--batch 8 --runs 2", "profile_step.py": "--batch 4",
    "inference.py": "--width 0.25 --batches 1 --time-steps 1 --runs 2 --whole",
    "event_driven.py": "--batch 4 --runs 2", "pooling.py": "--batch 4 --runs 2",
    "single_step.py": "--runs 2",
    "first.py": "", "processes.py": "--batch 4 --runs 1",
}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--only", nargs="*", default=[], help="pieces of these names, or whose name contains one of these"
    )
    p.add_argument("--avx2", action="store_true", help="as on a CPU without bf16 units, into OUT/avx2")
    p.add_argument("--again", action="store_true", help="also those that are already there")
    p.add_argument("--tiny", action="store_true", help="small sizes, results thrown away")
    p.add_argument("--out", type=Path, default=Path("results/performance"))
    a = p.parse_args()
    out = Path(tempfile.mkdtemp()) if a.tiny else a.out / "avx2" if a.avx2 else a.out
    out.mkdir(parents=True, exist_ok=True)
    began, failed = time.perf_counter(), []
    for name, (command, limit) in PIECES.items():
        path = out / f"{name}.json"
        wanted = not a.only or name in a.only or any(word in name for word in a.only if word not in PIECES)
        if not wanted or (path.exists() and not a.again):
            continue
        if a.avx2:
            if "bfloat16" in command:
                continue
            command = command.replace("--precision both", "--precision float32")
        script, *options = command.split()
        tiny = TINY[script].split() if a.tiny else []
        print(f"\n== {name}: {command} {' '.join(tiny)}", flush=True)
        start = time.perf_counter()
        whole = [sys.executable, str(Path(__file__).parent / script), *options, *tiny, "--json", str(path)]
        child = subprocess.Popen(whole, start_new_session=True, env=os.environ | (AVX2 if a.avx2 else {}))
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped after {limit} s")
            os.killpg(child.pid, signal.SIGKILL)  # with the processes that it started
            child.wait()
        if child.returncode:
            failed.append(name)
            print(f"{name}: failed")
        print(
            f"-- {time.perf_counter() - start:.0f} s, {time.perf_counter() - began:.0f} s in all", flush=True
        )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
