"""Do CPU convolutions' gradients write past buffers? A sweep of shapes under glibc's checked heap (Linux).

    python benchmarks/convolution_heap.py [--seconds 300] [--isa AVX2]

Each chunk of shapes runs in a process of its own with libc_malloc_debug and MALLOC_CHECK_=3: every block
carries a mark behind its last byte, and freeing one whose mark is gone aborts. A chunk that aborts is halved
down to single shapes. The first line tells whether the fault that is known (1x1, stride 2, 8 channels in,
AVX-512) is seen on this CPU at all.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

SPOIL = "import ctypes, torch; x = torch.empty(128); ctypes.memset(x.data_ptr() + 512, 171, 1); del x"
CHILD = """
import json, sys, torch
from torch.nn import functional as F
for C, K, k, s, p, g, size, dtype, layout, n in json.loads(sys.stdin.read()):
    dtype, layout = getattr(torch, dtype), getattr(torch, layout)
    for _ in range(3):
        x = torch.randn(n, C, size, size).to(dtype).contiguous(memory_format=layout).requires_grad_()
        w = torch.randn(K, C // g, k, k).to(dtype).requires_grad_()
        y = F.conv2d(x, w, None, s, p, groups=g)
        y.backward(torch.randn_like(y))
        del x, w, y
"""
KNOWN = [8, 16, 1, 2, 0, 1, 48, "float32", "channels_last", 96]


def checked(code: str, given: str, isa: str | None) -> bool:
    """Whether a process under the checked heap ends well."""
    places = [
        *Path("/lib").glob("*-linux-gnu/libc_malloc_debug.so*"),
        *Path("/lib64").glob("libc_malloc_debug.so*"),
    ]
    env = os.environ | {"LD_PRELOAD": str(places[0]) if places else "", "MALLOC_CHECK_": "3"}
    child = [sys.executable, "-c", code]
    env |= {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
    return (
        subprocess.run(child, input=given.encode(), env=env, capture_output=True, check=False).returncode == 0
    )


def survives(shapes: list[list[object]], isa: str | None) -> bool:
    """Whether these gradients leave the heap whole."""
    return checked(CHILD, json.dumps(shapes), isa)


def guilty(shapes: list[list[object]], isa: str | None) -> list[list[object]]:
    """The shapes that do not survive by themselves."""
    if survives(shapes, isa):
        return []
    if len(shapes) == 1:
        return shapes
    middle = len(shapes) // 2
    return guilty(shapes[:middle], isa) + guilty(shapes[middle:], isa)


def main() -> None:
    """Sweep until the time is up; print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--isa", default=None, help="ONEDNN_MAX_CPU_ISA: AVX2, AVX512_CORE, ...")
    given = parser.parse_args()
    if checked(SPOIL, "", None):
        raise SystemExit("the checked heap is not at work: glibc's libc_malloc_debug.so is needed")
    print("the known fault is", "not seen here" if survives([KNOWN], given.isa) else "seen here", flush=True)
    shapes = [
        [C, K, k, s, p, g, size, dtype, layout, n]
        for C, K, k, s, p, size, dtype, layout, n in itertools.product(
            (1, 2, 3, 4, 7, 8, 12, 15, 16, 20, 24, 31, 33), (1, 4, 8, 16, 24, 32), (1, 2, 3, 5), (1, 2, 3, 4),
            (0, 1, 2),
            (1, 2, 5, 8, 15), ("float32", "bfloat16"), ("channels_last", "contiguous_format"), (1, 9),
        )
        for g in ((1, C) if K % C == 0 else (1,))
        if p < max(k, 2) and size + 2 * p >= k
    ]  # fmt: skip
    random.Random(0).shuffle(shapes)
    end, done, found = time.time() + given.seconds, 0, []
    while time.time() < end and done < len(shapes):
        found += guilty(shapes[done : done + 1000], given.isa)
        done += 1000
    print(f"{min(done, len(shapes))} of {len(shapes)} shapes, {len(found)} write past a buffer")
    for C, K, k, s, p, g, size, dtype, layout, n in found:
        print(
            f"({n}, {C}, {size}, {size}) to {K}, kernel {k}, stride {s}, padding {p}, groups {g}, {dtype}, "
            f"{layout}"
        )


if __name__ == "__main__":
    main()
