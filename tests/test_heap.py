"""Freed memory, kept or given back: what the kernel counts in a fresh process."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told"
)

# Pages that the system had to provide for ten allocations of 32 MB (8192 pages), and resident MB after the
# last was freed. Ten others come first: what small blocks leave between large ones settles.
PROGRAM = """
import resource, torch
from pathlib import Path
from spikedistill import heap

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

def allocate():
    for _ in range(10):
        torch.ones(8 << 20)

told = heap.{way}()
allocate()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = resident()
allocate()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
large = torch.ones(64 << 20)
del large
print(told, faults, resident() - before)
"""


def said(program: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.split()


def measured(way: str) -> tuple[bool, int, float]:
    told, faults, rest = said(PROGRAM.format(way=way))
    return told == "True", int(faults), float(rest)


def test_kept_memory_is_used_again() -> None:
    told, faults, rest = measured("keep")
    assert told
    assert faults < 1000
    assert rest > 200


def test_memory_given_back_is_gone() -> None:
    told, faults, rest = measured("give_back")
    assert told
    assert faults > 10_000
    assert rest < 10


def test_the_users_own_settings_stand() -> None:
    asked = "from spikedistill import heap; print(heap.{way}())"
    assert said(asked.format(way="keep"), MALLOC_MMAP_MAX_="100") == ["False"]
    assert said(asked.format(way="give_back"), GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000") == [
        "False"
    ]
    assert said(asked.format(way="keep")) == ["True"]
