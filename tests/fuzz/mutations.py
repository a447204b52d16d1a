"""Mutations of files: of bytes, of text, and of the numbers inside, each a pure function of its seed."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

ODD = (0, 1, -1, 2, 127, 255, 256, 65535, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 63, -(1 << 63),
       1_000_003)  # fmt: skip
WORDS = (b"&a ", b"*a", b"[", b"]", b"{", b"}", b": ", b"- ", b"\n", b".inf", b".nan", b"-1", b"1e999",
         b"null", b"!!binary ",
         b"\xff\xfe", b"\0", b"2020-13-45", b'"\\ud800"', b"9" * 40, b"<<: *a", b"? ", b"|", b">", b"#", b"%",
         b"@")  # fmt: skip


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled, or overwritten by odd integers and words of text formats."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not out:
            break
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(len(out), 256))
        what = rng.randrange(7)
        if what == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at] = rng.randrange(256)
        elif what == 2:
            del out[at : at + rng.choice((1, 1, 4, 64, 100_000))]
        elif what == 3:
            out[at:at] = out[at : at + rng.choice((1, 4, 64))]
        elif what == 4:
            kind = rng.choice(["<H", "<I", ">I", "<Q", ">Q"])
            packed = struct.pack(kind, rng.choice(ODD) % (1 << 8 * struct.calcsize(kind)))
            out[at : at + len(packed)] = packed
        elif what == 5:
            out[at:at] = rng.choice(WORDS) * rng.choice((1, 1, 1, 50))
        else:
            out[at : at + rng.choice((1, 4, 16))] = rng.choice(WORDS)
    return bytes(out)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of JSON values in which one to three places hold something else."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        waiting = [tree]
        while waiting:
            here = waiting.pop()
            items = (
                here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
            )
            for key, value in items:
                places.append((here, key))
                waiting.append(value)
        if not places:
            return tree
        here, key = rng.choice(places)
        value: Any = rng.choice(
            (rng.choice(ODD), rng.choice(ODD), -here[key] if isinstance(here[key], int) else "x", None, True,
            0.5, float("nan"),
             float("inf"), [], {}, [here[key]] * 3, "", "conv", 10**30)
        )  # fmt: skip
        if rng.random() < 0.15 and isinstance(here, dict):
            del here[key]
        elif rng.random() < 0.1 and isinstance(here, list):
            here.insert(key, here[key])
        else:
            here[key] = value
    return tree


Case = tuple[Callable[[random.Random], bytes], Callable[[Any], Any]]
